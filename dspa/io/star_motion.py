"""The motion of one movie as RELION's STAR file of a micrograph: what Bayesian polishing reads.

Shifts there bring a frame back, so they are minus the displacements; they are in pixels of the
unbinned frame, and frames and the powers of time count from the first frame that is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.star import Block, find_block, numbers, read_star, write_star

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

POLYNOMIAL, NONE = 1, 0  # versions of the motion model
NOT_OBSERVED = -9999.0  # shifts of frames that are not used


@dataclass(frozen=True, eq=False)
class MotionFile:
    """What the STAR file of a micrograph says.

    Attributes
    ----------
    movie, gain : str
        As they are to be named; no gain if empty.
    shape : (frames, rows, columns)
        Of the whole movie.
    binning : float
        Pixels of the movie, along an edge, in one of the micrograph.
    pixel_size : float
        Of the movie, A.
    dose_per_frame, before : float
        Electrons per A^2.
    voltage : float
        kV.
    first : int
        First frame that is used, from 1.
    shifts : (frames used, 2) float64
        x, y in pixels.
    factors : (2, 6, 3) float64
        For x and y: of 1, x, x^2, y, y^2, x y of the place as a fraction from the middle; of t,
        t^2, t^3, t counting frames. All 0: no local motion.
    hot : (h, 2) int64
        x, y of pixels that were filled.
    eer : (group, upsampling), optional
    """

    movie: str
    gain: str
    shape: tuple[int, int, int]
    binning: float
    pixel_size: float
    dose_per_frame: float
    before: float
    voltage: float
    first: int
    shifts: NDArray[np.float64]
    factors: NDArray[np.float64]
    hot: NDArray[np.int64]
    eer: tuple[int, int] | None = None


def write_motion(path: str | Path, motion: MotionFile) -> None:
    """Write the STAR file of a micrograph.

    Parameters
    ----------
    path : path
    motion : MotionFile
    """
    frames, rows, columns = motion.shape
    bends = bool(motion.factors.any())
    general: dict[str, Any] = {
        "rlnImageSizeX": columns,
        "rlnImageSizeY": rows,
        "rlnImageSizeZ": frames,
        "rlnMicrographMovieName": motion.movie,
    }
    if motion.gain:
        general["rlnMicrographGainName"] = motion.gain
    general |= {
        "rlnMicrographBinning": motion.binning,
        "rlnMicrographOriginalPixelSize": motion.pixel_size,
        "rlnMicrographDoseRate": motion.dose_per_frame,
        "rlnMicrographPreExposure": motion.before,
        "rlnVoltage": motion.voltage,
        "rlnMicrographStartFrame": motion.first,
    }
    if motion.eer is not None:
        general |= {"rlnEERGrouping": motion.eer[0], "rlnEERUpsampling": motion.eer[1]}
    general["rlnMotionModelVersion"] = POLYNOMIAL if bends else NONE
    shifts = np.full((frames, 2), NOT_OBSERVED)
    shifts[motion.first - 1 : motion.first - 1 + len(motion.shifts)] = motion.shifts
    blocks = [
        Block("general", {name: np.array([value]) for name, value in general.items()}, loop=False),
        Block(
            "global_shift",
            {
                "rlnMicrographFrameNumber": np.arange(1, frames + 1),
                "rlnMicrographShiftX": np.round(shifts[:, 0], 6),
                "rlnMicrographShiftY": np.round(shifts[:, 1], 6),
            },
        ),
    ]
    if bends:
        values = motion.factors.reshape(-1)
        columns_of = {"rlnMotionModelCoeffsIdx": np.arange(36), "rlnMotionModelCoeff": values}
        blocks.append(Block("local_motion_model", columns_of))
    if len(motion.hot):
        hot = {"rlnCoordinateX": motion.hot[:, 0], "rlnCoordinateY": motion.hot[:, 1]}
        blocks.append(Block("hot_pixels", hot))
    write_star(path, blocks)


def read_displacements(path: str | Path, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Read where points went, of a micrograph that RELION or dspa corrected.

    Parameters
    ----------
    path : path
        STAR file of the micrograph.
    points : (p, 2) float64
        x, y in pixels of the unbinned frame.

    Returns
    -------
    (frames, p, 2) float64
        Pixels; of the frames that were used.
    """
    blocks = read_star(path)
    general, shifts = find_block(blocks, "general"), find_block(blocks, "global_shift")
    if general is None or shifts is None:
        raise InputError(f"{path}: no motion of a micrograph (data_general and data_global_shift)")
    size = [float(general.columns[f"rlnImageSize{axis}"][0]) for axis in "XY"]
    labels = [f"rlnMicrographShift{axis}" for axis in "XY"]
    whole = np.stack([numbers(path, each, shifts.columns[each]) for each in labels], axis=1)
    whole = whole[whole[:, 0] != NOT_OBSERVED]
    moved = np.repeat(-whole[:, None], len(points), axis=1)
    model = find_block(blocks, "local_motion_model")
    if model is not None:
        label = "rlnMotionModelCoeff"
        factors = numbers(path, label, model.columns[label]).reshape(2, 6, 3)
        x, y = (points[:, n] / size[n] - 0.5 for n in range(2))
        places = np.stack([np.ones_like(x), x, x * x, y, y * y, x * y])
        times = np.arange(len(whole))[:, None] ** np.arange(1, 4)
        moved -= np.einsum("dab,tb,ap->tpd", factors, times, places)
    return np.asarray(moved)
