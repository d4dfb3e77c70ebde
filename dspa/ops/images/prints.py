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

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS = 8
_STEP = 4096  # of a print, in one standard deviation
# Half precision rounds by 2e-4 of a deviation; a row of unrelated numbers comes as near with a
# probability of (2 * TOLERANCE / sqrt(4 pi))^8 = 7e-23: none of the 5e13 pairs of ten million
# particles does.
TOLERANCE = 3e-3
_SPAN, _TREE, _SEED = 1 << 18, 3, 0x9217


def image_prints(images: NDArray[np.floating[Any]]) -> NDArray[np.int16]:
    """Reduce images to numbers that only copies share: (n, NUMBERS) int16.

    Copies may be scaled, offset, of the other sign, or rounded to half precision.

    Parameters
    ----------
    images : (n, y, x) float
        Those with NaN or of one value only get a print that says nothing.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    norm = np.sqrt(np.einsum("np,np->n", flat, flat))[:, None]
    found = flat @ _patterns(flat.shape[1]) / np.maximum(norm, np.finfo(np.float32).tiny)
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
