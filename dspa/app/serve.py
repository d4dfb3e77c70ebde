"""``dspa app``: the pages of a project, on the loopback address, behind a secret path.

Whoever can read job folders as the user can read these pages, so they are served to this machine
only, and only under an address with a token that nobody else can guess.
"""

from __future__ import annotations

import logging
import secrets
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.server.server import Server
from tornado.web import HTTPError, RequestHandler

from dspa.app import classes, exposures, monitor, picks
from dspa.data.errors import InputError
from dspa.project.lineage import find_job

if TYPE_CHECKING:
    from collections.abc import Callable

    from dspa.project.project import Project

HOST = "127.0.0.1"


class Report(RequestHandler):
    """``report/J5``: the report of a job."""

    def initialize(self, project: Project) -> None:
        """Take the project.

        Parameters
        ----------
        project : Project
        """
        self.project = project

    def get(self, name: str) -> None:
        """Answer with the report's page.

        Parameters
        ----------
        name : str
            The job, ``J5``.
        """
        try:
            path = find_job(self.project, name).folder / "report.html"
        except InputError as error:
            raise HTTPError(404) from error
        if not path.is_file():
            raise HTTPError(404)
        self.set_header("Content-Security-Policy", "default-src 'none'; img-src data:; "
                        "style-src 'unsafe-inline'")  # fmt: skip
        self.write(path.read_bytes())


def make_server(project: Project, *, port: int = 0, token: str = "") -> tuple[Any, str]:
    """Return a server that is ready to start, and the address of its page.

    Parameters
    ----------
    project : Project
    port : int
        0 for a free one.
    token : str
        Made up if empty.
    """
    token = token or secrets.token_urlsafe(24)
    prefix = f"/{token}"
    port = port or _free_port()
    shelf = picks.Shelf()
    pages = {
        "/": partial(monitor.page, project, f"{prefix}/report/"),
        "/exposures": partial(exposures.page, project),
        "/picks": partial(picks.page, project, shelf),
        "/classes": partial(classes.page, project, shelf.pool),
    }
    try:
        server = Server(
            {name: Application(FunctionHandler(fill)) for name, fill in pages.items()},
            port=port,
            address=HOST,
            prefix=prefix,
            allow_websocket_origin=[f"{HOST}:{port}", f"localhost:{port}"],
            extra_patterns=[(r"/report/([Jj]\d+)", Report, {"project": project})],
            use_xheaders=False,
        )
    except OSError as error:
        raise InputError(f"--port {port} cannot be used ({error.strerror})") from error
    return server, f"http://{HOST}:{server.port}{prefix}/"


def keep_from_logs(secret: str) -> None:
    """Write a secret as three dots wherever this process logs it.

    The web server names the addresses of requests that fail, and they hold the token.

    Parameters
    ----------
    secret : str
    """
    make = logging.getLogRecordFactory()

    def without(*args: Any, **kwargs: Any) -> logging.LogRecord:
        """Make a log record, and take the secret out of it."""
        record = make(*args, **kwargs)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit: logging says so itself
            text = f"{record.msg} {record.args}"
        if secret in text:
            record.msg, record.args = text.replace(secret, "..."), ()
        if record.exc_info:
            story = logging.Formatter().formatException(record.exc_info)
            if secret in story:
                record.exc_info, record.exc_text = None, story.replace(secret, "...")
        return record

    logging.setLogRecordFactory(without)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def serve(project: Project, *, port: int = 0, told: Callable[[str], Any] = print) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    project : Project
    port : int
    told : callable
        Told the address.
    """
    token = secrets.token_urlsafe(24)
    keep_from_logs(token)
    server, address = make_server(project, port=port, token=token)
    told(
        f"{address}\non this machine only; from another: ssh -L {server.port}:{HOST}:{server.port}"
    )
    server.start()
    try:
        server.io_loop.start()
    finally:
        server.stop()
