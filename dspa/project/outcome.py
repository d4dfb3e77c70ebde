"""What a stage gave: outputs that open as arrays and tables, plots, and a page of itself."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from dspa import plots
from dspa.data import store
from dspa.data.errors import InputError, plainly
from dspa.dataflow.arrays_file import read_arrays
from dspa.dataflow.checkpoint import DAMAGE
from dspa.dataflow.events import read_events
from dspa.geometry.rotation import view_direction
from dspa.geometry.symmetry import views_around
from dspa.io.star import find_block, read_star
from dspa.io.volumes import read_images, read_volume
from dspa.project.figures import figures_of
from dspa.project.report import fragment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.project.job import Job

FSC = {
    "rlnFourierShellCorrelationUnmaskedMaps": "no mask",
    "dspaFscSpherical": "spherical",
    "dspaFscLoose": "loose",
    "rlnFourierShellCorrelationMaskedMaps": "tight",
    "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "random phases",
    "rlnFourierShellCorrelationCorrected": "corrected",
}
DRAWN = ("classes", "fsc", "volume", "mask")  # of `READERS`
IN_PLANE = 1.0 - 1e-9  # z of a view that is along the z axis
# Names of columns of a table of classes that are not their labels in small letters.
CLASSES = {
    "rlnClassNumber": "class",
    "rlnReferenceImage": "image",
    "rlnEstimatedResolution": "resolution",
    "rlnClassDistribution": "share",
    "dspaMeanPosterior": "posterior",
    "dspaMeanFit": "fit",
    "dspaMeanLogLikelihood": "log_likelihood",
}
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Outcome:
    """What a stage gave.

    Outputs are attributes, as paths: ``result.particles``, ``result.volume``, ``result.half1``;
    `read` opens them, `plot` draws. Passed on as an input, it gives whatever kind the next stage
    asks for, its own or that of the results it came from. A notebook shows it as its report.

    Attributes
    ----------
    job : Job
        Folder, record, log and report.
    outputs : mapping of str to Path
    figures : mapping of str to Any
        Numbers worth a line: particles, resolution.
    sources : tuple of Outcome
        The results it was made from.
    """

    job: Job
    outputs: Mapping[str, Path]
    figures: Mapping[str, Any]
    sources: tuple[Outcome, ...] = ()

    def __getattr__(self, name: str) -> Path:
        outputs: Mapping[str, Path] = self.__dict__.get("outputs", {})
        if name in outputs:
            return outputs[name]
        raise AttributeError(f"no output {name!r}; there are {', '.join(outputs)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.outputs]

    def _repr_html_(self) -> str:
        return fragment(self.job.folder)

    @property
    def report(self) -> Path:
        """The job's ``report.html``."""
        return self.job.folder / "report.html"

    @property
    def iterations(self) -> pd.DataFrame:
        """Figures of every iteration, a row each; empty for what does not iterate."""
        found = [e for _, e in read_events(self.job.folder / "events.jsonl")
                 if e["kind"] == "iteration"]  # fmt: skip
        rows = {event.get("iteration"): figures_of(event) for event in found}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("iteration")

    def read(self, name: str) -> Any:
        """Open an output.

        Parameters
        ----------
        name : str
            One of ``outputs``.

        Returns
        -------
        Dataset, DataArray, Volume, DataFrame, str or dict
            Particles and micrographs are Datasets; class averages a DataArray with ``class``,
            ``particles`` and ``resolution`` as coordinates; ``class_table`` and ``fsc`` DataFrames;
            maps and masks Volumes; other STAR files a dict of DataFrames; ``classification`` a
            dict of arrays, as the job goes on from them; text and edits a str.
        """
        if name not in self.outputs:
            has = ", ".join(self.outputs) or "none"
            raise InputError(f"{self.job.name} has no output {name}; there are {has}")
        path = self.outputs[name]
        kind = _kind(name, path)
        if kind not in READERS:
            raise InputError(f"{path} does not open as arrays or tables; read it as a file")
        return READERS[kind](path)

    def plot(self, name: str, **options: Any) -> Any:
        """Draw a Matplotlib figure.

        Parameters
        ----------
        name : str
            ``classes``, ``fsc``, ``views``, ``iterations``, or the name of a map for its slices.
        **options : Any
            ``symmetry="D7"`` for the mates of ``views``; else of the function in `dspa.plots`.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        InputError
            If the job has no such plot; it lists those that it has.
        """
        if name == "iterations" and not self.iterations.empty:
            table = self.iterations.select_dtypes("number")
            return plots.lines(table.index, _columns(table), xlabel="iteration", **options)
        if name == "views" and "particles" in self.outputs:
            symmetry = options.pop("symmetry", "C1")
            directions = self._views()
            if directions is None:
                raise InputError(
                    f"{self.job.name} has no views: its poses are in the plane; {self._drawn()}"
                )
            try:
                around = views_around(directions, symmetry)
            except ValueError as error:
                raise InputError(f"plot('views', symmetry={symmetry!r}): {error}") from None
            return plots.views(around, **options)
        found = self.read(name) if name in self._drawable() else None
        if found is None:
            raise InputError(f"{self.job.name} has no plot of {name}; {self._drawn()}")
        if name == "fsc":
            return plots.fsc(found.index, _columns(found), **options)
        if isinstance(found, xr.DataArray):
            options.setdefault("labels", _labels(found))
            return plots.images(found.values, **options)
        options.setdefault("pixel_size", found.pixel_size)
        return plots.slices(found.density, **options)

    def _views(self, first: int | None = None) -> NDArray[np.float64] | None:
        """Return directions of the (first) particles' views; None where poses are in the plane."""
        table = store.open(self.outputs["particles"], lazy=True).isel(particle=slice(first))
        pose = table["pose"].values if "pose" in table else np.eye(3)[None]
        directions = view_direction(pose)
        return None if np.abs(directions[:, 2]).min(initial=1.0) > IN_PLANE else directions

    def _drawable(self) -> list[str]:
        """Return the outputs that `plot` draws."""
        kinds = {name: _kind(name, path) for name, path in self.outputs.items()}
        return [name for name, kind in kinds.items() if kind in DRAWN]

    def _drawn(self) -> str:
        """Say what `plot` draws of this job."""
        names = self._drawable()
        if "particles" in self.outputs and self._views(1000) is not None:
            names.append("views")
        if not self.iterations.empty:
            names.append("iterations")
        stage = self.job.read().stage
        return f"those of this {stage} are {', '.join(names)}" if names else f"{stage} has none"

    def find(self, kind: str) -> Path | None:
        """Return the output of a kind, from here or from the nearest source that has one.

        Parameters
        ----------
        kind : str
            ``particles``, ``micrographs``, ``volume``...
        """
        level: tuple[Outcome, ...] = (self,)
        while level:
            found = [each.outputs[kind] for each in level if kind in each.outputs]
            if len(found) > 1:
                raise InputError(f"several results have {kind}; pass the one that is meant")
            if found:
                return found[0]
            level = tuple(source for each in level for source in each.sources)
        return None


def read_class_averages(path: Path) -> xr.DataArray:
    """Read class averages with what their table says of them.

    Parameters
    ----------
    path : Path
        Stack; ``class_averages.star`` or another table of classes may lie beside it.

    Returns
    -------
    (class, y, x) DataArray
        y and x in A from the centre; ``particles`` and ``resolution`` where they are known.
    """
    stack = read_images(path)
    images = np.asarray(stack.images, np.float32)
    size = stack.pixel_size if math.isfinite(stack.pixel_size) else 1.0
    coordinates: dict[str, Any] = {"class": np.arange(1, len(images) + 1)}
    for axis, length in zip("yx", images.shape[1:], strict=True):
        coordinates[axis] = (np.arange(length) - length // 2) * size
    for table in sorted(path.parent.glob("class*.star")):
        known = read_class_table(table)
        if len(known) == len(images):
            for name in {"particles", "resolution"} & set(known.columns):
                coordinates[name] = ("class", known[name].to_numpy())
            break
    return xr.DataArray(images, coordinates, ("class", "y", "x"), "class_averages",
                        {"pixel_size": stack.pixel_size})  # fmt: skip


def read_class_table(path: Path) -> pd.DataFrame:
    """Read the table of classes, a row each, by class number.

    Columns have plain names, not labels of STAR files: ``resolution``, ``noise_share``.

    Parameters
    ----------
    path : Path
    """
    block = find_block(read_star(path), "model_classes")
    if block is None:
        raise InputError(f"{path}: no table of classes in it")
    table = pd.DataFrame(dict(block.columns)).rename(columns=_plain)
    return table.set_index("class") if "class" in table else table


def _plain(label: str) -> str:
    """Turn ``dspaNoiseShare`` into ``noise_share``."""
    return CLASSES.get(label) or _WORD.sub("_", re.sub(r"^(rln|dspa)(?=[A-Z])", "", label)).lower()


def read_fsc(path: Path) -> pd.DataFrame:
    """Read FSC curves, a column each, by frequency in 1/A.

    Parameters
    ----------
    path : Path
    """
    block = find_block(read_star(path), "fsc")
    if block is None or "rlnResolution" not in block.columns:
        raise InputError(f"{path}: no FSC curves in it")
    curves = {name: block.columns[label] for label, name in FSC.items() if label in block.columns}
    return pd.DataFrame(curves, index=pd.Index(block.columns["rlnResolution"], name="frequency"))


def read_classification(path: Path) -> dict[str, NDArray[Any]]:
    """Read the named arrays that a classification leaves to go on from.

    Parameters
    ----------
    path : Path
    """
    try:
        return read_arrays(path)
    except DAMAGE as error:
        raise InputError(f"{path} is damaged ({plainly(error)}); run its job again") from None


def read_tables(path: Path) -> dict[str, pd.DataFrame]:
    """Read every block of a STAR file as a table.

    Parameters
    ----------
    path : Path
    """
    return {block.name: pd.DataFrame(dict(block.columns)) for block in read_star(path)}


def _kind(name: str, path: Path) -> str:
    """Return which of `READERS` opens an output; empty if none does."""
    return name if name in READERS else _KINDS.get(path.suffix, "")


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    return {str(name): column.to_numpy() for name, column in table.items()}


def _labels(averages: xr.DataArray) -> list[str]:
    count, size = averages.coords.get("particles"), averages.coords.get("resolution")
    labels = [str(number) for number in averages["class"].values]
    if count is not None and size is not None:
        figures = zip(labels, count.values, size.values, strict=True)
        labels = [f"{number}: {n:.0f}, {r:.1f} A" for number, n, r in figures]
    return labels


READERS: Mapping[str, Callable[[Path], Any]] = {
    "dataset": store.open,
    "classes": read_class_averages,
    "class_table": read_class_table,
    "fsc": read_fsc,
    "volume": read_volume,
    "mask": read_volume,
    "tables": read_tables,
    "arrays": read_classification,
    "text": lambda path: path.read_text(encoding="utf-8"),
}
_KINDS = {
    ".mrc": "volume",
    ".mrcs": "classes",
    ".zarr": "dataset",
    ".npz": "arrays",
    ".star": "tables",
    ".txt": "text",
    ".json": "text",
}
