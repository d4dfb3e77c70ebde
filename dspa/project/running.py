"""Running a stage as a job: resolve, record, run, report; and taking a killed job up again."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dspa.data.errors import InputError, NothingLeft, OutOfSpace
from dspa.data.places import where_it_went
from dspa.dataflow.events import Event, Events, Listener, plain
from dspa.dataflow.process import memory_sentence, this_process
from dspa.project.figures import duration, figures_of, line
from dspa.project.job import Job, Record, now, versions
from dspa.project.lease import Lease, claim, stopper
from dspa.project.lineage import Resolved, check_name, paths, refuse_cleared
from dspa.project.listeners import LogFile, Refresher, Screen
from dspa.project.params import from_plain
from dspa.project.rehearsal import require_memory
from dspa.project.report import write_report
from dspa.project.signals import Killed, Told, deaf, told_to_end
from dspa.stages.registry import find_stage
from dspa.stages.stage import Context, Stage, check

if TYPE_CHECKING:
    from dspa.dataflow.runner import Runner
    from dspa.project.project import Project

RECORDS = ("job.json", "log.txt", "events.jsonl", "report.html", "pictures")
# Makes the runner of a job from its folder and events.
RunnerFactory = Callable[[Path, Events], "Runner"]


# What a file system says that takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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
    name, note : str
        What the user calls a new job, and says of it.
    session : str
        As in the record of a new job.
    alone : bool
        Whether the process does nothing but run jobs, so that killing a job may end it.
    """

    make_runner: RunnerFactory
    cluster: str = "local"
    seed: int = 0
    console: Console = field(default_factory=lambda: Console(stderr=True, quiet=True))
    listeners: tuple[Listener, ...] = ()
    name: str = ""
    note: str = ""
    session: str = ""
    alone: bool = False


def start(
    project: Project,
    stage: Stage,
    inputs: Resolved,
    params: Any,
    *,
    options: Options,
    arrived: tuple[str, ...] = (),
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
    arrived : tuple of str
        Files for an import that grows.

    Returns
    -------
    Job
        Completed; anything else raises.
    """
    check(params)
    check_name(project, options.name)
    require_memory(stage, paths(inputs), params)
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
        name=options.name,
        note=options.note,
        session=options.session,
    )
    job = project.new_job(record)
    _run(job, stage, paths(inputs), params, options, arrived=arrived)
    return job


def resume(job: Job, *, options: Options, force: bool = False) -> Job:
    """Go on with a job that was killed or failed, from its last checkpoint.

    Parameters
    ----------
    job : Job
    options : Options
        The seed is the job's own.
    force : bool
        Take it from a process on another machine that is gone.
    """
    record = job.read()
    if record.state == "completed":
        raise InputError(f"{job.name} is completed; there is nothing to resume")
    killed = record.state == "killed" and not record.session
    # What follows the cause is advice to do what is being done.
    ended = record.error.partition("; ")[0] if killed else ""
    _run_again(job, record, options, force=force, ended=ended)
    return job


def extend(job: Job, *, options: Options, arrived: tuple[str, ...] = ()) -> Job:
    """Run the stage of a job that grows again in its folder: its inputs have grown.

    Its outputs are there all the while, and are replaced whole. Its events are those of this run.

    Parameters
    ----------
    job : Job
    options : Options
        The seed is the job's own.
    arrived : tuple of str
        Files for an import.

    Returns
    -------
    Job
        Completed; anything else raises.
    """
    _run_again(job, job.read(), options, arrived=arrived)
    return job


def _run_again(job: Job, record: Record, options: Options, **told: Any) -> None:
    """Run the stage of a job with its own inputs, parameters and seed, from its own folder."""
    stage = find_stage(record.stage)
    params = from_plain(stage.params, record.params)
    inputs: dict[str, Any] = {}
    for name, given in record.inputs.items():
        if isinstance(given, list):
            inputs[name] = tuple(_present(job, name, item["path"]) for item in given)
        else:
            inputs[name] = _present(job, name, given["path"]) if given else None
    known = record.folder and Path(record.folder).is_dir()
    place = record.folder if known else Path.cwd()
    with contextlib.chdir(place):
        own = dataclasses.replace(options, seed=record.seed)
        _run(job, stage, inputs, params, own, **told)


def _present(job: Job, name: str, path: str) -> Path:
    """Return the path of an input of a job that is to go on, or say that it is not there."""
    if not os.path.lexists(path):
        refuse_cleared(job, Path(path))
        raise InputError(
            f"{path}, the {name} of {job.name}, is not there; bring it back, or "
            f"{where_it_went(path)}"
        )
    return Path(path)


def _run(
    job: Job,
    stage: Stage,
    inputs: Mapping[str, Any],
    params: Any,
    options: Options,
    *,
    force: bool = False,
    ended: str = "",
    arrived: tuple[str, ...] = (),
) -> None:
    with told_to_end() as told, _held(job, options, force=force) as lease:
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
        grows = bool(record.session)
        if grows:
            (job.folder / "events.jsonl").unlink(missing_ok=True)
        screen = Screen(options.console, f"{job.name} {stage.name}")
        figures: dict[str, Any] = {}
        work = _Work()
        own: tuple[Listener, ...] = (
            LogFile(job.folder),
            screen,
            Refresher(job.folder),
            _Keep(figures),
            work,
            told,
        )
        events = Events(job.folder, own + options.listeners)
        events.emit("state", state="running")
        if ended:
            events.message(f"it goes on after it was cut short ({ended})")
        if record.attempts > 1 and not grows and not _has_checkpoints(job.folder):
            events.message("there is no checkpoint to go on from; starting from the beginning")
        end = _End(job, record, events, figures, lease, told)
        try:
            with end.recorded(work):
                runner = options.make_runner(job.folder, events)
                try:
                    context = Context(job.folder, runner, events, options.seed, grows, arrived)
                    outputs = _outputs(context, job, stage, inputs, params)
                finally:
                    runner.close()
                end.completed(outputs)
        finally:
            screen.close()


def _outputs(
    context: Context, job: Job, stage: Stage, inputs: Mapping[str, Any], params: Any
) -> Mapping[str, Path]:
    """Run a stage; one that grows keeps what it has where nothing is left yet of what came."""
    try:
        return stage.run(context, inputs, params)
    except NothingLeft as error:
        if not context.grows:
            raise
        context.events.message(f"nothing to go on with so far: {error}")
        return {name: job.inside(path) for name, path in job.read().outputs.items()}


@contextlib.contextmanager
def _held(job: Job, options: Options, *, force: bool) -> Iterator[Lease]:
    """Hold the right to run a job; no other process has it meanwhile."""
    try:
        before = job.read()
        process = before.process if before.state == "running" else {}
        lease = claim(
            job.folder, process, stop=stopper(Killed), called=job.name,
            ends=f"dspa kill {job.name}", alone=options.alone, force=force,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"{job.folder}: cannot write there ({error.strerror})") from error
    try:
        now_it_is = job.read()
        if now_it_is.state == "completed" and not now_it_is.session:
            raise InputError(f"{job.name} was completed by another process at this moment")
        yield lease
    finally:
        lease.release()


@dataclass
class _Work:
    """Listens whether anything was computed: what is refused before leaves no job."""

    begun: bool = False

    def __call__(self, event: Event) -> None:
        self.begun |= event["kind"] in ("progress", "iteration", "picture", "result")


@dataclass(frozen=True)
class _End:
    """Writes how a job ended."""

    job: Job
    record: Record
    events: Events
    figures: dict[str, Any]
    lease: Lease
    told: Told

    @contextlib.contextmanager
    def recorded(self, work: _Work) -> Iterator[None]:
        """Record what ends the job before its time, and say it in one sentence."""
        try:
            yield
        except (KeyboardInterrupt, Killed) as error:
            self.told.name = ""
            deaf()
            sentence = f"stopped; dspa resume {self.job.name} goes on from the last checkpoint"
            if self.lease.lost:
                sentence = f"stopped: another process took {self.job.name} over"
            self._broken("killed", sentence)
            raise type(error)(sentence) from error
        except InputError as error:
            self._refused(str(error), work)
            raise
        except OSError as error:
            if error.errno not in FULL:
                if error.filename is None or not self._taken_back(work):
                    self._failed(error)
                raise
            sentence = (
                f"{error.strerror or 'the disk is full'} ({error.filename or self.job.folder}): "
                f"make room, then dspa resume {self.job.name} goes on from the last checkpoint"
            )
            self._broken("failed", sentence)
            raise OutOfSpace(sentence) from error
        except BaseException as error:
            self._failed(error)
            raise

    def _refused(self, sentence: str, work: _Work) -> None:
        """Take a refused job back; keep all that a job which has begun can go on from."""
        if self._taken_back(work):
            return
        folder = self.job.folder
        self._broken("failed", sentence)
        first = self.record.attempts == 1 and not self.record.session
        if first and not _has_checkpoints(folder):
            _empty(folder)

    def _taken_back(self, work: _Work) -> bool:
        """Remove a new job that has computed nothing; tell whether it was one."""
        new = self.record.attempts == 1 and not work.begun
        if new:
            self.lease.release()
            shutil.rmtree(self.job.folder, ignore_errors=True)
        return new

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, MemoryError):
            self._broken("failed", memory_sentence(error))
            return
        path = self.job.folder / "traceback.txt"
        with contextlib.suppress(OSError):
            path.write_text(traceback.format_exc(), encoding="utf-8")
            error.add_note(f"the whole story is in {path}")
        self._broken("failed", f"{type(error).__name__}: {error}".splitlines()[0])

    def completed(self, outputs: Mapping[str, Path]) -> None:
        """Record the outputs, relative to the job; RuntimeError if one was not written."""
        found = {}
        for name, path in outputs.items():
            path = Path(path)
            if not path.exists():
                raise RuntimeError(f"{self.record.stage} did not write its output {path}")
            found[name] = str(path.absolute().relative_to(self.job.folder.absolute()))
        self._write(state="completed", outputs=found)
        if not self.record.session:
            shutil.rmtree(self.job.folder / "checkpoints", ignore_errors=True)

    def _broken(self, state: str, error: str) -> None:
        """Record it, unless another process has the job now or the disk takes nothing."""
        if not self.lease.lost:
            with contextlib.suppress(OSError):
                self._write(state=state, error=error)

    def _figures(self) -> dict[str, Any]:
        """Return the figures; what a job that grows did not find anew is as it was."""
        before = self.record.figures if self.record.session else {}
        return {**before, **self.figures}

    def _write(self, **fields: Any) -> None:
        end = now()
        seconds = self.record.seconds + end - (self.record.started or end)
        done = dataclasses.replace(
            self.record, finished=end, seconds=seconds, figures=self._figures(), **fields
        )
        if self.lease.lost:
            raise Killed(f"another process took {self.job.name} over")
        with contextlib.suppress(InputError):  # what the user wrote meanwhile
            written = self.job.read()
            done = dataclasses.replace(done, name=written.name, note=written.note)
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


def _has_checkpoints(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.json*"))


def _empty(folder: Path) -> None:
    """Leave only the records of a job that bad input ended: nothing half written."""
    for path in folder.iterdir():
        if path.name in RECORDS or path.name.startswith(".lease-"):
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
