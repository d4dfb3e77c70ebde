"""What is done to jobs that are there: ended, deleted, cleared; and the room that they take."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from dspa.data import store
from dspa.data.errors import InputError
from dspa.dataflow.process import end, family, is_alive
from dspa.io.locate import matching
from dspa.project.lease import BEAT, SILENT, STOP, Holder, holder
from dspa.project.lineage import find_job, refuse_cleared
from dspa.project.ranges import spread
from dspa.project.running import RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dspa.project.job import Job
    from dspa.project.project import Project

# Seconds in which a job that is told to end may write its record and stop its workers.
PATIENCE = 30.0
UNHEARD = 4.0  # beats without a sign of life, of a process that was asked to end
DELETED = ".deleted-"
KEPT = (*RECORDS, "traceback.txt")


def find_jobs(project: Project, texts: Sequence[str]) -> list[Job]:
    """Return the jobs that words name, each once, in their order.

    Parameters
    ----------
    project : Project
    texts : sequence of str
        Jobs, names, ``last``, and ranges: ``J1-3``.

    Raises
    ------
    InputError
        If one is no job, or none of a range is there.
    """
    named = (find_job(project, text) for text in spread(project, texts))
    return list({job.number: job for job in named}.values())


def kill(
    job: Job, *, patience: float = PATIENCE, tell: Callable[[str], None] = lambda _: None
) -> None:
    """End a running job, its process and its workers; it can be resumed.

    The process is asked, so that the record says what happened, and ended by force if it does
    not answer. On another host it is asked through a file in the job's folder.

    Parameters
    ----------
    job : Job
    patience : float
        Seconds to wait for an answer.
    tell : callable
        Told what is known and waited for, where that takes long.

    Raises
    ------
    InputError
        If it does not run, or does not answer and is not ours to end.
    """
    record = job.read()
    if record.state != "running":
        raise InputError(f"{job.name} is {record.state}; only a running job can be killed")
    held = holder(job.folder, record.process)
    if not is_alive(held.process):
        _kill_elsewhere(job, held, patience + 2 * BEAT, tell)
        return
    pid = int(held.process["pid"])
    workers = family(pid)
    if held.process.get("main", True):
        _signal(job, pid)
    else:  # a thread of a program that goes on without it
        _ask(job)
        patience += 2 * BEAT
    stopped = _wait(lambda: _ended(job), patience)
    if not held.process.get("alone", not stopped):
        if not stopped:
            raise InputError(f"{job.name} ({held.where}) does not stop; end that program")
        return
    if not _wait(lambda: not is_alive(held.process), patience):
        _signal(job, pid, signal.SIGKILL)
        _wait(lambda: not is_alive(held.process), patience)
    end(workers)
    _record_end(job, held)
    if job.read().state == "completed":
        raise InputError(f"{job.name} was completed before it heard of it")


def _kill_elsewhere(job: Job, held: Holder, patience: float, tell: Callable[[str], None]) -> None:
    """Ask a process on another machine; give up on one that neither hears nor renews its lease."""

    def deaf() -> bool:
        silent = holder(job.folder, held.process).silent or 0.0
        return (job.folder / STOP).exists() and silent > UNHEARD * BEAT

    _ask(job)
    tell(
        f"{job.name} runs on another machine ({held.where}{held.heard}); asked it to end through "
        f"the job's folder, where it looks every {BEAT:.0f} s; waiting up to {patience:.0f} s"
    )
    begun = time.monotonic()
    while not _ended(job):
        waited = time.monotonic() - begun
        if waited > patience or (waited > BEAT and deaf()):
            now = holder(job.folder, held.process)
            raise InputError(
                f"{job.name} ({held.where}{now.heard}) does not answer; if that machine is gone, "
                f"dspa resume {job.name} --force goes on from the last checkpoint; after "
                f"{SILENT:.0f} s of silence no --force is needed"
            )
        time.sleep(0.1)


def _signal(job: Job, pid: int, number: int = signal.SIGTERM) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise InputError(f"{job.name} runs as another user, who can kill it") from error


def _ask(job: Job) -> None:
    try:
        (job.folder / STOP).touch()
    except OSError as error:
        raise InputError(f"{job.folder}: cannot write there ({error.strerror})") from error


def _ended(job: Job) -> bool:
    return job.read().state != "running"


def _wait(done: Callable[[], bool], patience: float) -> bool:
    until = time.monotonic() + patience
    while not done():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _record_end(job: Job, held: Holder) -> None:
    """Write that a job was killed, if it could not do so itself."""
    for path in job.folder.glob(".lease-*"):
        path.unlink(missing_ok=True)
    record = job.read()
    if record.error == held.gone or record.state == "running":
        error = f"killed; dspa resume {job.name} goes on from the last checkpoint"
        job.write(dataclasses.replace(record, state="killed", error=error, finished=time.time()))


def dependents(project: Project, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that were made from given ones or name images in them, directly or not.

    In the order in which they were made. Names count however they are spelt: what was exported and
    imported again has no record of where it came from, but its images are where they were.

    Parameters
    ----------
    project : Project
    jobs : sequence of Job
    """
    taken = {job.number for job in jobs}
    folders = {folder: job.number for job in project.jobs
               for folder in (job.folder, job.folder.resolve())}  # fmt: skip
    found = []
    for job in project.jobs:
        try:
            parents = {*job.parents, *_named(job, folders)}
        except InputError:
            continue
        if job.number not in taken and taken.intersection(parents):
            taken.add(job.number)
            found.append(job)
    return found


def unreadable(project: Project, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs, other than given ones, of which it is not known what they were made from.

    Parameters
    ----------
    project : Project
    jobs : sequence of Job
    """
    found, taken = [], {job.number for job in jobs}
    for job in project.jobs:
        try:
            _ = job.parents, job.input_paths
        except InputError:
            found.append(job)
    return [job for job in found if job.number not in taken]


def _named(job: Job, folders: Mapping[Path, int]) -> set[int]:
    """Return the numbers of the jobs in whose folders inputs are, and images that tables name."""
    paths = {str(path) for path in job.input_paths}
    for table in job.folder.glob("*.zarr"):
        with contextlib.suppress(InputError):  # an image store, or damaged
            dataset = store.open(table, lazy=True)
            for name in {"path", "stack_path"}.intersection(map(str, dataset.variables)):
                paths.update(map(str, dataset[name].values))
    # Folders first: there are fewer of them than files, and each is asked of the disk.
    places = {Path(path).parent for path in paths}
    places |= {place.resolve() for place in places}
    return {folders[up] for place in places for up in (place, *place.parents) if up in folders}


def exported(job: Job) -> Path | None:
    """Return the file of an export that names images where they are; None of any other job.

    Parameters
    ----------
    job : Job
    """
    with contextlib.suppress(InputError):
        record = job.read()
        if record.stage == "export" and not record.params.get("images"):
            return Path(record.folder, str(record.params.get("out", "")))
    return None


def delete(jobs: Sequence[Job]) -> int:
    """Delete jobs with all they hold; their numbers are not used again.

    Parameters
    ----------
    jobs : sequence of Job

    Returns
    -------
    int
        Bytes that were freed.
    """
    refuse_running(jobs)
    freed = 0
    for job in sorted(jobs, key=lambda each: -each.number):
        freed += disk_use(job.folder)
        folder = job.folder
        try:
            (folder.parent / f".claim-{folder.name.split('-')[0]}").mkdir(exist_ok=True)
            gone = folder.with_name(f"{DELETED}{folder.name}-{uuid.uuid4().hex[:8]}")
            target = folder.resolve() if folder.is_symlink() else None
            folder.rename(gone)  # at once: no job is ever seen half deleted
        except OSError as error:
            raise InputError(f"{folder} cannot be deleted ({error.strerror})") from error
        _remove(gone)
        if target is not None:
            _remove(target)
    return freed


def clear(project: Project, jobs: Sequence[Job]) -> int:
    """Remove the results of jobs, which `resume` makes again; their records stay.

    Parameters
    ----------
    project : Project
    jobs : sequence of Job

    Returns
    -------
    int
        Bytes that were freed.
    """
    refuse_running(jobs)
    for job in jobs:
        _refuse_unrepeatable(project, job)
    freed = 0
    for job in jobs:
        before = disk_use(job.folder)
        job.write(dataclasses.replace(job.read(), state="cleared", outputs={}))
        for path in list(job.folder.iterdir()):
            if path.name not in KEPT:
                _remove(path)
        freed += before - disk_use(job.folder)
    return freed


def sweep(project: Project) -> int:
    """Remove what no job needs: checkpoints of completed ones, pieces of broken writes.

    Parameters
    ----------
    project : Project

    Returns
    -------
    int
        Bytes that were freed.
    """
    freed = 0
    leftovers = list((project.folder / "jobs").glob(f"{DELETED}*"))
    for job in project.jobs:
        try:
            state = job.read().state
        except InputError:
            continue
        if state == "completed" and not job.grows:
            leftovers += [path for path in [job.folder / "checkpoints"] if path.exists()]
        if state != "running":
            leftovers += [p for p in job.folder.iterdir() if _is_piece(p.name)]
    for path in leftovers:
        freed += disk_use(path)
        _remove(path)
    return freed


def _is_piece(name: str) -> bool:
    """Tell whether a name is that of a file being written, or of one that was being replaced."""
    temporary = name.startswith(".") and name.endswith(".tmp")
    return temporary or ".zarr.tmp-" in name or ".zarr.old-" in name


def disk_use(path: Path) -> int:
    """Return the bytes that a file or folder takes; links count as links.

    Parameters
    ----------
    path : Path
    """
    return sum({(s.st_dev, s.st_ino): s.st_blocks * 512 for s in _stats(path)}.values())


def _stats(path: Path) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):
        yield path.lstat()
        if path.is_dir():
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _stats(Path(entry.path))
                    else:
                        yield entry.stat(follow_symlinks=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refuse_running(jobs: Sequence[Job]) -> None:
    """Raise InputError if one of the jobs is running.

    Parameters
    ----------
    jobs : sequence of Job
    """
    for job in jobs:
        with contextlib.suppress(InputError):  # a damaged record runs nothing
            if job.read().state == "running":
                break
    else:
        return
    raise InputError(f"{job.name} is running; dspa kill {job.name} first")


def _refuse_unrepeatable(project: Project, job: Job) -> None:
    """Raise InputError if what a job was made from is not there any more."""
    record = job.read()
    if record.state not in ("completed", "failed", "killed"):
        raise InputError(f"{job.name} is {record.state}; there is nothing to clear")
    gone = [path for path in job.input_paths if not path.exists()]
    source = record.params.get("source", record.params.get("files", []))
    known = record.folder and Path(record.folder).is_dir()
    start = Path(record.folder) if known else project.folder
    with contextlib.chdir(start):
        for each in [source] if isinstance(source, str) else source:
            gone += [] if matching(each) or Path(each).exists() else [Path(each)]
    if gone:
        refuse_cleared(job, gone[0])
        raise InputError(f"{job.name} cannot be made again: {gone[0]} is not there any more")
