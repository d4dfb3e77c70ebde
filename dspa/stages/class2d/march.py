"""From pass to pass: where a run begins or goes on, which particles a pass sees, what is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.dataflow.runner import Result
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.class2d.model import ClassModel
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.particles.chunks import ParticleChunk, minibatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dspa.stages.class2d.averages import Statistics
    from dspa.stages.class2d.plan import ClassPlan, Settings
    from dspa.stages.particles.chunks import ChunkRun
    from dspa.stages.stage import Context

    Report = Callable[[int, ClassPlan, ClassModel], None]


@dataclass(frozen=True, eq=False)
class Onto:
    """What full passes add their sums to: what founded classes counts once.

    Attributes
    ----------
    statistics : Statistics
        Of the classes before anything was added.
    step : float
        Weight of the new sums.
    """

    statistics: Statistics
    step: float


def march(
    context: Context,
    settings: Settings,
    *,
    online: Sequence[ParticleChunk],
    full: Sequence[ParticleChunk | ChunkRun],
    begin: Callable[[], Result],
    report: Report,
    onto: Onto | None = None,
) -> Result:
    """Make all passes, from the last checkpoint if there is one.

    Parameters
    ----------
    context : Context
        Its runner and events.
    settings : Settings
    online : sequence of ParticleChunk
        What online steps draw from, with ``fold`` in their state.
    full : sequence of chunks
        Of a full pass.
    begin : callable
        ``begin()`` gives what the first pass goes on from.
    report : callable
        ``report(iteration, plan, model)`` after each pass.
    onto : Onto, optional
        What full passes add to; by default they begin from nothing.

    Returns
    -------
    result : Result
        Model and rows of the last pass.
    """
    runner = context.runner
    latest = runner.checkpoints.latest()
    if latest is None:
        done, result = 0, begin()
    else:
        done, result = latest.iteration, Result(latest.model, latest.rows)
        context.events.message(f"going on after pass {done} of {settings.passes}")
    for number in range(done + 1, settings.passes + 1):
        model = ClassModel.read(result.model)
        plan = settings.plan(model, number)
        part = full
        if plan.act.online:
            part = minibatch(online, settings.step_size, number - 1, multiple=FOLDS)
        elif onto is not None:
            plan = replace(plan, step=onto.step, share=onto.step)
            model = replace(model, statistics=onto.statistics)
        result = runner.run(Class2D(plan), part, model.arrays(), name=f"it{number:03d}")
        model = ClassModel.read(result.model)
        if not model.total.images:
            raise nothing_to_see(part)
        report(number, plan, model)
    return result


def nothing_to_see(chunks: Sequence[ParticleChunk | ChunkRun]) -> InputError:
    """Return the error of a pass over particles without a single image that can be used."""
    first = chunks[0] if isinstance(chunks[0], ParticleChunk) else chunks[0].parts[0]
    count = sum(len(chunk) for chunk in chunks)
    return InputError(
        f"{first.images.stack}: of {count} particles drawn from the set, none has an image that "
        "varies and holds no NaN; remove such particles"
    )
