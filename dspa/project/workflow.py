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

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data.errors import InputError
from dspa.dataflow.yaml_file import read_yaml
from dspa.project.lineage import Resolved, is_job, is_there, job_of, resolve
from dspa.project.params import fields_of, from_plain
from dspa.project.rehearsal import rehearse
from dspa.project.running import Options, start
from dspa.stages.registry import entries, find_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dspa.project.job import Job
    from dspa.project.project import Project
    from dspa.stages.stage import Stage


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

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything it takes from: steps, jobs and files."""
        return (*self.sources, *(text for texts in self.named.values() for text in texts))


def read_workflow(path: Path) -> list[Step]:
    """Read and check a whole workflow before anything runs.

    Parameters
    ----------
    path : Path
        A YAML file with a list ``steps``; only plain YAML is read, never Python objects.
    """
    content = read_yaml(path, "workflow")
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
    if len(rest) < len(step):
        twice = next(key for key in step if "_" in key and key.replace("_", "-") in step)
        raise InputError(f"{twice} and {twice.replace('_', '-')} are one key; leave one")
    rest = {key: value for key, value in rest.items() if key not in ("stage", "name", "from")}
    named = {
        names[key]: _texts(rest.pop(key))
        for key in list(rest)
        if key in names and key not in parameters
    }
    params = from_plain(stage.params, rest)
    name = str(step.get("name", step["stage"]))
    return Step(name, stage, _texts(step.get("from", [])), named, params)


def check_workflow(project: Project | None, steps: list[Step], *, rehearsed: bool = True) -> None:
    """Check what can be known of all steps before the first runs.

    Every source is a step before, a job or a file; every input that a step needs can come from
    its sources; steps that wait for no other are checked with their inputs.

    Parameters
    ----------
    project : Project or None
        Where jobs are looked up.
    steps : list of Step
    rehearsed : bool
        Whether steps that wait for no other are rehearsed; not before their files are there.
    """
    known: dict[str, frozenset[str]] = {}
    for number, step in enumerate(steps, start=1):
        try:
            _check_sources(project, step, known)
            if rehearsed and not any(step_of(text, known) for text in step.texts):
                inputs = resolve(project, step.stage, step.sources, step.named)
                rehearse(step.stage, inputs, step.params)
            else:
                _check_kinds(step, known)
        except InputError as error:
            raise InputError(f"step {number} ({step.name}): {error}") from error
        known[step.name] = _reach(step, known)


def _check_sources(project: Project | None, step: Step, known: Mapping[str, Any]) -> None:
    for text in step.texts:
        if step_of(text, known):
            continue
        if is_job(text, project):
            job_of(project, text)
        elif not is_there(Path(text)):
            near = difflib.get_close_matches(text, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"from {text!r}: there is no such step before it, job or file{hint}")


def _check_kinds(step: Step, known: Mapping[str, frozenset[str]]) -> None:
    """Refuse a step whose sources cannot give what it needs."""
    if not all(step_of(text, known) for text in step.texts):
        return  # jobs and files among them may give it
    for item in step.stage.inputs:
        named = step.named.get(item.name)
        texts = named or (step.sources if item.positional else ())
        if named is None and item.optional:
            continue
        if not texts:
            raise InputError(f"{step.stage.name} needs {item.kind}; name a step, a job or a file")
        gives = [known[text] for text in texts if text in known]
        if len(gives) == len(texts) and not any(not g or item.kind in g for g in gives):
            names = " and ".join(texts)
            raise InputError(
                f"{step.stage.name} needs {item.kind}, and neither {names} nor what came before "
                "gives any"
            )


def _reach(step: Step, known: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Return the kinds that a step and those before it may give; empty if that is not known."""
    own = next((entry.gives for entry in entries() if entry.name == step.stage.name), ())
    above = [known.get(step_of(text, known), frozenset()) for text in step.texts]
    if not own or not all(above):
        return frozenset()
    return frozenset(own).union(*above)


def step_of(text: str, known: Mapping[str, Any]) -> str:
    """Return the step that ``NAME`` or ``NAME.OUTPUT`` means; empty if none.

    Parameters
    ----------
    text : str
    known : mapping
        By name of steps.
    """
    name, dot, _ = text.rpartition(".")
    return text if text in known else name if dot and name in known else ""


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
    for number, step in enumerate(steps, start=1):
        try:
            inputs = inputs_of(project, step, done)
            job = start(project, step.stage, inputs, step.params, options=options)
        except InputError as error:
            raise InputError(f"step {number} ({step.name}): {error}") from error
        done[step.name] = job.name
        told(job)


def inputs_of(project: Project, step: Step, done: Mapping[str, str]) -> Resolved:
    """Find the inputs of a step.

    Parameters
    ----------
    project : Project
    step : Step
    done : mapping of str to str
        The jobs of the steps before it, by their names.
    """
    sources = [_job_of(text, done) for text in step.sources]
    named = {name: [_job_of(text, done) for text in texts] for name, texts in step.named.items()}
    return resolve(project, step.stage, sources, named)


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
