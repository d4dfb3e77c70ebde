"""The commands around the stages: the project, its jobs, workflows, workers, pages."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dspa.cli_live import live_command
from dspa.cli_session import (
    CLUSTER_HELP,
    Session,
    complete_files,
    complete_jobs,
    console,
    find_project,
    must,
    new_project,
    project_option,
)
from dspa.data.counts import counted
from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dspa.project.job import Job


# States of jobs that a command takes: only those are offered for the end of a word.
TAKES = {
    "resume": ("created", "failed", "killed", "cleared"),  # running too with --force
    "kill": ("running",),
    "delete": ("created", "completed", "failed", "killed", "cleared"),
    "clear": ("completed", "failed", "killed"),
}


def project_commands() -> list[click.Command]:
    """Return the commands that are no stages."""
    as_json = click.Option(["--json", "as_json"], is_flag=True, help="For other programs")
    job = click.Argument(["job"], metavar="JOB", shell_complete=complete_jobs)
    cluster = click.Option(["--cluster"], default="local", metavar="WHERE", help=CLUSTER_HELP)
    seed = click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), default=0, help="Seed")
    force = click.Option(["--force"], is_flag=True, help="Take it from a machine that is gone")
    workflow = click.Argument(["workflow"], shell_complete=complete_files)
    yes = click.Option(["--yes"], is_flag=True, help="Do not ask")
    dry = click.Option(["--dry-run"], is_flag=True, help="Check the steps, and run none")
    demo_folder = click.Argument(["folder"], metavar="[DIR]", default="dspa-demo")
    micrographs = click.Option(["--micrographs"], type=click.IntRange(5, 1000), default=24,
                               metavar="N", help="How many to simulate [default 24]")  # fmt: skip
    port = click.Option(["--port"], type=click.IntRange(0, 65535), default=0, metavar="N",
                        help="Port on this machine [default: a free one]")  # fmt: skip
    table: list[tuple[str, Callable[..., None], list[click.Parameter]]] = [
        ("init", _init, [click.Argument(["folder"], metavar="DIR", shell_complete=complete_files)]),
        ("status", _status, [as_json, project_option()]),
        ("show", _show, [job, as_json, project_option()]),
        ("resume", _resume, [_jobs("resume", name="job"), cluster, force, project_option()]),
        ("kill", _kill, [_jobs("kill"), project_option()]),
        ("delete", _delete, [_jobs("delete"), yes, project_option()]),
        ("clear", _clear, [_jobs("clear", required=False), yes, project_option()]),
        ("name", _name, [job, click.Argument(["text"], metavar="NAME"), project_option()]),
        ("note", _note, [job, click.Argument(["text"], metavar="TEXT"), project_option()]),
        (
            "relink",
            _relink,
            [
                click.Argument(["old"], metavar="OLD", shell_complete=complete_files),
                click.Argument(["new"], metavar="NEW", shell_complete=complete_files),
                click.Option(["--force"], is_flag=True, help="Though files are missing or differ"),
                project_option(),
            ],
        ),
        ("run", _workflow, [workflow, cluster, seed, dry, project_option()]),
        ("demo", _demo, [demo_folder, micrographs, cluster, seed]),
        ("worker", _worker, [click.Argument(["address"]), *_worker_options()]),
        ("app", _app, [port, project_option()]),
    ]
    return [
        click.Command(name, callback=function, params=params, help=function.__doc__)
        for name, function, params in table
    ] + [live_command()]


def _jobs(command: str, *, name: str = "jobs", required: bool = True) -> click.Argument:
    """Return the argument of a command that takes jobs in some states only."""
    word = "JOB" if name == "job" else "JOB..." if required else "[JOB...]"
    return click.Argument(
        [name], metavar=word, required=required, nargs=1 if name == "job" else -1,
        shell_complete=partial(complete_jobs, states=TAKES[command]),
    )  # fmt: skip


def _init(folder: str) -> None:
    """Make a project folder."""
    from dspa.project.project import init

    click.echo(f"project {init(Path(folder)).folder}")


def _status(project: str | None, *, as_json: bool) -> None:
    """List the jobs of the project."""
    from dspa.project import show

    found = must(find_project(project))
    if as_json:
        click.echo(json.dumps(show.status(found), indent=1))
    else:
        show.print_status(found, console(stderr=False))


def _show(job: str, project: str | None, *, as_json: bool) -> None:
    """Show everything about a job."""
    from dspa.project import show
    from dspa.project.lineage import find_job

    found = find_job(must(find_project(project)), job)
    if as_json:
        click.echo(json.dumps(show.describe(found), indent=1))
    else:
        show.print_job(found, console(stderr=False))


def _resume(job: str, cluster: str, project: str | None, *, force: bool) -> None:
    """Go on with a killed or failed job."""
    from dspa.project import running
    from dspa.project.lineage import find_job

    found = find_job(must(find_project(project)), job)
    with Session(cluster, 0) as session:
        running.resume(found, options=session.options, force=force)
        session.tell(running.closing_lines(found))


def _kill(jobs: tuple[str, ...], project: str | None) -> None:
    """End running jobs with their processes and workers; they can be resumed."""
    from dspa.project.control import find_jobs, kill

    for job in find_jobs(must(find_project(project)), jobs):
        kill(job, tell=lambda text: click.echo(text, err=True))
        click.echo(f"{job.name} killed; dspa resume {job.name} goes on from its last checkpoint")


def _delete(jobs: tuple[str, ...], project: str | None, *, yes: bool) -> None:
    """Delete jobs, with the jobs that were made from them."""
    from dspa.project import control
    from dspa.project.figures import size

    found = must(find_project(project))
    asked = control.find_jobs(found, jobs)
    more = control.dependents(found, asked)
    control.refuse_running([*asked, *more])
    for job in (*asked, *more):
        why = "" if job in asked else "  (made from it)"
        click.echo(f"  {job.folder.name:<28} {size(control.disk_use(job.folder)):>8}{why}")
        _tell_export(job)
    _tell_unreadable(control.unreadable(found, [*asked, *more]))
    _agree(f"delete {counted(len(asked) + len(more), 'job')}?", yes=yes)
    click.echo(f"deleted; {size(control.delete([*asked, *more]))} are free again")


def _clear(jobs: tuple[str, ...], project: str | None, *, yes: bool) -> None:
    """Free disk space: what no job needs, or the results of jobs, which resume makes again."""
    from dspa.project import control
    from dspa.project.figures import size

    found = must(find_project(project))
    if not jobs:
        click.echo(f"{size(control.sweep(found))} of leftovers removed")
        return
    asked = control.find_jobs(found, jobs)
    for job in asked:
        click.echo(f"  {job.folder.name:<28} {size(control.disk_use(job.folder)):>8}")
    for job in control.dependents(found, asked):
        click.echo(f"  {job.folder.name:<28} {'':>8}  needs them until they are made again")
        _tell_export(job)
    _tell_unreadable(control.unreadable(found, asked))
    _agree("remove their results (their records stay)?", yes=yes)
    freed = size(control.clear(found, asked))
    click.echo(f"cleared; {freed} are free again; dspa resume JOB makes the results again")


def _tell_unreadable(jobs: list[Job]) -> None:
    """Say of which jobs it is not known what they were made from."""
    for job in jobs:
        click.echo(f"  {job.folder.name:<28} {'':>8}  is damaged: what it needs is not known")


def _tell_export(job: Job) -> None:
    """Say which file outside a job names images that will not be there."""
    from dspa.project.control import exported

    out = exported(job)
    if out is not None:
        click.echo(f"    {out} stays, and images that it names in these jobs go")


def _agree(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{question} nothing was done; add --yes")
    if not click.confirm(question):
        raise InputError("nothing was done")


def _name(job: str, text: str, project: str | None) -> None:
    """Give a job a name, which stands for its number; an empty one takes it away."""
    from dspa.project.lineage import check_name, find_job

    found = must(find_project(project))
    named = find_job(found, job)
    check_name(found, text, own=named.number)
    named.annotate(name=text)


def _note(job: str, text: str, project: str | None) -> None:
    """Write a note on a job; an empty one takes it away."""
    from dspa.project.lineage import find_job

    find_job(must(find_project(project)), job).annotate(note=text)


def _relink(old: str, new: str, project: str | None, *, force: bool) -> None:
    """Say where files outside the project are now: OLD was their folder, NEW is."""
    from dspa.project.relink import relink

    done = relink(must(find_project(project)), old, new, force=force)
    click.echo(f"{counted(done.paths, 'path')} in {', '.join(done.jobs)}, now to {new}")
    for path in done.missing:
        click.echo(f"warning: {path} is not there", err=True)
    for told in done.others:
        click.echo(f"warning: {told}", err=True)


def _workflow(
    workflow: str, cluster: str, seed: int, project: str | None, *, dry_run: bool
) -> None:
    """Run the stages that a YAML file lists."""
    from dspa.project.running import closing_lines
    from dspa.project.workflow import check_workflow, read_workflow, run_workflow

    steps = read_workflow(Path(workflow))
    found = find_project(project, must_exist=False)
    check_workflow(found, steps)
    with Session(cluster, seed) as session:
        if dry_run:
            click.echo(f"{counted(len(steps), 'step')} would run; nothing was started")
            return
        found = found or new_project(project)
        run_workflow(found, steps, session.options,
                     told=lambda job: session.tell(closing_lines(job)))  # fmt: skip


def _demo(folder: str, micrographs: int, cluster: str, seed: int) -> None:
    """Simulate a small session and take it to a map."""
    from dspa.project.demo import demo

    demo(Path(folder), cluster=cluster, seed=seed, micrographs=micrographs)


def _worker_options() -> list[click.Parameter]:
    return [
        click.Option(["--workers"], type=click.IntRange(1, 4096), default=1, metavar="N",
                     help="Worker processes, one thread each [default 1]"),
        click.Option(["--memory"], default="auto", metavar="SIZE",
                     help="Memory of each, as 8GB [default: its share of the machine]"),
        click.Option(["--scratch"], metavar="DIR", help="Local disk for what does not fit"),
        click.Option(["--ca-file"], metavar="PEM", help="For tls://: who signed the scheduler"),
        click.Option(["--certificate"], metavar="PEM", help="For tls://: certificate"),
        click.Option(["--key"], metavar="PEM", help="For tls://: its key"),
    ]  # fmt: skip


def _worker(address: str, **options: Any) -> None:
    """Lend this machine to a scheduler."""
    from dspa.dataflow.worker import serve

    serve(address, **options)


def _app(port: int, project: str | None) -> None:
    """Show the project in the browser."""
    from dspa.app.serve import serve

    serve(must(find_project(project)), port=port, told=click.echo)
