"""Run another program as a child process that does not outlive its job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

# Lines kept to say why a program failed.
KEPT = 200
# Linux kills the program when the thread that waits for it dies, even by SIGKILL; elsewhere only
# an orderly end of the job does.
_GUARD = """
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit("the job has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Ended(NamedTuple):
    """How a program ended.

    Attributes
    ----------
    status : int
        Its exit status; the negative number of the signal that killed it.
    lines : tuple of str
        The last that it printed, without empty ones.
    late : bool
        Killed because its time was over.
    """

    status: int
    lines: tuple[str, ...]
    late: bool

    @property
    def signal(self) -> str:
        """Name of the signal that killed it; empty if none did."""
        return signal.Signals(-self.status).name if self.status < 0 else ""


def run_program(
    arguments: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    told: Callable[[str], None] | None = None,
    seconds: float | None = None,
) -> Ended:
    """Run a program in a folder until it ends; kill it if this call ends before.

    Parameters
    ----------
    arguments : sequence of str
        Absolute path of the program, and its arguments; relative paths start at ``folder``.
    folder : Path
        Where it runs.
    environment : mapping
        Its variables.
    told : callable, optional
        Takes each line that it prints, as it comes.
    seconds : float, optional
        Time after which it is killed, with all that it started.
    """
    last: deque[str] = deque(maxlen=KEPT)
    late = threading.Event()
    with _started(arguments, folder, environment) as process:
        assert process.stdout is not None

        def stop() -> None:
            late.set()
            kill(process)

        timer = threading.Timer(seconds, stop) if seconds is not None else None
        try:
            if timer is not None:
                timer.start()
            for line in process.stdout:
                text = line.rstrip()
                if text:
                    last.append(text)
                    if told is not None:
                        told(text)
            status = process.wait()
        finally:
            if timer is not None:
                timer.cancel()
    return Ended(status, tuple(last), late.is_set())


@contextlib.contextmanager
def _started(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid())]
    process = subprocess.Popen(
        [*guard, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield process
            except BaseException:
                kill(process)
                raise
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a program and what it started, if it still runs.

    Parameters
    ----------
    process : Popen
        Begun in a session of its own.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
