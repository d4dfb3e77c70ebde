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
from dspa.ops.maps.chance import beyond_chance, beyond_noise, without_spikes
from dspa.ops.maps.copies import Shared, are_same, shared_noise
from dspa.ops.maps.fsc import fsc, resolution_shell
from dspa.ops.maps.mask import radii
from dspa.ops.maps.resolution import Resolution
from dspa.ops.maps.sharpen import filter_shells
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.particles.chunks import minibatch, with_state
from dspa.stages.refine.model import MapModel
from dspa.stages.refine.output import NO_RESOLUTION, SYMMETRY
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
    from dspa.stages.refine.model import Maps
    from dspa.stages.refine.plan import Settings
    from dspa.stages.stage import Context

FEWEST_SHELLS = 2.5  # from the origin to the resolution; fewer are no curve
BY_CHANCE = 3.5  # standard deviations that agreement must lie beyond chance
NOISE_SHARED = 0.5  # correlation around the particle that independent halves do not have
COPY = 0.4  # of the difference that the noise around calls for: halves have 1, copies up to 0.3
MOVED = 0.25  # voxels by which independent halves are not off
MOVED_COPY = 0.9  # FSC in the last shells, where no noise is seen, of maps that are off each other
NO_FALL = 0.97  # FSC in the last shells inside the particle: nothing but signal, or a copy
FINE = 0.7  # of the shells that maps hold
FEW_VOXELS = 0.05  # of the power in the mask: what is more hangs on the strongest voxels
SPIKED = 0.8  # of the resolution, in shells, that must stay without them
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
    symmetry: str = "C1",
    seed: int = 0,
    apart: bool = False,
    events: Events | None = None,
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
    symmetry : str
        Point group that was applied to both.
    seed : int
        Of the random orientations.
    apart : bool
        Only look whether there is anything: the caller knows that no image is in both, and finds
        out by other means whether they agree beyond chance.
    events : Events, optional
        Warned where it cannot be told whether the maps are independent.

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
    nothing = shell < FEWEST_SHELLS or extent / shell > size / COARSEST
    if apart:
        return "the half maps do not correlate in any detail of the particle" if nothing else ""
    if resolution_shell(-fsc(half1, half2)[: box // 2]) >= FEWEST_SHELLS:
        return (
            "one half map is inverted: they correlate with the sign turned; bring it in with "
            "import volume --invert"
        )
    found = shared_noise(
        half1, half2, pixel_size=pixel_size, last=measured.last,
        first=int(min(shell, FINE * measured.last)),
    )  # fmt: skip
    reason = _copied(found, pixel_size)
    if reason:
        return reason
    if nothing:
        return "the half maps do not correlate in any detail of the particle"
    reason = _by_chance(half1, half2, measured, symmetry=symmetry, seed=seed)
    if not reason and events is not None:
        _tell_doubt(events, found, pixel_size)
    return reason


def _copied(found: Shared, pixel_size: float) -> str:
    """Say that two maps hold the same noise, or nothing."""
    # Where noise is seen around one of them only, it is not known to be shared there.
    around = np.isnan(found.around) or found.around > NOISE_SHARED
    if found.differ < COPY and around:
        return (
            f"the half maps look like copies of one map{_motion(found, pixel_size)}: in the "
            f"particle they differ by {found.differ:.2f} of what the noise around it calls for "
            "(independent halves by 1)"
        )
    if found.around > NOISE_SHARED:
        return (
            f"the noise around the particle correlates by {found.around:.2f} between the half "
            "maps: they are not independent (images in both halves, or filtered or joined maps)"
        )
    if np.isnan(found.differ) and found.inside > MOVED_COPY and found.shift > MOVED:
        return (
            f"one half map looks like a copy of the other{_motion(found, pixel_size)}: once moved "
            f"back it correlates by {found.inside:.2f} in the last shells, and no noise is seen "
            "around either; if they are independent, align them first"
        )
    return ""


def _by_chance(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    measured: Resolution,
    *,
    symmetry: str,
    seed: int,
) -> str:
    """Say that two maps agree by chance, or in a few voxels, or nothing."""
    shell, mask = min(measured.shell, float((half1.shape[0] - 1) // 2)), measured.mask
    order = len(symmetry_operators(symmetry))

    def beyond(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return beyond_chance(one, other, mask, first=2, last=int(shell), order=order, seed=seed)

    if beyond(half1, half2) < BY_CHANCE:
        than = "" if order == 1 else f", or than noise of {symmetry} symmetry does"
        return f"the half maps agree no better than when one of them is turned at random{than}"
    clipped = [without_spikes(half) for half in (half1, half2)]
    lost = min(
        float((((half - kept) * mask) ** 2).sum() / max(float(((half * mask) ** 2).sum()), 1e-30))
        for half, kept in zip((half1, half2), clipped, strict=True)
    )
    if lost > FEW_VOXELS:
        left = resolution_shell(fsc(clipped[0], clipped[1], mask=mask)[: half1.shape[0] // 2])
        if left < SPIKED * shell or beyond(clipped[0], clipped[1]) < BY_CHANCE:
            return (
                f"the half maps agree in a few voxels, which hold {lost:.0%} of the power in the "
                "mask and stand out in both, such as hot ones; give maps without them"
            )
    return ""


def _tell_doubt(events: Events, found: Shared, pixel_size: float) -> None:
    """Warn where copies would look the same, and of halves that are off each other."""
    if found.shift > MOVED:
        events.warning(
            f"the half maps do not lie on each other: they agree better with the second"
            f"{_motion(found, pixel_size)}; align them first (dspa volume)"
        )
    elif np.isnan(found.differ) and found.inside > NO_FALL:
        events.warning(
            f"the half maps correlate by {found.inside:.3f} up to the last shell, and there is no "
            "noise around the particle that could tell whether they are independent or copies of "
            "one map; give half maps without a mask"
        )


def _motion(found: Shared, pixel_size: float) -> str:
    """Say by how much one map lies off the other, if it does."""
    if found.shift <= MOVED:
        return ""
    return (
        f", turned by {np.degrees(found.angle):.1f} degrees and moved, "
        f"{found.shift * pixel_size:.2f} A in all at its rim"
    )


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
    first = _first_beyond(settings)
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


def symmetry_beside(given: str, fsc_table: Path | None) -> str:
    """Return the point group of half maps: as given, or that of the refinement that made them.

    Parameters
    ----------
    given : str
        Nothing for that of the refinement.
    fsc_table : Path or None
        ``fsc.star`` beside the half maps; it need not exist.
    """
    if given or fsc_table is None or not fsc_table.exists():
        return given or "C1"
    general = find_block(read_star(fsc_table), "general")
    if general is None or SYMMETRY not in general.columns:
        return "C1"
    return str(general.columns[SYMMETRY][0])


def tell(events: Events, reason: str) -> None:
    """Warn that there is no resolution."""
    if reason:
        events.warning(f"no resolution: {reason}")
