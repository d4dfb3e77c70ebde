"""Temporary folders that do not outlive their process, even one that was killed."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

from dspa.dataflow.process import has_ended, this_process

OWNER = "owner.json"
# Of folders whose owner is not known: a day without a change.
STALE = 86_400.0


def scratch_folder(prefix: str, parent: str | Path | None = None) -> Path:
    """Make a temporary folder, and remove those whose processes have gone.

    Parameters
    ----------
    prefix : str
        Start of the names of this kind of folder.
    parent : path, optional
        On a local disk; the system's folder for temporary files if absent.
    """
    sweep(prefix, Path(parent or tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    (folder / OWNER).write_text(json.dumps(this_process()), encoding="utf-8")
    return folder


def sweep(prefix: str, parent: Path) -> None:
    """Remove the folders of processes that have gone.

    Parameters
    ----------
    prefix : str
    parent : Path
    """
    for folder in parent.glob(f"{prefix}*"):
        if folder.is_dir() and not folder.is_symlink() and _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)  # not those of other users


def _is_left(folder: Path) -> bool:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        owner = None
    if isinstance(owner, dict):
        return has_ended(owner)
    try:
        return time.time() - folder.stat().st_mtime > STALE
    except OSError:
        return False
