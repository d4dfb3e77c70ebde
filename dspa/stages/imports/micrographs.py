"""Import micrographs (and movies): image files by pattern, or a STAR file."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data import schema
from dspa.data.counts import counted, counted_of
from dspa.data.errors import InputError
from dspa.data.places import physical
from dspa.io.locate import matching, spelling
from dspa.io.micrographs import (
    SUFFIXES,
    micrograph_info,
    read_micrograph_image,
    rows_turned,
    write_micrographs,
)
from dspa.io.names import match_files, told_if_moved
from dspa.io.picture import image
from dspa.io.plausible import check_values, has_defocus, lacking_defocus
from dspa.io.star_micrographs import read_star_micrographs
from dspa.io.tiff import turns_rows
from dspa.stages.exposures.tasks import tell_of_names
from dspa.stages.imports.arrivals import Imported, grown
from dspa.stages.imports.copies import repeated_files, tell_versions
from dspa.stages.imports.lines import in_file, rows_of_file, unnumbered, where
from dspa.stages.imports.optics import settle_optics, tell_denials, with_epu
from dspa.stages.particles.checks import pixel_digest
from dspa.stages.stage import Context, Stage, param

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

MM = 1e7  # mm to A
_CTF = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift", "ctf_resolution", "ctf_score")
_WHOLE = _CTF[:4]  # what a CTF is made of, where a file has it
_LISTED = 10
_FEW, _FEW_NAMES = 16, 3


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa import micrographs``."""

    files: str | tuple[str, ...] = param(
        help="Image files, or a pattern of them, or a STAR file.", several=True
    )
    pixel_size: float | None = param(
        None, "Pixel size of the micrographs.", unit="A", minimum=0.01, maximum=10000
    )
    voltage: float | None = param(
        None, "Acceleration voltage.", unit="kV", minimum=10, maximum=1e07
    )
    cs: float | None = param(None, "Spherical aberration.", unit="mm", minimum=0, maximum=1e09)
    amplitude_contrast: float | None = param(
        None, "Amplitude contrast (0.1 if neither you nor the file says).", minimum=0, maximum=1
    )
    ctf_from: str | None = param(None, "STAR file to take the CTF of each micrograph from.")
    dark_particles: bool = param(True, "Particles are dark, as they are in untreated micrographs.")
    images_root: str | None = param(None, "Folder the paths of a STAR file are relative to.")
    check: str = param(
        "full", "Look at every pixel, or at headers only.", choices=("full", "headers")
    )

    def growing(self) -> None:
        """Refuse lists that are made once."""
        if any(str(each).endswith(".star") for each in self.patterns):
            raise InputError(f"{self.named} is a list, which does not grow; give a pattern")
        if self.ctf_from is not None:
            raise InputError("--ctf-from is a list, which does not grow; run dspa ctf instead")

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the files."""
        return (self.files,) if isinstance(self.files, str) else self.files

    @property
    def named(self) -> str:
        """The files, as messages name them."""
        return spelling(self.files)

    @property
    def roots(self) -> list[str]:
        """Folders that names in a STAR file are relative to, where one is given."""
        return [] if self.images_root is None else [self.images_root]

    def given(self) -> dict[str, tuple[float | None, str]]:
        """Return the optics that options gave, in house units, and the options."""
        cs = None if self.cs is None else self.cs * MM
        return {
            "voltage": (self.voltage, "--voltage"),
            "spherical_aberration": (cs, "--cs"),
            "amplitude_contrast": (self.amplitude_contrast, "--amplitude-contrast"),
            "pixel_size": (self.pixel_size, "--pixel-size"),
        }


@dataclass(frozen=True)
class Found:
    """What was found in one file; ``fault`` is a sentence if it cannot be used."""

    frames: int = 1
    rows: int = 0
    columns: int = 0
    pixel_size: float = math.nan
    fault: str = ""
    digest: int = 0  # of the pixels


def look(path: str) -> Found:
    """Look at the header of one micrograph.

    Parameters
    ----------
    path : str
    """
    try:
        info = micrograph_info(path)
    except InputError as error:
        return Found(fault=str(error))
    return Found(info.frames, info.rows, info.columns, info.pixel_size)


def look_at_pixels(path: str) -> tuple[str, int]:
    """Read a micrograph whole; return what is wrong with it, or nothing, and a digest of it.

    Parameters
    ----------
    path : str
    """
    try:
        return "", pixel_digest(read_micrograph_image(path))
    except InputError as error:
        return str(error), 0


def _look_at_pixels(context: Context, table: xr.Dataset, found: list[Found]) -> list[Found]:
    """Add the faults that show in the pixels: damaged, empty and NaN images."""
    rows = [row for row, each in enumerate(found) if not each.fault]
    paths = [str(table["path"].values[row]) for row in rows]
    if len(paths) <= _FEW and not context.grows:  # not worth the start of a cluster
        seen = [look_at_pixels(path) for path in paths]
    else:
        seen = context.runner.map(look_at_pixels, paths, name="look")
    checked = list(found)
    for row, (fault, digest) in zip(rows, seen, strict=True):
        checked[row] = replace(found[row], fault=fault, digest=digest)
    return checked


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Import micrographs in place."""
    table = import_files(context, params, kind="micrographs")
    write_tables(context, table, "micrographs")
    return {"micrographs": context.folder / "micrographs.zarr"}


def import_files(
    context: Context,
    params: Params,
    *,
    kind: str,
    against: Callable[[Sequence[str]], None] | None = None,
) -> xr.Dataset:
    """Return the table of all files; in a job that grows, of those that it has and new ones.

    Parameters
    ----------
    context : Context
    params : Params
    kind : str
        ``micrographs`` or ``movies``.
    against : callable, optional
        Holds the files whose headers are right against what else was given, before all pixels
        are looked at: InputError if these do not go together.
    """
    load = partial(_import, context, kind=kind, against=against)
    if context.grows:
        table = grown(context, kind, lambda files: load(replace(params, files=tuple(files))))
    else:
        made = load(params)
        if made.table is None:
            first = next(iter(made.faults.values()))
            count = counted(len(made.faults), "file")
            raise InputError(f"{params.named}: none of {count} can be used; the first: {first}")
        table = made.table
    _summarise(context, table, kind)
    return table


def _import(
    context: Context,
    params: Params,
    *,
    kind: str,
    against: Callable[[Sequence[str]], None] | None,
) -> Imported:
    from_star = params.named.endswith(".star")
    if from_star:
        table = read_star_micrographs(
            params.named, roots=params.roots, pixel_size=params.pixel_size, numbered=True
        )
        note = table.attrs.pop("set_aside", "")
        if note:
            context.events.warning(f"set aside {note}")
        tell_denials(context, table)
        table = _whole_ctfs(context, table, params.named)
    else:
        table = _from_pattern(context, params)
    _check_presence(table, params)
    names, paths = ([str(v) for v in table[k].values] for k in ("micrograph_name", "path"))
    if from_star and (moved := told_if_moved(names, paths, params.named, roots=params.roots)):
        context.events.warning(moved)
    # Headers first: what the user must mend is said before hours of reading.
    found = [
        replace(look(path), fault=_repeated(path, other)) if other else look(path)
        for path, other in zip(paths, repeated_files(paths), strict=True)
    ]
    if all(f.fault for f in found):
        report_set_aside(context, names, [f.fault for f in found])
        return Imported(None, {path: f.fault for path, f in zip(paths, found, strict=True)}, {})
    if not from_star:
        table = with_epu(context, table, [f.columns for f in found])
    headers = {p: f.pixel_size for p, f in zip(paths, found, strict=True) if not f.fault}
    table = settle_optics(context, table, params.given(), headers, source=params.named)
    _check_values(context, table, params)
    if params.ctf_from is not None:
        table = _with_ctf(context, table, params.ctf_from, params.roots)
        _doubt(context, check_values(unnumbered(table), params.ctf_from))
    if against is not None:
        against([path for path, each in zip(paths, found, strict=True) if not each.fault])
    if params.check == "full":
        found = _look_at_pixels(context, table, found)
    good = np.array([not f.fault for f in found])
    bad = table["micrograph_name"].values[~good]
    told = where(table, ~good)
    report_set_aside(context, bad, [f.fault for f in found if f.fault], told)
    faults = {path: f.fault for path, f in zip(paths, found, strict=True) if f.fault}
    if not good.any():
        return Imported(None, faults, {})
    table = table.isel(micrograph=np.flatnonzero(good))
    table = unnumbered(table)
    kept = [f for f in found if not f.fault]
    tell_versions(context, [str(path) for path in table["path"].values], [f.digest for f in kept])
    shape = np.array([(f.rows, f.columns) for f in kept], np.int32)
    table = table.assign(
        shape=(("micrograph", "yx"), shape),
        frames=("micrograph", np.array([f.frames for f in kept], np.int32)),
    )
    if "contrast_sign" not in table.variables:
        sign = np.full(len(kept), -1 if params.dark_particles else 1, np.int8)
        table = table.assign(contrast_sign=("micrograph", sign))
    table.attrs["kind"] = kind
    digests = {path: f.digest for path, f in zip(paths, found, strict=True) if not f.fault}
    return Imported(table, faults, digests)


def _repeated(path: str, other: str) -> str:
    """Say that a file was listed before: by another name, or by the same."""
    if Path(path).name != Path(other).name:
        return f"{path}: the same file as {other}"
    if Path(path).absolute() == Path(other).absolute():
        return f"{Path(path).absolute()}: listed more than once"
    return f"{Path(path).absolute()}: the same file as {Path(other).absolute()}"


def _check_values(context: Context, table: xr.Dataset, params: Params) -> None:
    given = {name: value for name, (value, _) in params.given().items()}
    with rows_of_file(table):
        doubts = check_values(table, params.named, given=given)
    _doubt(context, [in_file(doubt, table) for doubt in doubts])


def _doubt(context: Context, doubts: Sequence[str]) -> None:
    for doubt in doubts:
        context.events.warning(f"{doubt}; check the file")


def _check_presence(table: xr.Dataset, params: Params) -> None:
    """Say where files were looked for if none is there; single ones are set aside later."""
    paths = [str(path) for path in table["path"].values]
    if not any(Path(path).exists() for path in paths):
        shown = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
        raise InputError(
            f"{params.named}: none of its {counted(len(paths), 'file')} is there ({shown}); run "
            "from the folder their paths are relative to, or give it with --images-root"
        )


def _from_pattern(context: Context, params: Params) -> xr.Dataset:
    """List the files of a pattern; what is no image is named and left out."""
    matched = matching(params.files)
    files = [str(p) for p in matched if p.suffix.lower() in SUFFIXES]
    if not files:
        if isinstance(params.files, str) and Path(params.files).is_dir():
            raise InputError(f"{params.files} is a folder; give a pattern: '{params.files}/*.mrc'")
        raise InputError(f"{params.named} matches no image file ({', '.join(SUFFIXES)})")
    if len(files) < len(matched):
        others = Counter(p.suffix for p in matched if p.suffix.lower() not in SUFFIXES)
        kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in others.items())
        context.events.message(f"left out files that are no images: {kinds}")
    return schema.make(
        "micrographs",
        {
            "path": [str(physical(Path(p).absolute())) for p in files],
            "micrograph_name": files,
            "optics": np.zeros(len(files), np.int32),
            "optics_name": ["opticsGroup1"],
            "rows_turned": [int(turns_rows(p)) for p in files],
        },
    )


def _with_ctf(context: Context, table: xr.Dataset, path: str, roots: Sequence[str]) -> xr.Dataset:
    """Take the CTF of each micrograph from a STAR file, by its name."""
    source = read_star_micrographs(path, numbered=True)
    if "defocus_u" not in source.variables:
        raise InputError(f"{path}: no _rlnDefocusU; give a STAR file with the CTF of micrographs")
    source = _whole_ctfs(context, source, path)
    names = [str(name) for name in source["micrograph_name"].values]
    rows = np.full(table.sizes["micrograph"], -1)
    wanted = [str(name) for name in table["micrograph_name"].values]
    paths = [str(where) for where in table["path"].values]
    matches = match_files(names, wanted, paths=paths, source=path, roots=roots)
    found = matches.found
    for row in np.flatnonzero(found >= 0).tolist():
        first = rows[found[row]]
        if first >= 0 and not _same_ctf(source, int(first), row):
            raise InputError(
                f"{path}: lists {names[row]} twice, with different CTFs; leave one of them out"
            )
        rows[found[row]] = row
    if (rows < 0).all():
        none = f"{path}: none of its micrographs has the name of an imported one"
        raise InputError(matches.remedy or none)
    tell_of_names(context, matches)
    if (rows < 0).any():
        context.events.warning(f"{path}: no CTF for {counted((rows < 0).sum(), 'micrograph')}")
    for name in _CTF:
        if name in source.variables:
            values = np.append(source[name].values, np.nan)[rows]
            table = table.assign({name: ("micrograph", values)})
    return table


def _whole_ctfs(context: Context, table: xr.Dataset, source: str) -> xr.Dataset:
    """Make a CTF unknown of which a number is none, as where a fit has failed; tell of it."""
    there = [name for name in _WHOLE if name in table.variables]
    if "defocus_u" not in there:
        return table
    numbers = np.array([np.isfinite(table[name].values) for name in there])
    # A column of nothing else says nothing; without any defocus there is no CTF at all.
    failed = ~numbers[numbers.any(axis=1) | (np.arange(len(there)) == 0)].all(axis=0)
    if numbers[0].any() and not has_defocus(table):
        context.events.warning(f"{source}: {lacking_defocus(table, source)}: the CTF is unknown")
        return _without_ctf(table, np.ones(failed.size, bool))
    if not failed.any():
        return table
    names = [str(name) for name in table["micrograph_name"].values[failed][:_FEW_NAMES]]
    shown = ", ".join(names) + (", ..." if failed.sum() > len(names) else "")
    many = counted_of(failed.sum(), failed.size, "row", verb=("is", "are"))
    context.events.warning(
        f"{source}: the CTF of {many} no number, so it is unknown: {shown}{where(table, failed)}"
    )
    return _without_ctf(table, failed)


def _without_ctf(table: xr.Dataset, failed: NDArray[np.bool_]) -> xr.Dataset:
    unknown = {
        name: ("micrograph", np.where(failed, np.nan, table[name].values))
        for name in _CTF
        if name in table.variables
    }
    return table.assign(unknown)


def _same_ctf(table: xr.Dataset, first: int, second: int) -> bool:
    columns = [table[name].values for name in _CTF if name in table.variables]
    return all(np.array_equal(c[first], c[second], equal_nan=True) for c in columns)


def unique_names(paths: NDArray[Any]) -> list[str]:
    """Return a name for what is made of each file, numbered where one before it has the name.

    Files that are appended change no name.

    Parameters
    ----------
    paths : (m,) text
    """
    names: dict[str, None] = {}
    for number, path in enumerate(paths):
        name = Path(str(path)).stem
        while name in names:
            name = f"{number:05d}_{name}"
        names[name] = None
    return list(names)


def report_set_aside(
    context: Context, names: Sequence[str], faults: Sequence[str], told: str = ""
) -> None:
    """Warn of files that are set aside, and list them; a job that grows has a list of its own.

    Parameters
    ----------
    context : Context
    names, faults : sequence of str
        Of each file, and why.
    told : str
        What the first warning ends with.
    """
    for fault in faults[:_LISTED]:
        context.events.warning(f"set aside {fault}{told if fault is faults[0] else ''}")
    if len(faults) > _LISTED:
        context.events.warning(f"and {len(faults) - _LISTED} more were set aside")
    if faults and not context.grows:
        lines = [f"{name}\t{fault}\n" for name, fault in zip(names, faults, strict=True)]
        (context.folder / "set_aside.txt").write_text("".join(lines), encoding="utf-8")


def _summarise(context: Context, table: xr.Dataset, kind: str) -> None:
    shapes = Counter((int(c), int(r)) for r, c in table["shape"].values)
    text = ", ".join(f"{n} of {c} x {r}" for (c, r), n in shapes.most_common(4))
    frames = table["frames"].values
    if kind == "micrographs" and (frames > 1).any():
        context.events.message(
            f"{counted((frames > 1).sum(), 'file is a movie', 'files are movies')}; frames are "
            "summed as they are"
        )
    context.events.message(
        f"{counted(table.sizes['micrograph'], kind.removesuffix('s'))}: {text} pixels"
    )
    if len(shapes) > 1:
        context.events.warning(f"{len(shapes)} shapes: {text}")
    shown = -1 if context.grows else 0  # the newest, of those that come one by one
    path = str(table["path"].values[shown])
    turned = bool(rows_turned(table)[shown])
    if rows_turned(table).any():
        context.events.message("the rows of TIFF files are turned over, as RELION and others do")
    first = read_micrograph_image(path, turned=turned)
    picture = image(first, pixel_size=float(table["pixel_size"].values[0]))
    context.events.picture("micrograph", picture, title=Path(path).name)
    context.events.emit(
        "result",
        **{kind: table.sizes["micrograph"]},
        pixel_size=float(table["pixel_size"].values[0]),
    )


def write_tables(context: Context, table: xr.Dataset, name: str) -> None:
    """Write a table as dspa and as RELION read it.

    Parameters
    ----------
    context : Context
    table : Dataset
    name : str
        ``micrographs`` or ``movies``.
    """
    write_micrographs(table, context.folder / f"{name}.zarr")
    write_micrographs(table, context.folder / f"{name}.star")


MICROGRAPHS_STAGE = Stage(
    "import micrographs",
    "bring in micrographs, from image files or a STAR file",
    Params,
    (),
    run,
    grows=True,
)
