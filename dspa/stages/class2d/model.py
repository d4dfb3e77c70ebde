"""What is known of the classes after a pass, and what a classification leaves to go on from."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError, plainly
from dspa.dataflow.arrays_file import read_arrays
from dspa.dataflow.checkpoint import DAMAGE
from dspa.stages.class2d.averages import References, Statistics
from dspa.stages.class2d.census import Census
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.em.model import NamedArrays, under
from dspa.stages.particles.chunks import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.stages.class2d.plan import ClassPlan

FILE = "classification.npz"
LAYOUT = 6  # raised with every change of what a model or its rows hold
_MODEL, _ROWS = "model.", "rows."
NOTHING = Statistics(np.zeros((FOLDS, 0, 3, 2, 3), np.float32), np.zeros((FOLDS, 0)))


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over the images of a pass.

    Attributes
    ----------
    images, log_likelihood, effective_classes, cells_scored, searches_limited : float
        The last counts the searches that met a limit.
    """

    images: float
    log_likelihood: float
    effective_classes: float
    cells_scored: float
    searches_limited: float

    def mean(self, name: str) -> float:
        """Return a sum for every image."""
        return float(getattr(self, name)) / max(float(self.images), 1.0)


@dataclass(frozen=True, eq=False)
class ClassModel(NamedArrays):
    """What is known after a pass.

    Attributes
    ----------
    iteration : int
        Number of the pass; -1 before the random start.
    averages : (classes, y, x) float32
        Made from the images of each class alone, of all folds; of no class where the pass shows
        none.
    prior : (classes, radius + 1) float64
        Noise-to-signal ratio of the averages that images are compared with.
    frc : (classes, radius + 1) float64
        Ring correlation of the halves of each class.
    shell : (classes,) float64
        Where that falls to 0.5, Fourier pixels.
    statistics, poor : Statistics
        Of all images, and of the worst-fitting ones of the classes that have a slot.
    onto : Statistics
        What the next pass adds to, if not to ``statistics``; of no class otherwise.
    slots : (classes,) int32
        Slot of each class in ``poor``, -1 none.
    census : Census
    seeded : (classes,) bool
        Classes that the pass founded.
    total : Totals
    nuisance : mapping of name to array
        Noise and contrast of the images, as `dspa.stages.em.noise` keeps them.
    """

    PARTS: ClassVar = {
        "statistics": Statistics, "poor": Statistics, "onto": Statistics, "census": Census,
        "total": Totals, "nuisance": dict,
    }  # fmt: skip

    iteration: int
    averages: NDArray[np.float32]
    prior: NDArray[np.float64]
    frc: NDArray[np.float64]
    shell: NDArray[np.float64]
    statistics: Statistics
    poor: Statistics
    onto: Statistics
    slots: NDArray[np.int32]
    census: Census
    seeded: NDArray[np.bool_]
    total: Totals
    nuisance: Mapping[str, NDArray[Any]]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.statistics.counts.shape[1])

    @property
    def count(self) -> NDArray[np.float64]:
        """Images of each class by posterior: (classes,) float64."""
        return np.asarray(self.statistics.counts.sum(axis=0))

    @classmethod
    def begin(cls, noise: NDArray[np.float64]) -> ClassModel:
        """Return that of no class and no image, and of noise of this power per shell."""
        none, whole = np.zeros(0), np.zeros(0, np.int64)
        return cls(
            iteration=-1,
            averages=np.zeros((0, 0, 0), np.float32),
            prior=np.zeros((0, noise.size)),
            frc=np.zeros((0, noise.size)),
            shell=none,
            statistics=NOTHING,
            poor=NOTHING,
            onto=NOTHING,
            slots=none.astype(np.int32),
            census=Census(none, none, none, np.zeros((0, 0)), whole, whole),
            seeded=none.astype(bool),
            total=Totals(*np.zeros(5)),
            nuisance={"noise": noise},
        )

    def references(self, plan: ClassPlan, chosen: NDArray[np.bool_] | None = None) -> References:
        """Return what the images of each fold are compared with.

        Parameters
        ----------
        plan : ClassPlan
        chosen : (classes,) bool, optional
            Classes that they are compared with; all by default.
        """
        spec, settings = plan.spec, plan.settings
        return References(
            self.statistics.sums,
            self.census.partner,
            self.prior,
            spec.band(),
            spec.crop_mask(),
            settings.compared,
            np.ones(self.classes, bool) if chosen is None else chosen,
        )


@dataclass(frozen=True, eq=False)
class Classification:
    """A classification that can go on.

    Attributes
    ----------
    spec : ImageSpec
        How images became bands; particles that come later are treated alike.
    model : ClassModel
        Of the last pass.
    groups : (groups,) str
        Micrographs or optics groups whose images share their noise.
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
    model: ClassModel
    groups: NDArray[np.str_]
    uid: NDArray[np.uint64]
    fold: NDArray[np.int8]
    rows: Mapping[str, NDArray[Any]]
    images: int
    unseen: NDArray[np.float32]
    growths: int = 0

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.model.classes

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
    arrays |= {"unseen": known.unseen, "groups": known.groups}
    arrays |= {_MODEL + name: value for name, value in known.model.arrays().items()}
    arrays |= {_ROWS + name: np.asarray(value) for name, value in known.rows.items()}
    write_atomically(path, lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def load_classification(path: Path) -> Classification:
    """Read what `save_classification` wrote."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            begun = stream.read(2) == b"PK"
        if begun or not path.stat().st_size:
            raise InputError(f"{path}: is cut short; copy it again, or run its job again")
        raise InputError(
            f"{path}: is no classification that class2d left; name a class2d job or its {FILE}"
        )
    try:
        arrays = read_arrays(path)
        head = json.loads(str(arrays["head"]))
        if head["layout"] != LAYOUT:
            raise InputError(
                f"{path}: layout {head['layout']} is not {LAYOUT}, which this version reads; "
                "classify anew without --start-from"
            )
        return Classification(
            spec=ImageSpec(**head["spec"]),
            model=ClassModel.read(under(arrays, _MODEL)),
            groups=arrays["groups"],
            uid=arrays["uid"],
            fold=arrays["fold"],
            rows=under(arrays, _ROWS),
            images=int(head["images"]),
            unseen=arrays["unseen"],
            growths=int(head["growths"]),
        )
    except InputError:
        raise
    except (*DAMAGE, TypeError) as error:
        raise InputError(
            f"{path}: is damaged ({plainly(error)}); run the class2d job that left it again"
        ) from error
