"""Which process is meant, told from another with the same number, host name or start."""

from __future__ import annotations

import os
import resource
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from dspa.data.counts import counted

GONE = (psutil.NoSuchProcess, psutil.AccessDenied, OSError)


def this_process() -> dict[str, Any]:
    """Describe this process so that another can tell whether it still lives."""
    ended = kill_count()
    kills = {} if ended is None else {"kills": {"file": str(ended[0]), "count": ended[1]}}
    return _machine() | {"pid": os.getpid(), "start": _start_of(os.getpid())} | kills


def is_alive(process: dict[str, Any]) -> bool | None:
    """Tell whether a described process lives; None if that cannot be told from here.

    Parameters
    ----------
    process : dict
        From `this_process`. Of another machine, or of another container on this one, nothing is
        known. A process that has ended and is not yet collected by its parent does not live.
    """
    if not process or any(process.get(key, here) != here for key, here in _machine().items()):
        return None
    if "host" not in process:
        return None
    try:
        pid = int(process.get("pid", 0))
        found = psutil.Process(pid)
        if found.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
    except (*GONE, TypeError, ValueError, OverflowError):
        return False
    return _start_of(pid) == process.get("start")


def has_ended(process: dict[str, Any]) -> bool:
    """Tell whether a described process is known to have ended: here, or before this boot.

    Parameters
    ----------
    process : dict
        From `this_process`.
    """
    here = _machine()
    rebooted = process.get("host") == here["host"] and process.get("boot", "") != here["boot"]
    return is_alive(process) is False or rebooted


def out_of_memory(process: dict[str, Any]) -> str:
    """Say how many processes the kernel ended for want of memory since one began; empty if none.

    Parameters
    ----------
    process : dict
        From `this_process`. Only of this machine, and of this boot, can it be known.
    """
    before = process.get("kills")
    if is_alive(process) is None or not isinstance(before, dict):
        return ""
    try:
        found = kill_count(Path(before["file"]))
        ended = 0 if found is None else found[1] - int(before["count"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return ""
    if found is None or ended <= 0:
        return ""
    machine = found[0].name == "vmstat"
    likely, where = ("perhaps", "on this machine") if machine else ("most likely", "of its group")
    many = counted(ended, "process")
    return f"{likely} for want of memory: the kernel has ended {many} {where} since it began"


def memory_sentence(error: MemoryError) -> str:
    """Say what to do where this process gets no more memory, with the limit that stands.

    Parameters
    ----------
    error : MemoryError
    """
    from dspa.device import memory_budget  # loads much, and is asked for once

    said = " ".join(str(error).split())
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        why = (
            f"its address space is limited to {limit / 2**30:.2f} GiB (ulimit -v, or h_vmem of a "
            "batch system): raise that"
        )
    else:
        why = (
            f"{memory_budget() / 2**30:.2f} GiB are free: use a machine with more, a smaller set, "
            "or fewer workers (--cluster local:N)"
        )
    return f"there is no more memory{f' ({said})' if said else ''}; {why}"


def kill_count(file: Path | None = None) -> tuple[Path, int] | None:
    """Count processes that the kernel has ended, as `dspa.device.cgroup.kill_count` does.

    Parameters
    ----------
    file : Path, optional
    """
    from dspa.device import (
        cgroup,  # its room loads much, and the end of a word is asked for at once
    )

    return cgroup.kill_count(file)


def family(pid: int) -> list[psutil.Process]:
    """Return the processes that a process started, and those that they did.

    Parameters
    ----------
    pid : int
    """
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except GONE:
        return []


def end(processes: list[psutil.Process], *, patience: float = 5.0) -> None:
    """End processes: ask, wait, then force. Those that ended long ago are not confused with others.

    Parameters
    ----------
    processes : list of psutil.Process
    patience : float
        Seconds between asking and forcing.
    """
    for forced in (False, True):
        for process in processes:
            try:
                process.kill() if forced else process.terminate()
            except GONE:
                continue
        _, processes = psutil.wait_procs(processes, timeout=patience)


@lru_cache(maxsize=1)
def _machine() -> dict[str, str]:
    """Name the machine, its boot, and the numbering of processes: containers have their own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        started = boot.read_text(encoding="ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        started, space = "", ""
    return {"host": socket.gethostname(), "boot": started, "space": space}


def _start_of(pid: int) -> str:
    """When a process started: in the kernel's ticks, or as near as the system tells."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except GONE:
        return ""
