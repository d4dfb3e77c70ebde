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
from dspa.io.star import find_block, read_star
from dspa.ops.images.noise import shell_mean
from dspa.ops.images.normalise import is_flat
from dspa.ops.maps.chance import are_same, beyond_chance, beyond_noise, solvent_correlation
from dspa.ops.maps.mask import radii
from dspa.ops.maps.resolution import Resolution
from dspa.ops.maps.sharpen import filter_shells
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.particles.chunks import minibatch, with_state
from dspa.stages.refine.model import MapModel
from dspa.stages.refine.output import NO_RESOLUTION
from dspa.stages.refine.plan import SEEN, plan_iteration
from dspa.stages.refine.reduction import Refinement, by_half
from dspa.stages.refine.rehearsal import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.geometry.band import Band
    from dspa.stages.particles.chunks import ParticleChunk
    from dspa.stages.refine.plan import Settings
    from dspa.stages.stage import Context

FEWEST_SHELLS = 2.5  # from the origin to the resolution; fewer are no curve
BY_CHANCE = 3.5  # standard deviations that agreement must lie beyond chance
NOISE_SHARED = 0.5  # correlation around the particle that independent halves do not have
FINE = 0.35  # of the box, in shells: 0.7 of Nyquist
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
COARSEST = 2.0  # resolutions across the particle, below which nothing in it is resolved


def tell_cut(events: Events, measured: Resolution, *, extent: float) -> None:
    """Warn where half maps were cut off before the last shell that their voxels hold.

    Parameters
    ----------
    events : Events
    measured : Resolution
    extent : float
        Edge of the box, A.
    """
    if measured.last < (measured.curves.shape[1] - 1) - 1:
        events.warning(
            f"the half maps are cut off at {extent / measured.last:.1f} A, by a filter or where "
            "they were reconstructed to: nothing finer is measured; give unfiltered half maps"
        )


def judge_halves(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    measured: Resolution,
    *,
    pixel_size: float,
    seed: int = 0,
    apart: bool = False,
) -> str:
    """Say why two half maps have no resolution, from the maps alone.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Unfiltered, unmasked.
    measured : Resolution
        Of the two.
    pixel_size : float
        A.
    seed : int
        Of the random orientations.
    apart : bool
        Only look whether there is anything: the caller knows that no image is in both, and finds
        out by other means whether they agree beyond chance.

    Returns
    -------
    str
        A sentence, or nothing where their resolution may stand.
    """
    for number, half in enumerate((half1, half2), 1):
        if not np.isfinite(half).all() or is_flat(half):
            return f"half map {number} is empty"
    if are_same(half1, half2):
        return (
            "the half maps are one and the same map (up to scale, sign, a filter or a shift), so "
            "that their correlation says nothing"
        )
    box = half1.shape[0]
    extent, shell = box * pixel_size, min(measured.shell, float((box - 1) // 2))
    size = particle_diameter(measured.mask) * pixel_size
    if shell < FEWEST_SHELLS or extent / shell > size / COARSEST:
        return "the half maps do not correlate in any detail of the particle"
    if apart:
        return ""
    # Finer than the map resolves: what is coarser rings beyond the particle.
    fine = max(2, int(min(shell, FINE * box)))
    shared = solvent_correlation(half1, half2, measured.mask, first=fine)
    if shared > NOISE_SHARED:
        return (
            f"the noise around the particle correlates by {shared:.2f} between the half maps: they "
            "are not independent (images in both halves, or filtered or joined maps)"
        )
    if beyond_chance(half1, half2, measured.mask, first=2, last=int(shell), seed=seed) < BY_CHANCE:
        return "the half maps agree no better than when one of them is turned at random"
    return ""


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
    spec, half, shell = settings.spec, model.maps.half, model.reached.shell
    measured = Resolution(
        model.maps.curves, 0, shell, model.maps.fsc_mask, model.maps.curves.shape[1] - 1
    )
    reason = judge_halves(
        half[0], half[1], measured, pixel_size=spec.crop_pixel_size, seed=context.seed, apart=True
    )
    if reason:
        return reason
    joined = spec.extent / settings.initial_radius
    if shell < settings.initial_radius + MARGIN:
        return f"the half maps agree no further than the {joined:.1f} A that they share"
    # The shells next to those that are shared agree by what edges and masks carry on.
    if spec.radius < _first_beyond(settings) + FEWEST_BEYOND - 1:
        return (
            f"images are used out to {spec.extent / spec.radius:.1f} A, which is too close to the "
            f"{joined:.1f} A that the half maps share to tell agreement from noise; take a coarser "
            "--initial-lowpass, or a finer --max-resolution"
        )
    beyond = blind_agreement(context, chunks, settings, model, state)
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
    # A local search, or one that keeps few poses, has let all coefficients choose what is left.
    plan = plan_iteration(replace(settings, local=False), model.iteration + 1, model.reached)
    levels = tuple(replace(level, poses=ROOM * level.poses) for level in plan.levels)
    plan = replace(plan, levels=levels, blind=True)
    first = _first_beyond(settings)
    last = min(plan.insert_radius, max(first + FEWEST_BEYOND, int(model.reached.shell)))
    order, beyond, before = len(symmetry_operators(settings.symmetry)), 0.0, 0
    for number, count in enumerate(ADDED):
        some = _some(with_state(chunks, state), count)
        if len(some) > before and beyond < SURE * PREDICTED:
            made = context.runner.run(
                Refinement(plan), some, model.searched().arrays(), name=f"blind{number}"
            )
            maps = MapModel.read(made.model).maps
            half1, half2 = maps.half
            beyond = beyond_noise(half1, half2, maps.fsc_mask, first=first, last=last, order=order)
        before = len(some)
    return beyond


def _first_beyond(settings: Settings) -> int:
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
    whole = model.maps.half.mean(axis=0) * model.maps.mask
    # The mask has carried coarse shells into finer ones: they are cut off once more.
    low = np.asarray(filter_shells(whole, (np.arange(box) <= coarse).astype(float)), np.float32)
    plan = plan_iteration(
        replace(settings, initial_radius=float(coarse)), 1, replace(model.reached, order=0)
    )
    some = _some(with_state(chunks, state), COMPARED)
    blind = replace(model.searched(), reference=np.stack([low, low])).arrays()
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


def _some(chunks: Sequence[ParticleChunk], count: int) -> list[ParticleChunk]:
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


def particle_diameter(mask: NDArray[np.float32]) -> float:
    """Measure what a mask holds, in voxels: twice the radius that most of it lies within."""
    inside = mask > 0.5
    if not inside.any():
        return float(mask.shape[0])
    return 2.0 * float(np.percentile(radii(mask.shape[0], 3)[inside], 95))


def reason_beside(fsc_table: Path) -> str:
    """Read why the refinement that made half maps gave no resolution; nothing if it gave one.

    Parameters
    ----------
    fsc_table : Path
        ``fsc.star`` beside the half maps; it need not exist.
    """
    if not fsc_table.exists():
        return ""
    general = find_block(read_star(fsc_table), "general")
    if general is None or NO_RESOLUTION not in general.columns:
        return ""
    return str(general.columns[NO_RESOLUTION][0])


def tell(events: Events, reason: str) -> None:
    """Warn that there is no resolution."""
    if reason:
        events.warning(f"no resolution: {reason}")
