"""From pass to pass: where a run begins or goes on, which particles a pass sees, what is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.class2d.model import ClassModel
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.em import march as em
from dspa.stages.em.march import Pass
from dspa.stages.particles.chunks import ParticleChunk, minibatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dspa.dataflow.runner import Result
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

    def step(number: int, result: Result) -> Pass:
        """Return the pass of a number, planned from what the one before found."""
        model = ClassModel.read(result.model)
        plan = settings.plan(model, number)
        part: Sequence[ParticleChunk | ChunkRun] = full
        if plan.act.online:
            part = minibatch(online, settings.step_size, number - 1, multiple=FOLDS)
        elif onto is not None:
            plan = replace(plan, step=onto.step, share=onto.step)
            model = replace(model, onto=onto.statistics)
        return Pass(Class2D(plan), part, model.arrays())

    def tell(number: int, made: Pass, result: Result) -> None:
        model = ClassModel.read(result.model)
        if not model.total.images:
            raise nothing_to_see(cast("Sequence[ParticleChunk | ChunkRun]", made.chunks))
        report(number, cast("Class2D", made.reduction).plan, model)

    return em.march(
        context, last=settings.passes, begin=lambda: (0, begin()), step=step, report=tell
    )


def nothing_to_see(chunks: Sequence[ParticleChunk | ChunkRun]) -> InputError:
    """Return the error of a pass over particles without a single image that can be used."""
    first = chunks[0] if isinstance(chunks[0], ParticleChunk) else chunks[0].parts[0]
    count = sum(len(chunk) for chunk in chunks)
    return InputError(
        f"{first.images.stack}: of {counted(count, 'particle')} drawn from the set, none has an "
        "image that varies and holds no NaN; remove such particles"
    )
