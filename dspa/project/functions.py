"""The stages as functions: ``dspa.class2d(particles, classes=50, on=client)``.

The same stages as on the command line, with the same names, units and checks. Inputs are paths,
datasets, results or, as text, jobs of the project ``folder``: ``"J5"``, ``"J5.half1"``, ``"last"``.
Without ``folder`` the results live in a temporary folder that goes with the result.
"""

from __future__ import annotations

import inspect
import re
import shutil
import uuid
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from rich.console import Console

from dspa.data.errors import InputError
from dspa.dataflow.dask_runner import runner_for
from dspa.dataflow.scratch import scratch_folder
from dspa.io.micrographs import write_micrographs
from dspa.io.particles import write_particles
from dspa.io.volumes import write_volume
from dspa.project.lineage import (
    Given,
    Resolved,
    check_words,
    find_job,
    from_jobs,
    is_job,
    one,
)
from dspa.project.machines import Machines
from dspa.project.notebook import notebook_bar
from dspa.project.outcome import Outcome
from dspa.project.params import fields_of, from_plain
from dspa.project.project import Project, find, init
from dspa.project.running import Options, start
from dspa.stages.registry import find_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dspa.dataflow.events import Events
    from dspa.dataflow.runner import Runner
    from dspa.project.job import Job
    from dspa.stages.stage import Input, Stage


def function(name: str) -> Callable[..., Outcome]:
    """Return the function of a stage.

    Parameters
    ----------
    name : str
        With underscores: ``class2d``, ``pick_blob``, ``import_particles``.
    """
    stage = find_stage(name)

    def call(
        *given: Any,
        on: Any = None,
        folder: str | Path | None = None,
        seed: int = 0,
        quiet: bool | None = None,
        **values: Any,
    ) -> Outcome:
        return _call(stage, given, values, _Setting(on, folder, seed, quiet))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = _docstring(stage)
    call.__signature__ = _signature(stage)  # type: ignore[attr-defined]
    return call


@dataclass(frozen=True)
class _Setting:
    on: Any
    folder: str | Path | None
    seed: int
    quiet: bool | None


def _call(
    stage: Stage, given: tuple[Any, ...], values: dict[str, Any], setting: _Setting
) -> Outcome:
    taken = {item.name for item in fields_of(stage.params)}
    named = {
        item.name: values.pop(item.name)
        for item in stage.inputs
        if item.name in values and item.name not in taken
    }
    words = [item for item in fields_of(stage.params) if item.positional]
    spare = list(given)
    for word in reversed(words):
        if word.name in values or not spare:
            continue
        if isinstance(spare[-1], str | Path):
            values[word.name] = str(spare.pop())
        elif word.several and isinstance(spare[-1], list | tuple):
            values[word.name] = [str(item) for item in spare.pop()]
    params = from_plain(stage.params, values)
    if setting.folder is not None:
        return _job(init(Path(setting.folder)), stage, (params, spare, named), setting)
    folder = scratch_folder("dspa-job-")
    try:
        outcome = _job(init(folder), stage, (params, spare, named), setting)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(outcome, shutil.rmtree, folder, ignore_errors=True)
    return outcome


def _job(
    project: Project,
    stage: Stage,
    what: tuple[Any, list[Any], Mapping[str, Any]],
    setting: _Setting,
) -> Outcome:
    params, given, named = what
    named_jobs = [text for text in _texts([*given, *named.values()]) if is_job(text, project)]
    if named_jobs and setting.folder is None:
        text = named_jobs[0]
        raise InputError(f"{text} is a job: give folder=, its project (./{text} would be a file)")
    check_words(project, stage, vars(params))
    inputs = _inputs(project, stage, list(given), named)
    bar = notebook_bar(stage.name) if setting.quiet is None else None
    console = Console(stderr=True, quiet=setting.quiet is not False)
    with _machines(setting.on) as (make_runner, cluster):
        options = Options(
            make_runner,
            cluster=cluster,
            seed=setting.seed,
            console=console,
            listeners=() if bar is None else (bar,),
        )
        job = start(project, stage, inputs, params, options=options)
    everything = [*given, *named.values()]
    flat = [x for each in everything for x in (each if isinstance(each, list | tuple) else [each])]
    sources = tuple(item for item in flat if isinstance(item, Outcome))
    return _outcome(job, sources)


def result(job: str | int, *, folder: str | Path | None = None) -> Outcome:
    """Open a completed job of a project, from wherever it was run.

    Parameters
    ----------
    job : str or int
        ``J5`` or 5.
    folder : path, optional
        Project; by default that of the current folder.
    """
    project = find(None if folder is None else Path(folder))
    if project is None:
        raise InputError(f"{folder or Path.cwd()} is not a dspa project; give folder=")
    return _outcome(find_job(project, f"J{job}" if isinstance(job, int) else job), ())


def _outcome(job: Job, sources: tuple[Outcome, ...]) -> Outcome:
    record = job.read()
    outputs = {name: job.folder / path for name, path in record.outputs.items()}
    return Outcome(job, outputs, record.figures, sources)


@contextmanager
def _machines(on: Any) -> Iterator[tuple[Callable[[Path, Events], Runner], str]]:
    """Make runners for ``on``: None, a name as for --cluster, a Dask client, or Machines."""
    if isinstance(on, Machines):
        yield on.make_runner, on.spelling
    elif on is None or isinstance(on, str):
        machines = Machines(on or "inline")
        try:
            yield machines.make_runner, machines.spelling
        finally:
            machines.close()
    elif hasattr(on, "submit") and hasattr(on, "scheduler_info"):
        yield lambda folder, events: runner_for(on, folder, events), "client"
    else:
        raise InputError("on must be None, a cluster's name, a dask Client or dspa's Machines")


def _texts(values: Sequence[Any]) -> list[str]:
    """Return the texts among what was passed, also those in lists."""
    flat = [x for each in values for x in (each if isinstance(each, list | tuple) else [each])]
    return [item for item in flat if isinstance(item, str)]


def _inputs(project: Project, stage: Stage, given: list[Any], named: Mapping[str, Any]) -> Resolved:
    """Turn what was passed into paths, writing datasets and arrays to files."""
    jobs = [item for item in given if isinstance(item, str) and is_job(item, project)]
    outcomes = [item for item in given if isinstance(item, Outcome)]
    taken = (*jobs, *outcomes)
    rest = [item for item in given if not any(item is each for each in taken)]
    found: dict[str, Given | tuple[Given, ...] | None] = {}
    for item in stage.inputs:
        if item.name in named:
            value = named[item.name]
            many = list(value) if isinstance(value, list | tuple) else [value]
            several = tuple(_path(project, item, each) for each in many)
            found[item.name] = several if item.many else several[0]
        elif item.positional and rest and item.many:
            shared = any(other.positional for other in stage.inputs if other is not item)
            those = rest if shared else given
            found[item.name], rest = tuple(_path(project, item, each) for each in those), []
        elif item.positional and rest:
            found[item.name] = _path(project, item, rest.pop(0))
        elif item.positional and (outcomes or jobs):
            found[item.name] = _from_results(project, item, outcomes, jobs)
        else:
            found[item.name] = None
        if found[item.name] is None and not item.optional:
            # A dataset stands for particles or micrographs; other kinds have files of their own.
            sets = "a dataset, " if item.kind in ("particles", "micrographs") else ""
            raise InputError(
                f"{stage.name} needs {item.kind}: pass a path, {sets}a result or a job"
            )
    if rest:
        raise InputError(f"{stage.name} has no use for {rest[0]!r:.60}")
    return found


def _from_results(
    project: Project, item: Input, outcomes: list[Outcome], jobs: list[str]
) -> Given | tuple[Given, ...] | None:
    """Find an input in results, and in jobs of the project or those they came from."""
    paths = [path for each in outcomes if (path := each.find(item.kind)) is not None]
    found = [Given(str(path), path) for path in dict.fromkeys(paths)]
    of_jobs = from_jobs(project, item, jobs) if jobs else None
    if item.many:
        found = [Given(str(path), path) for path in paths]
        return (*found, *(of_jobs if isinstance(of_jobs, tuple) else ())) or None
    found += [of_jobs] if isinstance(of_jobs, Given) else []
    if len({given.path for given in found}) > 1:
        raise InputError(f"several results have {item.kind}; give {item.name}=")
    return found[-1] if found else None


def _path(project: Project, item: Input, value: Any) -> Given:
    if isinstance(value, Outcome):
        path = value.find(item.kind)
        if path is None:
            raise InputError(f"{value.job.name} gives no {item.kind}")
        return Given(str(path), path)
    if isinstance(value, str):
        return one(project, item, value)
    if isinstance(value, Path):
        path = Path(value).expanduser().absolute()
        if not path.exists():
            raise InputError(f"{value}: there is no such file (for {item.kind})")
        return Given(str(value), path)
    path = _written(project, item, value)
    return Given("given", path)


def _written(project: Project, item: Input, value: Any) -> Path:
    """Write a dataset or a volume to the project's folder."""
    folder = project.folder / "given"
    folder.mkdir(exist_ok=True)
    number = uuid.uuid4().hex[:12]  # calls at once never share a file
    if isinstance(value, xr.Dataset):
        path = folder / f"{item.name}-{number}.zarr"
        micrographs = item.kind == "micrographs"
        (write_micrographs if micrographs else write_particles)(value, path)
        return path
    density = getattr(value, "density", None)
    if isinstance(density, np.ndarray):
        path = folder / f"{item.name}-{number}.mrc"
        origin = getattr(value, "origin", (0.0, 0.0, 0.0))
        write_volume(path, density, pixel_size=value.pixel_size, origin=origin)
        return path
    kind = type(value).__name__
    raise InputError(f"{item.name} is a {kind}; pass a path, a Dataset, a Volume or a result")


def _signature(stage: Stage) -> inspect.Signature:
    """Return what editors and ``help`` show: inputs, parameters and their defaults."""
    taken = {each.name for each in fields_of(stage.params)}
    names = [item.name for item in stage.inputs if item.name not in taken]
    made = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in names]
    for each in fields_of(stage.params):
        default = inspect.Parameter.empty if each.required else each.default
        made.append(inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default))
    for name, default in (("on", None), ("folder", None), ("seed", 0), ("quiet", None)):
        made.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
    given = inspect.Parameter("given", inspect.Parameter.VAR_POSITIONAL)
    return inspect.Signature([given, *made])


def _docstring(stage: Stage) -> str:
    lines = [stage.summary, "", "Parameters", "----------"]
    for item in stage.inputs:
        optional = ", optional" if item.optional else ""
        lines += [
            f"{item.name} : path, dataset, result or job{optional}",
            f"    {item.help or item.kind}",
        ]
    for each in fields_of(stage.params):
        unit = f" ({each.metadata['unit']})" if each.metadata.get("unit") else ""
        default = "" if each.required else f", default {each.default!r}"
        text = each.metadata.get("help", "")
        lines += [f"{each.name} : {each.type.__name__}{default}", f"    {text}{unit}"]
    lines += [
        "on : None, str, Client",
        "    Where to run: this process, a cluster's name as for --cluster, or a Dask client.",
        "folder : path, optional",
        "    Project to keep the job in, and of jobs given (``J5``); a temporary one if absent.",
        "seed : int",
        "    All randomness follows from it.",
        "quiet : bool, optional",
        "    False: progress on the terminal, True: none; by default a bar in a notebook.",
    ]
    return re.sub(r"[ \t]+\n", "\n", "\n".join(lines)) + "\n"
