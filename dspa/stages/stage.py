"""What a stage is: named parameters, named inputs, and one function."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dspa.data.errors import InputError
from dspa.geometry.symmetry import symmetry_operators

if TYPE_CHECKING:
    from pathlib import Path

    from dspa.dataflow.events import Events
    from dspa.dataflow.runner import Runner

# What a job can take and give. A job number resolves to an output of the kind that is asked for.
KINDS = (
    "micrographs",
    "picks",
    "particles",
    "classes",
    "volume",
    "mask",
    "movies",
    "edits",
    "model",
    "classification",
)


@dataclass(frozen=True)
class Input:
    """One input of a stage: a job number or a file on the command line, a path for ``run``.

    Attributes
    ----------
    name : str
        Key in the ``inputs`` mapping of ``run``; the option name if not positional.
    kind : str
        One of ``KINDS``.
    positional : bool
        Positional inputs share the first argument of the command (``dspa extract J4`` finds picks
        and micrographs both in J4 or in the jobs it came from); others are options.
    optional, many : bool
        Whether it may be absent (``None``), and whether several may be given (a tuple of paths).
    """

    name: str
    kind: str
    positional: bool = True
    optional: bool = False
    many: bool = False
    help: str = ""


@dataclass(frozen=True)
class Context:
    """Where a stage runs: its folder, its workers, its listeners.

    Attributes
    ----------
    folder : Path
        The job's own folder, the only place a stage writes to.
    runner : Runner
        Runs reductions and maps (inline or on Dask).
    events : Events
        The stream for progress, figures, pictures, warnings.
    seed : int
        All randomness derives from it.
    grows : bool
        Whether the stage goes on with what it left in its folder before: its inputs have grown.
        What is known stays first, in its order; what is new follows.
    arrived : tuple of str
        For an import that grows: files to take up besides those that it has.
    """

    folder: Path
    runner: Runner
    events: Events
    seed: int = 0
    grows: bool = False
    arrived: tuple[str, ...] = ()


RunFunction = Callable[[Context, Mapping[str, Any], Any], Mapping[str, "Path"]]
PlanFunction = Callable[[Mapping[str, Any], Any], Mapping[str, Any]]
LeadFunction = Callable[[Mapping[str, Any], Any], int]
AdmitFunction = Callable[[Mapping[str, Any], Any], object]


@dataclass(frozen=True)
class Stage:
    """A step a user can name.

    Attributes
    ----------
    name : str
        As typed: ``class2d``, ``pick blob``.
    summary : str
        One line for ``--help``.
    params : type
        A frozen dataclass whose fields are made by `param`.
    inputs : tuple of Input
    run : callable
        ``run(context, inputs, params) -> {output name: path}``. The output names are kinds
        (``particles``, ``volume``...) or, for further files, names of their own (``half1``).
    plan : callable, optional
        ``plan(inputs, params) -> {figure: value}`` for ``--dry-run``: items, chunks, memory.
    admit : callable, optional
        ``admit(inputs, params)`` raises InputError where ``run`` would refuse before it computes
        anything. It is asked before a job gets its number: a typing error leaves no job.
    lead : callable, optional
        ``lead(inputs, params) -> bytes`` of memory that the process that leads the job needs. It is
        told by ``--dry-run``, and a job that does not fit gets no number either.
    contained : bool
        Whether ``run`` reaches nothing outside its folder before it uses the runner: a dry run
        then goes so far, to find what would be refused.
    warns : bool
        Whether ``run`` warns, before it uses the runner, of what ``admit`` lets pass: a dry run
        then asks both.
    grows : bool
        Whether ``run`` heeds ``Context.grows``, as stages do that work exposure by exposure.
    """

    name: str
    summary: str
    params: type
    inputs: tuple[Input, ...]
    run: RunFunction
    plan: PlanFunction | None = None
    admit: AdmitFunction | None = None
    lead: LeadFunction | None = None
    contained: bool = True
    warns: bool = False
    grows: bool = False


def param(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    several: bool = False,
) -> Any:
    """Make a dataclass field with what the command line and the checks need to know.

    Parameters
    ----------
    default : Any
        Default value; leave out for a required parameter.
    help : str
        One sentence for ``--help``.
    unit : str
        ``A``, ``deg``, ``px``... as people type it; stages convert to house units themselves.
    minimum, maximum : float, optional
        Accepted range, checked by `check`.
    choices : tuple of str
        Accepted words.
    several : bool
        A text of which several may be given, as when a shell expands a pattern: then a tuple.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "unit": unit,
            "minimum": minimum,
            "maximum": maximum,
            "choices": choices,
            "several": several,
        },
    )


def check(params: Any) -> None:
    """Raise InputError naming the first parameter that is out of its range.

    Parameters
    ----------
    params : dataclass instance
        Parameters whose fields were made by `param`. A method ``together`` raises InputError for
        what does not go together, whatever the inputs are.
    """
    for item in dataclasses.fields(params):
        value, data = getattr(params, item.name), item.metadata
        if value is None or "minimum" not in data:
            continue
        option = "--" + item.name.replace("_", "-")
        for one in value if isinstance(value, tuple | list) else (value,):
            _check_one(option, one, data)
    if hasattr(params, "together"):
        params.together()


def check_growing(params: Any) -> None:
    """Raise InputError if parameters cannot be heeded in a job that grows.

    Parameters
    ----------
    params : dataclass instance
        A method ``growing`` raises InputError for what needs the whole set at once.
    """
    if getattr(params, "micrographs", 0):
        raise InputError("--micrographs chooses from the whole set, which is not there yet; "
                         "leave it out")  # fmt: skip
    if hasattr(params, "growing"):
        params.growing()


def check_symmetry(name: str) -> None:
    """Raise InputError where the value of ``--symmetry`` is no point group."""
    try:
        symmetry_operators(name)
    except ValueError as error:
        raise InputError(f"--symmetry: {error}") from None


def _check_one(option: str, value: Any, data: Mapping[str, Any]) -> None:
    if data["choices"] and value not in data["choices"]:
        raise InputError(f"{option} is {value!r}; use one of {', '.join(data['choices'])}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low, high = data["minimum"], data["maximum"]
    below, above = low is not None and value < low, high is not None and value > high
    if value != value or abs(value) == math.inf or below or above:
        given = f"{value} {data['unit']}".strip()
        raise InputError(f"{option} is {given}; use a value {range_text(data)}")


def range_text(data: Mapping[str, Any]) -> str:
    """Say the accepted range of a field's metadata in words; empty if there is none.

    Parameters
    ----------
    data : mapping
        As made by `param`.
    """
    low, high, unit = data["minimum"], data["maximum"], data["unit"]
    if low is not None and high is not None:
        return f"from {low:g} to {high:g} {unit}".strip()
    if low is not None:
        return f"of at least {low:g} {unit}".strip()
    if high is not None:
        return f"of at most {high:g} {unit}".strip()
    return ""
