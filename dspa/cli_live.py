"""``dspa live``: a session that grows while the microscope runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dspa.cli_session import (
    CLUSTER_HELP,
    Session,
    complete_files,
    find_project,
    must,
    new_project,
    project_option,
)

WORDS = ("stop", "pause", "resume", "status")


def live_command() -> click.Command:
    """Return the command."""
    number = click.FloatRange(0, 3600)
    params: list[click.Parameter] = [
        click.Argument(["workflow"], metavar="WORKFLOW.yaml|" + "|".join(WORDS),
                       shell_complete=complete_files),
        click.Argument(["session"], metavar="[SESSION]", default=""),
        click.Option(["--at-once"], type=click.IntRange(0, 100_000), default=0, metavar="N",
                     help="Most exposures of a round [default: 4 for each worker]"),
        click.Option(["--newest-first"], is_flag=True,
                     help="Of many that wait, take the newest first"),
        click.Option(["--settle"], type=number, default=5.0, metavar="S",
                     help="Seconds for which a file must not have changed [default 5]"),
        click.Option(["--poll"], type=click.FloatRange(0.05, 3600), default=2.0, metavar="S",
                     help="Seconds between looks while nothing is to be done [default 2]"),
        click.Option(["--cluster"], default="local", metavar="WHERE", help=CLUSTER_HELP),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), default=0, metavar="N",
                     help="All randomness follows from it [default 0]"),
        project_option(),
    ]  # fmt: skip
    return click.Command("live", callback=_live, params=params, help=_live.__doc__)


def _live(workflow: str, session: str, project: str | None, **given: Any) -> None:
    """Take exposures to particles as their files appear: the steps of a workflow, round by round.

    A running session hears dspa live stop, pause, resume and status; Ctrl-C stops it. Started
    again with the same file it goes on.
    """
    if workflow in WORDS:
        _tell_session(workflow, session, project)
        return
    from dspa.data.errors import InputError
    from dspa.project.live import Pace, check_live, live
    from dspa.project.sessions import open_session
    from dspa.project.workflow import read_workflow

    if session:
        raise InputError(f"dspa live {workflow} takes no {session!r}; give one workflow file")
    steps = read_workflow(Path(workflow))
    found = find_project(project, must_exist=False)
    check_live(found, steps)
    found = found or new_project(project)
    own = open_session(found, Path(workflow))
    pace = Pace(given["at_once"], given["newest_first"], given["settle"], given["poll"])
    with Session(given["cluster"], given["seed"], quiet=True) as machines:
        live(found, own, steps, options=machines.options, pace=pace,
             tell=lambda text: machines.tell([text]))  # fmt: skip


def _tell_session(word: str, name: str, project: str | None) -> None:
    """Do what is asked of a session."""
    from dspa.project import sessions

    found = must(find_project(project))
    if word == "status":
        for each in [sessions.find_session(found, name)] if name else sessions.sessions(found):
            record = each.read()
            held = each.holder
            where = f" ({held.where})" if held is not None else ""
            error = f": {record.error}" if each.state == "failed" else ""
            click.echo(f"{each.name} {each.state}{where}{error}")
            click.echo(f"  {sessions.told(record.figures)}")
        return
    own = sessions.find_session(found, name)
    if word == "stop":
        sessions.stop(own, tell=lambda text: click.echo(text, err=True))
        click.echo(f"{own.name} stopped; dspa live {own.read().workflow} goes on")
    elif word == "pause":
        sessions.pause(own)
        click.echo(f"{own.name} pauses after the round that it is in")
    else:
        sessions.go_on(own)
        click.echo(f"{own.name} goes on")
