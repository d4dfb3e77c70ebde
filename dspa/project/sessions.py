"""The record of a live session, and what is asked of it from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError, plainly
from dspa.data.places import relative_inside
from dspa.dataflow.events import plain
from dspa.dataflow.process import is_alive
from dspa.project.job import DAMAGE, read_fields
from dspa.project.lease import STOP, Holder, holder

if TYPE_CHECKING:
    from collections.abc import Callable

    from dspa.project.project import Project

FOLDER = "live"  # in a project, one for each session
PAUSE = ".pause"
# Seconds in which a session that is told to stop may write its records and end its workers.
PATIENCE = 60.0
LAYOUT_VERSION = 1


@dataclass(frozen=True)
class SessionRecord:
    """What ``session.json`` holds.

    Attributes
    ----------
    name : str
    workflow : str
        Its file.
    folder : str
        Current folder when it was begun; relative names start there.
    state : str
        ``running``, ``stopped`` or ``failed``; a running one whose process has gone was killed.
    error : str
        One sentence, if it failed.
    figures : dict
        Exposures seen, done, set aside, waiting, rejected; picks, particles; rates.
    """

    name: str
    workflow: str
    folder: str
    state: str = "stopped"
    error: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    layout_version: int = LAYOUT_VERSION


@dataclass(frozen=True)
class LiveSession:
    """A session in a project.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    def read(self) -> SessionRecord:
        """Read ``session.json``."""
        path = self.folder / "session.json"
        try:
            record = SessionRecord(**read_fields(path, SessionRecord))
            root = self.folder.parent.parent
            whole = {
                key: os.path.normpath(root / getattr(record, key)) for key in ("workflow", "folder")
            }
            return dataclasses.replace(record, **whole)
        except DAMAGE as error:
            told = f"{path} is not a readable record of a session ({plainly(error)})"
            raise InputError(told) from error

    def write(self, **fields: Any) -> None:
        """Change some fields of ``session.json``.

        Parameters
        ----------
        **fields : Any
            As of `SessionRecord`.
        """
        self._write(dataclasses.replace(self.read(), **fields))

    def _write(self, record: SessionRecord) -> None:
        root = self.folder.parent.parent
        inside = {
            key: relative_inside(getattr(record, key), root, root) for key in ("workflow", "folder")
        }
        text = json.dumps(plain(dataclasses.asdict(record) | inside), indent=1)
        write_atomically(self.folder / "session.json", lambda out: out.write(text.encode()))

    @property
    def holder(self) -> Holder | None:
        """The process that runs it; None if none does."""
        held = holder(self.folder, {})
        return held if held.process and not held.gone else None

    @property
    def paused(self) -> bool:
        """Whether it is to do nothing for a while."""
        return (self.folder / PAUSE).exists()

    @property
    def state(self) -> str:
        """``running``, ``paused``, ``stopped``, ``killed`` or ``failed``."""
        if self.holder is not None:
            return "paused" if self.paused else "running"
        state = self.read().state
        return "killed" if state == "running" else state


def sessions(project: Project) -> list[LiveSession]:
    """Return the sessions of a project, by name.

    Parameters
    ----------
    project : Project
    """
    found = (project.folder / FOLDER).glob("*/session.json")
    return [LiveSession(path.parent) for path in sorted(found)]


def open_session(project: Project, workflow: Path) -> LiveSession:
    """Return the session of a workflow file, which is made if there is none.

    Parameters
    ----------
    project : Project
    workflow : Path
    """
    file = os.path.realpath(workflow)
    taken = set()
    for session in sessions(project):
        if session.read().workflow == file:
            return session
        taken.add(session.name)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(workflow).stem).strip("-") or "session"
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 10_000))
    session = LiveSession(project.folder / FOLDER / next(n for n in names if n not in taken))
    session.folder.mkdir(parents=True, exist_ok=True)
    session._write(SessionRecord(session.name, file, str(Path.cwd())))
    return session


def find_session(project: Project, name: str = "") -> LiveSession:
    """Return the session of a name; without one the one that runs, or the only one.

    Parameters
    ----------
    project : Project
    name : str
    """
    found = sessions(project)
    if name:
        named = [session for session in found if session.name == name]
    else:
        named = [session for session in found if session.holder is not None] or found
    if len(named) == 1:
        return named[0]
    has = ", ".join(session.name for session in found) or "none yet; dspa live WORKFLOW.yaml"
    if not named:
        raise InputError(f"there is no session {name}".rstrip() + f"; there are: {has}")
    raise InputError(f"several sessions are here; say which: {has}")


def stop(
    session: LiveSession,
    *,
    patience: float = PATIENCE,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """End a session at once; what is under way goes on from there when it is begun again.

    Parameters
    ----------
    session : LiveSession
    patience : float
        Seconds to wait for its end.
    tell : callable
        Told where it runs, if that is another machine.
    """
    held = session.holder
    if held is None:
        raise InputError(f"session {session.name} is {session.state}; it does not run")
    if is_alive(held.process) and held.process.get("main", True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(held.process["pid"]), signal.SIGTERM)
    else:
        (session.folder / STOP).touch()
        tell(f"asked {held.where} to end through the session's folder")
    begun = time.monotonic()
    while session.holder is not None:
        if time.monotonic() - begun > patience:
            raise InputError(f"session {session.name} ({held.where}) does not stop; end it there")
        time.sleep(0.1)


def pause(session: LiveSession) -> None:
    """Have a session begin no further round.

    Parameters
    ----------
    session : LiveSession
    """
    if session.holder is None:
        raise InputError(f"session {session.name} is {session.state}; it does not run")
    (session.folder / PAUSE).touch()


def go_on(session: LiveSession) -> None:
    """Have a paused session go on.

    Parameters
    ----------
    session : LiveSession
    """
    if not session.paused:
        raise InputError(f"session {session.name} is {session.state}; it is not paused")
    (session.folder / PAUSE).unlink(missing_ok=True)


def told(figures: dict[str, Any]) -> str:
    """Say in a line how a session goes.

    Parameters
    ----------
    figures : dict
        As in its record.
    """

    def count(name: str) -> str:
        return f"{int(figures.get(name) or 0):,}"

    parts = [
        f"{count('seen')} seen, {count('done')} done, {count('set_aside')} set aside"
        + (f", {count('rejected')} rejected" if figures.get("rejected") else "")
        + f", {count('waiting')} waiting"
    ]
    made = [f"{count(name)} {name}" for name in ("picks", "particles") if name in figures]
    if made:
        parts.append(", ".join(made))
    if each := figures.get("seconds_each"):
        parts.append(f"{each:.1f} s an exposure ({3600 / each:,.0f} an hour)")
    if rate := figures.get("arrive_per_hour"):
        parts.append(f"the microscope makes {rate:,.0f} an hour")
    return "; ".join(parts)
