"""A job once more, as another one is: same stage and inputs, with what is to differ."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data.errors import InputError
from dspa.dataflow.events import plain
from dspa.project.figures import setting
from dspa.project.lineage import Given, Resolved, choose, is_there, refuse_cleared
from dspa.project.params import fields_of, from_plain
from dspa.stages.registry import find_stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dspa.project.job import Job
    from dspa.project.project import Project
    from dspa.stages.stage import Input, Stage


@dataclass(frozen=True)
class Again:
    """What would run.

    Attributes
    ----------
    stage : Stage
    inputs : mapping
    params : dataclass
    differences : tuple of str
        One line for each input, parameter or seed that is not that of the first job.
    """

    stage: Stage
    inputs: Resolved
    params: Any
    differences: tuple[str, ...]


def again(
    project: Project,
    job: Job,
    *,
    params: Mapping[str, Any],
    inputs: Mapping[str, Sequence[str]],
    seed: int | None = None,
) -> Again:
    """Take a job's inputs and parameters, and change some.

    Parameters
    ----------
    project : Project
    job : Job
    params : mapping of str to Any
        The parameters that differ, as plain values.
    inputs : mapping of str to sequence of str
        The inputs that differ: jobs or files.
    seed : int, optional
        If it differs.

    Raises
    ------
    InputError
        If an input is gone, or a parameter is not one.
    """
    record = job.read()
    stage = find_stage(record.stage)
    known = {field.name for field in fields_of(stage.params)}
    kept = {name: value for name, value in record.params.items() if name in known}
    made = from_plain(stage.params, kept | dict(params))
    found: dict[str, Any] = {}
    for item in stage.inputs:
        if item.name in inputs:
            found[item.name] = choose(project, item, inputs[item.name])
        else:
            found[item.name] = _as_before(job, item, record.inputs.get(item.name))
    lines = [
        f"{name} is no parameter any more; it was {record.params[name]}"
        for name in record.params if name not in known
    ]  # fmt: skip
    for field in fields(made):
        unit = field.metadata.get("unit", "")
        now, before = plain(getattr(made, field.name)), record.params.get(field.name)
        if now != before:
            was, will = (setting(value, unit) or "none" for value in (before, now))
            lines.append(f"{field.name}: {was} -> {will}")
    for name, given in found.items():
        before, now = _spelt(record.inputs.get(name)), _spelt(_records(given))
        if now != before:
            lines.append(f"{name}: {before} -> {now}")
    if seed is not None and seed != record.seed:
        lines.append(f"seed: {record.seed} -> {seed}")
    return Again(stage, found, made, tuple(lines))


def _as_before(job: Job, item: Input, given: Any) -> Given | tuple[Given, ...] | None:
    if not given:
        if item.optional:
            return None
        raise InputError(
            f"{job.folder / 'job.json'} names no {item.name}; give them with --{_option(item)}"
        )
    if item.many:
        each = given if isinstance(given, list) else [given]
        return tuple(_as_it_was(job, item, one) for one in each if one)
    if isinstance(given, list):
        raise InputError(
            f"{job.folder / 'job.json'} names {len(given)} inputs as {item.name}, of which there "
            f"is one; give it with --{_option(item)}"
        )
    return _as_it_was(job, item, given)


def _as_it_was(job: Job, item: Input, given: Mapping[str, Any]) -> Given:
    path = Path(given["path"])
    if not is_there(path):
        refuse_cleared(job, path)
        raise InputError(
            f"{path}, the {item.name} of {job.name}, is gone; give another with --{_option(item)}"
        )
    return Given(given["given"], path, given["job"])


def _option(item: Input) -> str:
    return item.name.replace("_", "-")


def _records(given: Given | tuple[Given, ...] | None) -> Any:
    if isinstance(given, tuple):
        return [one.record() for one in given]
    return given.record() if given is not None else None


def _spelt(given: Any) -> str:
    items = given if isinstance(given, list) else [given]
    return ", ".join(item["given"] for item in items if item) or "none"
