"""``dspa worker``: Dask workers on this machine with the settings that dspa relies on."""

from __future__ import annotations

import dask
from distributed.cli import dask_worker

from dspa.data.errors import InputError
from dspa.dataflow.cluster import check_address
from dspa.dataflow.dask_settings import settle
from dspa.dataflow.placement import require_device


def serve(
    address: str,
    *,
    workers: int = 1,
    memory: str = "auto",
    scratch: str | None = None,
    ca_file: str | None = None,
    certificate: str | None = None,
    key: str | None = None,
) -> None:
    """Run workers for a scheduler until it ends or they are stopped.

    Parameters
    ----------
    address : str
        ``tls://HOST:PORT``; ``tcp://`` for this machine, ``insecure+tcp://`` for others.
    workers : int
        Processes, with one thread each.
    memory : str
        Limit of each, as Dask reads it.
    scratch : str, optional
        Folder on a local disk.
    ca_file, certificate, key : str, optional
        PEM files for ``tls://``.
    """
    require_device()
    plain = check_address(address)
    if plain.startswith("tls://") and not (ca_file and certificate and key):
        raise InputError(f"{address} needs --ca-file, --certificate and --key")
    try:
        if memory != "auto":
            dask.utils.parse_bytes(memory)
    except ValueError as error:
        raise InputError(f"--memory {memory!r} is not a size; write it as 8GB") from error
    settle()
    command = [plain, "--nworkers", str(workers), "--nthreads", "1", "--memory-limit", memory]
    command += ["--no-dashboard"]
    files = {"--tls-ca-file": ca_file, "--tls-cert": certificate, "--tls-key": key}
    for option, value in (files | {"--local-directory": scratch}).items():
        command += [option, value] if value else []
    dask_worker.main(command, standalone_mode=False)
