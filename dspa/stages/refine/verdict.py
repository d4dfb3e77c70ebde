"""Whether the resolution of two half maps means anything; if not, why.

A figure is given only where it lies beyond chance and beyond what the halves shared. Both halves of
a refinement begin from one map and share the coarse shells of their references, and noise aligned
to one reference agrees with itself: first in those shells, then, carried on by masks and edges, in
the next. So at the end images are added up once more, each coefficient under a posterior in
which it had no say: noise then has nothing to agree with. And some images are aligned by the
coarse shells alone: where there is another particle, that finds any view. See
``docs/method/fsc.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.band import band
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.images.noise import shell_mean
from dspa.ops.maps.chance import beyond_noise
from dspa.ops.maps.resolution import Resolution
from dspa.ops.maps.sharpen import filter_shells
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.em.halves import by_half
from dspa.stages.particles.chunks import minibatch, with_state
from dspa.stages.refine.half_maps import judge_halves
from dspa.stages.refine.model import MapModel
from dspa.stages.refine.plan import SEEN, plan_iteration
from dspa.stages.refine.reduction import Refinement
from dspa.stages.refine.rehearsal import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dspa.geometry.band import Band
    from dspa.stages.particles.chunks import ParticleChunk
    from dspa.stages.refine.model import Maps
    from dspa.stages.refine.plan import Settings
    from dspa.stages.stage import Context

COARSE = 0.6  # of the resolution, in shells: what the last alignment sees at most
MARGIN = 1.5  # shells by which edges and masks carry on what the references are joined in
SAME_VIEW = 0.6  # likeness of views, from 0 by chance to 1, that particles have
BETTER = 0.75  # quantile of the images that is asked for it: fewer than half may be junk
LIKE_THE_MAP = 0.8  # of the likeness that images of the map would have
PREDICTED = 4.0  # standard deviations of noise by which halves of particles agree blindly
ROOM = 4  # times the poses that searches otherwise leave
FEWEST_BEYOND = 3  # shells in which that is asked
ADDED = (300, 1500)  # images, about, that are added up blindly: more where few do not suffice
SURE = 2.0  # times what is asked for, of which the fewer may give
COMPARED = 500  # images, about, whose views are compared


def judge_refinement(
    context: Context,
    chunks: Sequence[ParticleChunk],
    settings: Settings,
    model: MapModel,
    state: Mapping[str, NDArray[Any]],
) -> str:
    """Say why a refinement gives no resolution.

    Parameters
    ----------
    context : Context
    chunks : sequence of ParticleChunk
    settings : Settings
    model : MapModel
        Of the last iteration.
    state : mapping
        What the particles are thought to be, in their order.

    Returns
    -------
    str
        A sentence, or nothing where the resolution may stand.
    """
    spec, maps, shell = settings.spec, model.maps[0], model.reached.shell
    half = maps.half
    measured = Resolution(maps.curves, 0, shell, maps.fsc_mask, maps.curves.shape[1] - 1)
    reason = judge_halves(
        half[0], half[1], measured, pixel_size=spec.crop_pixel_size, seed=context.seed, apart=True
    )
    if reason:
        return reason
    joined = spec.extent / settings.initial_radius
    if shell < settings.initial_radius + MARGIN:
        return f"the half maps agree no further than the {joined:.1f} A that they share"
    # The shells next to those that are shared agree by what edges and masks carry on.
    if spec.radius < first_beyond(settings) + FEWEST_BEYOND - 1:
        return (
            f"images are used out to {spec.extent / spec.radius:.1f} A, which is too close to the "
            f"{joined:.1f} A that the half maps share to tell agreement from noise; take a coarser "
            "--initial-lowpass, or a finer --max-resolution"
        )
    beyond = blind_agreement(context, chunks, settings, model, state)
    if settings.pose_prior is not None:
        return _judge_near(context, settings, beyond)
    views = views_found_again(context, chunks, settings, model, state)
    context.events.message(
        f"with every coefficient added up where the others put the image, the half maps agree "
        f"beyond what they share by {beyond:.1f} standard deviations of noise ({PREDICTED:g} or "
        f"more is asked for); from shells coarser than {views.resolution:.1f} A alone, images find "
        f"their views again to {100 * max(views.found, 0.0):.0f} % (by chance 0; images of the map "
        f"would to {100 * max(views.expected, 0.0):.0f} %)"
    )
    cause = "noise, too few particles, or another particle than the first map"
    if beyond < PREDICTED:
        return (
            "the half maps do not agree beyond what they share when no coefficient has a say in "
            f"where it is added up: {cause}; of few particles a coarser --initial-lowpass than "
            f"{settings.spec.extent / settings.initial_radius:.0f} A leaves more to see"
        )
    if views.found < min(SAME_VIEW, LIKE_THE_MAP * views.expected):
        return (
            f"aligned by shells coarser than {views.resolution:.1f} A alone, images do not find "
            f"their views again: {cause}"
        )
    return ""


def _judge_near(context: Context, settings: Settings, beyond: float) -> str:
    """Judge a local refinement, whose views are known before: by what is added up blindly."""
    context.events.message(
        f"with every coefficient added up where the others put the image, the half maps agree "
        f"beyond what they share by {beyond:.1f} standard deviations of noise ({PREDICTED:g} or "
        "more is asked for)"
    )
    if beyond >= PREDICTED:
        return ""
    return (
        "the half maps do not agree in the mask beyond what they share when no coefficient has a "
        "say in where it is added up: noise, too few particles, or a part too small to be aligned; "
        f"a coarser --initial-lowpass than {settings.spec.extent / settings.initial_radius:.0f} A "
        "leaves more to see"
    )


def blind_agreement(
    context: Context,
    chunks: Sequence[ParticleChunk],
    settings: Settings,
    model: MapModel,
    state: Mapping[str, NDArray[Any]],
) -> float:
    """Add images up once more, each coefficient where the others put the image.

    Parameters
    ----------
    context, chunks, settings, model, state
        As of `judge_refinement`.

    Returns
    -------
    float
        Agreement of the half maps beyond the shells their references share, in standard deviations
        of noise.
    """
    first = first_beyond(settings)
    last = min(settings.spec.radius, max(first + FEWEST_BEYOND, int(model.reached.shell)))
    order, beyond, before = len(symmetry_operators(settings.symmetry)), 0.0, 0
    for number, count in enumerate(ADDED):
        some = some_images(with_state(chunks, state), count)
        if len(some) > before and beyond < SURE * PREDICTED:
            (maps,) = added_blindly(context, some, settings, model, name=f"blind{number}")
            half1, half2 = maps.half
            beyond = beyond_noise(half1, half2, maps.fsc_mask, first=first, last=last, order=order)
        before = len(some)
    return beyond


def added_blindly(
    context: Context,
    chunks: Sequence[ParticleChunk],
    settings: Settings,
    model: MapModel,
    *,
    name: str,
) -> tuple[Maps, ...]:
    """Make maps of images, each coefficient added where the others put the image.

    Parameters
    ----------
    context, settings, model
        As of `judge_refinement`.
    chunks : sequence of ParticleChunk
        The images, with what their particles are thought to be.
    name : str
        Of the pass.
    """
    # A local search, or one that keeps few poses, has let all coefficients choose what is left.
    plan = plan_iteration(replace(settings, local=False), model.iteration + 1, model.reached)
    levels = tuple(replace(level, poses=ROOM * level.poses) for level in plan.levels)
    plan = replace(plan, levels=levels, blind=True)
    made = context.runner.run(Refinement(plan), chunks, model.searched().arrays(), name=name)
    return MapModel.read(made.model).maps


def first_beyond(settings: Settings) -> int:
    """Return the first shell that the halves' references do not share in any way."""
    return int(np.ceil(settings.initial_radius)) + 2


@dataclass(frozen=True)
class Views:
    """How well coarse shells alone tell the views of images.

    Attributes
    ----------
    resolution : float
        Of the shells that are seen, A.
    found : float
        Likeness of the map seen from there and from where the images were thought to see it, out
        to the resolution, upper quartile: 0 as between different images, 1 for the same view.
    expected : float
        The same of images made of the map.
    """

    resolution: float
    found: float
    expected: float


def views_found_again(
    context: Context,
    chunks: Sequence[ParticleChunk],
    settings: Settings,
    model: MapModel,
    state: Mapping[str, NDArray[Any]],
) -> Views:
    """Align some images once more by coarse shells alone, to a reference that holds nothing else.

    Parameters
    ----------
    context, chunks, settings, model, state
        As of `judge_refinement`.
    """
    shell, box = model.reached.shell, settings.spec.crop
    # Coarse enough to leave shells unseen, fine enough to tell the views of a small particle.
    seen = max(settings.initial_radius, SEEN / max(model.reached.diameter, 0.2))
    coarse = max(4, int(min(seen, COARSE * shell)))
    whole = model.maps[0].half.mean(axis=0) * model.maps[0].mask
    # The mask has carried coarse shells into finer ones: they are cut off once more.
    low = np.asarray(filter_shells(whole, (np.arange(box) <= coarse).astype(float)), np.float32)
    plan = plan_iteration(
        replace(settings, initial_radius=float(coarse)), 1, replace(model.reached, order=0)
    )
    some = some_images(with_state(chunks, state), COMPARED)
    blind = replace(model.searched(), reference=np.stack([low, low])[:, None]).arrays()
    compared = band(box, int(min(max(shell, coarse), settings.spec.radius)))
    reference = prepare_volume(whole.astype(np.float32), compared.radius)
    found = []
    for reduction, name in (
        (Refinement(plan), "views"),
        (Rehearsal(Refinement(plan)), "rehearsal"),
    ):
        rows = context.runner.run(reduction, some, blind, name=name).rows
        kept = np.isfinite(rows["log_likelihood"])
        before = np.asarray(state["pose"])[rows["item"][kept]]
        seen_before, seen_now = (
            project(reference, each, compared) for each in (before, rows["pose"][kept])
        )
        found.append(_likeness(seen_before, seen_now, compared))
    return Views(settings.spec.extent / coarse, *found)


def some_images(chunks: Sequence[ParticleChunk], count: int) -> list[ParticleChunk]:
    """Take chunks with about ``count`` images, as many of each half set."""
    return [chunk for half in by_half(chunks) for chunk in minibatch(half, count // 2, 0)]


def _likeness(a: NDArray[np.complex64], b: NDArray[np.complex64], band: Band) -> float:
    """Correlation of pairs of slices over shells, upper quartile; 0 as between other images."""

    def quartile(b: NDArray[np.complex64]) -> float:
        cross = shell_mean((a * np.conj(b)).real, band)[:, 2:]
        power = shell_mean(np.abs(a) ** 2, band) * shell_mean(np.abs(b) ** 2, band)
        size = np.sqrt(power[:, 2:])
        return float(np.quantile((cross / np.where(size > 0, size, 1.0)).mean(axis=1), BETTER))

    chance = quartile(np.roll(b, 1, axis=0))
    return (quartile(b) - chance) / max(1.0 - chance, 1e-3)
