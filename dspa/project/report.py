"""``report.html``: one file with everything in it, for a person to read, keep and send."""

from __future__ import annotations

import base64
import contextlib
import datetime
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data.atomic import write_atomically
from dspa.dataflow.events import read_events
from dspa.project.figures import duration, figure, figures_of, setting, words
from dspa.project.job import Job, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STYLE = """
:root { --ink: #1c2733; --soft: #5b6b7a; --line: #dfe5ea; --accent: #0b6e99; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #eef2f5; color: var(--ink);
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
header { display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; }
h1 { font-size: 26px; margin: 0; } h1 small { color: var(--soft); font-weight: 400; }
h2 { font-size: 17px; margin: 0 0 12px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
          padding: 18px 20px; margin-top: 18px; }
.state { border-radius: 20px; padding: 2px 12px; font-size: 13px; color: #fff;
         background: #6b7a88; }
.completed { background: #1f8a5b; } .failed, .killed { background: #b3403a; }
.running { background: #b7791f; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; }
.card { min-width: 120px; } .card b { display: block; font-size: 22px; }
.card span, figcaption, .quiet { color: var(--soft); font-size: 13px; }
.gallery { display: flex; flex-wrap: wrap; gap: 18px; }
figure { margin: 0; max-width: 100%; } figure img { max-width: 100%; display: block;
  border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; }
td, th { padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.columns { display: grid; gap: 0 30px;
           grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); }
.scroll { overflow-x: auto; max-height: 420px; }
.warning { background: #fff7e6; border-left: 4px solid #b7791f; padding: 6px 12px; margin: 6px 0; }
.error { background: #fdecea; border-left: 4px solid #b3403a; padding: 8px 12px; }
"""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from the job's record, events and pictures.

    Parameters
    ----------
    folder : Path
        The job's folder.
    """
    job = Job(folder)
    record = job.read()
    events = [event for _, event in read_events(folder / "events.jsonl")]
    parts = [
        _head(job, record),
        _figures(record, events),
        _warnings(events),
        _pictures(folder, events),
        _iterations(events),
        _facts(record),
    ]
    page = (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{job.name} {record.stage}"
        f"</title><meta name=viewport content='width=device-width'><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    path = folder / "report.html"
    write_atomically(path, lambda stream: stream.write(page.encode()))
    return path


NOTEBOOK_STYLE = """
.dspa-job { border: 1px solid #dfe5ea; border-radius: 8px; padding: 10px 14px; max-width: 1000px;
  font: 14px/1.45 system-ui, sans-serif; color: #1c2733; background: #fff; }
.dspa-job .cards { display: flex; flex-wrap: wrap; gap: 18px; margin: 8px 0; }
.dspa-job .card b { display: block; font-size: 17px; }
.dspa-job .card span, .dspa-job figcaption, .dspa-job .quiet { color: #5b6b7a; font-size: 12px; }
.dspa-job .gallery { display: flex; flex-wrap: wrap; gap: 12px; }
.dspa-job figure { margin: 0; max-width: 100%; }
.dspa-job figure img { max-width: 100%; max-height: 420px; }
.dspa-job .warning { border-left: 4px solid #b7791f; padding: 2px 10px; margin: 4px 0; }
.dspa-job .error { border-left: 4px solid #b3403a; padding: 2px 10px; margin: 4px 0; }
.dspa-job h2 { display: none; }
"""


def fragment(folder: Path) -> str:
    """Return a job as HTML to show inside another page: state, figures, warnings, pictures.

    Parameters
    ----------
    folder : Path
        The job's folder.
    """
    job = Job(folder)
    record = job.read()
    events = [event for _, event in read_events(folder / "events.jsonl")]
    error = f"<div class=error>{_text(record.error)}</div>" if record.error else ""
    outputs = ", ".join(_text(name) for name in record.outputs)
    return (
        f"<div class=dspa-job><style>{NOTEBOOK_STYLE}</style><b>{job.name} {_text(record.stage)}"
        f"</b> <span class=quiet>{record.state}, {_times(record)}</span>{error}"
        f"{_figures(record, events)}{_warnings(events)}{_pictures(folder, events)}"
        + (f"<div class=quiet>outputs: {outputs}</div>" if outputs else "")
        + "</div>"
    )


def _head(job: Job, record: Record) -> str:
    error = f"<section class=error>{_text(record.error)}</section>" if record.error else ""
    return (
        f"<header><h1>{job.name} <small>{_text(record.stage)}</small></h1>"
        f"<span class='state {record.state}'>{record.state}</span>"
        f"<span class=quiet>{_times(record)}</span></header>{error}"
    )


def _times(record: Record) -> str:
    if record.started is None:
        return ""
    try:
        start = datetime.datetime.fromtimestamp(record.started).astimezone()
    except (ValueError, OverflowError, OSError):  # beyond what calendars hold
        return ""
    took = f", took {duration(record.seconds)}" if record.seconds else ""
    again = f", {record.attempts} attempts" if record.attempts > 1 else ""
    return f"started {start:%Y-%m-%d %H:%M:%S}{took}{again}"


def _figures(record: Record, events: Iterable[Mapping[str, Any]]) -> str:
    figures = dict(record.figures)
    if not figures:
        for event in events:
            if event["kind"] in ("iteration", "result"):
                figures.update(figures_of(event))
    if not figures:
        return ""
    cards = "".join(
        f"<div class=card><b>{_text(figure(name, value))}</b>"
        f"<span>{_text(words(name))}</span></div>"
        for name, value in figures.items()
    )
    return f"<section><div class=cards>{cards}</div></section>"


def _warnings(events: Iterable[Mapping[str, Any]]) -> str:
    texts = dict.fromkeys(str(e.get("text", "")) for e in events if e["kind"] == "warning")
    lines = "".join(f"<div class=warning>{_text(text)}</div>" for text in texts)
    return f"<section><h2>Warnings</h2>{lines}</section>" if lines else ""


def _pictures(folder: Path, events: Iterable[Mapping[str, Any]]) -> str:
    """Show the newest picture of every name, in the order in which names first appeared."""
    titles: dict[str, str] = {}
    for event in events:
        if event["kind"] == "picture" and isinstance(event.get("path"), str):
            titles[event["path"]] = str(event.get("title", ""))
    figures = []
    for relative, title in titles.items():
        path = folder / "pictures" / Path(relative).name
        with contextlib.suppress(OSError, ValueError):  # a picture that is gone, or never was one
            data = base64.b64encode(path.read_bytes()).decode()
            figures.append(
                f"<figure><img alt='{_text(title)}' src='data:image/png;base64,{data}'>"
                f"<figcaption>{_text(title)}</figcaption></figure>"
            )
    return f"<section><div class=gallery>{''.join(figures)}</div></section>" if figures else ""


def _iterations(events: Iterable[Mapping[str, Any]]) -> str:
    """Show what each iteration came to, the newest first: the table is longer than its frame."""
    rows = {str(e.get("iteration")): e for e in events if e["kind"] == "iteration"}
    if not rows:
        return ""
    names = list(dict.fromkeys(name for event in rows.values() for name in figures_of(event)))
    head = "".join(f"<th>{_text(words(name))}</th>" for name in ["iteration", *names])
    body = "".join(
        f"<tr><td>{_text(number)}</td>"
        + "".join(f"<td>{_text(figure(name, event.get(name)))}</td>" for name in names)
        + "</tr>"
        for number, event in reversed(rows.items())
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<section><h2>Iterations</h2><div class=scroll>{table}</div></section>"


def _facts(record: Record) -> str:
    inputs = {}
    for name, given in record.inputs.items():
        items = given if isinstance(given, list) else [given]
        inputs[name] = ", ".join(f"{i['given']} ({i['path']})" for i in items if i) or "none"
    place = {
        "seed": record.seed,
        "cluster": record.cluster,
        "host": record.process.get("host", ""),
    }
    tables = (
        (
            "Parameters",
            {
                words(name): setting(value, record.units.get(name, ""))
                for name, value in record.params.items()
            },
        ),
        ("Inputs", inputs),
        ("Outputs", dict(record.outputs)),
        ("Run", place | {f"{name} version": value for name, value in record.versions.items()}),
    )
    blocks = "".join(
        f"<div><h2>{title}</h2><table>"
        + "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in rows.items())
        + "</table><br></div>"
        for title, rows in tables
        if rows
    )
    return f"<section class=columns>{blocks}</section>"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
