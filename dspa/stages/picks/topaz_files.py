"""What topaz reads and writes: coarse micrographs, tables of coordinates, its training table.

Topaz counts pixels (x, y) of the image it is given from 0. Our coarse images keep pixel 0 on
pixel 0 of the micrograph, so a position is the coordinate times the pixels per coarse pixel.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError, plainly
from dspa.io import mrc
from dspa.ops.picks.search_image import clip_outliers, coarsen, robust_deviation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.stages.exposures.tasks import MicrographTask

# Low-pass of the coarse images over their pixel size, so that nothing aliases.
LOW_PASS = 3.0
# Pixels that each architecture sees around a position.
FIELD = {"resnet8": 71, "resnet16": 91, "conv31": 31, "conv63": 63, "conv127": 127}
LAYOUT_VERSION = 1


@dataclass(frozen=True)
class ModelCard:
    """What a trained model was made for; lies beside it as ``model.json``.

    Attributes
    ----------
    diameter : float
        Of the particle, A.
    pixel_size : float
        Of the coarse images, A.
    architecture : str
    epoch : int
        Which epoch it is of.
    auprc : float or None
        Area under its precision-recall curve on the micrographs held out.
    layout_version : int
    """

    diameter: float
    pixel_size: float
    architecture: str
    epoch: int
    auprc: float | None
    layout_version: int = LAYOUT_VERSION

    def write(self, path: Path) -> None:
        """Write it beside the model at ``path``."""
        text = json.dumps(asdict(self), indent=1).encode()
        write_atomically(path.with_suffix(".json"), lambda stream: stream.write(text))


def read_card(model: Path) -> ModelCard | None:
    """Return what lies beside a model, None for a model that came from elsewhere.

    Parameters
    ----------
    model : Path
        ``model.sav``.
    """
    path = model.with_suffix(".json")
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["layout_version"] > LAYOUT_VERSION:
            raise InputError(f"{path} was written by a newer dspa; update this one")
        card = ModelCard(**fields)
        if not (card.diameter > 0 and card.pixel_size > 0):
            raise ValueError("diameter and pixel_size must be positive")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = plainly(error)
        raise InputError(f"{path} does not describe a model ({what}); train it again") from error
    return card


def stem(index: int) -> str:
    """Name of a coarse image: micrographs may share names, and topaz parses numbers as numbers."""
    return f"m{index:06d}"


def coarse_micrograph(
    task: MicrographTask, *, pixel_size: float
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Make the image that topaz sees: coarse, particles dark, in robust units.

    Parameters
    ----------
    task : MicrographTask
    pixel_size : float
        Wanted, A; never finer than the micrograph's.

    Returns
    -------
    image : (y, x) float32
        Median 0, robust standard deviation 1.
    scale : tuple of float
        Micrograph pixels per coarse pixel along (x, y).
    """
    clipped = clip_outliers(task.read())
    resolution = LOW_PASS * max(pixel_size, task.pixel_size)
    coarse, _, scale = coarsen(clipped, pixel_size=task.pixel_size, resolution=resolution)
    dark = np.asarray(coarse) * np.float32(-task.sign)
    spread = robust_deviation(dark)
    if not spread > 0:
        raise ValueError("the micrograph has no variance at the pixel size that topaz sees")
    return ((dark - np.median(dark)) / spread).astype(np.float32), scale


def write_coarse(path: Path, image: NDArray[np.float32], *, pixel_size: float) -> None:
    """Write a coarse image as an MRC file.

    Parameters
    ----------
    path : Path
    image : (y, x) float32
    pixel_size : float
        A.
    """
    mrc.write(path, [image], shape=(1, *image.shape), pixel_size=pixel_size)


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a tab-separated table with a header.

    Parameters
    ----------
    path : Path
    columns : mapping of str to sequence
    """
    rows = zip(*columns.values(), strict=True)
    lines = ["\t".join(columns), *("\t".join(str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def coordinate_table(places: Mapping[str, NDArray[np.float64]]) -> dict[str, list[Any]]:
    """Make the columns of a table of coordinates.

    Parameters
    ----------
    places : mapping of str to (p, 2) float64
        Per image name, (x, y) in coarse pixels.
    """
    names = [name for name, xy in places.items() for _ in xy]
    whole = [np.rint(xy).astype(int) for xy in places.values()]
    xy = np.concatenate(whole) if whole else np.zeros((0, 2), int)
    return {"image_name": names, "x_coord": xy[:, 0].tolist(), "y_coord": xy[:, 1].tolist()}


def read_scores(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Read what ``topaz extract`` wrote: per image name, (x, y) in coarse pixels and log-odds.

    Parameters
    ----------
    path : Path
        Columns image_name, x_coord, y_coord, score.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: topaz extract wrote no table ({plainly(error)})") from error
    wanted = ["image_name", "x_coord", "y_coord", "score"]
    if not lines or lines[0].split("\t") != wanted:
        raise InputError(f"{path}: topaz extract did not write the columns {', '.join(wanted)}")
    found: dict[str, list[tuple[float, float, float]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        try:
            name, (x, y, score) = cells[0], (float(cell) for cell in cells[1:])
        except ValueError as error:
            raise InputError(f"{path}: line {number} is {line[:60]!r}, not four values") from error
        if math.isfinite(score):
            found.setdefault(name, []).append((x, y, score))
    tables = {name: np.asarray(rows, np.float64) for name, rows in found.items()}
    return {name: (table[:, :2], table[:, 2]) for name, table in tables.items()}


@dataclass
class TrainingTable:
    """Reads the table that ``topaz train`` prints, line by line.

    Attributes
    ----------
    header : list of str
        Names of the columns, once they were printed.
    """

    header: list[str] = field(default_factory=list)

    def row(self, line: str) -> dict[str, Any] | None:
        """Return a line of the table as figures (``split`` is text), None for other lines.

        Parameters
        ----------
        line : str
        """
        cells = line.split("\t")
        if cells[:3] == ["epoch", "iter", "split"]:
            self.header = cells
            return None
        if len(cells) != len(self.header):
            return None
        row: dict[str, Any] = {}
        for name, cell in zip(self.header, cells, strict=True):
            try:
                row[name] = cell if name == "split" else float(cell)
            except ValueError:  # "-": not measured in this split
                continue
        return row
