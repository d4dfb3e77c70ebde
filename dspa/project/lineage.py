"""From what a user typed to the file that is meant: job numbers, outputs, ancestors."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data.errors import InputError
from dspa.project.job import Job
from dspa.project.ranges import RANGE, spread

if TYPE_CHECKING:
    from dspa.project.project import Project
    from dspa.stages.stage import Input, Stage

# J5, last, or the name that a user gave; then perhaps one of its outputs.
_JOB = re.compile(r"([Jj]([0-9]{1,9})|[A-Za-z][\w-]*)(?:\.(\w+))?")
LAST = "last"


@dataclass(frozen=True)
class Given:
    """One input, resolved.

    Attributes
    ----------
    given : str
        What the user typed.
    path : Path
        Absolute.
    job : int or None
        The job that was named.
    """

    given: str
    path: Path
    job: int | None = None

    def record(self) -> dict[str, Any]:
        """Return what ``job.json`` keeps."""
        return {"given": self.given, "path": str(self.path), "job": self.job}


Resolved = Mapping[str, Given | tuple[Given, ...] | None]


def resolve(
    project: Project | None, stage: Stage, tokens: Sequence[str], named: Mapping[str, Any]
) -> dict[str, Given | tuple[Given, ...] | None]:
    """Find every input of a stage.

    Parameters
    ----------
    project : Project or None
        Where job numbers are looked up.
    stage : Stage
    tokens : sequence of str
        What was typed in the place of the positional inputs: jobs serve all of them, files serve
        them in the order in which the stage names them.
    named : mapping of str to str or sequence of str
        What was given by option.
    """
    jobs = [token for token in tokens if is_job(token, project)]
    files = [token for token in tokens if token not in jobs]
    found: dict[str, Given | tuple[Given, ...] | None] = {}
    for item in stage.inputs:
        option = named.get(item.name)
        if option:
            texts = [option] if isinstance(option, str) else list(option)
            found[item.name] = choose(project, item, texts)
        elif item.positional and files and item.many:
            # Jobs serve other inputs too, if there are any; else they are of this one, as typed.
            shared = any(other.positional for other in stage.inputs if other is not item)
            found[item.name], files = choose(project, item, files if shared else tokens), []
        elif item.positional and files:
            found[item.name] = _file(project, files.pop(0), item.kind)
        elif item.positional and jobs:
            found[item.name] = from_jobs(project, item, jobs)
        else:
            found[item.name] = None
        if found[item.name] is None and not item.optional:
            raise InputError(_missing(stage, item, tokens))
    if files:
        raise InputError(f"{stage.name} has no use for {files[0]!r}")
    if len(jobs) > 1 and project is not None:
        _refuse_unused(project, stage, jobs, found)
    return found


def _refuse_unused(project: Project, stage: Stage, texts: Sequence[str], found: Resolved) -> None:
    """Refuse a job of several that gives no input, itself or by a job before it."""
    each = (g if isinstance(g, tuple) else (g,) for g in found.values())
    given = [one for several in each for one in several if one is not None]
    for text in texts:
        job, output = job_of(project, text)
        job = job or find_job(project, text)
        if output is not None:
            of_use = any(one.path == job.output(output) for one in given)
        else:
            of_use = bool({one.job for one in given} & _with_ancestors(project, job))
        if not of_use:
            raise InputError(
                f"{stage.name} takes nothing from {text} beside the others; name one, or say which "
                "is which by the options of its inputs"
            )


def _with_ancestors(project: Project, job: Job) -> set[int]:
    known, level = {job.number}, [job]
    while level:
        above = {number for each in level for number in each.parents} - known
        known |= above
        level = [project.job(number) for number in above]
    return known


def paths(resolved: Resolved) -> dict[str, Any]:
    """Return the paths alone, as ``Stage.run`` takes them."""
    return {
        name: tuple(item.path for item in given)
        if isinstance(given, tuple)
        else (given.path if given is not None else None)
        for name, given in resolved.items()
    }


def is_job(text: str, project: Project | None = None) -> bool:
    """Tell whether a text names a job (``J5``, ``J5.half1``, ``last``) rather than a file.

    A number is always a job, a name if a job has it; what follows a dot must be an output that the
    job has, so that ``good.star`` is a file though a job is called ``good``. ``./good`` is a file.

    Parameters
    ----------
    text : str
    project : Project, optional
        Where jobs are looked up.

    Raises
    ------
    InputError
        If a name is that of a job and of a file.
    """
    match = _JOB.fullmatch(text)
    if match is None:
        return False
    word, number, output = match.groups()
    if output is None and (number is not None or (word == LAST and not is_there(Path(text)))):
        return True
    try:
        job = find_job(project, word)
        found = output is None or output in job.read().outputs
    except InputError:
        return False
    if found and number is None and is_there(Path(text)):
        instead = job.name if output is None else f"{job.name}.{output}"
        raise InputError(
            f"{text} is a file here and means {instead} too; write ./{text} or {instead}"
        )
    return found


def is_there(path: Path) -> bool:
    """Tell whether something is at a path; what cannot be asked for (too long a name) is not.

    Parameters
    ----------
    path : Path
        May begin with ``~``.
    """
    try:
        return path.expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def find_job(project: Project | None, text: str) -> Job:
    """Return the job of ``J5``, of ``last``, or of a name.

    Parameters
    ----------
    project : Project or None
    text : str
    """
    match = _JOB.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a job; jobs are J1, J2, ... (dspa status lists them)")
    if project is None:
        raise InputError(f"{text}: there is no project here; change to its folder or use --project")
    name, number, output = match.groups()
    if output is not None:
        raise InputError(f"{text} is one output of a job, or a file; name the job alone")
    if number is not None:
        return project.job(int(number))
    found = project.jobs[-1:] if name == LAST else _called(project, name)
    if not found:
        has = "there are no jobs yet" if name == LAST else "no job has that name"
        raise InputError(f"{text}: {has}; jobs are J1, J2, ... (dspa status lists them)")
    return found[0]


def endings(
    project: Project, begun: str, *, states: Sequence[str] = (), outputs: bool = False
) -> list[tuple[str, str]]:
    """Return what a word may become: ``last``, jobs newest first, names; each with stage and state.

    Parameters
    ----------
    project : Project
    begun : str
        ``J1``: J1, J10, J11 ...; ``J1.``: its outputs.
    states : sequence of str
        Jobs in other states are left out; all are taken if empty.
    outputs : bool
        Whether an output of a job is a word too.
    """
    known = []
    for number, job in enumerate(reversed(project.jobs)):
        with contextlib.suppress(InputError):
            record = job.read()
            if not states or record.state in states:
                words = [LAST] if number == 0 else []
                known.append(
                    (job, record, [*words, job.name, *([record.name] * bool(record.name))])
                )
    stem, dot, output = begun.partition(".")
    found = []
    for job, record, words in known:
        told = f"{record.stage}, {record.state}"
        for word in words:
            if not dot and word.startswith(begun.upper() if word == job.name else begun):
                found.append((word, told if word == job.name else f"{job.name}, {told}"))
            elif dot and outputs and word == (stem.upper() if word == job.name else stem):
                found += [(f"{word}.{name}", path) for name, path in record.outputs.items()
                          if name.startswith(output)]  # fmt: skip
    return found


def check_name(project: Project | None, name: str, *, own: int = 0) -> None:
    """Raise InputError if a job cannot be called so.

    Parameters
    ----------
    project : Project or None
    name : str
    own : int
        Number of the job that is to have it.
    """
    if not name:
        return
    number = re.fullmatch(r"[Jj]\d+", name) or RANGE.fullmatch(name)
    if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name == LAST or number:
        raise InputError(
            f"--name {name!r} is no name for a job; use letters, digits, '-' and '_', "
            "a letter first, and neither 'last' nor job numbers"
        )
    for job in _called(project, name) if project is not None else []:
        if job.number != own:
            raise InputError(f"--name {name}: {job.name} is called so; take another name")


def _called(project: Project, name: str) -> list[Job]:
    found = []
    for job in project.jobs:
        with contextlib.suppress(InputError):
            if job.read().name == name:
                found.append(job)
    return found


def choose(project: Project | None, item: Input, texts: Sequence[str]) -> Any:
    """Resolve what an option was given: one, or many where the input takes many.

    Parameters
    ----------
    project : Project or None
    item : Input
    texts : sequence of str
        Jobs or files.
    """
    pieces = [piece for text in texts for piece in _pieces(text)]
    if item.many:
        pieces = spread(project, pieces)
        return tuple(given for piece in pieces for given in _several(project, item, piece))
    given = tuple(one(project, item, piece) for piece in pieces)
    if len(given) != 1:
        raise InputError(f"--{item.name} takes one {item.kind}, got {len(given)}")
    return given[0]


def _pieces(text: str) -> list[str]:
    return [text] if is_there(Path(text)) else [piece for piece in text.split(",") if piece]


def one(project: Project | None, item: Input, text: str) -> Given:
    """Return an input by its file, or from one job or the nearest of those that it came from.

    Parameters
    ----------
    project : Project or None
    item : Input
    text : str
        A job as of `is_job`, or a file.

    Raises
    ------
    InputError
        If none of them has it, or there is no such file.
    """
    if not is_job(text, project):
        return _file(project, text, item.kind)
    given = _from_job(project, item, text)
    if given is None:
        raise InputError(f"{text} has no {item.kind}, nor have the jobs it came from")
    return given


def _several(project: Project | None, item: Input, text: str) -> tuple[Given, ...]:
    """Return an input, or those of all classes of a job that has one of each class."""
    if is_job(text, project):
        job, output = job_of(project, text)
        if job is not None and output is None:
            named = job.read().outputs
            classes = [name for name in named if name.startswith(f"{item.kind}_class")]
            if classes and item.kind not in named:
                ranked = sorted(classes, key=lambda name: (len(name), name))
                return tuple(_exact(job, name, text, item.kind) for name in ranked)
    return (one(project, item, text),)


def check_words(project: Project | None, stage: Stage, given: Mapping[str, Any]) -> None:
    """Raise InputError where a job stands for a file to write: ``dspa export J9``, OUT forgotten.

    Parameters
    ----------
    project : Project or None
    stage : Stage
    given : mapping of str to Any
        Parameters.
    """
    from dspa.project.params import fields_of  # which loads SciPy: not for every Tab

    if not any(item.positional for item in stage.inputs):
        return
    for field in fields_of(stage.params):
        text = given.get(field.name)
        if field.positional and isinstance(text, str) and is_job(text, project):
            raise InputError(
                f"{field.name.upper()} is missing: {text} is a job (./{text} would be a file); "
                f"{field.metadata['help']}"
            )


def _file(project: Project | None, text: str, kind: str) -> Given:
    # A home that is not there stays as it is spelt: expanduser would raise.
    path = Path(os.path.expanduser(text)).absolute()  # noqa: PTH111
    if is_there(path):
        return Given(text, path)
    job, output = job_of(project, text)
    if job is not None and output is not None:
        return _exact(job, output, text, kind)
    raise InputError(
        f"{text}: there is no such file for {kind}, and it is no job number (J1, J2, ...)"
    )


def job_of(project: Project | None, text: str) -> tuple[Job | None, str | None]:
    """Return the job and the output that a text means, whatever files there are; None if none.

    Parameters
    ----------
    project : Project or None
    text : str
        ``J5``, ``last``, a name; then perhaps a dot and an output.
    """
    match = _JOB.fullmatch(text)
    if match is None:
        return None, None
    word, number, output = match.groups()
    if number is None and (project is None or (word != LAST and not _called(project, word))):
        return None, output
    return find_job(project, word), output


def from_jobs(
    project: Project | None, item: Input, texts: Sequence[str]
) -> Given | tuple[Given, ...] | None:
    """Find an input in the named jobs or, failing that, in their nearest ancestors.

    Parameters
    ----------
    project : Project or None
    item : Input
    texts : sequence of str
        Each as of `is_job`.
    """
    if item.many:
        found = [_from_job(project, item, text) for text in texts]
        return tuple(given for given in found if given is not None) or None
    level = []
    for text in texts:
        job, output = job_of(project, text)
        if job is not None and output is not None:
            return _exact(job, output, text, item.kind)
        level += [job or find_job(project, text)]
    return _search(project, item, level)


def _from_job(project: Project | None, item: Input, text: str) -> Given | None:
    job, output = job_of(project, text)
    if job is not None and output is not None:
        return _exact(job, output, text, item.kind)
    return _search(project, item, [job or find_job(project, text)])


def _exact(job: Job, name: str, text: str, kind: str) -> Given:
    """Return an output of a job; ``J8.2`` is that of its class 2."""
    name = f"{kind}_class{name}" if name.isdigit() else name
    path = job.output(name)
    if path is None:
        has = ", ".join(job.read().outputs) or "none yet"
        raise InputError(f"{text}: {job.name} has no output {name!r}; it has {has}")
    return Given(f"{job.name}.{name}", path, job.number)


def _search(project: Project | None, item: Input, level: list[Job]) -> Given | None:
    """Walk up the lineage, generation by generation."""
    seen: set[int] = set()
    first = {job.number for job in level}
    while level and project is not None:
        found = {}
        for job in level:
            record = job.read()
            growing = record.session and record.outputs  # whole tables, whatever it is at
            if job.number in first and record.state != "completed" and not growing:
                raise InputError(f"{job.name} is {record.state}; {_remedy(job, record.state)}")
            parts = [name for name in record.outputs if name.startswith(f"{item.kind}_")]
            if job.number in first and parts and item.kind not in record.outputs:
                # Not those of the jobs before it, of which these are parts.
                raise InputError(
                    f"{job.name} has {', '.join(parts[:8])}{' ...' * (len(parts) > 8)}; say which, "
                    f"as {job.name}.{parts[0]}"
                )
            if item.kind in record.outputs:
                found[job.number] = job.inside(record.outputs[item.kind])
        if len(found) > 1:
            names = " and ".join(f"J{number}" for number in sorted(found))
            raise InputError(f"{names} both have {item.kind}; say which with --{item.name}")
        if found:
            number, path = found.popitem()
            if not is_there(path):
                raise InputError(f"{path}, the {item.kind} of J{number}, is gone; run it again")
            return Given(f"J{number}", path, number)
        seen |= {job.number for job in level}
        above = sorted({number for job in level for number in job.parents} - seen)
        level = [project.job(number) for number in above]
    return None


def refuse_cleared(job: Job, path: Path) -> None:
    """Raise InputError if a path is of another job of the project whose results were cleared.

    Parameters
    ----------
    job : Job
        Any of the project.
    path : Path
        What is not there.
    """
    for other in (Job(up) for up in path.parents if up.parent == job.folder.parent):
        with contextlib.suppress(InputError):
            state = other.read().state
            if state == "cleared":
                break
    else:
        return
    raise InputError(f"{path} is not there: {other.name} is cleared; {_remedy(other, state)}")


def _remedy(job: Job, state: str) -> str:
    if state == "cleared":
        return f"dspa resume {job.name} makes its results again"
    return "use a job that is completed"


def _missing(stage: Stage, item: Input, tokens: Sequence[str]) -> str:
    if tokens and item.positional:
        named = " and ".join(tokens)
        return f"{stage.name} needs {item.kind}: {named} gives none, nor do the jobs it came from"
    option = "" if item.positional else f" (--{item.name.replace('_', '-')})"
    return f"{stage.name} needs {item.kind}{option}: name a job (J1, J2, ...) or a file"
