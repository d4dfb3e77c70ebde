"""What ``dspa status`` and ``dspa show`` say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.events import plain, read_events
from dspa.project.control import disk_use
from dspa.project.figures import duration, figure, line, setting, size, watched, words
from dspa.project.job import now

if TYPE_CHECKING:
    from rich.console import Console

    from dspa.project.job import Job, Record
    from dspa.project.project import Project

COLOURS = {"completed": "green", "failed": "red", "killed": "red", "running": "yellow"}


def status(project: Project) -> list[dict[str, Any]]:
    """Return one record per job, with plain values.

    Parameters
    ----------
    project : Project
    """
    found = []
    for job in project.jobs:
        try:
            found.append(describe(job))
        except InputError as error:
            found.append({"job": job.name, "state": "damaged", "error": str(error)})
    return found


def describe(job: Job) -> dict[str, Any]:
    """Return everything known of a job, with plain values.

    Parameters
    ----------
    job : Job
    """
    record = job.read()
    fields: dict[str, Any] = plain(dataclasses.asdict(record))
    outputs = {name: str(job.inside(path)) for name, path in record.outputs.items()}
    return fields | {
        "job": job.name,
        "folder": str(job.folder),
        "outputs": outputs,
        "figures": record.figures or latest_figures(job),
        "bytes": disk_use(job.folder),
        "report": str(job.folder / "report.html"),
        "log": str(job.folder / "log.txt"),
    }


def latest_figures(job: Job) -> dict[str, Any]:
    """Return the figures of the newest events of a job that is under way."""
    figures: dict[str, Any] = {}
    for _, event in read_events(job.folder / "events.jsonl"):
        if event["kind"] in ("iteration", "result"):
            figures |= {"iteration": event["iteration"]} if "iteration" in event else {}
            figures |= watched(event)
    return figures


def print_status(project: Project, console: Console) -> None:
    """Print the table of jobs.

    Parameters
    ----------
    project : Project
    console : Console
    """
    jobs = project.jobs
    if not jobs:
        console.print(f"{project.folder} has no jobs yet", markup=False)
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("job", "stage", "inputs", "state", "took", "disk", "figures"):
        table.add_column(name, overflow="fold")
    total = 0
    for job in jobs:
        used = disk_use(job.folder)
        total += used
        try:
            record = job.read()
        except InputError as error:
            row = (job.name, "", "", "[red]damaged[/]", "", size(used), escape(str(error)))
            table.add_row(*row)
            continue
        parents = " ".join(f"J{number}" for number in job.parents)
        colour = COLOURS.get(record.state, "white")
        told = [line(record.figures or latest_figures(job)), record.error]
        figures = "; ".join(text for text in told if text)
        if record.note:
            figures += f" ({record.note})" if figures else record.note
        state = f"[{colour}]{record.state}[/]"
        stage = record.stage + (f" '{record.name}'" if record.name else "")
        table.add_row(job.name, escape(stage), parents, state, _took(record), size(used),
                      escape(figures))  # fmt: skip
    console.print(table)
    console.print(f"{counted(len(jobs), 'job')}, {size(total)}", markup=False, highlight=False)


def print_job(job: Job, console: Console) -> None:
    """Print a job: state, figures, parameters, inputs, outputs.

    Parameters
    ----------
    job : Job
    console : Console
    """
    about = describe(job)
    record = job.read()
    called = f" '{record.name}'" if record.name else ""
    head = f"{job.name} {record.stage}{called}: {record.state}"
    took = ", ".join(text for text in (_took(record), size(about["bytes"])) if text)
    console.print(head + (f" ({took})" if took else ""), markup=False, highlight=False)
    for text in (record.note, record.error):
        if text:
            console.print(f"  {text}", markup=False, highlight=False)
    inputs = {}
    for name, given in record.inputs.items():
        items = given if isinstance(given, list) else [given]
        inputs[name] = ", ".join(f"{i['given']} -> {i['path']}" for i in items if i)
    sections = {
        "figures": {words(k): figure(k, v) for k, v in about["figures"].items()},
        "parameters": {
            words(k): setting(v, record.units.get(k, "")) for k, v in record.params.items()
        },
        "inputs": {k: v for k, v in inputs.items() if v},
        "outputs": about["outputs"],
        "files": {"report": about["report"], "log": about["log"]},
    }
    for title, rows in sections.items():
        if rows:
            console.print(f"{title}:", markup=False, highlight=False)
        for name, value in rows.items():
            text = f"  {name:<24} {value}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _took(record: Record) -> str:
    if record.state == "running" and record.started:
        return f"{duration(now() - record.started)} so far"
    return duration(record.seconds) if record.seconds else ""
