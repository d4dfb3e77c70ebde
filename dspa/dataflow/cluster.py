"""Clusters by name: ``local``, ``local:4``, ``cuda``, ``tcp://...``, ``tls://...``, ``FILE.yaml``.

A cluster starts when it is first used. The ones started here listen on the loopback address only
and speak TLS with a certificate of their own, because whoever can reach a Dask scheduler can run
code as its owner.
"""

from __future__ import annotations

import atexit
import importlib.util
import ipaddress
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Client, LocalCluster, Security
from distributed.deploy.spec import close_clusters
from distributed.system import MEMORY_LIMIT

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.cuda_cluster import CPU_RESOURCE, GPU_RESOURCE, Layout, start_workers
from dspa.dataflow.dask_settings import send_at_once, settle
from dspa.dataflow.private_pages import hide, new_secret
from dspa.dataflow.scratch import scratch_folder
from dspa.dataflow.yaml_file import read_yaml
from dspa.device import readiness
from dspa.device.cgroup import memory_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SPELLINGS = "local, local:N, cuda, cuda:N, tcp://HOST:PORT, tls://HOST:PORT or a FILE.yaml"
# Times that a cluster is started whose workers die meanwhile.
ATTEMPTS = 3
LARGEST = 4096  # workers
STALE = 5.0  # seconds after which it is asked again where workers are
LOCAL_OPTIONS = ("memory_limit", "local_directory", "dashboard_address")  # of a FILE.yaml
LEAST = 300 << 20  # bytes; at rest a worker takes 128 MiB, and Dask ends one that reaches its limit
_ADDRESS = re.compile(
    r"(?:tls|(?:insecure\+)?tcp)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})"
)


@dataclass
class Cluster:
    """A Dask cluster that starts, or is connected to, when its client is first asked for.

    Attributes
    ----------
    name : str
        As the user spelled it.
    start : callable
        Returns a connected client, and what to close after it.
    known_workers : int or None
        Known before the start for local clusters; else asked of the scheduler.
    known_memory : int or None
        Bytes per worker; as above.
    remote : bool
        Whether it runs already, so that connecting early costs nothing and tells of mistakes.
    secret : str
        Part of the address of the dashboard, if it was started here.
    """

    name: str
    start: Callable[[], tuple[Client, tuple[Any, ...]]]
    known_workers: int | None = None
    known_memory: int | None = None
    remote: bool = False
    mixed: bool | None = None
    device_memory: int | None = None
    _client: Client | None = None
    secret: str = ""
    _closing: tuple[Any, ...] = field(default=())
    _homes: dict[bool, tuple[float, list[str]]] = field(default_factory=dict)

    @property
    def started(self) -> bool:
        """Whether it was needed so far."""
        return self._client is not None

    @property
    def client(self) -> Client:
        """The client; starts the cluster."""
        if self._client is None:
            try:
                self._client, self._closing = self.start()
                send_at_once(self._client)
            except InputError:
                raise
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise InputError(
                    f"--cluster {self.name}: cannot be used ({reason}); check its address, "
                    "certificates and options"
                ) from error
        return self._client

    @property
    def workers(self) -> int:
        """Number of workers: the tasks of a pass that run at once."""
        return self.known_workers or max(1, len(self.homes(host=False)))

    @property
    def addresses(self) -> list[str]:
        """Where the workers are now, in a fixed order."""
        return sorted(self.client.nthreads())

    def resources(self, *, host: bool) -> dict[str, int]:
        """Return what a task asks for; nothing where all workers are alike.

        Parameters
        ----------
        host : bool
            Whether it computes on CPUs alone.
        """
        if self.mixed is None:
            kinds = {kind for worker in self._ask().values() for kind in worker["resources"]}
            self.mixed = {*CPU_RESOURCE, *GPU_RESOURCE} <= kinds
        if not self.mixed:
            return {}
        return dict(CPU_RESOURCE if host else GPU_RESOURCE)

    def homes(self, *, host: bool) -> list[str]:
        """Where the workers are now that take such tasks, in a fixed order.

        Parameters
        ----------
        host : bool
            As for `resources`.
        """
        # Not asked for anew with every pass: where one is gone, another takes its tasks.
        asked, known = self._homes.get(host, (0.0, []))
        if not known or time.monotonic() - asked > STALE:
            known = self._find_homes(host=host)
            self._homes[host] = time.monotonic(), known
        return known

    def _find_homes(self, *, host: bool) -> list[str]:
        wanted = self.resources(host=host)
        if not wanted:
            return self.addresses
        return sorted(
            address
            for address, worker in self._ask().items()
            if {*wanted} <= {*worker["resources"]}
        )

    @property
    def memory(self) -> int:
        """Bytes of the smallest worker."""
        if self.known_memory is not None:
            return self.known_memory
        found, homes = self._ask(), set(self.homes(host=False))
        limits = [int(each["memory_limit"]) for where, each in found.items() if where in homes]
        return min((limit for limit in limits if limit > 0), default=MEMORY_LIMIT)

    @property
    def dashboard(self) -> str:
        """Address of the dashboard, or an empty string; not for logs if it holds a secret."""
        link = str(self.client.dashboard_link or "")
        return link.replace("/status", f"/{self.secret}/status") if self.secret else link

    def close(self) -> None:
        """Close what was started here; a cluster of someone else's goes on."""
        if self._client is not None:
            self._client.close(timeout=5)
            for item in self._closing:
                item.close()
        self._client, self._closing, self._homes = None, (), {}

    def _ask(self) -> Mapping[str, Any]:
        client = self.client
        client.wait_for_workers(1, timeout=600)
        found: Mapping[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        return found


def connect(spelling: str = "local", *, routes: tuple[str, ...] = ()) -> Cluster:
    """Return the cluster a user named; nothing starts yet.

    Parameters
    ----------
    spelling : str
        One of ``SPELLINGS``. Plain ``tcp://`` is accepted for the loopback address; for another
        machine say ``insecure+tcp://`` if the network is yours alone, or use ``tls://``.
    routes : tuple of str
        Modules with pages for the dashboard of clusters started here.
    """
    kind, _, count = spelling.partition(":")
    if kind in ("local", "cuda") and "//" not in spelling:
        workers = _count(spelling, count) if count or ":" in spelling else None
        if kind == "cuda":
            return _cuda(spelling, workers, {}, routes)
        return _local(spelling, workers or CPU_COUNT, {}, routes)
    if "://" in spelling:
        return _remote(spelling, None)
    if Path(spelling).suffix in (".yaml", ".yml"):
        return _from_file(Path(spelling), routes)
    raise InputError(f"--cluster {spelling!r} is not known; use {SPELLINGS}")


def adopt(client: Client) -> Cluster:
    """Wrap a client that the caller made and will close."""
    return Cluster("client", lambda: (client, ()), _client=_Borrowed(client))


class _Borrowed:
    """A client that is not ours to close."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def close(self, timeout: float = 0) -> None:
        """Leave it open."""


def _local(name: str, workers: int, options: Mapping[str, Any], routes: tuple[str, ...]) -> Cluster:
    # Half a worker's share is left to this process, which holds the client and the scheduler.
    try:
        memory = parse_bytes(
            options.get("memory_limit", int(min(MEMORY_LIMIT, memory_limit()) / (workers + 0.5)))
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"--cluster {name}: memory_limit is no size; write 4GiB") from error
    if memory < LEAST:
        mend = "give more" if "memory_limit" in options else "use fewer, local:N"
        raise InputError(
            f"--cluster {name}: {memory / 2**20:.3g} MiB of memory for a worker, and none "
            f"starts with less than {LEAST >> 20} MiB; {mend}"
        )

    secret = new_secret()

    def start() -> tuple[Client, tuple[Any, ...]]:
        """Start workers on this machine."""
        folder = str(scratch_folder("dspa-spill-", options.get("local_directory")))
        settle(routes)
        chosen = {
            "n_workers": workers,
            "threads_per_worker": 1,
            "memory_limit": memory,
            "host": "127.0.0.1",
            "dashboard_address": str(options.get("dashboard_address", "127.0.0.1:0")),
            "scheduler_kwargs": {"http_prefix": secret},
            "local_directory": folder,
            "preload": ["dspa.dataflow.worker_setup"],
            "silence_logs": 50,
        }
        try:
            cluster = _persistent(name, chosen)
        except BaseException:  # Ctrl-C: half made it cannot be closed, and Dask would try at exit
            atexit.unregister(close_clusters)
            _Folder(folder).close()
            raise
        hide(cluster.scheduler, secret)
        return Client(cluster, set_as_default=False), (cluster, _Folder(folder))

    return Cluster(name, start, workers, memory, mixed=False, secret=secret)


def _persistent(name: str, chosen: Mapping[str, Any]) -> LocalCluster:
    """Start a cluster; again, if a worker dies before it is up, for which Dask gives all up."""
    for attempt in range(ATTEMPTS):
        try:
            return LocalCluster(security=Security.temporary(), **chosen)
        except RuntimeError as error:
            if attempt + 1 == ATTEMPTS:
                size = chosen["memory_limit"] / 2**30
                raise InputError(
                    f"--cluster {name}: workers die as they start, {ATTEMPTS} times now ({error}), "
                    f"most likely for want of memory ({size:.1f} GiB each): use fewer, local:N"
                ) from error
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class _Folder:
    path: str

    def close(self) -> None:
        """Remove the folder that workers spilled to."""
        shutil.rmtree(self.path, ignore_errors=True)


def _cuda(
    name: str, workers: int | None, options: dict[str, Any], routes: tuple[str, ...]
) -> Cluster:
    if importlib.util.find_spec("dask_cuda") is None:
        raise InputError(f"--cluster {name}: dask-cuda is not installed: {readiness.INSTALL}")
    try:
        gpus = readiness.require_gpus()
    except readiness.NoGpu as error:
        raise InputError(f"--cluster {name}: {error}; or use --cluster local") from error
    count = workers or len(gpus)
    if count > len(gpus):
        raise InputError(
            f"--cluster {name}: {counted(len(gpus), 'GPU')} can be used here, and a worker needs "
            f"one; use cuda:{len(gpus)}"
        )
    cpus = options.pop("cpu_workers", max(1, CPU_COUNT - count))
    if isinstance(cpus, bool) or not isinstance(cpus, int) or not 0 <= cpus <= LARGEST:
        raise InputError(f"--cluster {name}: cpu_workers is {cpus!r}; it must be 0 to {LARGEST}")
    layout = Layout.of(
        count,
        cpus,
        memory=min(MEMORY_LIMIT, memory_limit()),
        gpu_memory=min(gpu.memory for gpu in gpus[:count]),
    )

    secret = new_secret()

    def start() -> tuple[Client, tuple[Any, ...]]:
        """Start a worker for every GPU of this machine, and workers beside them."""
        settle(routes)
        folder = _Folder(str(scratch_folder("dspa-spill-", options.get("local_directory"))))
        try:
            kept = {"scheduler_kwargs": {"http_prefix": secret}}
            cluster = start_workers(layout, folder.path, options | kept)
            hide(cluster.scheduler, secret)
        except Exception as error:
            folder.close()
            raise InputError(
                f"--cluster {name}: the workers of the GPUs do not start "
                f"({type(error).__name__}: {error}); use --cluster local, or check nvidia-smi"
            ) from error
        except BaseException:
            folder.close()
            raise
        return Client(cluster, set_as_default=False), (cluster, folder)

    return Cluster(
        name, start, count, layout.gpu_host,
        mixed=cpus > 0, device_memory=layout.gpu_memory, secret=secret,
    )  # fmt: skip


def check_address(address: str) -> str:
    """Return the address of a scheduler as Dask takes it, or refuse one that is not safe.

    Parameters
    ----------
    address : str
        ``tls://``, ``tcp://`` on this machine, or ``insecure+tcp://``.
    """
    # Nothing may follow or precede host and port: Dask would take another part for the host.
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise InputError(f"--cluster {address!r} is not an address; use tls://HOST:PORT")
    host, port = match["host"], match["port"]
    insecure = address.startswith("insecure+tcp://")
    plain = address.removeprefix("insecure+")
    if plain.startswith("tcp") and not insecure and not _is_loopback(host.strip("[]")):
        raise InputError(
            f"--cluster {address}: over plain tcp anyone on the network can run code as you; "
            f"use tls:// with certificates, or insecure+tcp://{host}:{port} if it is yours"
        )
    return plain


def _remote(address: str, security: Security | None) -> Cluster:
    plain = check_address(address)
    security = security or Security()
    if plain.startswith("tls://") and not security.tls_client_cert:
        raise InputError(
            f"--cluster {address} needs certificates: name them in a FILE.yaml with kind: tls, "
            "or in Dask's configuration (distributed.comm.tls)"
        )

    def start() -> tuple[Client, tuple[Any, ...]]:
        settle()
        return Client(plain, timeout=30, set_as_default=False, security=security), ()

    return Cluster(address, start, remote=True)


def _from_file(path: Path, routes: tuple[str, ...]) -> Cluster:
    """Read a cluster from YAML: ``kind`` and the options of that kind (see deploy/)."""
    options = read_yaml(path, "cluster")
    if not isinstance(options, dict) or not isinstance(options.get("kind"), str):
        raise InputError(f"--cluster {path}: it needs a line 'kind: local|cuda|tls|slurm'")
    kind = options.pop("kind")
    name = str(path)
    if kind == "local":
        count = _workers(name, options, CPU_COUNT)
        _refuse_others(name, options, LOCAL_OPTIONS, counted=True)
        return _local(name, count, options, routes)
    if kind == "cuda":
        workers = _workers(name, options, 1) if "workers" in options else None
        return _cuda(name, workers, options, routes)
    if kind == "tls":
        keys = ("ca_file", "certificate", "key", "address")
        _refuse_others(name, options, keys)
        missing = [key for key in keys if not isinstance(options.get(key), str)]
        if missing:
            raise InputError(f"--cluster {path}: kind tls needs {', '.join(missing)}")
        security = Security(
            tls_ca_file=options["ca_file"],
            tls_client_cert=options["certificate"],
            tls_client_key=options["key"],
            require_encryption=True,
        )
        return _remote(options["address"], security)
    if kind == "slurm":
        return _slurm(name, _workers(name, options, 1), options)
    raise InputError(f"--cluster {path}: kind {kind!r} is not known; use local, cuda, tls or slurm")


def _refuse_others(
    name: str, options: Mapping[str, Any], known: tuple[str, ...], *, counted: bool = False
) -> None:
    """Raise InputError for an option that would do nothing, as one that is misspelt does."""
    for option in options:
        if option not in known:
            takes = ", ".join(("kind", *(("workers",) if counted else ()), *known))
            raise InputError(f"--cluster {name}: {option} is not known; it takes {takes}")


def _workers(name: str, options: dict[str, Any], default: int) -> int:
    given = options.pop("workers", default)
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= LARGEST:
        raise InputError(f"--cluster {name}: workers is {given!r}; it must be 1 to {LARGEST}")
    return given


def _slurm(name: str, jobs: int, options: Mapping[str, Any]) -> Cluster:
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise InputError(f"--cluster {name} needs dask-jobqueue: pip install 'dspa[slurm]'")

    def start() -> tuple[Client, tuple[Any, ...]]:
        """Ask Slurm for workers."""
        from dask_jobqueue import SLURMCluster  # an extra

        settle()
        secure = {"security": Security.temporary(), "protocol": "tls://"}
        cluster = SLURMCluster(**(secure | dict(options)))
        cluster.scale(jobs=jobs)
        return Client(cluster, set_as_default=False), (cluster,)

    return Cluster(name, start)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _count(spelling: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= LARGEST:
        raise InputError(f"--cluster {spelling!r}: the number of workers must be 1 to {LARGEST}")
    return int(text)
