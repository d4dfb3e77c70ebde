"""Local normalised cross-correlation of a micrograph with templates, by FFT.

With a template t that is zero outside a mask M, of zero mean and unit norm within it,

    NCC(u) = sum_M t(v) f(u + v) / sqrt( sum_M (f(u + v) - mean_M f)^2 ),

which lies in [-1, 1] whatever the local brightness and contrast: it measures shape. The power
score is ``sum_M f(u + v)^2``: it measures how much density there is. Templates of one mask share
the denominator, so each further template costs one inverse FFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, is_host, like, namespace
from dspa.ops.images.filter import good_length
from dspa.ops.images.normalise import FLAT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

# Kernels transformed at once: few enough for a cache, or enough to fill a GPU.
HOST_BATCH, DEVICE_BATCH = 2, 8
# Local variance below this fraction of the image's own counts as no variance at all.
FAINT = 1e-3


@dataclass(frozen=True)
class Match:
    """Best template at every position.

    Attributes
    ----------
    ncc : (y, x) float32
        Largest correlation over the templates.
    template : (y, x) int32
        Which template gave it.
    power : (y, x) float32
        Energy of the image within the mask, per pixel of the mask.
    """

    ncc: Any
    template: Any
    power: Any


def normalise_templates(
    templates: NDArray[np.floating[Any]], mask: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Give templates zero mean and unit norm within a mask, and nothing outside it.

    Parameters
    ----------
    templates : (t, n, n)
    mask : (n, n)
        0..1.
    """
    weight = mask.astype(np.float64)
    mean = np.sum(templates * weight, axis=(-2, -1), keepdims=True) / weight.sum()
    centred = (templates - mean) * weight
    norm = np.sqrt(np.sum(centred * centred, axis=(-2, -1), keepdims=True))
    size = np.sqrt(np.sum((templates * weight) ** 2, axis=(-2, -1), keepdims=True))
    if not np.all(norm > FLAT * size):
        raise ValueError("a template is flat within its mask")
    result: NDArray[np.float32] = (centred / norm).astype(np.float32)
    return result


@dataclass(frozen=True)
class SearchField:
    """An image padded by zeros and transformed once, ready for many templates.

    A mirrored rim would draw the picks of particles that the edge cuts onto the edge itself.

    Attributes
    ----------
    image : (y, x) float32
    padded_shape : tuple of int
        Shape of the transforms.
    margin : int
        Rows of zeros before the image; at least as many follow it.
    spectrum, square_spectrum : (py, px // 2 + 1) complex64
        Transforms of the padded image and of its square.
    """

    image: Any
    padded_shape: tuple[int, int]
    margin: int
    spectrum: Any
    square_spectrum: Any


def search_field(image: Any, margin: int) -> SearchField:
    """Prepare an image for templates that reach ``margin`` pixels from their centre.

    Parameters
    ----------
    image : (y, x) float32
        Of zero mean.
    margin : int
        ``n // 2`` of the largest template.
    """
    xp = namespace(image)
    height, width = int(image.shape[0]), int(image.shape[1])
    if margin >= min(height, width):
        raise ValueError(
            f"a template of {2 * margin + 1} px does not fit an image of {width} x {height} px"
        )
    shape = (good_length(height + 2 * margin), good_length(width + 2 * margin))
    padded = xp.zeros(shape, dtype=image.dtype)
    padded[margin : margin + height, margin : margin + width] = image
    transform = fft(image).rfftn
    return SearchField(
        image,
        shape,
        margin,
        transform(padded, axes=(-2, -1)),
        transform(padded * padded, axes=(-2, -1)),
    )


def correlate(field: SearchField, kernels: NDArray[np.float32], *, squared: bool = False) -> Any:
    """Cross-correlate an image with small kernels, or its square: (t, y, x).

    Parameters
    ----------
    field : SearchField
    kernels : (t, n, n) float32
        Centre n // 2, at most the field's margin from the edge.
    squared : bool
        Correlate the square of the image instead.
    """
    xp = namespace(field.image)
    backend = fft(field.image)
    height, width = int(field.image.shape[0]), int(field.image.shape[1])
    spectrum = field.square_spectrum if squared else field.spectrum
    # The first pixel of a kernel lies this far before the position it scores.
    first = field.margin - int(kernels.shape[-1]) // 2
    result = xp.empty((len(kernels), height, width), dtype=field.image.dtype)
    size = HOST_BATCH if is_host(field.image) else DEVICE_BATCH
    for start in range(0, len(kernels), size):
        stop = min(start + size, len(kernels))
        batch = like(kernels[start:stop], reference=field.image)
        # Along rows first, where few are not empty.
        rows = backend.rfft(batch, n=field.padded_shape[1], axis=-1)
        transformed = backend.fft(rows, n=field.padded_shape[0], axis=-2)
        product = spectrum * xp.conj(transformed)
        whole = backend.irfftn(product, s=field.padded_shape, axes=(-2, -1))
        inside = whole[:, first : first + height, first : first + width]
        result[start:stop, ...] = inside
    return result


def local_moments(field: SearchField, mask: NDArray[np.float32]) -> tuple[Any, Any]:
    """Sum squares, and squared deviations from the local mean, within a mask: (y, x) twice."""
    xp = namespace(field.image)
    weight = float(mask.sum())
    total = correlate(field, mask[None])[0, ...]
    squares = correlate(field, mask[None], squared=True)[0, ...]
    floor = FAINT * weight * float(xp.mean(field.image * field.image))
    deviation = squares - total * total / weight
    return squares, xp.where(deviation > floor, deviation, xp.asarray(np.inf, dtype=squares.dtype))


def best_match(
    field: SearchField, batches: Iterable[NDArray[np.float32]], mask: NDArray[np.float32]
) -> Match:
    """Correlate with batches of templates of one mask, keeping the best at every position.

    Parameters
    ----------
    field : SearchField
    batches : iterable of (t, n, n) float32
        From `normalise_templates`; numbered on from 0. Memory holds one batch at a time.
    mask : (n, n) float32
    """
    xp = namespace(field.image)
    squares, deviation = local_moments(field, mask)
    inverse = 1.0 / xp.sqrt(deviation)
    best = xp.full(inverse.shape, -2.0, dtype=xp.float32)
    which = xp.zeros(inverse.shape, dtype=xp.int32)
    number = 0
    for templates in batches:
        for start in range(0, templates.shape[0], DEVICE_BATCH):
            scores = correlate(field, templates[start : start + DEVICE_BATCH]) * inverse
            here = xp.argmax(scores, axis=0)
            top = xp.max(scores, axis=0)
            better = top > best
            best = xp.where(better, top, best)
            which = xp.where(better, xp.astype(here, xp.int32) + number + start, which)
        number += templates.shape[0]
    # The mask's soft edge lets rounding carry a perfect match a hair beyond 1.
    ncc = xp.clip(best, -1.0, 1.0)
    return Match(xp.astype(ncc, xp.float32), which, squares / float(mask.sum()))
