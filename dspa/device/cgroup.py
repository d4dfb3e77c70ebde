"""Limits that the kernel puts on a group of processes: those of a container, or of a batch job.

A group lies in others, and each may have a limit. Both versions of the kernel's interface are read
(Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst); where there is neither,
nothing is limited and nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 62
ROOT = Path("/")


@dataclass(frozen=True)
class _Interface:
    """Where one version keeps what: folder of the groups, and names of files and fields."""

    folder: str
    limit: str
    used: str
    kills: str
    droppable: str


_V2 = _Interface("sys/fs/cgroup", "memory.max", "memory.current", "memory.events", "inactive_file")
_V1 = _Interface(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.oom_control",
    "total_inactive_file",
)


def memory_left(root: Path = ROOT) -> int:
    """Bytes that this process may still take before a limit of its groups; very many if none is.

    Parameters
    ----------
    root : Path
        Of the file system in which ``proc`` and ``sys`` lie.

    Returns
    -------
    int
        The least over its group and those around it. Pages of files that the kernel can drop count
        as free.
    """
    return min((_left(*each) for each in _groups(root)), default=UNLIMITED)


def memory_limit(root: Path = ROOT) -> int:
    """Bytes that the groups of this process may take together; very many if nothing limits them.

    Parameters
    ----------
    root : Path
        As for `memory_left`.
    """
    texts = [_text(folder / interface.limit).strip() for folder, interface in _groups(root)]
    return min((int(text) for text in texts if text.isdecimal()), default=UNLIMITED)


def kill_count(file: Path | None = None, root: Path = ROOT) -> tuple[Path, int] | None:
    """Count the processes that the kernel has ended for want of memory; name the file that tells.

    Parameters
    ----------
    file : Path, optional
        As was returned before; the count of this process's own group if left out, or of the whole
        machine where groups do not count.
    root : Path

    Returns
    -------
    tuple of Path and int, or None where nothing counts them
    """
    own = [folder / interface.kills for folder, interface in list(_groups(root))[:1]]
    for each in [file] if file is not None else [*own, root / "proc/vmstat"]:
        for line in _text(each).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdecimal():
                return each, int(value)
    return None


def _groups(root: Path) -> list[tuple[Path, _Interface]]:
    """Return the groups of this process whose memory is accounted, the innermost first."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "memory" not in controllers.split(","):
            continue
        interface = _V2 if number == "0" else _V1
        top = root / interface.folder
        if number == "0" and (top / "unified").is_dir():  # both versions side by side
            top /= "unified"
        # In a container the path may be that of the host, of which only the end is seen here.
        inner = top.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        for folder in (inner, *inner.parents):
            if (folder / interface.limit).is_file():
                found.append((folder, interface))
            if folder == top:
                break
    return found


def _left(folder: Path, interface: _Interface) -> int:
    limit, used = _text(folder / interface.limit).strip(), _text(folder / interface.used).strip()
    if not limit.isdecimal() or not used.isdecimal():  # "max", or gone at this moment
        return UNLIMITED
    free = int(limit) - int(used)
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == interface.droppable and value.strip().isdecimal():
            free += int(value)
    return max(0, min(free, int(limit)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
