"""Would noise do as well? What tells a particle in a class from a box of noise or an edge of ice.

What speaks for a particle is its likelihood over all classes, angles and shifts of the coarse
lattice, against that of noise alone (`noise_evidence`): the best pose of an image of noise is
chosen for agreeing with the noise, the average over all poses is not.

Three rivals explain an image without a particle. Noise: what images made of noise alone attain with
the same averages and CTF is drawn, not calculated (`noise_probability`). A smooth field, such as a
gradient of the ice: Gaussian amplitudes that fall with frequency and no CTF, laid over the residual
of the best class (`field_evidence`). A straight edge, as of a hole or of thick ice, in place of the
particle (`edge_evidence`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import isotonic_regression

from dspa.device import like, namespace, to_host
from dspa.ops.images.transform import band_to_images, images_to_band
from dspa.ops.poses.bank import coarse_blocks, coarse_shares
from dspa.ops.poses.cells import Candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band
    from dspa.ops.poses.search import Searcher

FIELD_RADIUS = 4  # Fourier pixels: a smooth field has nothing beyond
FIELD_SLOPE = 2.0  # its power falls as k to minus this
FIELD_POWERS = 4.0 ** np.arange(-1, 5)  # its power in shell 1, in units of the noise
EDGE_RADIUS = 8  # Fourier pixels: what is looked at of an edge
EDGE_STRENGTHS = (2.0, 4.0, 8.0)  # deviation of its amplitude, in standard deviations of the noise
EDGE_ODDS = np.exp(-2.0)  # of an edge against noise alone, before an image is seen
FEWEST_CONTROLS = 50  # with fewer nothing can be said of their distribution
# A normal distribution of contrasts as three of them and their shares (Gauss and Hermite); where
# contrasts vary less than this, as one.
NODES = ((-np.sqrt(3.0), 1.0 / 6.0), (0.0, 2.0 / 3.0), (np.sqrt(3.0), 1.0 / 6.0))
VARIED = 0.1


@dataclass(frozen=True, eq=False)
class Evidence:
    """How much better classes explain images than noise does.

    Attributes
    ----------
    log_likelihood : (n,) float64
        Log of the mean likelihood over classes, angles, shifts and contrasts, against noise.
    best : Candidates
        Most likely cell of each image.
    scale : (n,) float32
        Contrast it was found at.
    """

    log_likelihood: NDArray[np.float64]
    best: Candidates
    scale: NDArray[np.float32]


def noise_evidence(searcher: Searcher, y: Any, c2: Any, *, deviation: float) -> Evidence:
    """Average the likelihood of images over the whole coarse lattice.

    Parameters
    ----------
    searcher : Searcher
        Its prior is the log of the share of each class.
    y : (n, F) complex64
    c2 : (n, F) float32
    deviation : float
        Of the contrast of images around 1.
    """
    bank, xp, n = searcher.bank, namespace(y), int(y.shape[0])
    nodes = NODES if deviation > VARIED else ((0.0, 1.0),)
    scales = [float(1.0 + deviation * place) for place, _ in nodes]  # of NumPy: float64 products
    gain, top, place = (np.empty((len(nodes), n)) for _ in range(3))
    for rows, moved, room in coarse_blocks(bank, y):
        for node, scale in enumerate(scales):
            share, high = coarse_shares(moved * scale, c2[rows] * scale**2, bank, room=room)
            flat = xp.reshape(share, (rows.stop - rows.start, -1))
            place[node, rows] = to_host(xp.argmax(flat, axis=1))
            top[node, rows] = to_host(high)
            gain[node, rows] = to_host(xp.log(xp.sum(flat, axis=1)))
    weight = np.log([share for _, share in nodes])[:, None]
    found = (top + weight).argmax(axis=0)
    shift, cell = np.divmod(place[found, np.arange(n)].astype(np.int64), 2 * bank.poses)
    where = searcher.lattice.coarse_shifts()[shift]
    best = Candidates(np.arange(n, dtype=np.int32), *searcher.column(cell), where)
    gain = np.logaddexp.reduce(top + gain + weight, axis=0)
    gain -= np.log(bank.shifts * 2 * searcher.lattice.half_turn)
    return Evidence(gain, best, np.asarray(scales, np.float32)[found])


def residual(
    searcher: Searcher, best: Candidates, images: Any, transfer: Any, *, radius: float
) -> NDArray[np.complex64]:
    """Subtract from each image the class average it fits best, in the lowest shells.

    Parameters
    ----------
    searcher : Searcher
    best : Candidates
        One cell for each image.
    images : (n, F) complex64
        X.
    transfer : (n, F) float32
        CTF.
    radius : float
        Fourier pixels.

    Returns
    -------
    rest : (n, f) complex64
        f coefficients, those up to ``radius``.
    """
    lattice, best = searcher.lattice, best.beside(images)
    count = min(lattice.band.size(radius), int(images.shape[1]))
    slices = searcher.slices(best, level=0, count=count)
    table, row = lattice.phases(0, best.shift)
    phases = table[row][:, :, :count]
    real = slices[:, 0] * phases[:, 0] - slices[:, 1] * phases[:, 1]
    imaginary = slices[:, 0] * phases[:, 1] + slices[:, 1] * phases[:, 0]
    rest = images[:, :count] - transfer[:, :count] * (real + 1j * imaginary)
    return np.asarray(to_host(rest), np.complex64)


def field_evidence(
    rest: NDArray[np.complex64], noise: NDArray[Any], band: Band, *, mask: NDArray[Any]
) -> NDArray[np.float64]:
    """Log-likelihood that a smooth field gains over noise alone on what a class leaves.

    Parameters
    ----------
    rest : (n, f) complex64
        Residuals of masked images.
    noise : (f,) or (n, f) float
        Power of the unmasked noise per coefficient.
    band : Band
    mask : (y, x) float
        That was put on the images. A mask of a share of the image leaves that share of the
        coefficients independent.

    Returns
    -------
    evidence : (n,) float64
        At least 0: the best of several powers of the field.
    """
    share, power = float(np.mean(mask)), float(np.mean(np.square(mask)))
    excess = np.abs(rest) ** 2 / (noise * power)
    modulus = band.modulus[: rest.shape[1]]
    best = np.zeros(len(rest))
    for top in FIELD_POWERS:
        field = top * modulus**-FIELD_SLOPE
        gain = excess @ (field / (1.0 + field)) - np.log1p(field).sum()
        best = np.maximum(best, share * gain)
    return best


def edge_evidence(
    images: NDArray[np.complex64], noise: NDArray[Any], edges: NDArray[np.complex64]
) -> NDArray[np.float64]:
    """Log-likelihood that a straight edge, possible but not certain, gains over noise alone.

    Parameters
    ----------
    images : (n, f) complex64
        Masked images, or what a class leaves of them.
    noise : (1, f) or (n, f) float
        Power of the noise per coefficient.
    edges : (t, f) complex64
        Edges of every direction and place, in any scale.

    Returns
    -------
    evidence : (n,) float64
        At least 0: log of 1 + odds x mean likelihood ratio over edges and their amplitudes.
    """
    whitened = np.asarray(images / noise, np.complex64).view(np.float32)  # real, imaginary, ...
    cross = 2.0 * (whitened @ np.ascontiguousarray(edges, np.complex64).view(np.float32).T)
    power = 2.0 * ((1.0 / noise) @ (np.abs(edges) ** 2).T)  # (1 or n, t)
    square = 0.5 * cross**2 / np.maximum(power, np.finfo(np.float32).tiny)
    top = square.max(axis=1, keepdims=True)
    ratios = []
    for strength in EDGE_STRENGTHS:
        share = strength**2 / (1.0 + strength**2)
        total = np.exp(share * (square - top)).sum(axis=1, dtype=np.float64)
        ratios.append(share * top[:, 0] + np.log(total) - 0.5 * np.log1p(strength**2))
    found = np.logaddexp.reduce(ratios, axis=0) - np.log(len(ratios) * len(edges))
    return np.asarray(np.logaddexp(0.0, found + np.log(EDGE_ODDS)), np.float64)


def draw_noise(draws: NDArray[np.float32], noise: Any, band: Band, *, mask: NDArray[Any]) -> Any:
    """Make images of noise alone, masked as the images are, where the power of the noise lies.

    Parameters
    ----------
    draws : (n, 2, F) float32
        Standard normal.
    noise : (F,) or (n, F) float
        Power per coefficient.
    band : Band
    mask : (y, x) float32

    Returns
    -------
    images : (n, F) complex64
    """
    xp, numbers = namespace(noise), like(draws, reference=noise)
    whole = (numbers[:, 0] + 1j * numbers[:, 1]) * xp.sqrt(noise / 2.0)
    whole = xp.astype(whole, xp.complex64, copy=False)
    masked = images_to_band(band_to_images(whole, band) * like(mask, reference=whole), band)
    return xp.astype(masked[:, : draws.shape[2]], xp.complex64, copy=False)


def noise_probability(
    evidence: NDArray[np.floating[Any]], controls: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Probability of each image to hold nothing, given what noise attains.

    Two components: one is known from the controls, the other is whatever else there is (local
    false discovery rate, Efron 2004, doi:10.1198/016214504000000089). It never rises with the
    evidence.

    Parameters
    ----------
    evidence : (n,) float
        Of the images; NaN where there is none.
    controls : (m,) float
        The same of images of noise.

    Returns
    -------
    probability : (n,) float64
        0 throughout with fewer than 50 controls, and where there is no evidence.
    """
    values = np.asarray(evidence, np.float64)
    known = np.isfinite(values)
    null = np.sort(np.asarray(controls, np.float64)[np.isfinite(controls)])
    if null.size < FEWEST_CONTROLS or not known.any():
        return np.zeros(values.size)
    low, lower, middle = np.quantile(null, (0.05, 0.25, 0.5))
    # Particles seldom lie where noise lies, and never make it fewer: the least of some counts.
    counted = [
        np.mean((values[known] >= start) & (values[known] <= end)) / part
        for start, end, part in ((low, lower, 0.2), (lower, middle, 0.25), (low, middle, 0.45))
    ]
    width = max(1.06 * float(null.std()), 1e-3) * null.size**-0.2
    at = np.linspace(null[0] - 3.0 * width, null[-1] + 3.0 * width, 240)
    density = [_density(sample, at, width) for sample in (null, values[known])]
    ratio = min(1.0, *counted) * density[0] / np.maximum(density[1], 1e-12)
    ratio = np.where(at < low, 1.0, np.clip(ratio, 0.0, 1.0))
    fitted = isotonic_regression(ratio, weights=density[1] + 1e-9, increasing=False).x
    found = np.interp(values, at, fitted, left=1.0, right=0.0)
    return np.where(known, found, 0.0)


def _density(sample: NDArray[np.float64], at: NDArray[np.float64], width: float) -> Any:
    """Kernel estimate of the density of a sample on an even lattice."""
    step = at[1] - at[0]
    edges = np.append(at - step / 2.0, at[-1] + step / 2.0)
    counts = np.histogram(sample, edges)[0] / (sample.size * step)
    reach = int(np.ceil(4.0 * width / step))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    return np.convolve(counts, kernel / kernel.sum(), mode="same")
