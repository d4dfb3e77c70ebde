"""The dashboard of clusters started here is for those who started them.

Whoever reads it sees names of files and functions; other accounts of the machine reach its port. So
its address holds a secret, and every other address is not found: Dask would send `/` on to the
secret one, and `/sitemap.json` lists it. Workers have no pages of their own.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from tornado.web import ErrorHandler

if TYPE_CHECKING:
    from tornado.httputil import HTTPServerRequest

BYTES = 24


def new_secret() -> str:
    """Return what nobody can guess, as a part of an address."""
    return secrets.token_urlsafe(BYTES)


def hide(scheduler: Any, secret: str) -> None:
    """Answer to addresses that begin with the secret only.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Started with ``http_prefix=secret``, in this process.
    secret : str
    """
    application = scheduler.http_application
    known = application.find_handler

    def find_handler(request: HTTPServerRequest, **options: Any) -> Any:
        given = request.path.split("/")[1] if "/" in request.path else ""
        if secrets.compare_digest(given.encode(), secret.encode()):
            return known(request, **options)
        return application.get_handler_delegate(request, ErrorHandler, {"status_code": 404})

    application.find_handler = find_handler
