"""A project: a folder with ``project.json`` and the jobs in ``jobs/``."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError
from dspa.data.places import MARK
from dspa.project.job import Job, Record, job_number, now

LAYOUT_VERSION = 1


@dataclass(frozen=True)
class Project:
    """A project on disk.

    Attributes
    ----------
    folder : Path
        Absolute.
    """

    folder: Path

    @property
    def jobs(self) -> list[Job]:
        """All jobs, by number."""
        found = {}
        for path in (self.folder / "jobs").glob("J*-*"):
            if re.fullmatch(r"J\d{3,}-[a-z0-9-]+", path.name):
                job = Job(path)
                found[job.number] = job
        return [found[number] for number in sorted(found)]

    def job(self, number: int) -> Job:
        """Return a job by its number."""
        for path in (self.folder / "jobs").glob(f"J{number:03d}-*"):
            return Job(path)
        jobs = self.jobs
        have = f"the last is {jobs[-1].name}" if jobs else "there are none yet"
        raise InputError(f"there is no job J{number} in {self.folder}; {have}")

    def new_job(self, record: Record) -> Job:
        """Make the folder of a new job and its record, under the next number.

        Parameters
        ----------
        record : Record
            Its number is replaced by the one allocated here. Two processes never get the same:
            making the claim folder is atomic on every file system.
        """
        jobs = self.folder / "jobs"
        jobs.mkdir(exist_ok=True)
        word = re.sub(r"[^a-z0-9]+", "-", record.stage.lower()).strip("-")
        number = 1 + max((job_number(path.name) for path in jobs.glob("J*-*")), default=0)
        while True:
            claim = jobs / f".claim-J{number:03d}"
            try:
                claim.mkdir()
            except FileExistsError:
                number += 1
                continue
            try:
                if any(jobs.glob(f"J{number:03d}-*")):
                    number += 1
                    continue
                job = Job(jobs / f"J{number:03d}-{word}")
                job.folder.mkdir()
                try:
                    fields = record.__dict__ | {"number": number, "created": now()}
                    job.write(Record(**fields))
                except BaseException:  # a full disk
                    shutil.rmtree(job.folder, ignore_errors=True)
                    raise
                return job
            finally:
                claim.rmdir()


def init(folder: Path) -> Project:
    """Make a project of a folder, which may exist; a project stays as it is.

    Parameters
    ----------
    folder : Path
        Made with its parents if absent.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
        if not (folder / MARK).exists():
            text = json.dumps({"layout_version": LAYOUT_VERSION, "created": now()}).encode()
            write_atomically(folder / MARK, lambda stream: stream.write(text))
    except OSError as error:
        raise InputError(f"cannot make a project in {folder}: {error.strerror}") from error
    return Project(folder)


def find(folder: Path | None = None) -> Project | None:
    """Return the project in a folder, or in the nearest folder above the current one.

    Parameters
    ----------
    folder : Path, optional
        Looked at alone if given.
    """
    if folder is not None:
        folder = Path(folder).expanduser().absolute()
        return Project(folder) if (folder / MARK).is_file() else None
    here = Path.cwd()
    for place in (here, *here.parents):
        if (place / MARK).is_file():
            return Project(place)
    return None
