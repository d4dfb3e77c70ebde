"""The course of a 3D classification: pass after pass until hardly any particle changes class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dspa.stages.class3d.model import SplitModel
from dspa.stages.class3d.passes import Sorting
from dspa.stages.class3d.plan import sort_plan
from dspa.stages.class3d.report import show_classes_now
from dspa.stages.em.march import Pass, march
from dspa.stages.hetero.stage import advanced, listed
from dspa.stages.particles.chunks import with_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dspa.dataflow.runner import Result
    from dspa.stages.class3d.images import SplitImages
    from dspa.stages.class3d.plan import Plan, Settings
    from dspa.stages.hetero.schedule import Schedule
    from dspa.stages.stage import Context

STEADY = 0.01  # share of particles that change their class, below which no more passes are made
LEAST, PATIENCE = 3, 2  # passes over all that are always made; without a gain that end it
# A gain: shells, log-likelihood of an image, or that this share of the changes before is not met.
GAINED, LIKELIER, FALLING = 0.5, 0.01, 0.9
GONE = 1e-3  # log-likelihood that an image gains by the classes
WHOLE_PASSES = 2  # over all particles, those kept apart too, at the end

State = dict[str, "NDArray[Any]"]


def sort_until_settled(
    context: Context,
    settings: Settings,
    schedule: Schedule,
    images: SplitImages,
    state: State,
    *,
    begin: Callable[[], Result],
    most: int,
) -> tuple[Result, State]:
    """Make classes of the particles that are not kept apart.

    Parameters
    ----------
    context : Context
    settings : Settings
    schedule : Schedule
        Which images each pass looks at.
    images : SplitImages
    state : dict
    begin : callable
        Gives the first classes.
    most : int
        Passes over all of them.

    Returns
    -------
    result : Result
        Of the last pass.
    state : dict
        With the classes of the particles.
    """
    last = schedule.subsets + most

    def step(number: int, result: Result) -> Pass:
        model = SplitModel.read(result.model)
        plan = sort_plan(settings, number, known=model.known, share=schedule.share(number))
        now = advanced(state, result.rows) | {"before": before(state, result.rows, settings)}
        known = schedule.chunks(with_state(images.training, now), number)
        return Pass(Sorting(plan), known, model.arrays())

    def report(number: int, made: Pass, result: Result) -> None:
        _report(context, made, result, number=number, last=last)

    def done(result: Result) -> bool:
        return settled(SplitModel.read(result.model).history[schedule.subsets :])

    result = march(
        context, last=last, begin=lambda: (0, begin()), step=step, report=report, done=done
    )
    return result, advanced(state, result.rows)


def before(
    state: State, rows: Mapping[str, NDArray[Any]], settings: Settings
) -> NDArray[np.float32]:
    """Return the posterior by which images went into the classes; 0 where they did not: (n, k).

    Parameters
    ----------
    state : dict
    rows : mapping
        Of the pass that made the classes.
    settings : Settings
    """
    made = np.zeros((len(state["class_index"]), settings.classes), np.float32)
    if "class_posterior" in rows:
        made[rows["item"]] = np.nan_to_num(rows["class_posterior"])
    return made


def settled(history: NDArray[np.float64]) -> bool:
    """Tell whether classes have stopped improving.

    Parameters
    ----------
    history : (passes, 3) float64
        Of passes over all particles, as of `SplitModel`.
    """
    if len(history) < LEAST:
        return False
    known, likelihood, changed = history.T
    if known[-1] == 0.0 or likelihood[-1] < GONE:  # the differences were noise, and have faded
        return True
    gains = [
        each[-PATIENCE:].max() >= each[:-PATIENCE].max() + least
        for each, least in ((known, GAINED), (likelihood, LIKELIER))
    ]
    falls = changed[-1] < FALLING * changed[-PATIENCE - 1 : -1].max()
    return bool(changed[-1] < STEADY or not (falls or any(gains)))


def sort_all(
    context: Context,
    settings: Settings,
    images: SplitImages,
    state: State,
    made: Result,
) -> Result:
    """Sort all particles, those kept apart too.

    Parameters
    ----------
    context : Context
    settings : Settings
    images : SplitImages
    state : dict
        With the classes of the others.
    made : Result
        Of the last pass over the others.
    """
    first = SplitModel.read(made.model).iteration

    def step(number: int, result: Result) -> Pass:
        known = SplitModel.read(result.model)
        # The last only sorts: maps are made of its classes at the full box.
        plan = sort_plan(settings, first + number, known=known.known, adds=number < WHOLE_PASSES)
        now = advanced(state, result.rows) | {"before": before(state, result.rows, settings)}
        return Pass(Sorting(plan), with_state(images.chunks, now), known.arrays())

    def report(number: int, made: Pass, result: Result) -> None:
        _report(context, made, result, number=first + number, last=first + WHOLE_PASSES)

    return march(
        context,
        last=WHOLE_PASSES,
        begin=lambda: (0, made),
        step=step,
        report=report,
        prefix="all",
    )


def _report(context: Context, made: Pass, result: Result, *, number: int, last: int) -> None:
    """Tell of a pass."""
    plan, model = cast("Sorting", made.reduction).plan, SplitModel.read(result.model)
    context.events.emit("iteration", iteration=number, at_most=last, **figures_of(plan, model))
    show_classes_now(context.events, model, title=f"differences after iteration {number}")


def figures_of(plan: Plan, model: SplitModel) -> Mapping[str, Any]:
    """Collect the figures of a pass.

    Parameters
    ----------
    plan : Plan
    model : SplitModel
    """
    spec = plan.spec
    known, log_likelihood, changed = model.history[-1]
    return {
        "differences_known_to": spec.extent / known if known >= 1.0 else None,
        "classes_hold": listed(100 * model.share, "%"),
        "changed": float(changed),
        "certain": model.certain,
        **({"share_of_images": plan.share} if plan.share < 1.0 else {}),
        "log_likelihood": float(log_likelihood),
        "compared_to": spec.extent / plan.radius,
    }
