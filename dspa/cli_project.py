"""The commands around the stages: the project, its jobs, workflows, workers, pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dspa.cli_session import (
    CLUSTER_HELP,
    Session,
    complete_jobs,
    console,
    find_project,
    must,
    new_project,
    project_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def project_commands() -> list[click.Command]:
    """Return the commands that are no stages."""
    as_json = click.Option(["--json", "as_json"], is_flag=True, help="For other programs")
    job = click.Argument(["job"], metavar="JOB", shell_complete=complete_jobs)
    cluster = click.Option(["--cluster"], default="local", metavar="WHERE", help=CLUSTER_HELP)
    seed = click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), default=0, help="Seed")
    force = click.Option(["--force"], is_flag=True, help="Take it from a machine that is gone")
    demo_folder = click.Argument(["folder"], metavar="[DIR]", default="dspa-demo")
    micrographs = click.Option(["--micrographs"], type=click.IntRange(5, 1000), default=24,
                               metavar="N", help="How many to simulate [default 24]")  # fmt: skip
    port = click.Option(["--port"], type=click.IntRange(0, 65535), default=0, metavar="N",
                        help="Port on this machine [default: a free one]")  # fmt: skip
    table: list[tuple[str, Callable[..., None], list[click.Parameter]]] = [
        ("init", _init, [click.Argument(["folder"], metavar="DIR")]),
        ("status", _status, [as_json, project_option()]),
        ("show", _show, [job, as_json, project_option()]),
        ("resume", _resume, [job, cluster, force, project_option()]),
        ("run", _workflow, [click.Argument(["workflow"]), cluster, seed, project_option()]),
        ("demo", _demo, [demo_folder, micrographs, cluster, seed]),
        ("worker", _worker, [click.Argument(["address"]), *_worker_options()]),
        ("app", _app, [port, project_option()]),
    ]
    return [
        click.Command(name, callback=function, params=params, help=function.__doc__)
        for name, function, params in table
    ]


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


def _workflow(workflow: str, cluster: str, seed: int, project: str | None) -> None:
    """Run the stages that a YAML file lists."""
    from dspa.project.running import closing_lines
    from dspa.project.workflow import read_workflow, run_workflow

    steps = read_workflow(Path(workflow))
    found = find_project(project, must_exist=False) or new_project(project)
    with Session(cluster, seed) as session:
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
