"""What every per-micrograph stage shares: small picklable handles on micrographs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError, NothingLeft
from dspa.dataflow.journal import Keep
from dspa.io.micrographs import (
    micrograph_info,
    read_micrograph_image,
    read_micrographs,
    rows_turned,
)
from dspa.io.tiff import turns_rows
from dspa.ops.ctf.model import CTF
from dspa.ops.ctf.surface import TERMS, defocus_offset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.io.names import Matches
    from dspa.stages.stage import Context

T = TypeVar("T")

# Working copies of a micrograph that a task holds at once, float32: for estimates of memory.
COPIES = 6
# Times that a fault is found in one version of a file before a job that grows lets it be.
FAULTS = 3


class Named(Protocol):
    """A task that can be told by its name."""

    @property
    def name(self) -> str:
        """Of the micrograph."""
        ...


@dataclass(frozen=True)
class MicrographTask:
    """One micrograph and what is known of it. Lengths in A, angles in rad.

    Attributes
    ----------
    index : int
        Row in the table of micrographs.
    path, name : str
    pixel_size, voltage, spherical_aberration, amplitude_contrast : float
    sign : int
        -1 where particles are dark in the file.
    defocus_u, defocus_v, defocus_angle, phase_shift : float
        NaN where unknown.
    surface : tuple of float
        How defocus varies over the micrograph (`dspa.ops.ctf.surface`); empty if it does not.
    size : tuple of int
        Rows and columns; zeros where the table does not say.
    turned : bool
        Rows of the file are turned over on reading.
    """

    index: int
    path: str
    name: str
    pixel_size: float
    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    sign: int
    defocus_u: float
    defocus_v: float
    defocus_angle: float
    phase_shift: float
    surface: tuple[float, ...] = ()
    size: tuple[int, int] = (0, 0)
    turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; of the file's header where the table does not say."""
        if min(self.size) > 0:
            return self.size
        info = micrograph_info(self.path)
        return info.rows, info.columns

    def read(self) -> NDArray[np.float32]:
        """Read the micrograph in the contrast of its file."""
        return read_micrograph_image(self.path, turned=self.turned)

    @property
    def defocus(self) -> float:
        """Mean defocus, NaN if unknown."""
        return 0.5 * (self.defocus_u + self.defocus_v)

    def offset(self, coordinate: NDArray[np.float64]) -> NDArray[np.float64]:
        """Defocus at coordinates (n, 2), A, above the mean of the micrograph: (n,) A."""
        return defocus_offset(self.surface or np.zeros(TERMS), coordinate)

    @property
    def ctf(self) -> CTF | None:
        """The CTF, None if unknown."""
        if not np.isfinite(self.defocus):
            return None
        return CTF(
            defocus_u=self.defocus_u,  # type: ignore[arg-type]
            defocus_v=self.defocus_v,  # type: ignore[arg-type]
            defocus_angle=np.nan_to_num(self.defocus_angle),
            voltage=self.voltage,  # type: ignore[arg-type]
            spherical_aberration=self.spherical_aberration,  # type: ignore[arg-type]
            amplitude_contrast=self.amplitude_contrast,  # type: ignore[arg-type]
            phase_shift=np.nan_to_num(self.phase_shift),
        )


def micrograph_tasks(micrographs: xr.Dataset, *, limit: int = 0) -> list[MicrographTask]:
    """List the micrographs of a table.

    Parameters
    ----------
    micrographs : Dataset
    limit : int
        Only so many, spread evenly over the table; 0 for all.
    """
    count = int(micrographs.sizes["micrograph"])
    if count == 0:
        raise InputError("the table of micrographs is empty; import micrographs first")
    rows = np.arange(count)
    if 0 < limit < count:
        rows = np.unique(np.round(np.linspace(0, count - 1, limit)).astype(int))
    optics = np.asarray(micrographs["optics"].values)
    if (optics < 0).any():
        raise InputError("a micrograph has no optics group; import the micrographs again")

    def shared(name: str) -> NDArray[np.float64]:
        if name not in micrographs:
            raise InputError(f"the micrographs have no {name}; give it when importing them")
        values = np.asarray(micrographs[name].values, np.float64)
        return np.asarray(values[optics])

    def own(name: str, missing: float) -> NDArray[np.float64]:
        if name not in micrographs:
            return np.full(count, missing)
        return np.array(micrographs[name].values, np.float64)

    columns = {
        "pixel_size": shared("pixel_size"),
        "voltage": shared("voltage"),
        "spherical_aberration": shared("spherical_aberration"),
        "amplitude_contrast": shared("amplitude_contrast"),
        "defocus_u": own("defocus_u", np.nan),
        "defocus_v": own("defocus_v", np.nan),
        "defocus_angle": own("defocus_angle", np.nan),
        "phase_shift": own("phase_shift", 0.0),
    }
    # A failed fit is no knowledge.
    columns["defocus_u"][own("ctf_quality", -1.0) == 0] = np.nan
    bad = ~(np.isfinite(columns["pixel_size"]) & (columns["pixel_size"] > 0))
    if bad.any():
        name = micrographs["micrograph_name"].values[int(np.flatnonzero(bad)[0])]
        raise InputError(f"{name}: no pixel size; import the micrographs with --pixel-size")
    signs = own("contrast_sign", -1.0)
    sizes = micrographs["shape"].values if "shape" in micrographs else np.zeros((count, 2), int)
    surfaces = local_surfaces(micrographs)
    turned = rows_turned(micrographs)
    return [
        MicrographTask(
            index=int(row),
            path=str(micrographs["path"].values[row]),
            name=str(micrographs["micrograph_name"].values[row]),
            sign=-1 if signs[row] < 0 else 1,
            size=(int(sizes[row, 0]), int(sizes[row, 1])),
            turned=bool(turned[row]),
            surface=tuple(surfaces[row].tolist()) if surfaces[row].any() else (),
            **{key: float(values[row]) for key, values in columns.items()},
        )
        for row in rows
    ]


def warn_of_rows(context: Context, micrographs: xr.Dataset) -> None:
    """Warn of TIFF micrographs that an earlier dspa imported, and that are read as it read them.

    Parameters
    ----------
    context : Context
    micrographs : Dataset
    """
    usual = np.array([turns_rows(str(path)) for path in micrographs["path"].values], bool)
    stored = int((usual & ~rows_turned(micrographs)).sum())
    if stored:
        context.events.warning(
            f"{stored} TIFF micrographs are read with their rows as stored, as when they were "
            "imported; RELION and others turn them over: to use coordinates of other programs, "
            "import the micrographs again"
        )


def tell_of_names(context: Context, matches: Matches) -> None:
    """Tell which names in a file lead elsewhere, and which fit although their folders differ.

    Parameters
    ----------
    context : Context
    matches : Matches
    """
    for warning in filter(None, (matches.remedy, matches.alone)):
        context.events.warning(warning)
    if matches.ends:
        context.events.message(matches.ends)


def names_and_paths(tasks: Sequence[MicrographTask]) -> tuple[list[str], list[str]]:
    """Return the names of micrographs, and where they are.

    Parameters
    ----------
    tasks : sequence of MicrographTask
    """
    return [task.name for task in tasks], [task.path for task in tasks]


def local_surfaces(micrographs: xr.Dataset) -> NDArray[np.float64]:
    """Local defocus of each micrograph, (m, 6); zeros where flat or unknown."""
    if "defocus_surface" not in micrographs:
        return np.zeros((int(micrographs.sizes["micrograph"]), TERMS))
    return np.nan_to_num(np.asarray(micrographs["defocus_surface"].values, np.float64))


def keep_results(context: Context, params: Any, *types: type) -> Keep[Any]:
    """Keep what is found on each micrograph, so that a killed job goes on from there.

    A job that grows keeps faults too: not every bad exposure is to be tried in every round.

    Parameters
    ----------
    context : Context
    params : dataclass
        What results depend on besides the micrograph.
    *types : type
        Dataclasses that a result consists of, its own first.
    """
    return Keep(partial(_mark, params), types, _version, FAULTS if context.grows else 0)


def _mark(params: Any, task: Any) -> str:
    """Tell micrographs and parameters apart."""
    return hashlib.sha256(repr((params, task)).encode()).hexdigest()


def _version(task: Any) -> str:
    return file_version(task.path)


def file_version(path: str) -> str:
    """Return a text that differs once a file was changed; OSError if it cannot be seen.

    Parameters
    ----------
    path : str
    """
    stat = Path(path).stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def in_known_order(context: Context, table: str, names: Sequence[str]) -> list[int]:
    """Return rows in their order: in a job that grows, those of its table first, as they are.

    Indices of micrographs do not move so: pictures, masks and marks are found by them.

    Parameters
    ----------
    context : Context
    table : str
        File in the job's folder, ``micrographs.zarr``; may not be there yet.
    names : sequence of str
        Of the micrographs that are to be written.
    """
    path = context.folder / table
    if not (context.grows and path.exists()):
        return list(range(len(names)))
    before = [str(name) for name in read_micrographs(path)["micrograph_name"].values]
    place = {name: row for row, name in enumerate(before)}
    return sorted(range(len(names)), key=lambda row: place.get(names[row], len(place)))


def contained(function: Callable[[], T]) -> T | str:
    """Call a function; a fault of the input comes back as its sentence instead of an error."""
    try:
        return function()
    except (InputError, ValueError) as error:
        return str(error)


def report_failures(
    context: Context, tasks: Sequence[Named], results: Sequence[object], *, what: str
) -> None:
    """Warn of micrographs that were set aside; raise if none is left.

    Parameters
    ----------
    context : Context
    tasks : sequence
        Of micrographs or movies.
    results : sequence
        A sentence where a micrograph failed.
    what : str
        What was tried, for the message.
    """
    failures = [
        (task, result)
        for task, result in zip(tasks, results, strict=True)
        if isinstance(result, str)
    ]
    for task, sentence in failures[:20]:
        context.events.warning(f"{task.name} set aside: {sentence}")
    if len(failures) > 20:
        context.events.warning(f"and {counted(len(failures) - 20, 'more micrograph')} set aside")
    if tasks and len(failures) == len(tasks):
        raise NothingLeft(f"{what}: no micrograph could be used; the first: {failures[0][1]}")
