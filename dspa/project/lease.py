"""The right to run a job: held by one process at a time, on whatever host.

The holder keeps a file ``.lease-N`` in the job's folder and renews it every few seconds. Another
process takes over by making ``.lease-N+1``, which only one of several can: making a file that must
not exist is atomic on every file system. A holder that finds a later lease stops at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dspa.data.errors import InputError
from dspa.dataflow.process import is_alive, out_of_memory, this_process
from dspa.project.figures import duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Seconds between renewals, and of silence after which a holder on another machine is given up.
BEAT = 5.0
SILENT = 90.0
STOP = ".stop"
_NAME = re.compile(r"\.lease-(\d+)")


@dataclass(frozen=True)
class Holder:
    """The process that holds a job, or held it last.

    Attributes
    ----------
    number : int
        Of its lease; 0 if there is none and only the job's record names a process.
    process : dict
        From `dspa.dataflow.process.this_process`.
    silent : float or None
        Seconds since the lease was renewed.
    """

    number: int
    process: dict[str, Any]
    silent: float | None = None

    @property
    def gone(self) -> str:
        """Why it does not run any more, in words; empty if it does or may."""
        alive = is_alive(self.process)
        if alive is None and self.silent is not None and self.silent > SILENT:
            return f"nothing was heard of it for {duration(self.silent)} ({self.where})"
        if alive is not False:
            return ""
        why = out_of_memory(self.process)
        return "its process has gone" + (f", {why}" if why else "")

    @property
    def where(self) -> str:
        """Process and host in words."""
        host = self.process.get("host", "an unknown host")
        return f"process {self.process.get('pid', '?')} on {host}"

    @property
    def heard(self) -> str:
        """How long ago a process on another machine was heard of, to follow its place."""
        return "" if self.silent is None else f", heard of {duration(self.silent)} ago"


def holder(folder: Path, process: dict[str, Any]) -> Holder:
    """Return who holds a job.

    Parameters
    ----------
    folder : Path
        Of the job.
    process : dict
        What the job's record says, for jobs without a lease.
    """
    number, path = _last(folder)
    if path is None:
        return Holder(0, process)
    try:
        text, renewed = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except OSError:  # it ended just now
        return Holder(number, process)
    try:
        found = json.loads(text)
    except ValueError:  # being written
        found = {}
    known = found if isinstance(found, dict) and found else {"host": "another host"}
    silent = 0.0 if is_alive(known) is not None else max(0.0, _clock(folder) - renewed)
    return Holder(number, known, silent)


@dataclass
class Lease:
    """A lease that is held; see `claim`.

    Attributes
    ----------
    path : Path
    stop : callable
        Called once, in another thread, with the reason why the job must end.
    """

    path: Path
    stop: Callable[[str], None]
    lost: bool = False
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def keep(self) -> None:
        """Begin to renew it."""
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give it up; a lease that was taken over belongs to the other process."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        if self.lost:
            return
        own = _number(self.path)
        with contextlib.suppress(OSError):
            (self.path.parent / STOP).unlink(missing_ok=True)
            for path in self.path.parent.glob(".lease-*"):
                if _number(path) <= own:
                    path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            try:
                if _last(self.path.parent)[0] > _number(self.path):
                    self.lost = True
                    self.stop("another process took the job over")
                    return
                os.utime(self.path)
                if (self.path.parent / STOP).exists():
                    (self.path.parent / STOP).unlink(missing_ok=True)
                    self.stop("dspa kill")
                    return
            except FileNotFoundError:  # deleted with its folder
                if self._done.is_set():
                    return
                self.lost = True
                self.stop("the folder of the job is gone")
                return
            except OSError:  # a file system that is away for a moment
                continue


def claim(
    folder: Path,
    process: dict[str, Any],
    *,
    stop: Callable[[str], None],
    called: str,
    ends: str,
    alone: bool = False,
    force: bool = False,
) -> Lease:
    """Take the right to run a job, or a session.

    Parameters
    ----------
    folder : Path
        Of it.
    process : dict
        What the job's record says of the process that ran it; empty for one that never ran.
    stop : callable
        As for `Lease`.
    called, ends : str
        What is run, and the command that ends it, for messages.
    alone : bool
        Whether this process does nothing else.
    force : bool
        Take it from a process on another machine, which the user knows to be gone.

    Raises
    ------
    InputError
        If another process holds it.
    """
    held = holder(folder, process)
    if held.process and not held.gone:
        if is_alive(held.process):
            raise InputError(f"{called} is running ({held.where}); {ends} ends it")
        if not force:
            wait = "" if held.silent is None else f", or wait: after {SILENT:.0f} s of silence it "
            wait += "counts as gone" if wait else ""
            raise InputError(
                f"{called} is running ({held.where}{held.heard}); if that machine is gone, add "
                f"--force{wait}"
            )
    path = folder / f".lease-{held.number + 1}"
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(json.dumps(this_process() | {"alone": alone, "main": _in_main()}))
    except FileExistsError as error:
        raise InputError(f"{called} is being resumed by another process at this moment") from error
    except OSError:  # a full disk
        path.unlink(missing_ok=True)
        raise
    (folder / STOP).unlink(missing_ok=True)  # was meant for the one before
    lease = Lease(path, stop)
    lease.keep()
    return lease


def stopper(raised: type[BaseException]) -> Callable[[str], None]:
    """Return a function that ends what the current thread is doing, from another thread.

    Parameters
    ----------
    raised : type
        Exception that the current thread will see.
    """
    thread = threading.current_thread()

    def stop(_reason: str) -> None:
        if thread is threading.main_thread():
            signal.pthread_kill(thread.ident or 0, signal.SIGTERM)
        else:
            number = ctypes.c_ulong(thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(raised))

    return stop


def _in_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _last(folder: Path) -> tuple[int, Path | None]:
    """Return the highest lease of a job and its number."""
    found = {_number(path): path for path in folder.iterdir()}
    number = max(found, default=0)
    return number, found[number] if number > 0 else None


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else 0


def _clock(folder: Path) -> float:
    """Return the time by the clock of the file system, which dates the leases of all hosts."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            return os.fstat(stream.fileno()).st_mtime
    except OSError:
        return time.time()
