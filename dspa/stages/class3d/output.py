"""What 3D classification leaves behind: every class from its own halves, at the full box.

A class is made of the images whose posterior of it is not faint, each by its posterior; half maps
of the images of each half set. Its difference to the consensus is told in units of the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.io import picture
from dspa.io.volumes import write_volume
from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.fsc import full_map_fsc
from dspa.ops.maps.sharpen import filter_shells, low_pass
from dspa.stages.class3d.passes import Sorting
from dspa.stages.class3d.plan import whole_plan
from dspa.stages.class3d.solve import KNOWN, agreement
from dspa.stages.class3d.start import LEAST as AGREEING
from dspa.stages.class3d.start import empty_model, particle_mask
from dspa.stages.hetero.output import resolution_of, write_class
from dspa.stages.particles.chunks import with_state
from dspa.stages.refine.halves import half_chunks
from dspa.stages.refine.model import Maps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.class3d.plan import Settings
    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.stage import Context

LEAST = 0.05  # posterior from which on an image adds to the map of a class
FEWEST = 2  # images of a half set that a half map is made of
SHOWN = 96  # voxels of the edge of what is drawn


@dataclass(frozen=True, eq=False)
class Full:
    """Maps of the images at their full box.

    Attributes
    ----------
    context : Context
    settings : Settings
        With the boxes of the particles.
    particles : Dataset
    noise : mapping of name to (2, ...) array
        Of the shells that were compared; those beyond are taken to be like the last.
    state : mapping
    mask : (n, n, n) float32, optional
        Around the particle.
    """

    context: Context
    settings: Settings
    particles: xr.Dataset
    noise: Mapping[str, NDArray[Any]]
    state: Mapping[str, NDArray[Any]]
    mask: NDArray[np.float32] | None

    @property
    def spec(self) -> ImageSpec:
        """Of the images."""
        return self.settings.spec

    def make(self, weight: NDArray[np.float64], *, name: str) -> Maps | None:
        """Make half maps and their mean of images by their weight; None of too few.

        Parameters
        ----------
        weight : (n,) float64
            0 leaves an image out.
        name : str
            Of the pass.
        """
        halves = np.where(weight > 0.0, self.state["half_set"], 0)
        if min(int((halves == half).sum()) for half in (1, 2)) < FEWEST:
            return None
        chunks = half_chunks(self.particles, self.spec, halves, seed=self.settings.seed)
        known = with_state(chunks, dict(self.state) | {"weight": weight})
        mask = self.mask
        model = empty_model(self.settings, stretched(self.noise, self.spec.radius + 1), mask)
        made = self.context.runner.run(
            Sorting(whole_plan(self.settings)), known, model.arrays(), name=name
        ).model
        wide = particle_mask(made["volume"], self.spec) if mask is None else mask
        return Maps(made["half"], made["volume"], wide, made["fsc_mask"], made["curves"])


def stretched(noise: Mapping[str, NDArray[Any]], shells: int) -> dict[str, NDArray[Any]]:
    """Give the noise of images more shells, like the last.

    Parameters
    ----------
    noise : mapping of name to (2, ...) array
    shells : int
    """
    made = {"occupancy": np.ones((2, 1))}
    for name in ("noise", "noise_ratio"):
        if name in noise:
            values = noise[name]
            extra = shells - values.shape[-1]
            edges = [(0, 0)] * (values.ndim - 1) + [(0, max(extra, 0))]
            made[name] = np.pad(values, edges, mode="edge")[..., :shells]
    return made


@dataclass(frozen=True, eq=False)
class Difference:
    """A class less the consensus.

    Attributes
    ----------
    density : (n, n, n) float32
        In standard deviations of its noise.
    resolution : float
        To which the halves of the difference agree, A; 0 where they do not.
    """

    density: NDArray[np.float32]
    resolution: float


def difference_of(
    maps: Maps, consensus: Maps, spec: ImageSpec, *, within: NDArray[np.float32], lowpass: float
) -> Difference:
    """Take the consensus off a class, as far as the halves of the difference agree.

    Parameters
    ----------
    maps, consensus : Maps
    spec : ImageSpec
    within : (n, n, n) float32
        Mask in which the halves are compared, and their noise is measured.
    lowpass : float
        A, where they do not agree.
    """
    halves = maps.half - consensus.half
    one, other = (each[None] * within for each in halves)
    curve = agreement(one, other, np.ones(1))
    lost = np.flatnonzero(curve[1:] < KNOWN) + 1
    last = int(lost[0]) if lost.size else curve.size
    mean, rest = 0.5 * (halves[0] + halves[1]), 0.5 * (halves[0] - halves[1])
    if last <= 2:
        made = [low_pass(each, lowpass, pixel_size=spec.pixel_size) for each in (mean, rest)]
    else:
        gain = full_map_fsc(curve)
        gain[last:] = 0.0
        made = [filter_shells(each, gain) for each in (mean, rest)]
    inside = within > 0.5
    noise = float(np.std(made[1][inside])) if inside.any() else 0.0
    density = made[0] * within / max(noise, 1e-30)
    return Difference(density.astype(np.float32), spec.extent / last if last > 2 else 0.0)


def write_all(
    full: Full,
    posterior: NDArray[np.float64],
    *,
    reasons: list[str],
    tell: bool,
    within: NDArray[np.float32] | None,
    lowpass: float,
) -> tuple[dict[str, Path], tuple[Maps, ...]]:
    """Make, write and draw every class at full box, and its difference to the consensus.

    Parameters
    ----------
    full : Full
    posterior : (n, k) float64
        0 where an image takes no part.
    reasons : list of str
        Why a class has no resolution; nothing where it has one.
    tell : bool
        Say how far the classes lie from the consensus: not where they are no more than noise.
    within : (n, n, n) float32, optional
        Where classes may differ.
    lowpass : float
        Of differences whose halves do not agree, A.

    Returns
    -------
    outputs : dict
        ``volume``, ``volume_class1``, ``difference_class1`` ...
    maps : tuple of Maps
        Small, for pictures.
    """
    spec, folder = full.spec, full.context.folder
    outputs: dict[str, Path] = {}
    used = (posterior.sum(axis=1) > 0.0).astype(np.float64)
    consensus = full.make(used, name="whole000")
    assert consensus is not None
    within = consensus.mask if within is None else within
    small, drawn, labels = [], [], []
    for number in range(1, posterior.shape[1] + 1):
        own = posterior[:, number - 1]
        maps = full.make(np.where(own >= LEAST, own, 0.0), name=f"whole{number:03d}")
        if maps is None:
            maps, found = nothing(consensus), None
            reasons[number - 1] = "hardly any particle is in it"
        else:
            found = difference_of(maps, consensus, spec, within=within, lowpass=lowpass)
            if resolution_of(maps, spec) > spec.extent / AGREEING:
                reasons[number - 1] = "its half maps do not agree"
        outputs |= write_class(
            folder, maps, spec, number=number, shells=spec.radius, reason=reasons[number - 1]
        )
        if found is not None:
            path = folder / f"difference_class{number}.mrc"
            write_volume(path, found.density, pixel_size=spec.pixel_size)
            outputs[f"difference_class{number}"] = path
            told = f"known to {found.resolution:.1f} A" if found.resolution else "not known"
            if tell:
                full.context.events.message(
                    f"class {number} less the consensus, {told}: from {found.density.min():.1f} "
                    f"to {found.density.max():.1f} standard deviations of its noise"
                )
            centre = strongest_section(found.density)
            drawn += [found.density[centre[0]], found.density[:, centre[1]],
                      found.density[:, :, centre[2]]]  # fmt: skip
            labels += [f"{number} xy", f"{number} xz", f"{number} yz"]
        small.append(shrunk(maps))
    if drawn:
        full.context.events.picture(
            "differences",
            picture.montage(np.stack(drawn), labels=labels, columns=3, tile=160),
            title="classes less the consensus, through what differs most",
        )
    outputs["consensus"] = folder / "consensus.mrc"
    write_volume(outputs["consensus"], consensus.volume, pixel_size=spec.pixel_size)
    return outputs, tuple(small)


def strongest_section(density: NDArray[np.float32]) -> tuple[int, int, int]:
    """Find the voxel about which a difference is strongest: (z, y, x)."""
    power = np.asarray(density, np.float64) ** 2
    z, y, x = (
        int(power.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)
    )
    return z, y, x


def nothing(like: Maps) -> Maps:
    """Return empty maps of the shape of others."""
    return Maps(
        np.zeros_like(like.half), np.zeros_like(like.volume), like.mask, like.fsc_mask,
        np.zeros_like(like.curves),
    )  # fmt: skip


def shrunk(maps: Maps) -> Maps:
    """Return what is drawn of maps: a smaller volume, and the curves."""
    box = min(SHOWN, maps.volume.shape[0])
    volume = np.asarray(resize_volume(maps.volume, box), np.float32)
    none = np.zeros(0, np.float32)
    return Maps(none, volume, none, none, maps.curves)
