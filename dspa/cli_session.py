"""What every command does: find the project, open the machines, write to the terminal."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem
    from rich.console import Console

    from dspa.project.machines import Machines
    from dspa.project.project import Project
    from dspa.project.running import Options

CLUSTER_HELP = "local, local:N, cuda, tls://HOST:PORT, FILE.yaml, or inline for debugging"


def project_option() -> click.Option:
    """Return the option that names the project."""
    folder = click.Path(file_okay=False, exists=False)
    return click.Option(["--project"], metavar="DIR", help="Project folder [default: here]",
                        type=folder)  # fmt: skip


def complete_jobs(
    context: click.Context, param: click.Parameter, begun: str, *, states: Sequence[str] = ()
) -> list[CompletionItem]:
    """Say which jobs a word may become; where an input is asked for, outputs and files too.

    Parameters
    ----------
    context : click.Context
    param : click.Parameter
    begun : str
        What was typed of the word.
    states : sequence of str
        Of jobs that the command takes; any if empty, and for an input the completed.
    """
    from click.shell_completion import CompletionItem

    from dspa.project.lineage import endings

    inputs = param.name not in ("job", "jobs")
    if inputs:
        states = ("completed",)
    elif states and context.params.get("force"):
        states = (*states, "running")  # taken from a machine that is gone
    project = find_project(context.params.get("project"), must_exist=False)
    found = [] if project is None else endings(project, begun, states=states, outputs=inputs)
    items = [CompletionItem(name, help=told) for name, told in found]
    if inputs:
        items.insert(0, CompletionItem(begun, type="file"))
    return items


def complete_files(
    _context: click.Context, _param: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Let the shell offer its files.

    Parameters
    ----------
    begun : str
        What was typed of the word.
    """
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="file")]


class Session:
    """The machines of one command, closed when it ends.

    Parameters
    ----------
    cluster : str
        As for ``--cluster``.
    seed : int
    name, note : str
        Of the job.
    quiet : bool
        Whether jobs say nothing on the terminal.
    """

    def __init__(
        self, cluster: str, seed: int, *, name: str = "", note: str = "", quiet: bool = False
    ) -> None:
        from dspa.project.machines import Machines
        from dspa.project.running import Options

        self.console = console(quiet=quiet)
        say = partial(self.console.print, soft_wrap=True, markup=False, highlight=False)
        self.machines: Machines = Machines(cluster, say=say)
        self.options: Options = Options(
            self.machines.make_runner,
            cluster=cluster,
            seed=seed,
            console=self.console,
            name=name,
            note=note,
            alone=True,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.machines.close()

    def tell(self, lines: Sequence[str]) -> None:
        """Print lines.

        Parameters
        ----------
        lines : sequence of str
        """
        for text in lines:
            click.echo(text)


def find_project(folder: str | None, *, must_exist: bool = True) -> Project | None:
    """Return the project of a folder, or the one here or above.

    Parameters
    ----------
    folder : str or None
        As for ``--project``.
    must_exist : bool
        Raise InputError where there is none.
    """
    from dspa.project.project import find

    found = find(None if folder is None else Path(folder))
    if found is None and must_exist:
        where = folder or Path.cwd()
        raise InputError(f"{where} is not a dspa project; make one with dspa init DIR")
    return found


def new_project(folder: str | None) -> Project:
    """Make a project, and say so.

    Parameters
    ----------
    folder : str or None
        Here if None.
    """
    from dspa.project.project import init

    project = init(Path(folder or Path.cwd()))
    click.echo(f"new project {project.folder}", err=True)
    return project


def must(project: Project | None) -> Project:
    """Return a project that is known to exist."""
    assert project is not None
    return project


def console(*, stderr: bool = True, quiet: bool = False) -> Console:
    """Return the terminal, or lines of 160 characters where there is none."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else 160, quiet=quiet)
