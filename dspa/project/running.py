"""Running a stage as a job: resolve, record, run, report; and taking a killed job up again."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dspa.data.errors import InputError
from dspa.dataflow.events import Event, Events, Listener, plain
from dspa.project.figures import duration, figures_of, line
from dspa.project.job import Job, Record, now, this_process, versions
from dspa.project.lineage import Resolved, paths
from dspa.project.listeners import LogFile, Refresher, Screen
from dspa.project.params import from_plain
from dspa.project.report import write_report
from dspa.stages.registry import find_stage
from dspa.stages.stage import Context, Stage, check

if TYPE_CHECKING:
    from dspa.dataflow.runner import Runner
    from dspa.project.project import Project

RECORDS = ("job.json", "log.txt", "events.jsonl", "report.html", "pictures")
# Makes the runner of a job from its folder and events.
RunnerFactory = Callable[[Path, Events], "Runner"]


class Killed(BaseException):
    """The process was told to end (SIGTERM, SIGHUP)."""


@dataclass(frozen=True)
class Options:
    """How a job runs, apart from its parameters.

    Attributes
    ----------
    make_runner : callable
        ``make_runner(folder, events) -> Runner``; must not start anything heavy by itself.
    cluster : str
        For the record.
    seed : int
    console : Console
        Where progress goes.
    listeners : tuple
        Further listeners of the events.
    """

    make_runner: RunnerFactory
    cluster: str = "local"
    seed: int = 0
    console: Console = field(default_factory=lambda: Console(stderr=True, quiet=True))
    listeners: tuple[Listener, ...] = ()


def start(
    project: Project, stage: Stage, inputs: Resolved, params: Any, *, options: Options
) -> Job:
    """Run a stage as a new job.

    Parameters
    ----------
    project : Project
    stage : Stage
    inputs : mapping
        From `dspa.project.lineage.resolve`.
    params : dataclass
        Checked before the job gets its number.
    options : Options

    Returns
    -------
    Job
        Completed; anything else raises.
    """
    check(params)
    if stage.admit is not None:
        stage.admit(paths(inputs), params)
    fields = dataclasses.fields(params)
    record = Record(
        number=0,
        stage=stage.name,
        params={f.name: plain(getattr(params, f.name)) for f in fields},
        units={f.name: f.metadata["unit"] for f in fields if f.metadata.get("unit")},
        inputs={
            name: [item.record() for item in given]
            if isinstance(given, tuple)
            else (given.record() if given is not None else None)
            for name, given in inputs.items()
        },
        seed=options.seed,
        cluster=options.cluster,
        folder=str(Path.cwd()),
    )
    job = project.new_job(record)
    _run(job, stage, paths(inputs), params, options)
    return job


def resume(job: Job, *, options: Options) -> Job:
    """Go on with a job that was killed or failed, from its last checkpoint.

    Parameters
    ----------
    job : Job
    options : Options
        The seed is the job's own.
    """
    record = job.read()
    if record.state == "completed":
        raise InputError(f"{job.name} is completed; there is nothing to resume")
    if record.state == "running":
        raise InputError(f"{job.name} is running (process {record.process.get('pid')})")
    stage = find_stage(record.stage)
    params = from_plain(stage.params, record.params)
    inputs: dict[str, Any] = {}
    for name, given in record.inputs.items():
        if isinstance(given, list):
            inputs[name] = tuple(Path(item["path"]) for item in given)
        else:
            inputs[name] = Path(given["path"]) if given else None
    place = record.folder if Path(record.folder).is_dir() else Path.cwd()
    with contextlib.chdir(place):
        _run(job, stage, inputs, params, dataclasses.replace(options, seed=record.seed))
    return job


def plan(stage: Stage, inputs: Resolved, params: Any) -> dict[str, Any]:
    """Return the figures of a dry run: items, chunks, memory.

    Parameters
    ----------
    stage : Stage
    inputs : mapping
        From `dspa.project.lineage.resolve`.
    params : dataclass
    """
    check(params)
    return dict(stage.plan(paths(inputs), params)) if stage.plan is not None else {}


def _run(job: Job, stage: Stage, inputs: Mapping[str, Any], params: Any, options: Options) -> None:
    before = job.read()
    record = dataclasses.replace(
        before,
        state="running",
        started=now(),
        finished=None,
        error="",
        attempts=before.attempts + 1,
        process=this_process(),
        versions=versions(),
        cluster=options.cluster,
    )
    job.write(record)
    screen = Screen(options.console, f"{job.name} {stage.name}")
    figures: dict[str, Any] = {}
    own = (LogFile(job.folder), screen, Refresher(job.folder), _Keep(figures))
    events = Events(job.folder, own + options.listeners)
    events.emit("state", state="running")
    end = _End(job, record, events, figures)
    try:
        with _told_to_end():
            runner = options.make_runner(job.folder, events)
            try:
                context = Context(job.folder, runner, events, options.seed)
                outputs = stage.run(context, inputs, params)
            finally:
                runner.close()
            end.completed(outputs)
    except (KeyboardInterrupt, Killed) as error:
        sentence = f"stopped; dspa resume {job.name} goes on from the last checkpoint"
        end.broken("killed", sentence)
        raise type(error)(sentence) from error
    except InputError as error:
        end.broken("failed", str(error))
        _empty(job.folder)
        raise
    except BaseException as error:
        (job.folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        end.broken("failed", f"{type(error).__name__}: {error}".splitlines()[0])
        error.add_note(f"the whole story is in {job.folder / 'traceback.txt'}")
        raise
    finally:
        screen.close()


@dataclass(frozen=True)
class _End:
    """Writes how a job ended."""

    job: Job
    record: Record
    events: Events
    figures: dict[str, Any]

    def completed(self, outputs: Mapping[str, Path]) -> None:
        """Record the outputs, relative to the job; RuntimeError if one was not written."""
        found = {}
        for name, path in outputs.items():
            path = Path(path)
            if not path.exists():
                raise RuntimeError(f"{self.record.stage} did not write its output {path}")
            found[name] = str(path.absolute().relative_to(self.job.folder.absolute()))
        self._write(state="completed", outputs=found)
        shutil.rmtree(self.job.folder / "checkpoints", ignore_errors=True)

    def broken(self, state: str, error: str) -> None:
        self._write(state=state, error=error)

    def _write(self, **fields: Any) -> None:
        end = now()
        seconds = self.record.seconds + end - (self.record.started or end)
        done = dataclasses.replace(
            self.record, finished=end, seconds=seconds, figures=dict(self.figures), **fields
        )
        self.job.write(done)
        self.events.emit("state", state=done.state, error=done.error, seconds=seconds)
        write_report(self.job.folder)


@dataclass(frozen=True)
class _Keep:
    """Keeps the figures of the results, for the record."""

    figures: dict[str, Any]

    def __call__(self, event: Event) -> None:
        if event["kind"] == "result":
            self.figures.update(figures_of(event))


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `Killed`, so that the record says what happened."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: Any) -> None:
        raise Killed(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _empty(folder: Path) -> None:
    """Leave only the records of a job that bad input ended: nothing half written."""
    for path in folder.iterdir():
        if path.name in RECORDS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def closing_lines(job: Job) -> list[str]:
    """Say where the results of a completed job are.

    Parameters
    ----------
    job : Job
    """
    record = job.read()
    figures = f": {line(record.figures)}" if record.figures else ""
    lines = [f"{job.name} {record.stage} completed in {duration(record.seconds)}{figures}"]
    lines += [f"  {name}: {job.folder / path}" for name, path in record.outputs.items()]
    return [*lines, f"  report: {job.folder / 'report.html'}"]
