"""The command a page stands for: shown as text, run as a job, and watched until it ends."""

from __future__ import annotations

import html
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from bokeh.layouts import column, row
from bokeh.models import Button, Div

from dspa.app.frame import ADDED, DIM, KEPT, REMOVED
from dspa.data.errors import InputError
from dspa.project.figures import line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bokeh.document import Document

    from dspa.project.job import Job, Record
    from dspa.project.project import Project

ENTRY = "import sys; from dspa.cli import main; main(sys.argv[1:])"
EVERY = 300  # ms between looks at a job that runs
COLOURS = {"completed": KEPT, "failed": REMOVED, "killed": REMOVED, "running": ADDED}


@dataclass(frozen=True)
class _Started:
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    after: int  # number of the last job before


class Command:
    """A line with the command, a button that runs it, and a line that says how it went.

    Parameters
    ----------
    project : Project
    document : Document, optional
        Where the job is watched from; without one, call `poll`.
    label : str
        Of the button.
    words : callable, optional
        Asked for the command when the button is pressed; else the one last shown.
    """

    def __init__(
        self,
        project: Project,
        document: Document | None = None,
        *,
        label: str = "run",
        words: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self.project, self.document, self.ask = project, document, words
        self.words: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.running: _Started | None = None
        self._watch: Any = None
        self.text = Div(name="command", sizing_mode="stretch_width",
                        styles={"font-family": "monospace", "color": DIM})  # fmt: skip
        self.status = Div(name="status", sizing_mode="stretch_width")
        self.button = Button(label=label, button_type="primary", width=90, name="run")
        self.button.on_click(self.start)

    @property
    def root(self) -> Any:
        """Button, command and state, for pages that place them together."""
        line_of_command = row(self.button, self.text, sizing_mode="stretch_width")
        return column(line_of_command, self.status, sizing_mode="stretch_width")

    def show(self, words: list[str]) -> None:
        """Show a command; an empty one cannot be run.

        Parameters
        ----------
        words : list of str
            Without the program's name.
        """
        self.words = words
        self.text.text = html.escape(shlex.join(["dspa", *words])) if words else ""
        self.button.disabled = not words or self.running is not None

    def start(self) -> None:
        """Run the command as a job of the project, in a process of its own."""
        if self.running is not None:
            return
        try:
            words = list(self.ask()) if self.ask is not None else self.words
        except InputError as error:
            self.say("failed", str(error))
            return
        if not words:
            return
        jobs = self.project.jobs
        command = [sys.executable, "-c", ENTRY, *words, "--project", str(self.project.folder)]
        errors = tempfile.TemporaryFile()
        process = subprocess.Popen(
            command,
            cwd=self.project.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        self.processes.append(process)
        self.running = _Started(process, errors, jobs[-1].number if jobs else 0)
        self.say("running", "started")
        self.button.disabled = True
        if self.document is not None:
            self._watch = self.document.add_periodic_callback(self.poll, EVERY)

    def poll(self) -> None:
        """Look how the job goes, and say so."""
        if self.running is None:
            return
        ended = self.running.process.poll() is not None
        found = self._job(self.running)
        if found is not None:
            self._tell(*found)
        elif ended:  # it shows something, or was refused: a refused command leaves no job
            self.running.errors.seek(0)
            lines = self.running.errors.read().decode(errors="replace").strip().splitlines()
            last, status = lines[-1] if lines else "", self.running.process.returncode
            if status == 0:
                self.say("completed", last or "done")
            else:
                why = last.removeprefix("dspa: ") or f"it ended with status {status}"
                self.say("failed", f"failed: {why}")
        if ended:
            self.running.errors.close()
            self.running = None
            self.button.disabled = False
            if self.document is not None and self._watch is not None:
                self.document.remove_periodic_callback(self._watch)

    def _job(self, started: _Started) -> tuple[Job, Record] | None:
        for job in reversed(self.project.jobs):
            if job.number <= started.after:
                break
            try:
                record = job.read()
                if record.process.get("pid") == started.process.pid:
                    return job, record
            except InputError:
                continue
        return None

    def _tell(self, job: Job, record: Record) -> None:
        rest = record.error if record.error else line(record.figures)
        self.say(record.state, f"{job.name} {record.stage} {record.state}: {rest}".rstrip(": "),
                 link=f"report/{job.name}")  # fmt: skip

    def say(self, state: str, text: str, *, link: str = "") -> None:
        """Show a sentence in the colour of a state.

        Parameters
        ----------
        state : str
            Of a job.
        text : str
        link : str
            Address of more, if there is.
        """
        more = f" &nbsp; <a href='{link}' target=_blank>report</a>" if link else ""
        colour = COLOURS.get(state, DIM)
        self.status.text = f"<b style='color:{colour}'>{html.escape(text)}</b>{more}"
