"""A live session: the steps of a workflow that work exposure by exposure, round after round.

Every step is one job, made in the first round and extended in its folder in later ones. What has to
be done follows from the jobs alone: an import takes files that its table does not name, and a later
step is due when a job that it takes from was completed after it began. So a session may die at any
moment, and whoever starts it again goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data.counts import counted
from dspa.data.errors import InputError, OutOfSpace
from dspa.dataflow.events import plain
from dspa.io.locate import spelling
from dspa.io.micrographs import read_micrographs
from dspa.project.job import input_paths, now
from dspa.project.lease import claim, stopper
from dspa.project.lineage import paths
from dspa.project.running import Options, extend, start
from dspa.project.sessions import told as told_in_a_line
from dspa.project.signals import Killed, told_to_end
from dspa.project.watch import Arrival, Seen, Watch, is_away
from dspa.project.workflow import check_workflow, inputs_of, step_of
from dspa.stages.imports.arrivals import known_paths, read_notes
from dspa.stages.stage import check_growing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dspa.dataflow.events import Event
    from dspa.project.job import Job, Record
    from dspa.project.project import Project
    from dspa.project.sessions import LiveSession
    from dspa.project.workflow import Step
    from dspa.stages.imports.arrivals import Aside

IMPORTS = {"import movies": "movies", "import micrographs": "micrographs"}
# Seconds before a step that was refused is tried again, and how often one may fail in a row of
# which nobody knows why.
BACK_OFF, FAILURES = 30.0, 3
EACH = 4  # exposures of a round for each worker
REMEMBERED = 8  # rounds that the pace is taken from


@dataclass(frozen=True)
class Pace:
    """How a session takes up files.

    Attributes
    ----------
    at_once : int
        Most exposures of a round; 0: 4 for each worker.
    newest_first : bool
        Of many that wait, take the newest first.
    settle : float
        Seconds for which a file must not have changed.
    poll : float
        Seconds between looks while there is nothing to do.
    """

    at_once: int = 0
    newest_first: bool = False
    settle: float = 5.0
    poll: float = 2.0


def check_live(project: Project | None, steps: list[Step]) -> None:
    """Raise InputError if a workflow is none that can grow exposure by exposure.

    Parameters
    ----------
    project : Project or None
    steps : list of Step
    """
    first = steps[0]
    if first.stage.name not in IMPORTS:
        raise InputError(
            f"step 1 ({first.name}): a live session begins with {' or '.join(IMPORTS)}"
        )
    for number, step in enumerate(steps, start=1):
        try:
            if number > 1 and step.stage.name in IMPORTS:
                raise InputError("a live session has one import, its first step")
            if not step.stage.grows:
                raise InputError(
                    f"{step.stage.name} does not work exposure by exposure; leave it out, and run "
                    "it on the jobs of the session whenever you like"
                )
            check_growing(step.params)
        except InputError as error:
            raise InputError(f"step {number} ({step.name}): {error}") from error
    check_workflow(project, steps, rehearsed=False)


@dataclass
class Live:
    """A session that runs.

    Attributes
    ----------
    project : Project
    session : LiveSession
    steps : list of Step
        Checked by `check_live`.
    options : Options
        Of its jobs.
    pace : Pace
    tell : callable
        Told what people watch, a line at a time.
    """

    project: Project
    session: LiveSession
    steps: list[Step]
    options: Options
    pace: Pace
    tell: Callable[[str], None]
    _jobs: dict[str, Job] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _aside: dict[str, Aside] = field(default_factory=dict)
    _rounds: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _later: dict[str, float] = field(default_factory=dict)  # steps that wait, and until when
    _failures: int = 0
    _waiting: str = ""
    _said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        own = f"{self.session.name}/"
        listeners = (*self.options.listeners, self._heard)
        note = f"live session {self.session.name}"
        self.options = dataclasses.replace(self.options, listeners=listeners, note=note)
        records = [(job, job.read()) for job in self.project.jobs]
        found = {r.session.removeprefix(own): (job, r) for job, r in records
                 if r.session.startswith(own)}  # fmt: skip
        for number, step in enumerate(self.steps, start=1):
            if step.name in found:
                self._take_up(number, step, *found[step.name])
        self._watch = Watch(self.steps[0].params.patterns, self.pace.settle)
        self._at_once = self.pace.at_once
        self._refresh()

    def _take_up(self, number: int, step: Step, job: Job, record: Record) -> None:
        """Go on with the job of a step, if the file is as it was."""
        own = {f.name: plain(getattr(step.params, f.name)) for f in dataclasses.fields(step.params)}
        changed = [name for name, value in own.items() if plain(record.params.get(name)) != value]
        if record.stage != step.stage.name:
            changed = ["stage"]
        elif record.outputs and input_paths(record) != self._inputs(step):
            changed.append("from")
        if not changed:
            self._jobs[step.name] = job
        elif record.outputs:
            names = ", ".join(name.replace("_", "-") for name in changed)
            raise InputError(
                f"step {number} ({step.name}): {names} was changed since {job.name} was made with "
                "it; change it back, or begin another session with a copy of the file"
            )

    def _inputs(self, step: Step) -> list[Path]:
        """Return the files that a step takes, those of steps before it among them."""
        jobs = {name: job.name for name, job in self._jobs.items()}
        resolved = paths(inputs_of(self.project, step, jobs))
        each = [path if isinstance(path, tuple) else (path,) for path in resolved.values()]
        return [path for several in each for path in several if path is not None]

    def run(self) -> None:
        """Run until it is told to end: by a signal, or by `dspa.project.sessions.stop`."""
        with told_to_end() as told, self._held():
            self.session.write(state="running", error="")
            try:
                self._run()
            except (KeyboardInterrupt, Killed):
                told.name = ""
                self._end("stopped", "")
            except BaseException as error:
                self._end("failed", f"{type(error).__name__}: {error}".splitlines()[0])
                raise

    def _end(self, state: str, error: str) -> None:
        with contextlib.suppress(OSError, InputError):
            self.session.write(state=state, error=error)
        if state == "stopped":
            self.tell(f"session {self.session.name} stopped; start it again to go on")

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the right to run the session; no other process has it meanwhile."""
        called, ends = f"session {self.session.name}", f"dspa live stop {self.session.name}"
        lease = claim(self.session.folder, {}, stop=stopper(Killed), called=called, ends=ends,
                      alone=self.options.alone)  # fmt: skip
        try:
            yield
        finally:
            lease.release()

    def _run(self) -> None:
        while True:
            if not self._turn():
                time.sleep(self.pace.poll)

    def _turn(self) -> bool:
        """Do a round if there is something to do; say what is waited for if not."""
        if self.session.paused:
            self._waits("paused; dspa live resume goes on")
            return False
        seen = self.look()
        files = self._chosen(seen)
        if files or any(self._due(step) for step in self.steps[1:]):
            self.round(files, waiting=seen.waiting - len(files))
            return True
        away = self._is_away(seen)
        which = "the files are not there; waiting until they are back" if away else "waiting for"
        self._waits(f"{which}: {self._pattern}")
        return False

    def _waits(self, text: str) -> None:
        """Say what is waited for, if it is something else than before."""
        if text != self._waiting:
            self._waiting = text
            self.tell(text)

    @property
    def _pattern(self) -> str:
        return spelling(self.steps[0].params.files)

    def _is_away(self, seen: Seen) -> bool:
        """Tell whether files were there, and none is, nor the folder of the last of them."""
        return not seen.files and bool(self._known) and is_away(Path(max(self._known)).parent)

    def look(self) -> Seen:
        """Look which files are there."""
        return self._watch.look(self._known, self._aside)

    def _chosen(self, seen: Seen) -> tuple[str, ...]:
        """Return the files of the next round, by name."""
        first = self.steps[0]
        if not seen.ready or self._later.get(first.name, 0.0) > time.monotonic():
            return ()
        order: Sequence[Arrival] = seen.ready[::-1] if self.pace.newest_first else seen.ready
        if not self._at_once:
            self._at_once = EACH * self._workers()
        return tuple(sorted(each.name for each in order[: self._at_once]))

    def _workers(self) -> int:
        from dspa.dataflow.events import Events

        runner = self.options.make_runner(self.session.folder, Events())
        try:
            return runner.workers
        finally:
            runner.close()

    def round(self, files: tuple[str, ...] = (), *, waiting: int = 0) -> None:
        """Take up files, and have every step that is due follow.

        Parameters
        ----------
        files : tuple of str
            For the import.
        waiting : int
            How many more there are.
        """
        begun, before = time.monotonic(), len(self._known)
        if files:
            self._advance(self.steps[0], files)
            self._refresh()
        for step in self.steps[1:]:
            if self._due(step):
                self._advance(step)
        done = len(self._known) - before
        if done:
            self._rounds.append((done, time.monotonic() - begun))
        figures = self.figures(waiting)
        self.session.write(figures=figures)
        self.tell(told_in_a_line(figures))

    def _advance(self, step: Step, files: tuple[str, ...] = ()) -> None:
        """Begin the job of a step, or extend it; one that is refused waits, and is tried again."""
        job = self._jobs.get(step.name)
        try:
            if job is None:
                self._jobs[step.name] = self._begin(step, files)
            else:
                extend(job, options=self.options, arrived=files)
            self._failures = 0
        except Exception as error:
            self._refused(step, job, error)

    def _begin(self, step: Step, files: tuple[str, ...]) -> Job:
        jobs = {name: job.name for name, job in self._jobs.items()}
        options = dataclasses.replace(self.options, session=f"{self.session.name}/{step.name}")
        with contextlib.chdir(self.session.read().folder):
            inputs = inputs_of(self.project, step, jobs)
            job = start(self.project, step.stage, inputs, step.params, options=options,
                        arrived=files)  # fmt: skip
        self.tell(f"{job.name} is step {self.steps.index(step) + 1}, {step.name}")
        return job

    def _refused(self, step: Step, job: Job | None, error: Exception) -> None:
        """Say what a step was refused for, once; end where it is for the user to mend."""
        number = self.steps.index(step) + 1
        if job is None and isinstance(error, InputError):
            raise InputError(f"step {number} ({step.name}): {error}") from error
        if not isinstance(error, InputError | OutOfSpace | OSError):
            self._failures += 1
            if job is None or self._failures >= FAILURES:
                raise error
        self._later[step.name] = time.monotonic() + BACK_OFF
        self._say(f"step {number} ({step.name}) waits: {error}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.tell(text)

    def _heard(self, event: Event) -> None:
        """Pass on what jobs warn of, each sentence once: they say it in every round."""
        if event["kind"] == "warning":
            self._say(f"warning: {event.get('text', '')}")

    def _due(self, step: Step) -> bool:
        """Tell whether a step has something to do: what it takes from has grown since it began."""
        if self._later.get(step.name, 0.0) > time.monotonic():
            return False
        names = {each.name for each in self.steps}
        direct = {source for text in step.texts if (source := step_of(text, dict.fromkeys(names)))}
        above = self._above(direct)
        records = {name: self._jobs[name].read() for name in above if name in self._jobs}
        if any(name not in records or not records[name].outputs for name in direct):
            return False
        job = self._jobs.get(step.name)
        if job is None:
            return True
        own = job.read()
        last = max((record.finished or 0.0 for record in records.values()), default=0.0)
        return own.state != "completed" or (own.started or 0.0) < last

    def _above(self, names: set[str]) -> set[str]:
        """Return steps with all that they take from."""
        found, level = set(names), set(names)
        by_name = {step.name: step for step in self.steps}
        while level:
            texts = [text for name in level for text in by_name[name].texts]
            level = {step_of(text, by_name) for text in texts} - found - {""}
            found |= level
        return found

    def _refresh(self) -> None:
        """Learn which files the import has."""
        job = self._jobs.get(self.steps[0].name)
        if job is not None:
            self._known = set(known_paths(job.folder, IMPORTS[self.steps[0].stage.name]))
            self._aside = read_notes(job.folder).aside

    def figures(self, waiting: int) -> dict[str, Any]:
        """Return what people watch.

        Parameters
        ----------
        waiting : int
            New files that no round has taken up.
        """
        lost, done = 0, len(self._known)
        found: dict[str, Any] = {}
        for step in self.steps[1:]:
            job = self._jobs.get(step.name)
            if job is None:
                continue
            record = job.read()
            lost = lost if record.outputs else done
            names = {"candidates": "picks", "kept": "picks", "particles": "particles",
                     "rejected": "rejected"}  # fmt: skip
            found |= {to: record.figures[key] for key, to in names.items() if key in record.figures}
            if "micrographs" in record.outputs and "rejected" not in record.outputs:
                with contextlib.suppress(InputError):
                    table = read_micrographs(job.inside(record.outputs["micrographs"]))
                    lost = max(lost, done - int(table.sizes["micrograph"]))
        count, seconds = (sum(each) for each in zip(*self._rounds, strict=True)) if (
            self._rounds) else (0, 0.0)  # fmt: skip
        return {
            "seen": done + len(self._aside) + waiting,
            "done": done - lost,
            "set_aside": len(self._aside) + lost,
            "waiting": waiting,
            **found,
            "seconds_each": round(seconds / count, 3) if count else None,
            "arrive_per_hour": self._watch.per_hour,
            "time": now(),
        }


def live(
    project: Project,
    session: LiveSession,
    steps: list[Step],
    *,
    options: Options,
    pace: Pace,
    tell: Callable[[str], None],
) -> None:
    """Run a live session until it is told to end.

    Parameters
    ----------
    project : Project
    session : LiveSession
        Of the workflow.
    steps : list of Step
    options : Options
    pace : Pace
    tell : callable
        Told what people watch.
    """
    folder = session.read().folder
    with contextlib.chdir(folder if Path(folder).is_dir() else Path.cwd()):
        running = Live(project, session, steps, options, pace, tell)
        if running._jobs:
            tell(f"session {session.name} goes on with {counted(len(running._known), 'exposure')}")
        running.run()
