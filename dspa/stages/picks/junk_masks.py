"""Masks of where pickers did not look, one small picture per micrograph: ``junk/00012.png``.

Grey, 8 bits, 255 where there is junk. A picture spans its whole micrograph, the first row at the
top, on the coarse pixels of the search; its number is the row of the micrograph in the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.io.png import read_png

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FOLDER = "junk"


def mask_path(folder: Path, micrograph: int) -> Path:
    """Where a job keeps the mask of a micrograph, by its row in the table."""
    return folder / FOLDER / f"{micrograph:05d}.png"


def write_junk(folder: Path, micrograph: int, junk: NDArray[np.bool_]) -> None:
    """Write the mask (y, x) of one micrograph into a job's folder; a task each."""
    import imagecodecs  # large, and for few files

    path = mask_path(folder, micrograph)
    path.parent.mkdir(exist_ok=True)
    grey = np.ascontiguousarray(junk, np.uint8) * np.uint8(255)
    path.write_bytes(imagecodecs.png_encode(grey))


def read_junk(folder: Path, micrograph: int) -> NDArray[np.bool_] | None:
    """Read the mask (y, x) of a micrograph; None if the job kept none."""
    path = mask_path(folder, micrograph)
    if not path.is_file():
        return None
    mask: NDArray[np.bool_] = read_png(path) > 127
    return mask
