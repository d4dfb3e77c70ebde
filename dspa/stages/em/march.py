"""From pass to pass: begin or go on from the last checkpoint, make passes, tell of each.

Class averages, first maps and refined maps are all made this way; a stage says what a pass is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dspa.dataflow.runner import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dspa.dataflow.reduction import Chunk, Model, Reduction
    from dspa.stages.stage import Context


class Pass(NamedTuple):
    """One pass: what is computed, of which particles, from which model."""

    reduction: Reduction
    chunks: Sequence[Chunk]
    model: Model


def march(
    context: Context,
    *,
    last: int,
    begin: Callable[[], tuple[int, Result]],
    step: Callable[[int, Result], Pass],
    report: Callable[[int, Pass, Result], None],
    prefix: str = "it",
    done: Callable[[Result], bool] = lambda _: False,
) -> Result:
    """Make passes up to a last one, from the last checkpoint if there is one.

    Parameters
    ----------
    context : Context
        Its runner and events.
    last : int
        Number of the last pass.
    begin : callable
        ``begin()`` gives the number of the pass before the first, and what that leaves.
    step : callable
        ``step(number, result)`` is a pure function: the next pass from what the one before left.
    report : callable
        ``report(number, made, result)`` after each pass; may raise to end the job.
    prefix : str
        Of the names of the checkpoints.
    done : callable
        ``done(result)`` tells that no more passes are needed.

    Returns
    -------
    Result
        Model and rows of the last pass.
    """
    found = context.runner.checkpoints.latest(prefix)
    if found is None:
        number, result = begin()
    else:
        number, result = found.iteration, Result(found.model, found.rows)
        context.events.message(f"going on after pass {number} of {last}")
    while number < last and not done(result):
        number += 1
        made = step(number, result)
        result = context.runner.run(
            made.reduction, made.chunks, made.model, name=f"{prefix}{number:03d}"
        )
        report(number, made, result)
    return result


def once(context: Context, made: Pass, name: str) -> Result:
    """Make a pass that stands by itself, or take what it left before the job was resumed.

    Parameters
    ----------
    context : Context
    made : Pass
    name : str
        Of the checkpoint, without its number.
    """
    found = context.runner.checkpoints.latest(name)
    if found is not None:
        return Result(found.model, found.rows)
    return context.runner.run(made.reduction, made.chunks, made.model, name=f"{name}001")
