"""What has been cut into the folder of a job: a job that grows cuts only what is new.

Each time there is an image store, ``images.zarr``, ``images-2.zarr`` ..., and, in a job that grows,
a note of what is in it, ``cuts/0002.npz``. The note is written last: a store without one is cut
anew. What was cut and is not wanted any more stays in its store, and no table names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dspa.data.atomic import write_atomically
from dspa.dataflow.arrays_file import read_arrays
from dspa.dataflow.checkpoint import DAMAGE
from dspa.stages.exposures.tasks import file_version
from dspa.stages.extraction.tables import Images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.stages.exposures.tasks import MicrographTask
    from dspa.stages.extraction.tables import Boxes

FOLDER = "cuts"
_PLACE = ["micrograph", "x", "y"]
_COLUMNS = [*_PLACE, "version", "store", "index", "valid"]


@dataclass(frozen=True, eq=False)
class Found:
    """Images of boxes.

    Attributes
    ----------
    images : Images
    valid : (n,) bool
        Which hold an image; the others have no variance, or their micrograph is damaged.
    """

    images: Images
    valid: NDArray[np.bool_]


class Cuts:
    """Images that are there, by micrograph and first pixel.

    Parameters
    ----------
    table : DataFrame, optional
        With ``micrograph`` (name), ``x``, ``y``, ``version`` (of its file), ``store`` (place in
        ``paths``), ``index``, ``valid``.
    paths : tuple of str
        Image stores.
    """

    def __init__(self, table: pd.DataFrame | None = None, paths: tuple[str, ...] = ()) -> None:
        self.table = pd.DataFrame(columns=_COLUMNS) if table is None else table
        self.paths = paths

    @property
    def stores(self) -> int:
        """How many image stores there are."""
        return len(self.paths)

    def joined(self, other: Cuts) -> Cuts:
        """Return what is here and in another.

        Parameters
        ----------
        other : Cuts
        """
        if not self.stores:
            return other
        moved = other.table.assign(store=other.table["store"] + self.stores)
        return Cuts(pd.concat([self.table, moved], ignore_index=True), (*self.paths, *other.paths))

    def missing(self, boxes: Boxes) -> NDArray[np.int64]:
        """Return the numbers of the boxes that are not cut, or from another version of a file.

        Parameters
        ----------
        boxes : Boxes
        """
        return np.flatnonzero(self._rows(boxes) < 0)

    def find(self, boxes: Boxes) -> Found:
        """Return where the images of boxes are; all of them are there.

        Parameters
        ----------
        boxes : Boxes
        """
        found = self.table.iloc[self._rows(boxes)]
        used, stack = np.unique(found["store"].to_numpy(np.int64), return_inverse=True)
        paths = tuple(self.paths[number] for number in used.tolist())
        images = Images(paths, stack.astype(np.int32), found["index"].to_numpy(np.int64))
        return Found(images, found["valid"].to_numpy(bool))

    def _rows(self, boxes: Boxes) -> NDArray[np.int64]:
        """Return the row of each box in the table, the last of several; -1 for none."""
        if self.table.empty:
            return np.full(boxes.row.size, -1)
        known = self.table.assign(row=np.arange(len(self.table)))
        known = known.drop_duplicates(_PLACE, keep="last")
        wanted = _places(boxes, self.versions(boxes))
        both = wanted.merge(known, "left", _PLACE, suffixes=("_now", ""))
        now = both["version_now"]
        # A file that cannot be seen is as it was.
        right = both["row"].notna() & ((now == both["version"]) | (now == ""))
        return np.where(right, both["row"].fillna(-1), -1).astype(np.int64)

    @staticmethod
    def versions(boxes: Boxes) -> list[str]:
        """Return the version of the file of each task that has boxes; empty where unseen.

        Parameters
        ----------
        boxes : Boxes
        """
        used = set(np.unique(boxes.task).tolist())
        return [_version(task) if n in used else "" for n, task in enumerate(boxes.tasks)]


def store_path(folder: Path, number: int) -> Path:
    """Return where an image store of a job is.

    Parameters
    ----------
    folder : Path
        Of the job.
    number : int
        From 1.
    """
    return folder / ("images.zarr" if number == 1 else f"images-{number}.zarr")


def all_of_one(folder: Path, valid: NDArray[np.bool_]) -> Found:
    """Return the images of boxes that were all cut into the first store, in their order.

    Parameters
    ----------
    folder : Path
        Of the job.
    valid : (n,) bool
    """
    index = np.arange(valid.size, dtype=np.int64)
    images = Images((str(store_path(folder, 1)),), np.zeros(valid.size, np.int32), index)
    return Found(images, valid)


def write_cuts(folder: Path, number: int, boxes: Boxes, valid: NDArray[np.bool_]) -> Cuts:
    """Note what was cut into a store; not what could not be seen and may come back.

    Parameters
    ----------
    folder : Path
        Of the job.
    number : int
        Of the store.
    boxes : Boxes
        In the order of the images.
    valid : (n,) bool

    Returns
    -------
    Cuts
        All of it.
    """
    every = _places(boxes, Cuts.versions(boxes))
    every = every.assign(store=0, index=np.arange(valid.size), valid=valid)
    table = every[(every["version"] != "") | every["valid"]]
    codes, names = pd.factorize(table["micrograph"])
    version = table.drop_duplicates("micrograph")["version"]
    arrays = {
        "names": np.array(names, str),
        "versions": np.array(version, str),
        "micrograph": codes.astype(np.int32),
        "start": table[["x", "y"]].to_numpy(np.int64),
        "index": table["index"].to_numpy(np.int64),
        "valid": table["valid"].to_numpy(bool),
    }
    (folder / FOLDER).mkdir(exist_ok=True)
    path = folder / FOLDER / f"{number:04d}.npz"
    write_atomically(path, lambda stream: np.savez(stream, **arrays))  # type: ignore[arg-type]
    return Cuts(every, (str(store_path(folder, number)),))


def read_cuts(folder: Path) -> Cuts:
    """Read what was cut into the folder of a job; it ends at the first note that is damaged.

    Parameters
    ----------
    folder : Path
    """
    cuts, number = Cuts(), 1
    names = {path.name for path in (folder / FOLDER).glob("*.npz")}
    while f"{number:04d}.npz" in names:
        try:
            held = read_arrays(folder / FOLDER / f"{number:04d}.npz")
            x, y = held["start"].T
            table = pd.DataFrame({
                "micrograph": held["names"][held["micrograph"]].astype(object), "x": x, "y": y,
                "version": held["versions"][held["micrograph"]].astype(object), "store": 0,
                "index": held["index"], "valid": held["valid"],
            })  # fmt: skip
        except (*DAMAGE, IndexError):
            break
        path = store_path(folder, number)
        if not path.is_dir():
            break
        cuts, number = cuts.joined(Cuts(table, (str(path),))), number + 1
    return cuts


def _places(boxes: Boxes, versions: list[str]) -> pd.DataFrame:
    names = np.array([task.name for task in boxes.tasks], object)
    return pd.DataFrame({
        "micrograph": names[boxes.task], "x": boxes.start[:, 0], "y": boxes.start[:, 1],
        "version": np.array(versions, object)[boxes.task],
    })  # fmt: skip


def _version(task: MicrographTask) -> str:
    try:
        return file_version(task.path)
    except OSError:
        return ""
