"""Workflow files: stages in order, each fed by those before it.

::

    steps:
      - stage: import micrographs
        source: "mics/*.mrc"
        pixel-size: 1.1
      - stage: ctf
        from: import micrographs
      - name: blobs
        stage: pick blob
        from: ctf
        min-diameter: 100
        max-diameter: 200
      - stage: pick template
        from: ctf
        templates: J6
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from dspa.data.errors import InputError
from dspa.project.lineage import resolve
from dspa.project.params import fields_of, from_plain
from dspa.project.running import Options, start
from dspa.stages.registry import find_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dspa.project.job import Job
    from dspa.project.project import Project
    from dspa.stages.stage import Stage

LARGEST = 2**20


@dataclass(frozen=True)
class Step:
    """One step of a workflow.

    Attributes
    ----------
    name : str
        What later steps call it: its ``name``, or its stage.
    stage : Stage
    sources : tuple of str
        Steps, jobs or files for the positional inputs.
    named : mapping of str to tuple of str
        The same for the inputs that have options.
    params : dataclass
    """

    name: str
    stage: Stage
    sources: tuple[str, ...]
    named: Mapping[str, tuple[str, ...]]
    params: Any


def read_workflow(path: Path) -> list[Step]:
    """Read and check a whole workflow before anything runs.

    Parameters
    ----------
    path : Path
        A YAML file with a list ``steps``; only plain YAML is read, never Python objects.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than a workflow can be (1 MiB)")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"cannot read the workflow {path}: {reason}") from error
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not steps:
        raise InputError(f"{path} needs a list 'steps:' with a 'stage:' in each")
    found: list[Step] = []
    for number, step in enumerate(steps, start=1):
        where = f"{path}, step {number}"
        try:
            found.append(_step(step))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if [each.name for each in found].count(found[-1].name) > 1 and "name" in step:
            raise InputError(f"{where}: the name {found[-1].name!r} is taken")
    return found


def _step(step: Any) -> Step:
    if not isinstance(step, dict) or not isinstance(step.get("stage"), str):
        raise InputError("it needs a line 'stage: NAME'")
    if not all(isinstance(key, str) for key in step):
        raise InputError("its keys must be words")
    stage = find_stage(step["stage"])
    names = {item.name.replace("_", "-"): item.name for item in stage.inputs}
    parameters = {
        name.replace("_", "-") for name in (field.name for field in fields_of(stage.params))
    }
    rest = {key.replace("_", "-"): value for key, value in step.items()}
    rest = {key: value for key, value in rest.items() if key not in ("stage", "name", "from")}
    named = {
        names[key]: _texts(rest.pop(key))
        for key in list(rest)
        if key in names and key not in parameters
    }
    params = from_plain(stage.params, rest)
    name = str(step.get("name", step["stage"]))
    return Step(name, stage, _texts(step.get("from", [])), named, params)


def run_workflow(
    project: Project, steps: list[Step], options: Options, *, told: Callable[[Job], None]
) -> None:
    """Run the steps in order; the first that fails ends it.

    Parameters
    ----------
    project : Project
    steps : list of Step
    options : Options
    told : callable
        Called with every completed job.
    """
    done: dict[str, str] = {}
    for step in steps:
        sources = [_job_of(text, done) for text in step.sources]
        named = {
            name: [_job_of(text, done) for text in texts] for name, texts in step.named.items()
        }
        inputs = resolve(project, step.stage, sources, named)
        job = start(project, step.stage, inputs, step.params, options=options)
        done[step.name] = job.name
        told(job)


def _job_of(text: str, done: Mapping[str, str]) -> str:
    """Turn a step's name, or ``NAME.OUTPUT``, into its job."""
    name, dot, output = text.rpartition(".")
    if text not in done and name in done:
        return done[name] + dot + output
    return done.get(text, text)


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int) for item in items):
        raise InputError(f"{value!r} must name steps, jobs or files")
    return tuple(str(item) for item in items)
