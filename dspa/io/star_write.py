"""Particles as STAR files that RELION 3.1 and later open (3.1 reads no 16 bit images)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data import store
from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.data.store import extra_columns
from dspa.geometry.rotation import euler_from_matrix, matrix_from_euler
from dspa.io.coordinates import pixel_coordinates
from dspa.io.images import SHARD, stack_info, stack_link
from dspa.io.star import Block, Spans, write_star
from dspa.io.star_aberrations import aberration_columns
from dspa.io.star_optics import write_optics
from dspa.io.star_particles import EULER, EXPANDED, PLAIN, TWIN, UID

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray

_SIZES = {
    "pixel_size": "rlnImagePixelSize",
    "micrograph_pixel_size": "rlnMicrographPixelSize",
    "box_size": "rlnImageSize",
}
# Original Euler angles are written where they make the same matrix to this.
_SAME_POSE = 1e-6
_DIGITS = 9


def write_star_particles(
    dataset: xr.Dataset,
    path: str | Path,
    *,
    spell: Callable[[str], str] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Write particles or picks as a STAR file with an optics table.

    Stacks are named as the source named them where that still leads to them from the current
    folder or from the file's own; else by their absolute path. Shards of image stores are named
    by their MRC links.

    Parameters
    ----------
    dataset : Dataset
        Particles.
    path : path
    spell : callable, optional
        Takes the absolute path of a stack and returns how it is to be named.
    rows : (m,) int64, optional
        Particles to write; by default all.
    """
    if dataset.attrs.get("kind") != "particles":
        raise InputError(f"{path}: a dataset of {dataset.attrs.get('kind')}, not particles")
    has_images = "image_stack" in dataset.variables
    optics, ids = write_optics(_with_box_size(dataset) if has_images else dataset, _SIZES)
    shared = {**optics.columns, **aberration_columns(dataset)}
    if has_images and "rlnImageDimensionality" not in shared:
        shared["rlnImageDimensionality"] = np.full(optics.rows, 2)
    optics = Block("optics", shared)
    names = _stack_names(dataset, Path(path), spell) if has_images else None
    silent = _silent(dataset, rows)
    pieces = (
        _columns(piece.drop_vars(silent & set(piece.variables)), ids, names, spell)
        for piece in store.spans(dataset, rows=rows)
    )
    write_star(path, [optics, Spans("particles", pieces)])


def _columns(
    dataset: xr.Dataset,
    ids: NDArray[np.int64],
    stacks: tuple[list[str], list[str]] | None,
    spell: Callable[[str], str] | None,
) -> dict[str, NDArray[Any]]:
    """Make the columns of a span of particles."""
    extras = extra_columns(dataset, "particle")
    columns: dict[str, NDArray[Any]] = {}
    if stacks is not None:
        columns["rlnImageName"] = _image_names(dataset, *stacks, spell)
    if "micrograph" in dataset.variables:
        names = np.append(dataset["micrograph_name"].values, "None")
        columns["rlnMicrographName"] = names[dataset["micrograph"].values]
    columns |= _places(dataset, extras)
    columns |= _angles(dataset, extras)
    columns |= _plain(dataset, extras)
    columns |= _classes(dataset)
    columns["rlnOpticsGroup"] = ids[dataset["optics"].values]
    columns[UID] = dataset["uid"].values
    for label, name in ((TWIN, "twin"), (EXPANDED, "expanded_from")):
        if name in dataset.variables:
            columns[label] = dataset[name].values
    for label, values in extras.items():
        if label not in columns:
            columns |= _flat(label, values)
    return columns


def _silent(dataset: xr.Dataset, rows: NDArray[np.int64] | None) -> set[str]:
    """Name the columns that say nothing in any row, and are left out."""
    names = {name for _, name, _ in PLAIN} | {"half_set"}
    silent = {name for name in names & set(map(str, dataset.variables))
              if name in ("half_set", "image_sign") or dataset[name].dtype.kind == "f"}  # fmt: skip
    for piece in store.spans(dataset[sorted(silent)], rows=rows) if silent else ():
        for name in sorted(silent):
            values = piece[name].values
            if name == "half_set":
                says = (values > 0).any()
            else:
                says = (values != 1).any() if name == "image_sign" else (~np.isnan(values)).any()
            if says:
                silent.discard(name)
    return silent


def _with_box_size(dataset: xr.Dataset) -> xr.Dataset:
    """Fill box sizes that the table lacks from the stacks: RELION will not start without."""
    count = dataset.sizes["optics"]
    known = "box_size" in dataset.variables
    sizes = dataset["box_size"].values.copy() if known else np.zeros(count, np.int32)
    if (sizes > 0).all():
        return dataset
    optics, stack = dataset["optics"].values, dataset["image_stack"].values
    for group in np.flatnonzero(sizes <= 0):
        rows = np.flatnonzero((optics == group) & (stack >= 0))
        if rows.size:
            try:
                sizes[group] = stack_info(str(dataset["stack_path"].values[stack[rows[0]]])).rows
            except InputError:  # a table without its images is still a table
                continue
    return dataset.assign(box_size=("optics", sizes))


def _stack_names(
    dataset: xr.Dataset, target: Path, spell: Callable[[str], str] | None
) -> tuple[list[str], list[str]]:
    """Return the path of every stack, and how the STAR file spells it."""
    paths = [str(p) for p in dataset["stack_path"].values]
    spelt = [str(n) for n in dataset["stack_name"].values] if "stack_name" in dataset else paths
    names = paths
    if spell is None:
        names = [_stack_name(p, n, target) for p, n in zip(paths, spelt, strict=True)]
    if any(str(name).startswith(f"{EXTRA}cs:") for name in dataset.variables):
        names = _linked(paths, names, target)
    names = names if spell is None else [spell(name) for name in names]
    return paths, names


def _image_names(
    dataset: xr.Dataset,
    paths: list[str],
    names: list[str],
    spell: Callable[[str], str] | None,
) -> NDArray[Any]:
    stack = np.asarray(dataset["image_stack"].values, np.int64)
    index = np.asarray(dataset["image_index"].values, np.int64)
    stored = np.array([*(p.endswith(".zarr") for p in paths), False])[stack]
    files = np.array([*names, ""], object)[stack]
    place = np.stack([stack[stored], index[stored] // SHARD], axis=1)
    shards, which = np.unique(place, axis=0, return_inverse=True)
    found = [stack_link(paths[s], n) for s, n in shards.tolist()]
    links = np.array([str(link) if spell is None else spell(str(link)) for link in found], object)
    files[stored] = links[which.ravel()] if len(links) else ""
    if not len(stack):  # zfill refuses to fill nothing
        return files
    number = np.where(stored, index % SHARD, index) + 1
    made = np.strings.zfill(number.astype("U20"), 6).astype(object) + "@" + files
    return np.where(stack < 0, "None", made)


def _stack_name(path: str, spelt: str, target: Path) -> str:
    """Spell a stack so that whoever opens the STAR file finds it."""
    found = Path(path)
    if not spelt or not found.exists():
        return spelt or path
    for folder in (Path.cwd(), target.absolute().parent):
        try:
            if (folder / spelt).exists() and (folder / spelt).samefile(found):
                return spelt
        except (OSError, ValueError):
            continue
    return path


def _linked(paths: list[str], names: list[str], target: Path) -> list[str]:
    """Link stacks that cryoSPARC calls .mrc under .mrcs, the only name RELION takes for a stack."""
    stems = [Path(p).stem for p in paths]
    unique = len(set(stems)) == len(stems)
    folder = target.absolute().with_suffix("").with_name(f"{target.stem}_stacks")
    linked = []
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        if Path(path).suffix in (".mrcs", ".zarr") or not Path(path).is_file():
            linked.append(name)
            continue
        prefix = "" if unique else f"{number:04d}_"
        link = folder / f"{prefix}{stems[number]}.mrcs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        except OSError:  # a file system without links: dspa reads the name as it is
            linked.append(name)
            continue
        linked.append(str(link))
    return linked


def _places(dataset: xr.Dataset, extras: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    optics = dataset["optics"].values
    pixels = pixel_coordinates(dataset)
    if pixels is not None:
        pixels = np.round(pixels, _DIGITS)
        columns |= {"rlnCoordinateX": pixels[:, 0], "rlnCoordinateY": pixels[:, 1]}
    if "shift" in dataset.variables:
        shift = np.round(dataset["shift"].values, _DIGITS)
        columns |= {"rlnOriginXAngst": shift[:, 0], "rlnOriginYAngst": shift[:, 1]}
        for axis, label in enumerate(("rlnOriginX", "rlnOriginY")):
            if label in extras:
                origin = shift[:, axis] / dataset["pixel_size"].values[optics]
                columns[label] = _kept(extras[label], np.round(origin, _DIGITS), 1e-4)
    return columns


def _angles(dataset: xr.Dataset, extras: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    if "pose" not in dataset.variables:
        return {}
    pose = dataset["pose"].values
    angles = [np.round(np.rad2deg(a), _DIGITS) for a in euler_from_matrix(pose)]
    kept = [_numeric(extras.get(label)) for label in EULER]
    if any(k is not None for k in kept):
        given = [np.zeros(len(pose)) if k is None else k for k in kept]
        same = np.abs(matrix_from_euler(*map(np.deg2rad, given)) - pose).max((1, 2)) < _SAME_POSE
        angles = [np.where(same, k, a) for k, a in zip(given, angles, strict=True)]
    return dict(zip(EULER, angles, strict=True))


def _plain(dataset: xr.Dataset, extras: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for label, name, factor in PLAIN:
        if name not in dataset.variables:
            continue
        values = dataset[name].values
        if values.dtype.kind == "i":
            columns[label] = values
            continue
        if values.dtype.itemsize == 4:
            columns[label] = _kept(extras.get(label), values / np.float32(factor), 1e-6)
        else:
            columns[label] = np.round(values / factor, _DIGITS)
    return columns


def _classes(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    if "class_index" in dataset.variables:
        columns["rlnClassNumber"] = dataset["class_index"].values + 1
    if "half_set" in dataset.variables:
        columns["rlnRandomSubset"] = dataset["half_set"].values
    return columns


def _numeric(values: NDArray[Any] | None) -> NDArray[np.float64] | None:
    return None if values is None or values.dtype.kind not in "iuf" else values.astype(np.float64)


def _kept(original: NDArray[Any] | None, values: NDArray[Any], tolerance: float) -> NDArray[Any]:
    """Return the original figures where they agree with the values, else the values."""
    kept = _numeric(original)
    if kept is None:
        return values
    same = np.abs(kept - values) <= tolerance * np.maximum(1.0, np.abs(kept))
    return np.where(same, kept, values.astype(np.float64))


def _flat(label: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Spread a .cs field over columns RELION leaves alone: ``cs:FIELD:TYPE:SHAPE:PART``."""
    if not label.startswith("cs:"):
        return {label: values} if values.ndim == 1 else {}
    shape = "x".join(map(str, values.shape[1:])) or "0"
    flat = values.reshape(len(values), -1)
    return {f"{label}:{shape}:{part}": flat[:, part] for part in range(flat.shape[1])}
