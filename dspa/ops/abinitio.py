"""What ab initio needs beyond projection and backprojection, on plain arrays.

`expectation` compares images with every pose of a coarse grid and every shift, for K volumes at
once, and returns what backprojection takes. Scores are two matrix products over the band and the
sums are their transposes. In-plane angles come in pairs half a turn apart, whose slices are
conjugate, so one product serves both:

    cross(psi) = even - odd,    cross(psi + pi) = even + odd,
    even = Re(Y phase) Re(A)^T,    odd = Im(Y phase) Im(A)^T.

`polish` is what is done to a density between steps: low-pass, soft positivity, mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, like, namespace

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Scores of one block of images stay near the cache: a million float32.
_BLOCK_SCORES = 1 << 20
# (image, shift) pairs that hold less of the posterior than this are left out of the sums.
_NEGLIGIBLE = 1e-4


@dataclass(frozen=True, eq=False)
class CoarseSlices:
    """Slices of K volumes at the poses of a coarse grid, the first half turn of in-plane angles.

    Attributes
    ----------
    real, imaginary : (k, f, p) float32
        Contiguous, as the right-hand sides of matrix products.
    power : (k, f, p) float32
        Squared modulus.
    """

    real: Any
    imaginary: Any
    power: Any

    @classmethod
    def make(cls, slices: Any) -> CoarseSlices:
        """Lay out slices (k, p, f) complex64 for the products."""
        xp = namespace(slices)
        turned = xp.permute_dims(slices, (0, 2, 1))
        real, imaginary = (
            xp.asarray(xp.real(turned), copy=True),
            xp.asarray(xp.imag(turned), copy=True),
        )
        if hasattr(xp, "ascontiguousarray"):
            real, imaginary = xp.ascontiguousarray(real), xp.ascontiguousarray(imaginary)
        return cls(real, imaginary, real * real + imaginary * imaginary)


@dataclass(frozen=True, eq=False)
class Expectation:
    """Sums over a batch, and figures of each image.

    Attributes
    ----------
    numerators : (k, p, f) complex64
        Sum of posterior * conj(Y phase), for the poses of `CoarseSlices`.
    weights : (k, p, f) float32
        Sum of posterior * CTF^2 / s2.
    log_likelihood : (n,) float64
        Log of the mean likelihood over poses, shifts and classes (at the temperature given).
    class_posterior : (n, k) float64
    sample_size : (n,) float64
        Effective number of (pose, shift) pairs: 1 where the posterior is sharp.
    """

    numerators: Any
    weights: Any
    log_likelihood: NDArray[np.float64]
    class_posterior: NDArray[np.float64]
    sample_size: NDArray[np.float64]


def expectation(
    slices: CoarseSlices,
    y: Any,
    c2: Any,
    *,
    phases: Any,
    log_prior: Any,
    temperature: float = 1.0,
) -> Expectation:
    """Marginalise images over poses, shifts and classes.

    Parameters
    ----------
    slices : CoarseSlices
    y : (n, f) complex64
        conj(X) CTF / s2.
    c2 : (n, f) float32
        CTF^2 / s2.
    phases : (t, f) complex64
        Factors exp(+2 pi i k.t / box) of the shifts.
    log_prior : (t,) float32
        Of the shifts.
    temperature : float
        Scores are divided by it: above 1 the posterior is flatter.
    """
    xp = namespace(y)
    count, size = y.shape
    classes, _, poses = slices.real.shape
    shifts = phases.shape[0]
    real = xp.zeros((classes, poses, size), dtype=xp.float32)
    imaginary = xp.zeros((classes, poses, size), dtype=xp.float32)
    weights = xp.zeros((classes, poses, size), dtype=xp.float32)
    evidence = np.zeros(count)
    membership = np.zeros((count, classes))
    spread = np.zeros(count)
    block = max(1, _BLOCK_SCORES // (shifts * classes * 2 * poses))
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        moved = xp.reshape(y[rows, None, :] * phases, (-1, size))  # (b * t, f)
        parts = (xp.asarray(xp.real(moved), copy=True), xp.asarray(xp.imag(moved), copy=True))
        scores = _scores(slices, parts, c2[rows], log_prior=log_prior)  # (b, t, k, 2, p)
        top = xp.max(scores, axis=(1, 2, 3, 4), keepdims=True)
        scores -= top
        scores *= np.float32(1.0 / temperature)
        xp.exp(scores, out=scores)
        total = xp.sum(scores, axis=(1, 2, 3, 4), keepdims=True, dtype=xp.float32)
        scores /= total
        evidence[rows] = _host(top) / temperature + np.log(_host(total) / (2 * poses * classes))
        membership[rows] = _host(xp.sum(scores, axis=(1, 3, 4)), classes)
        flat = xp.reshape(scores, (scores.shape[0], -1))
        spread[rows] = 1.0 / _host(xp.sum(flat * flat, axis=1))
        _add_sums((real, imaginary, weights), scores, parts, c2[rows])
    numerators = xp.empty((classes, poses, size), dtype=xp.complex64)
    numerators[...] = real
    numerators += xp.asarray(1j, dtype=xp.complex64) * imaginary
    return Expectation(numerators, weights, evidence, membership, spread)


def _scores(slices: CoarseSlices, parts: tuple[Any, Any], c2: Any, *, log_prior: Any) -> Any:
    """Log-likelihoods of a block, (b, t, k, 2, p): the pair of half turns before the pose."""
    xp = namespace(c2)
    classes, _, poses = slices.real.shape
    images, shifts = c2.shape[0], log_prior.shape[0]
    scores = xp.empty((images, shifts, classes, 2, poses), dtype=xp.float32)
    for k in range(classes):
        even = xp.reshape(parts[0] @ slices.real[k], (images, shifts, poses))
        odd = xp.reshape(parts[1] @ slices.imaginary[k], (images, shifts, poses))
        even *= np.float32(2.0)
        odd *= np.float32(2.0)
        even -= (c2 @ slices.power[k])[:, None, :]
        even += log_prior[None, :, None]
        scores[:, :, k, 0] = even - odd
        scores[:, :, k, 1] = even + odd
    return scores


def _add_sums(sums: tuple[Any, Any, Any], posterior: Any, parts: tuple[Any, Any], c2: Any) -> None:
    """Add the transposed products of a block: numerators (real, imaginary) and weights."""
    xp = namespace(c2)
    images, shifts, classes, _, poses = posterior.shape
    for k in range(classes):
        first, second = posterior[:, :, k, 0], posterior[:, :, k, 1]
        both = xp.reshape(first + second, (images * shifts, poses))
        share = xp.sum(both, axis=1)
        kept = xp.nonzero(share > _NEGLIGIBLE)[0]
        if kept.shape[0] == 0:
            continue
        difference = xp.reshape(second - first, (images * shifts, poses))
        sums[0][k] += both[kept].T @ parts[0][kept]
        sums[1][k] += difference[kept].T @ parts[1][kept]
        sums[2][k] += xp.sum(xp.reshape(both, (images, shifts, poses)), axis=1).T @ c2


def _host(values: Any, *shape: int) -> NDArray[np.float64]:
    """Bring figures of a block to the host: (b,) or (b, ...)."""
    flat = np.asarray(values.get() if hasattr(values, "get") else values, np.float64)
    return flat.reshape(flat.shape[0], *shape)


def polish(density: Any, *, radius: float, negative: float, mask: Any, edge: float = 1.5) -> Any:
    """Low-pass a density, weaken what is negative, and mask it.

    Parameters
    ----------
    density : (z, y, x) float32
        Solvent near zero.
    radius : float
        Fourier pixels where the low-pass has fallen to a half.
    negative : float
        Factor on negative voxels: 1 leaves them, 0 forbids them. A soft constraint between the two
        keeps the search for a first map from settling on densities that no molecule has.
    mask : (z, y, x) float32
    edge : float
        Width of the cosine edge of the low-pass, Fourier pixels.
    """
    xp = namespace(density)
    module = fft(density)
    box = int(density.shape[0])
    spectrum = module.rfftn(density)
    response = like(_lowpass(box, float(radius), float(edge)), reference=density)
    smooth = xp.astype(module.irfftn(spectrum * response, s=density.shape), xp.float32, copy=False)
    return xp.where(smooth < 0, smooth * np.float32(negative), smooth) * mask


@lru_cache(maxsize=8)
def _lowpass(box: int, radius: float, edge: float) -> NDArray[np.float32]:
    k = np.fft.fftfreq(box) * box
    distance = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + (np.fft.rfftfreq(box) * box) ** 2)
    ramp = np.clip((distance - radius) / edge + 0.5, 0.0, 1.0)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * ramp), np.float32)


def ball(box: int, radius: float, *, edge: float = 3.0) -> NDArray[np.float32]:
    """Make a soft ball of 1 about the centre that ends at ``radius`` voxels, (box, box, box)."""
    k = np.arange(box) - box // 2
    distance = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    ramp = np.clip((radius - distance) / edge, 0.0, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * ramp), np.float32)


def centre_of_mass(density: NDArray[np.float32], *, level: float = 0.2) -> NDArray[np.float64]:
    """Locate the mass above a fraction of the maximum, (x, y, z) in voxels from the centre."""
    mass = np.where(density > level * density.max(), density, 0.0).astype(np.float64)
    total = mass.sum()
    if not total > 0.0:
        return np.zeros(3)
    axis = np.arange(density.shape[0]) - density.shape[0] // 2
    return np.array([(mass.sum(axis=others) @ axis) / total for others in ((0, 1), (0, 2), (1, 2))])


def move_sums(
    sums: NDArray[np.float32], shift: NDArray[np.float64], *, box: int, padding: int
) -> NDArray[np.float32]:
    """Translate the volume that sums of slices stand for.

    Parameters
    ----------
    sums : (2h + 1, 2h + 1, h + 1, 3) float32
        As in `dspa.ops.sums.backproject.Accumulator`.
    shift : (3,) float64
        x, y, z in voxels that the density moves by.
    box, padding : int
        Of the accumulator.
    """
    half = (sums.shape[0] - 1) // 2
    k = np.arange(-half, half + 1) / (padding * box)
    turns = (
        k[:, None, None] * shift[2] + k[None, :, None] * shift[1] + k[None, None, half:] * shift[0]
    )
    phase = np.exp(-2j * np.pi * turns)
    values = (sums[..., 0] + 1j * sums[..., 1]) * phase
    return np.stack([values.real, values.imag, sums[..., 2]], axis=-1).astype(np.float32)


def widen_sums(sums: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Put sums of slices into a grid that reaches at least as far, zero where nothing is known.

    Parameters
    ----------
    sums : (k, 2h + 1, 2h + 1, h + 1, 3) float32
    shape : tuple of int
        The same with a larger or equal h.
    """
    old, new = sums.shape[3], shape[3]
    if old > new:
        raise ValueError(f"sums of {old} cannot go into {new} grid points along x")
    wide = np.zeros(shape, np.float32)
    low = new - old
    wide[:, low : low + 2 * old - 1, low : low + 2 * old - 1, :old] = sums
    return wide
