"""Candidates on one micrograph: match templates, suppress neighbours, keep their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import namespace, to_host
from dspa.ops.images.filter import gaussian_smooth
from dspa.ops.picks.correlate import Match, best_match, normalise_templates, search_field
from dspa.ops.picks.peaks import Peaks, find_peaks
from dspa.ops.picks.templates import (
    Blob,
    circle,
    draw_blob,
    filter_templates,
    odd_edge,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.ctf.model import CTF
    from dspa.ops.picks.search_image import SearchImage

# Diameter of the correlation mask over that of the blob: the rim around a particle is part of its
# shape, neighbours are not.
BLOB_RIM = 1.2
# The local energy is that of a Gaussian this wide, over the typical diameter: it peaks at the
# middle of a particle, where a disk of its size has a plateau, and one between two neighbours.
ENERGY_WIDTH = 0.27
# For the energy, the image is clipped at so many deviations: a bright speck is no particle.
ENERGY_CLIP = 3.0
# What relative energy adds to the log-likelihood of a particle, per half a resolution element:
# s / (1 + s) for texture of a signal-to-noise ratio s; and where more energy is no better.
TEXTURE = 0.3
LOUDEST = 3.0


@dataclass(frozen=True)
class Candidates:
    """Picks of one micrograph, best first.

    Attributes
    ----------
    position : (p, 2) float64
        (x, y) in pixels of the micrograph.
    ncc : (p,) float32
        Shape score, -1..1.
    power : (p,) float32
        Energy per resolution element where the particle is, in units of the micrograph's own,
        times the elements of a circle (of blobs: the smallest one).
    template : (p,) int32
        Which blob or template fits best.
    angle : (p,) float32
        Its in-plane angle, rad.
    diameter : (p,) float32
        Diameter of the blob or template, A.
    """

    position: NDArray[np.float64]
    ncc: NDArray[np.float32]
    power: NDArray[np.float32]
    template: NDArray[np.int32]
    angle: NDArray[np.float32]
    diameter: NDArray[np.float32]


@dataclass(frozen=True)
class PickRules:
    """What is kept.

    Attributes
    ----------
    separation : float
        Smallest distance of two picks, A.
    threshold : float
        Lowest NCC kept.
    limit : int
        Most candidates of a micrograph.
    resolution : float
        Low-pass of search image and templates, A.
    edge : float
        No pick's centre lies closer to the edge of the micrograph, A.
    """

    separation: float
    threshold: float
    limit: int
    resolution: float
    edge: float = 0.0


def _allowed(field: SearchImage, rules: PickRules) -> NDArray[np.bool_]:
    """Where picks may lie: off junk and off the edges."""
    allowed = ~field.junk
    margin = round(rules.edge / field.pixel_size)
    if margin > 0:
        allowed[:margin], allowed[-margin:] = False, False
        allowed[:, :margin], allowed[:, -margin:] = False, False
    return allowed


def resolution_elements(diameter: float, resolution: float) -> float:
    """Resolution elements (half a resolution squared) in a circle."""
    return math.pi * (diameter / 2) ** 2 / (resolution / 2) ** 2


def pick_blobs(
    field: SearchImage, blobs: list[Blob], rules: PickRules, *, ctf: CTF | None = None
) -> Candidates:
    """Find blobs: peaks of what shape and texture add to the log-likelihood of a particle.

    Parameters
    ----------
    field : SearchImage
    blobs : list of Blob
        Those of one diameter next to each other.
    rules : PickRules
    ctf : CTF, optional
        Of the micrograph; blobs are seen through it.
    """
    match = _match_sizes(field, blobs, rules, ctf)
    angles = np.array([b.angle for b in blobs])
    diameters = np.array([b.diameter for b in blobs])
    smallest = float(diameters.min())
    energy = relative_energy(field, math.sqrt(smallest * float(diameters.max())))
    # Two independent signs of a particle: its outline fits a blob, and there is texture in it. Most
    # of a particle's signal is texture, for the CTF takes what is as broad as the particle.
    shape = -np.log1p(-np.square(np.clip(match.ncc, 0.0, 0.999)))
    peaks = ranked_peaks(
        field, match.ncc, rules, rank=shape + TEXTURE * np.minimum(energy, LOUDEST)
    )
    which = match.template[tuple(peaks.index.T)].astype(np.int32)
    power = energy * resolution_elements(smallest, rules.resolution)
    return collect(field, peaks, power, (which, angles[which], diameters[which]))


def relative_energy(field: SearchImage, diameter: float) -> NDArray[np.float32]:
    """Energy around every pixel in units of the micrograph's median: (y, x) float32 on the host.

    Parameters
    ----------
    field : SearchImage
    diameter : float
        Typical of a particle, A.
    """
    xp = namespace(field.image)
    clipped = xp.clip(field.image, -ENERGY_CLIP, ENERGY_CLIP)
    smooth = gaussian_smooth(clipped * clipped, ENERGY_WIDTH * diameter / field.pixel_size)
    energy = to_host(smooth)
    middle = float(np.median(energy[~field.junk])) if not field.junk.all() else 0.0
    return np.asarray(energy / max(middle, 1e-6), np.float32)


def _match_sizes(field: SearchImage, blobs: list[Blob], rules: PickRules, ctf: CTF | None) -> Match:
    """Match blobs of several diameters, each within its own mask; power per element."""
    pixel = field.pixel_size
    largest = odd_edge(max(b.diameter for b in blobs) * BLOB_RIM, pixel)
    search = search_field(field.image, largest // 2)
    best: Match | None = None
    best_gain = np.zeros(0)
    number = 0
    for diameter in dict.fromkeys(b.diameter for b in blobs):
        group = [b for b in blobs if b.diameter == diameter]
        mask = circle(odd_edge(diameter * BLOB_RIM, pixel), diameter * BLOB_RIM, pixel_size=pixel)
        drawn = np.stack([draw_blob(b, mask.shape[0], pixel_size=pixel) for b in group])
        seen = filter_templates(drawn, pixel_size=pixel, resolution=rules.resolution, ctf=ctf)
        match = best_match(search, [normalise_templates(seen, mask)], mask)
        elements = resolution_elements(diameter, rules.resolution)
        ncc, power = to_host(match.ncc), to_host(match.power)
        which = to_host(match.template) + number
        # A small blob correlates by chance more easily than a large one: sizes are compared by
        # the log-likelihood a fit gains, not by its correlation.
        gain = -elements * np.log1p(-np.square(np.clip(ncc, 0.0, 0.999)))
        if best is None:
            best, best_gain = Match(ncc, which, power), gain
        else:
            better = gain > best_gain
            pairs = ((ncc, best.ncc), (which, best.template), (power, best.power))
            best = Match(*(np.where(better, new, old) for new, old in pairs))
            best_gain = np.where(better, gain, best_gain)
        number += len(group)
    if best is None:
        raise ValueError("there are no blobs to search with")
    return best


def ranked_peaks(
    field: SearchImage, ncc: Any, rules: PickRules, *, rank: NDArray[Any] | None = None
) -> Peaks:
    """Find peaks of ``rank`` (or of the NCC) where the NCC passes; sorted by NCC."""
    scores = to_host(ncc).astype(np.float32)
    found = find_peaks(
        scores if rank is None else rank.astype(np.float32),
        separation=rules.separation / field.pixel_size,
        threshold=-math.inf,
        limit=rules.limit,
        allowed=_allowed(field, rules),
    )
    values = scores[tuple(found.index.T)]
    order = np.argsort(-values, kind="stable")
    order = order[values[order] >= rules.threshold]
    return Peaks(found.position[order], found.index[order], values[order])


def collect(
    field: SearchImage,
    peaks: Peaks,
    power: Any,
    what: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
) -> Candidates:
    """Collect candidates; ``what`` is template, angle and diameter of each peak."""
    template, angle, diameter = what
    return Candidates(
        peaks.position * np.asarray(field.scale),
        peaks.score,
        to_host(power)[tuple(peaks.index.T)].astype(np.float32),
        template.astype(np.int32),
        angle.astype(np.float32),
        diameter.astype(np.float32),
    )
