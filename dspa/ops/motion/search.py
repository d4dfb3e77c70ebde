"""Steps of the search for motion: peaks of whole frames, and Newton's for all that moves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, like, namespace, to_host
from dspa.ops.motion.agreement import agreement, phases, total
from dspa.ops.motion.trajectory import Trajectory, place_terms, time_terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.motion.agreement import Agreement, Bands, Weigh

_FINE = 2  # points of the correlation per period of the highest frequency
_RIDGE = 1e-6
_LONGEST = 10.0  # pixels of a step


def whole_frames(bands: Bands, trajectory: Trajectory, weigh: Weigh, *, reach: float) -> Trajectory:
    """Correlate every whole frame with the sum of the others, once.

    Parameters
    ----------
    bands : Bands
    trajectory : Trajectory
        So far.
    weigh : callable
        As for `agreement`.
    reach : float
        How far from there a frame may be, pixels.

    Returns
    -------
    Trajectory
        With the first frame at rest.
    """
    xp = namespace(bands.values)
    patches = bands.patches
    moved = trajectory.at(patches.points)
    weight = weigh(agreement(bands, moved).powers)
    along, down = phases(bands, moved)
    summed = total(bands, along, down)
    product = xp.zeros(bands.values.shape[1:], dtype=bands.values.dtype)
    for number in range(len(bands.values)):
        lying = bands.values[number] * down[number][:, :, None] * along[number][:, None, :]
        product = product + lying * xp.conj(summed[number] - lying)
    product = product * like(weight.astype(np.float32), reference=product)
    ry, rx = patches.radius
    rows, columns = 2 * _FINE * ry, 2 * _FINE * rx
    padded = xp.zeros((bands.frames, rows, columns // 2 + 1), dtype=product.dtype)
    padded[:, : ry + 1, : rx + 1] = product[:, : ry + 1]
    padded[:, rows - ry :, : rx + 1] = product[:, ry + 1 :]
    maps = to_host(fft(padded).irfftn(padded, s=(rows, columns), axes=(-2, -1)))
    step = np.array(patches.size)[::-1] * patches.binning / np.array([columns, rows])
    found = np.stack([_peak(each, step, reach) for each in maps]) + trajectory.whole
    return replace(trajectory, whole=found - found[0])


def _peak(plane: NDArray[np.float32], step: NDArray[np.float64], reach: float) -> NDArray[Any]:
    """Find the largest value within reach of the origin, between points by parabolas: x, y."""
    rows, columns = plane.shape
    y = np.fft.fftfreq(rows, 1.0 / rows) * step[1]
    x = np.fft.fftfreq(columns, 1.0 / columns) * step[0]
    far = y[:, None] ** 2 + x**2 > reach**2
    row, column = np.unravel_index(int(np.argmax(np.where(far, -np.inf, plane))), plane.shape)
    lines = ((plane[row], int(column), step[0]), (plane[:, column], int(row), step[1]))
    return np.array([_between(*line) for line in lines])


def _between(line: NDArray[np.float32], at: int, step: float) -> float:
    length = len(line)
    left, middle, right = (float(line[(at + d) % length]) for d in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    offset = float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend < 0 else 0.0
    return ((at if at <= length // 2 else at - length) + offset) * step


def improve(found: Agreement, trajectory: Trajectory, *, bands: Bands) -> Trajectory:
    """Make one step of Newton towards the best agreement, with the terms the trajectory has.

    Parameters
    ----------
    found : Agreement
        Of the frames as the trajectory puts them.
    trajectory : Trajectory
    bands : Bands
    """
    frames = trajectory.frames
    places, times = trajectory.terms
    if np.linalg.eigvalsh(found.curvature.sum(axis=0)).min() <= 0.0:
        return trajectory  # frames share nothing here
    size = 2 * (frames + places * times)
    matrix, right = np.zeros((size, size)), np.zeros(size)
    # The sum moves with its frames: a patch that moves as one agrees as well as before.
    centred = np.eye(frames) - 1.0 / frames
    matrix[: 2 * frames, : 2 * frames] = np.kron(centred, found.curvature.sum(axis=0))
    right[: 2 * frames] = found.slope.sum(axis=1).reshape(-1)
    if places:
        place = place_terms(bands.patches.points, trajectory.shape, places)
        time = centred @ time_terms(frames, times)
        own, rest = slice(0, 2 * frames), slice(2 * frames, size)
        cross = np.einsum("pij,pa,tb->tiabj", found.curvature, place, time)
        matrix[own, rest] = cross.reshape(2 * frames, -1)
        matrix[rest, own] = matrix[own, rest].T
        spread = np.einsum("pij,pa,pc->aicj", found.curvature, place, place)
        square = np.einsum("aicj,be->abicej", spread, time.T @ time)
        matrix[rest, rest] = square.reshape(2 * places * times, -1)
        right[rest] = np.einsum("tpi,pa,tb->abi", found.slope, place, time).reshape(-1)
    matrix[np.diag_indices(size)] *= 1.0 + _RIDGE
    step = np.linalg.lstsq(matrix, right, rcond=1e-9)[0]
    whole = trajectory.whole + step[: 2 * frames].reshape(frames, 2)
    local = trajectory.local + np.moveaxis(step[2 * frames :].reshape(places, times, 2), -1, 0)
    stepped = replace(trajectory, whole=whole - whole[0], local=local)
    points = bands.patches.points
    longest = float(np.abs(stepped.at(points) - trajectory.at(points)).max())
    if longest <= _LONGEST:
        return stepped
    # Farther than the agreement is a parabola: part of the way.
    share = _LONGEST / longest
    return replace(
        trajectory,
        whole=trajectory.whole + share * (stepped.whole - trajectory.whole),
        local=trajectory.local + share * (stepped.local - trajectory.local),
    )
