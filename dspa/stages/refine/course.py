"""The course of a refinement: pass after pass until nothing is gained, then what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dspa.data.counts import counted
from dspa.geometry.rotation import view_direction
from dspa.ops.maps.fsc import resolution_shell
from dspa.stages.em.march import Pass, march
from dspa.stages.particles.chunks import ParticleChunk, with_state
from dspa.stages.refine.half_maps import tell
from dspa.stages.refine.model import Figures, MapModel
from dspa.stages.refine.output import (
    show_iteration,
    show_result,
    write_fsc,
    write_maps,
    write_poses,
)
from dspa.stages.refine.plan import (
    PATIENCE,
    Plan,
    Settings,
    converged,
    describe,
    plan_iteration,
)
from dspa.stages.refine.reduction import Refinement
from dspa.stages.refine.verdict import MARGIN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Rows
    from dspa.dataflow.runner import Result
    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.stage import Context

State = dict[str, "NDArray[Any]"]


def iterate(
    context: Context,
    begin: Callable[[], tuple[int, Result]],
    chunks: tuple[ParticleChunk, ...],
    settings: Settings,
    *,
    state: State,
    most: int,
) -> Result:
    """Iterate until the resolution stops improving.

    Parameters
    ----------
    context : Context
    begin : callable
        As for `dspa.stages.em.march.march`.
    chunks : tuple of ParticleChunk
        Each of one half set.
    settings : Settings
    state : dict
        What is known of every particle before.
    most : int
        Iterations.
    """

    def step(number: int, result: Result) -> Pass:
        model = MapModel.read(result.model)
        plan = plan_iteration(settings, number, model.reached)
        known = with_state(chunks, advance(state, result.rows))
        return Pass(Refinement(plan), known, model.searched().arrays())

    def report(number: int, made: Pass, result: Result) -> None:
        plan, model = cast("Refinement", made.reduction).plan, MapModel.read(result.model)
        figures = _figures(plan, model)
        context.events.emit("iteration", iteration=number, at_most=most, **figures)
        show_iteration(context.events, model.maps[0], settings.spec, iteration=number)

    return march(context, last=most, begin=begin, step=step, report=report, done=_done)


def _done(result: Result) -> bool:
    """Tell whether the resolution has stopped improving, at the radius it calls for."""
    return converged(MapModel.read(result.model).history)


def reason_to_stop(model: MapModel, most: int) -> str:
    """Say why no further iteration is made."""
    if converged(model.history):
        return f"converged, no gain in {PATIENCE} iterations"
    return f"{counted(most, 'iteration')} made, before it had converged; --iterations allows more"


def advance(state: State, rows: Rows) -> State:
    """Take over the poses of a pass over all particles, if one was made."""
    return state | {name: np.asarray(rows[name]) for name in ("pose", "shift") if name in rows}


def _figures(plan: Plan, model: MapModel) -> dict[str, Any]:
    """Collect the figures of an iteration; what the halves share is no agreement of theirs."""
    mean, extent, shell = Figures(*model.figures), plan.spec.extent, model.reached.shell
    apart = shell >= plan.settings.initial_radius + MARGIN
    search = "exhaustive" if plan.settings.exhaustive else "global"
    return {
        "particles": int(mean.images),
        "unjudged_resolution": extent / shell if apart else None,
        "search": "local" if plan.local else search,
        "candidates_per_image": mean.candidates,
        "limited": mean.limited,
        "poses_per_image": mean.effective,
        "accuracy": np.degrees(mean.spread),
        "turned": np.degrees(mean.turned),
        "moved": mean.moved,
        "log_likelihood": mean.log_likelihood,
        "fsc": model.maps[0].curves[-1, : plan.spec.radius + 1],
        **describe(plan),
    }


def finish(
    context: Context,
    particles: xr.Dataset,
    settings: Settings,
    end: tuple[MapModel, Rows, State],
    *,
    valid: NDArray[np.bool_],
    why: tuple[str, str],
) -> dict[str, Path]:
    """Write everything, and the resolution or why there is none.

    Parameters
    ----------
    context : Context
    particles : Dataset
    settings : Settings
    end : tuple
        The last model, the rows of the last pass, and the state of the particles.
    valid : (n,) bool
        Particles that took part.
    why : (str, str)
        Why there is no resolution, or nothing; and why no further iteration was made.
    """
    model, rows, state = end
    spec, (reason, stopped) = settings.spec, why
    by_particle = {}
    for name in ("log_likelihood", "probability", "scale"):
        values = np.full(valid.size, np.nan)
        values[rows["item"]] = rows[name]
        by_particle[name] = values
    outputs = write_maps(context.folder, model.maps[0], spec, reason=reason)
    outputs |= write_poses(context.folder, particles, state, rows=by_particle, valid=valid)
    resolution = _resolution(settings, model)
    outputs["fsc"] = context.folder / "fsc.star"
    curves = model.maps[0].curves
    shells = int(model.reached.radius) if curves.shape[1] <= spec.radius else spec.radius
    write_fsc(
        outputs["fsc"], curves, extent=spec.extent, shells=shells, resolution=resolution,
        reason=reason, symmetry=settings.symmetry,
    )  # fmt: skip
    tell(context.events, reason)
    directions = view_direction(state["pose"][valid])
    show_result(context.events, model, spec, directions=directions, symmetry=settings.symmetry)
    found: dict[str, Any] = {"resolution": None, "reason": reason}
    if not reason:
        found = {"resolution": resolution, "unmasked_resolution": _crossing_of(model, spec)}
    context.events.emit(
        "result",
        particles=int(valid.sum()),
        iterations=model.iteration,
        stopped=stopped,
        **found,
    )
    return outputs


def _resolution(settings: Settings, model: MapModel) -> float:
    """Resolution of a model's half maps, A."""
    return settings.spec.extent / max(model.reached.shell, 1e-3)


def _crossing_of(model: MapModel, spec: ImageSpec) -> float:
    """Resolution at 0.143 of the curve without a mask, A."""
    shell = resolution_shell(model.maps[0].curves[0])
    return spec.extent / max(min(shell, float(spec.radius)), 1e-3)
