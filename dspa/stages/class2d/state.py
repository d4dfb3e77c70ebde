"""What a 2D classification leaves for another to go on from: its model and its particles by uid."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.checkpoint import DAMAGE, write_atomically
from dspa.stages.particles.chunks import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "classification.npz"
LAYOUT = 3  # raised with every change of what a model or its rows hold
_MODEL, _ROWS = "model.", "rows."


@dataclass(frozen=True, eq=False)
class Classification:
    """A classification that can go on.

    Attributes
    ----------
    spec : ImageSpec
        How images became bands; particles that come later are treated alike.
    model : mapping of name to array
        Of the last pass: sums, counts, noise and what else the next pass wants to know.
    uid : (n,) uint64
        Particles it has seen.
    fold : (n,) int8
        Fold of each: kept, so that no average an image is compared with ever held it.
    rows : mapping of name to (n, ...) arrays
        Class, angle, shift, fit... of each.
    images : int
        Images that the sums stand for.
    unseen : (n,) float32
        Fit of particles that had no part in making the averages they were compared with; NaN for
        the others.
    growths : int
        How many times particles were added.
    """

    spec: ImageSpec
    model: Mapping[str, NDArray[Any]]
    uid: NDArray[np.uint64]
    fold: NDArray[np.int8]
    rows: Mapping[str, NDArray[Any]]
    images: int
    unseen: NDArray[np.float32]
    growths: int = 0

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.model["counts"].shape[1])

    def find(self, uid: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Say at which row it knows each particle, -1 if it does not: (m,) int64."""
        order = np.argsort(self.uid, kind="stable")
        place = np.minimum(np.searchsorted(self.uid[order], uid), self.uid.size - 1)
        row = order[place]
        return np.where(self.uid[row] == uid, row, -1).astype(np.int64)


def save_classification(known: Classification, path: Path) -> None:
    """Write a classification as plain arrays, whole or not at all."""
    head = {"layout": LAYOUT, "images": known.images, "growths": known.growths}
    text = json.dumps(head | {"spec": dataclasses.asdict(known.spec)})
    arrays = {"head": np.array(text), "uid": known.uid, "fold": known.fold}
    arrays["unseen"] = known.unseen
    arrays |= {_MODEL + name: np.asarray(value) for name, value in known.model.items()}
    arrays |= {_ROWS + name: np.asarray(value) for name, value in known.rows.items()}
    write_atomically(path, lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def load_classification(path: Path) -> Classification:
    """Read what `save_classification` wrote."""
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path}: is no classification that class2d left; name a class2d job or its {FILE}"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        head = json.loads(str(arrays["head"]))
        if head["layout"] != LAYOUT:
            raise InputError(
                f"{path}: layout {head['layout']} is not {LAYOUT}, which this version reads; "
                "classify anew without --start-from"
            )
        return Classification(
            spec=ImageSpec(**head["spec"]),
            model=_under(arrays, _MODEL),
            uid=arrays["uid"],
            fold=arrays["fold"],
            rows=_under(arrays, _ROWS),
            images=int(head["images"]),
            unseen=arrays["unseen"],
            growths=int(head["growths"]),
        )
    except InputError:
        raise
    except (*DAMAGE, TypeError) as error:
        raise InputError(
            f"{path}: is damaged ({error}); run the class2d job that left it again"
        ) from error


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
