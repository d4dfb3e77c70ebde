"""Post-processing of a map: B-factor, FSC weighting, low-pass, in the order RELION takes them.

Rosenthal & Henderson 2003, https://doi.org/10.1016/j.jmb.2003.07.013.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.maps.fsc import resolution_shell
from dspa.ops.maps.sharpen import GuinierFit, apply_bfactor, fsc_weight, guinier, low_pass

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIT_FROM = 10.0  # A: protein amplitudes fall off like a Gaussian only beyond
# Between 10 and 7 A amplitudes follow the fold: a fit that ends there means nothing.
FIT_BEYOND = 7.0
FEWEST_SHELLS = 5
STRONGEST = 400.0  # A^2: beyond, a fit has found something else than a fall-off


@dataclass(frozen=True, eq=False)
class SharpenedMap:
    """A sharpened, weighted, low-passed map.

    Attributes
    ----------
    density : (n, n, n) float32
        Unmasked.
    bfactor : float or None
        Applied: amplitudes were multiplied by exp(-bfactor k^2 / 4); negative sharpens. None where
        none was.
    fitted : bool
        Whether the B-factor came from a fit rather than from the user or for want of shells.
    fit : GuinierFit
    resolution : float or None
        Of the low-pass, A; None where there was none.
    """

    density: NDArray[np.float32]
    bfactor: float | None
    fitted: bool
    fit: GuinierFit
    resolution: float | None


def sharpen_map(
    density: NDArray[np.float32],
    *,
    pixel_size: float,
    fsc: NDArray[np.float64],
    mask: NDArray[np.float32],
    bfactor: float | None = None,
    fit_from: float = FIT_FROM,
    resolution: float | None = None,
) -> SharpenedMap:
    """Sharpen the mean of two half maps.

    Parameters
    ----------
    density : (n, n, n) float32
        Unfiltered mean of the half maps.
    pixel_size : float
    fsc : (s,) float64
        Corrected FSC of the half maps.
    mask : (n, n, n) float32
        The fit looks at the masked map.
    bfactor : float, optional
        A^2, negative sharpens; fitted if absent.
    fit_from : float
        Coarse end of the fit, A.
    resolution : float, optional
        Low-pass, A; by default where the FSC falls below 0.143.
    """
    extent = density.shape[0] * pixel_size
    if resolution is None:
        resolution = extent / max(resolution_shell(fsc), 1.0)
    weights = np.clip(fsc, 0.0, 1.0)
    fit = GuinierFit(0.0, 0.0, 0.0, 0)
    shells = extent / resolution - extent / fit_from
    if shells >= FEWEST_SHELLS and resolution <= FIT_BEYOND:
        fit = guinier(
            density * mask,
            pixel_size=pixel_size,
            max_resolution=resolution,
            min_resolution=fit_from,
            curve=weights,
        )
    fitted = bfactor is None and fit.points >= FEWEST_SHELLS and fit.correlation < 0
    if bfactor is None:
        bfactor = -float(np.clip(fit.bfactor, 0.0, STRONGEST)) if fitted else 0.0
    sharp = apply_bfactor(density, bfactor, pixel_size=pixel_size)
    sharp = low_pass(fsc_weight(sharp, weights), resolution, pixel_size=pixel_size)
    return SharpenedMap(
        np.asarray(sharp, np.float32), float(bfactor), bool(fitted), fit, float(resolution)
    )


def treat_as_given(
    density: NDArray[np.float32],
    *,
    pixel_size: float,
    bfactor: float | None,
    resolution: float | None,
) -> SharpenedMap:
    """Apply what the user asked for to a map whose resolution is not known, and nothing else.

    Parameters
    ----------
    density : (n, n, n) float32
    pixel_size : float
    bfactor : float or None
        A^2, negative sharpens.
    resolution : float or None
        Low-pass, A.
    """
    made = density
    if bfactor is not None:
        made = apply_bfactor(made, bfactor, pixel_size=pixel_size)
    if resolution is not None:
        made = low_pass(made, resolution, pixel_size=pixel_size)
    nothing = GuinierFit(0.0, 0.0, 0.0, 0)
    return SharpenedMap(
        np.asarray(made, np.float32), bfactor, fitted=False, fit=nothing, resolution=resolution
    )
