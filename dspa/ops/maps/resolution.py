"""Gold-standard resolution: correlation of half maps under masks, and what the masks add to it.

A mask hides solvent, so that the correlation is that of the particle; but its own transform, shared
by both maps, correlates them too. Chen et al. 2013 (https://doi.org/10.1016/j.ultramic.2013.06.004)
measure that part on maps whose phases were made random beyond a shell, where any
correlation left is the mask's, and take it off:

    FSC = (FSC_masked - FSC_random) / (1 - FSC_random).

A mask also carries what is alike in strong shells into weak ones, of smoothed maps so much that
they seem to agree to the last. So all shells of a map are given the same power before it is masked:
in the correlation without a mask that changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
from scipy import ndimage

from dspa.ops.maps.fsc import (
    fsc,
    randomise_phases,
    resolution_shell,
    shell_counts,
    shell_sums,
    shells_of,
    spectral_power,
)
from dspa.ops.maps.mask import radii, soft_dilation, soft_sphere

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLD = 0.143  # https://doi.org/10.1016/j.jmb.2003.07.013
RANDOM_FROM = 0.8  # phases are random beyond the shell where the unmasked correlation falls below
CURVES = ("no mask", "spherical", "loose", "tight", "random phases", "corrected")
LOOSE, TIGHT = (25.0, 40.0), (6.0, 12.0)  # A: mask 1 out to, 0 from
# A filter's edge: shells that it may take, what it leaves beyond, and what still counts as kept.
FALL, GONE, GOING = 5, 1e-4, 0.03
LEVEL = 0.2  # of the top density: where the particle ends


@dataclass(frozen=True, eq=False)
class Resolution:
    """Correlation of two half maps.

    Attributes
    ----------
    curves : (len(CURVES), n // 2 + 1) float64
        In the order of `CURVES`.
    random_from : int
        Shell beyond which phases were made random.
    shell : float
        Where the corrected curve falls below 0.143, in shells; shell 1 is 1 / box.
    mask : (n, n, n) float32
        The tight mask.
    last : int
        Shell beyond which a map is cut off: curves are 0 there.
    """

    curves: NDArray[np.float64]
    random_from: int
    shell: float
    mask: NDArray[np.float32]
    last: int

    @property
    def unmasked(self) -> float:
        """Where the curve without a mask falls below 0.143; at most where the corrected one does.

        Masked and filtered maps correlate further by what is left in both.
        """
        shell = resolution_shell(self.curve("no mask"), threshold=THRESHOLD)
        return min(shell, self.shell, float(self.last))

    def curve(self, name: str) -> NDArray[np.float64]:
        """Return a curve by its name in `CURVES`."""
        return self.curves[CURVES.index(name)]


def particle_region(
    density: NDArray[np.float32], pixel_size: float, *, resolution: float, level: float = LEVEL
) -> NDArray[np.bool_]:
    """Tell which voxels a particle fills: a low-passed map above a fraction of its top density.

    Parameters
    ----------
    density : (n, n, n) float32
    pixel_size : float
    resolution : float
        Low-pass before the threshold, A.
    level : float
        Fraction of the mean of the highest thousandth of the voxels.

    Returns
    -------
    (n, n, n) bool
        Without pieces smaller than a twentieth of the whole; never empty.
    """
    sigma = 0.225 * resolution / pixel_size
    smooth = ndimage.gaussian_filter(density.astype(np.float32), sigma)
    inside = radii(density.shape[0], 3) < density.shape[0] / 2 - 1.0
    values = smooth[inside]
    count = max(8, values.size // 1000)
    top = float(np.partition(values, values.size - count)[-count:].mean())
    region = inside & (smooth > level * top)
    labels, pieces = ndimage.label(region)
    if pieces > 1:
        sizes = np.bincount(labels.ravel(), minlength=pieces + 1)
        sizes[0] = 0
        region = (sizes >= max(0.05 * sizes.sum(), min(8, sizes.max())))[labels]
    return np.asarray(region if region.any() else inside)


def measure_resolution(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    *,
    pixel_size: float,
    diameter: float,
    seed: int = 0,
    mask: NDArray[np.float32] | None = None,
) -> Resolution:
    """Correlate half maps without a mask, under masks, and with the effect of the mask removed.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Unfiltered, unmasked maps of independent half sets.
    pixel_size : float
    diameter : float
        Of the spherical mask, A.
    seed : int
        Of the random phases.
    mask : (n, n, n) float32, optional
        Instead of the tight mask.
    """
    box = half1.shape[0]
    plain = fsc(half1, half2)
    radius = min(diameter / 2.0, box * pixel_size / 2.0)
    sphere = soft_sphere(box, 0.85 * radius, pixel_size=pixel_size, edge=0.15 * radius)
    # The map itself tells how far it may be low-passed for a mask: at least to 12 A.
    known = box * pixel_size / max(resolution_shell(plain, threshold=0.5), 1.0)
    both = 0.5 * (half1 + half2)
    region = particle_region(both * sphere, pixel_size, resolution=max(12.0, 1.2 * known))
    loose = soft_dilation(region, pixel_size=pixel_size, near=LOOSE[0], far=LOOSE[1])
    # An edge sharper than the map resolves would be a fiction.
    far = max(TIGHT[1], TIGHT[0] + known)
    tight = soft_dilation(region, pixel_size=pixel_size, near=TIGHT[0], far=far)
    tight = tight if mask is None else mask
    random_from = int(np.ceil(resolution_shell(plain, threshold=RANDOM_FROM)))
    random_from = int(np.clip(random_from, 2, plain.size - 1))
    last = last_shell(half1, half2)
    even1, even2 = whitened(half1, last), whitened(half2, last)
    masked = fsc(even1, even2, mask=tight)
    repeats = 3 if box <= 128 else 1
    random = np.zeros_like(masked)
    for number in range(repeats):
        first = randomise_phases(even1, random_from, seed=[seed, number, 1])
        second = randomise_phases(even2, random_from, seed=[seed, number, 2])
        random += fsc(first, second, mask=tight) / repeats
    corrected = correct(masked, random, random_from)
    curves = np.stack(
        [
            plain,
            fsc(even1, even2, mask=sphere),
            fsc(even1, even2, mask=loose),
            masked,
            random,
            corrected,
        ]
    )
    # Beyond it maps hold what rounding and the mask leave of other shells, alike in both.
    curves[:, last + 1 :] = 0.0
    shell = resolution_shell(curves[CURVES.index("corrected")], threshold=THRESHOLD)
    return Resolution(curves, random_from, min(shell, float(last)), tight, last)


def whitened(density: NDArray[np.float32], last: int) -> NDArray[np.float32]:
    """Give all shells of a map the power of noise of variance 1, and none to those beyond the last.

    Parameters
    ----------
    density : (n, n, n) float32
    last : int
        As from `last_shell`.
    """
    box = density.shape[0]
    # In double precision: what rounding leaves of the strong shells is alike in both maps.
    spectrum = scipy.fft.rfftn(density.astype(np.float64))
    shell = shells_of(box, 3)
    power = shell_sums(np.abs(spectrum) ** 2, 3) / shell_counts(box, 3) / float(box) ** 3
    response = np.zeros(box // 2 + 2)
    some = np.flatnonzero(power[1 : last + 1] > 0) + 1
    response[some] = 1.0 / np.sqrt(power[some])
    spectrum *= response[shell]
    return np.asarray(scipy.fft.irfftn(spectrum, s=density.shape), np.float32)


def last_shell(*maps: NDArray[np.float32]) -> int:
    """Say beyond which shell a map was cut off, by a low-pass or where it was reconstructed to.

    Particles and their noise lose power slowly; a filter takes all but a ten-thousandth of it
    within `FALL` shells.

    Parameters
    ----------
    maps : (n, n, n) float32
        The first that is cut off counts.

    Returns
    -------
    int
        At most n // 2.
    """
    last = maps[0].shape[0] // 2
    for density in maps:
        power = spectral_power(density, dims=3)
        for shell in range(1, power.size - FALL):
            if power[shell + FALL :].max() < GONE * power[shell]:
                kept = power[shell : shell + FALL] >= GOING * power[shell]
                last = min(last, shell + int(np.flatnonzero(kept)[-1]))
                break
    return last


def correct(
    masked: NDArray[np.float64], random: NDArray[np.float64], random_from: int
) -> NDArray[np.float64]:
    """Take the effect of a mask off a correlation curve.

    Parameters
    ----------
    masked, random : (s,) float64
        Correlation under the mask, of the maps and of the maps with random phases.
    random_from : int
        First shell with random phases; two shells further the correction begins, since a mask
        mixes neighbouring shells.
    """
    corrected = masked.copy()
    begin = random_from + 2
    chance = np.clip(random[begin:], 0.0, 0.999)
    corrected[begin:] = (masked[begin:] - chance) / (1.0 - chance)
    return corrected
