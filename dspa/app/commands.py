"""The command a page stands for: shown as text, and started in the background on request."""

from __future__ import annotations

import html
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

from bokeh.layouts import row
from bokeh.models import Button, Div

if TYPE_CHECKING:
    from dspa.project.project import Project

ENTRY = "import sys; from dspa.cli import main; main(sys.argv[1:])"


class Command:
    """A line with the command, and a button that runs it.

    Parameters
    ----------
    project : Project
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self.words: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.text = Div(name="command", styles={"font-family": "monospace", "padding": "6px"})
        self.button = Button(label="run", button_type="primary", width=80)
        self.button.on_click(self.start)
        self.root = row(self.button, self.text)

    def show(self, words: list[str]) -> None:
        """Show a command; an empty one cannot be run.

        Parameters
        ----------
        words : list of str
            Without the program's name.
        """
        self.words = words
        self.text.text = html.escape(shlex.join(["dspa", *words])) if words else ""
        self.button.disabled = not words

    def start(self) -> None:
        """Run the command as a job of the project; the first page shows how it goes."""
        if not self.words:
            return
        command = [sys.executable, "-c", ENTRY, *self.words, "--project", str(self.project.folder)]
        self.processes = [each for each in self.processes if each.poll() is None]
        process = subprocess.Popen(
            command,
            cwd=self.project.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)
        self.text.text += " &nbsp; <b>started</b>"
        self.button.disabled = True
