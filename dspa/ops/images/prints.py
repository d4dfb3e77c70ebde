"""Prints of images: a few numbers that an image keeps when it is scaled, turned dark or rounded.

The images are projected onto fixed random patterns, which keeps their distances
(Johnson and Lindenstrauss, doi:10.1090/conm/026/737400); of unrelated images each number of a
print is drawn from a normal distribution of unit variance.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from dspa.device import like, namespace, to_host

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band

NUMBERS = 8
_STEP = 4096  # of a print, in one standard deviation
# Half precision rounds by 2e-4 of a deviation; a row of unrelated numbers comes as near with a
# probability of (2 * TOLERANCE / sqrt(4 pi))^8 = 7e-23: none of the 5e13 pairs of ten million
# particles does.
TOLERANCE = 3e-3
_SPAN, _TREE, _SEED = 1 << 18, 3, 0x9217
SPECTRUM = 256  # numbers of a print of a spectrum
# Correlation of the spectra of two images beyond which one is the other. Of unrelated ones it
# spreads by 1 / 16 (0.08 where boxes are small), of an image of which a share a is left once it was
# moved it is about a^2.
MOVED_ALIKE = 0.65
_COEFFICIENTS, _ROWS = 8192, 1024


def image_prints(images: Any) -> NDArray[np.int16]:
    """Reduce images to numbers that only copies share: (n, NUMBERS) int16, on the host.

    Copies may be scaled, offset, of the other sign, or rounded to half precision.

    Parameters
    ----------
    images : (n, ...) float or complex
        Pixels, or coefficients of a band. Those with NaN or of one value only get a print that says
        nothing.
    """
    xp = namespace(images)
    flat = xp.reshape(images, (len(images), -1))
    if flat.dtype.kind == "c":
        flat = xp.concat([xp.real(flat), xp.imag(flat)], axis=1)
    flat = xp.astype(flat, xp.float32)
    flat = flat - xp.astype(xp.mean(flat, axis=1, keepdims=True, dtype=xp.float64), xp.float32)
    norm = xp.sqrt(xp.sum(flat * flat, axis=1))[:, None]
    patterns = like(_patterns(int(flat.shape[1])), reference=flat)
    found = to_host(flat @ patterns / xp.maximum(norm, np.finfo(np.float32).tiny))
    found = np.nan_to_num(found)
    limit = np.iinfo(np.int16).max
    return np.asarray(np.clip(np.rint(_STEP * found), -limit, limit), np.int16)


@lru_cache(maxsize=2)
def _patterns(pixels: int) -> NDArray[np.float32]:
    signs = np.random.default_rng([_SEED, pixels]).integers(0, 2, (pixels, NUMBERS))
    return np.asarray(2.0 * signs - 1.0, np.float32)


def alike(prints: NDArray[np.int16], usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Find copies: (pairs, 2) int64, which connect all rows that are copies of one image.

    Parameters
    ----------
    prints : (n, NUMBERS) int16
        As `image_prints` returns them.
    usable : (n,) bool
        Rows to compare.
    """
    rows = np.flatnonzero(usable)
    # Of both signs the one with a positive first number; both where rounding may turn that.
    turned = prints[rows] * np.where(prints[rows, :1] < 0, -1, 1).astype(np.int16)
    # What all images show (the edge of a mask) brings unrelated ones nearer to each other.
    spread = np.median(turned[:, 1:].std(axis=0)) / _STEP if len(rows) else 1.0
    reach = max(1, round(TOLERANCE * _STEP * min(1.0, float(spread))))
    unsure = turned[:, 0] <= reach
    rows = np.append(rows, rows[unsure])
    prints = np.concatenate([turned, -turned[unsure]])
    keys = np.ascontiguousarray(prints).view(np.uint64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    new = np.append(True, (keys[order[1:]] != keys[order[:-1]]).any(axis=1))[: len(rows)]
    first = order[new]  # stable: the first row of each
    pairs = np.column_stack([rows[order], rows[first[np.cumsum(new) - 1]]])
    found = [pairs[~new]]
    # Sorted by their first number: a piece and what is within the tolerance of its end.
    first = first[np.argsort(prints[first, 0], kind="stable")]
    different = prints[first].astype(np.int32)
    for start in range(0, len(different), _SPAN):
        last = different[min(start + _SPAN, len(different)) - 1, 0]
        end = int(np.searchsorted(different[:, 0], last + reach, side="right"))
        tree = cKDTree(different[start:end, :_TREE].astype(np.float64))
        near = start + tree.query_pairs(reach, p=np.inf, output_type="ndarray")
        apart = np.abs(different[near[:, 0]] - different[near[:, 1]]).max(axis=1, initial=0)
        found.append(rows[first[near[apart <= reach]]])
    joined = np.concatenate(found).astype(np.int64)
    return np.asarray(joined[joined[:, 0] != joined[:, 1]])


def spectrum_prints(images: Any, band: Band) -> NDArray[np.float32]:
    """Reduce images to numbers that an image keeps when it is moved: (n, SPECTRUM) float32.

    They are of the amplitudes of the finer half of the shells, where particles show least, each
    over the mean of its shell, on fixed random patterns.

    Parameters
    ----------
    images : (n, f) complex
        Coefficients of a band.
    band : Band
    """
    xp = namespace(images)
    fine = np.flatnonzero(band.shell > band.radius // 2)
    fine = fine[:: max(1, fine.size // _COEFFICIENTS)]
    size = xp.abs(xp.take(images, like(fine, reference=images), axis=1))
    size = xp.astype(size, xp.float32)
    shell = band.shell[fine] - band.shell[fine].min()
    member = np.zeros((fine.size, int(shell.max()) + 1), np.float32)
    member[np.arange(fine.size), shell] = 1.0
    mean = size @ like(member / np.maximum(member.sum(axis=0), 1.0), reference=size)
    each = xp.maximum(xp.take(mean, like(shell, reference=size), axis=1), np.float32(1e-20))
    signs = np.random.default_rng([_SEED, fine.size, 2]).integers(0, 2, (fine.size, SPECTRUM))
    made = (size / each - 1.0) @ like(2.0 * signs.astype(np.float32) - 1.0, reference=size)
    return np.asarray(to_host(made), np.float32)


def moved_copies(prints: NDArray[np.float32]) -> NDArray[np.int64]:
    """Find images that are copies of others, moved or not: (pairs, 2) int64.

    Parameters
    ----------
    prints : (n, SPECTRUM) float32
        As `spectrum_prints` returns them; what all images show is taken off.
    """
    own = prints - prints.mean(axis=0)
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found = []
    for start in range(0, len(own), _ROWS):
        alike = np.argwhere(own[start : start + _ROWS] @ own[start:].T > MOVED_ALIKE)
        found.append(start + alike[alike[:, 0] < alike[:, 1]])
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)
