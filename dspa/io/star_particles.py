"""Particles in STAR files of RELION 3.0, 3.1, 4 and 5: labels, units and origins.

What dspa interprets is turned into house units; every other column is kept as ``extra:LABEL`` and
written back as it was. Where a value was rounded or made canonical inside (Euler angles, single
precision figures) the original column is kept too, and written as long as it still agrees.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.geometry.rotation import matrix_from_euler
from dspa.io.coordinates import place_of_uid, place_variables
from dspa.io.locate import locate_all
from dspa.io.star import (
    Block,
    find_block,
    integers,
    nameless,
    numbers,
    read_star,
    text,
)
from dspa.io.star_kinds import (
    refuse_numberless,
    refuse_particles,
    refuse_tomograms,
    sound_rows,
)
from dspa.io.star_optics import read_optics
from dspa.io.uids import image_uids, pick_uids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

SIZES = {
    "pixel_size": ("rlnImagePixelSize", "rlnPixelSize"),
    # Not that of the movie, whose frames may have been binned.
    "micrograph_pixel_size": ("rlnMicrographPixelSize",),
    "box_size": ("rlnImageSize",),
}
EULER = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_DEGREE = np.pi / 180.0
# Label, variable, factor to house units.
PLAIN = (
    ("rlnDefocusU", "defocus_u", 1.0),
    ("rlnDefocusV", "defocus_v", 1.0),
    ("rlnDefocusAngle", "defocus_angle", _DEGREE),
    ("rlnPhaseShift", "phase_shift", _DEGREE),
    ("rlnCtfBfactor", "bfactor", 1.0),
    ("rlnCtfScalefactor", "ctf_scale", 1.0),
    ("rlnMaxValueProbDistribution", "posterior", 1.0),
    ("rlnLogLikeliContribution", "log_likelihood", 1.0),
    ("dspaFit", "fit", 1.0),
    ("dspaScale", "scale", 1.0),
    ("dspaEvidence", "evidence", 1.0),
    ("dspaNoiseProbability", "noise_probability", 1.0),
    ("rlnAutopickFigureOfMerit", "ncc", 1.0),
    ("dspaPickPower", "power", 1.0),
    ("dspaPickRelative", "ncc_relative", 1.0),
    ("dspaPowerRelative", "power_relative", 1.0),
    ("dspaModelScore", "model_score", 1.0),
    ("dspaPickTemplate", "pick_template", 1.0),
    ("dspaPickAngle", "pick_angle", _DEGREE),
    ("dspaPickDiameter", "pick_diameter", 1.0),
    ("dspaImageSign", "image_sign", 1.0),
)
UID, TWIN = "dspaUid", "dspaTwin"
# What a missing number means where physics has an answer.
_DEFAULTS = {"phase_shift": 0.0, "bfactor": 0.0, "ctf_scale": 1.0}
_IMAGE = re.compile(r"(\d{1,10})@(.+)", re.DOTALL)
# Columns of a .cs file on their way through a STAR file: field, dtype, axes, component.
CS_COLUMN = re.compile(
    r"cs:(?P<field>.+):(?P<code>[a-zA-Z]\d+):(?P<shape>\d+(?:x\d+)*):(?P<part>\d{1,6})"
)


def read_star_particles(
    path: str | Path,
    *,
    roots: Sequence[str | Path] = (),
    pixel_size: float | None = None,
    micrograph_pixel_size: float | None = None,
) -> xr.Dataset:
    """Read particles or picks from a STAR file.

    Parameters
    ----------
    path : path
    roots : sequence of path
        Folders where stacks are looked for first.
    pixel_size : float, optional
        A; instead of the file's.
    micrograph_pixel_size : float, optional
        A; that of the coordinates, instead of the file's.

    Returns
    -------
    Dataset
        Particles. Without stacks if the file names no images.
    """
    blocks = read_star(path)
    listing = find_block(blocks, "coordinate_files")
    if listing is not None:
        rows = _read_listing(path, listing)
    else:
        rows = _particle_block(path, blocks)
    if not rows.rows:
        raise InputError(f"{path}: no particles in block data_{rows.name}; is the file whole?")
    rows, note = sound_rows(path, rows, "rlnImageName")
    refuse_particles(path, blocks, rows)
    if "rlnImageName" not in rows.columns and micrograph_pixel_size is None:
        micrograph_pixel_size = pixel_size  # of picks there is no other
    given = {"pixel_size": pixel_size, "micrograph_pixel_size": micrograph_pixel_size}
    optics = read_optics(path, blocks, rows, sizes=SIZES, given=given)
    variables = dict(optics.variables)
    variables["optics"] = optics.index
    variables["box_size"] = np.nan_to_num(np.clip(variables["box_size"], 0, 1 << 20)).astype("i4")
    reader = _Rows(path, dict(rows.columns), variables, used=set(optics.used))
    reader.images(roots)
    reader.micrographs()
    reader.coordinates()
    reader.poses()
    reader.plain()
    reader.classes()
    reader.identities()
    reader.extras()
    return schema.make("particles", variables, **note)


def _particle_block(path: str | Path, blocks: list[Block]) -> Block:
    block = find_block(blocks, "particles", "images")
    if block is None:
        keys = ("rlnImageName", "rlnCoordinateX")
        fitting = [b for b in blocks if any(k in b.columns for k in keys)]
        block = fitting[0] if fitting else None
    if block is None:
        refuse_tomograms(path, blocks)
        if find_block(blocks, "micrographs", "movies"):
            raise InputError(f"{path}: a STAR file of micrographs; use import micrographs")
        names = ", ".join(f"data_{b.name}" for b in blocks[:5])
        raise InputError(f"{path}: no block of particles or coordinates (it has {names})")
    return block


def _read_listing(path: str | Path, listing: Block) -> Block:
    """Join the coordinate files that RELION's picker lists."""
    needed = ("rlnMicrographName", "rlnMicrographCoordinates")
    if not all(label in listing.columns for label in needed):
        raise InputError(f"{path}: data_coordinate_files lacks _{needed[0]} or _{needed[1]}")
    frames = []
    micrographs, files = (text(listing.columns[k]).tolist() for k in needed)
    places = locate_all(files, path)
    for micrograph, name, found in zip(micrographs, files, places, strict=True):
        if found is None or not found.is_file():
            raise InputError(f"{path}: the coordinate file {name} is not there; check the path")
        block = _particle_block(found, read_star(found))
        if block.rows:
            frame = pd.DataFrame(dict(block.columns))
            frame["rlnMicrographName"] = micrograph
            frames.append(frame)
    if not frames:
        raise InputError(f"{path}: the coordinate files hold no coordinates")
    joined = pd.concat(frames, ignore_index=True)
    columns = {
        str(k): v.to_numpy(object if v.dtype.kind not in "iuf" else None) for k, v in joined.items()
    }
    return Block("particles", columns)


class _Rows:
    """Turns the columns of one table into variables, noting which it has used."""

    def __init__(
        self,
        path: str | Path,
        columns: dict[str, NDArray[Any]],
        variables: dict[str, Any],
        *,
        used: set[str],
    ) -> None:
        self.path, self.columns, self.variables, self.used = path, columns, variables, used
        self.count = len(next(iter(columns.values())))

    def take(self, label: str) -> NDArray[np.float64] | None:
        """Return a column as numbers, and note it as used."""
        if label not in self.columns:
            return None
        self.used.add(label)
        return numbers(self.path, label, self.columns[label])

    def keep(self, label: str) -> None:
        """Keep the original of a column that was taken."""
        self.used.discard(label)

    def of_group(self, name: str) -> NDArray[np.float64]:
        """Return an optics value for each row."""
        return np.asarray(self.variables[name][self.variables["optics"]], np.float64)

    def images(self, roots: Sequence[str | Path]) -> None:
        """Read image names, and find the stacks."""
        if "rlnImageName" not in self.columns:
            return
        self.used.add("rlnImageName")
        names = text(self.columns["rlnImageName"])
        stacks: dict[str, int] = {}
        numberless: dict[str, None] = {}
        stack = np.empty(self.count, np.int32)
        index = np.empty(self.count, np.int64)
        for row, name in enumerate(names.tolist()):
            match = _IMAGE.fullmatch(name)
            if match:
                index[row], file = int(match[1]) - 1, match[2]
            elif "@" in name or not name:
                raise InputError(
                    f"{self.path}: rlnImageName in row {row + 1} is {name[:60]!r}, not NUMBER@STACK"
                )
            else:
                index[row], file = 0, name
                numberless[name] = None
            stack[row] = stacks.setdefault(file, len(stacks))
        if (index < 0).any():
            row = int(np.flatnonzero(index < 0)[0])
            raise InputError(
                f"{self.path}: rlnImageName in row {row + 1} has image 0; they count from 1"
            )
        found = locate_all(list(stacks), self.path, roots=roots)
        places = dict(zip(stacks, found, strict=True))
        refuse_numberless(self.path, {name: places[name] for name in numberless})
        paths = [name if f is None else str(f) for name, f in places.items()]
        self.variables |= {
            "image_stack": stack,
            "image_index": index,
            "stack_path": paths,
            "stack_name": list(stacks),
        }

    def micrographs(self) -> None:
        """Read micrograph names into a table."""
        if "rlnMicrographName" not in self.columns:
            return
        self.used.add("rlnMicrographName")
        column = text(self.columns["rlnMicrographName"])
        # What stands for no name becomes -1, no micrograph.
        codes, names = pd.factorize(pd.Series(column, dtype=object).mask(nameless(column)))
        self.variables |= {"micrograph": codes, "micrograph_name": names}

    def coordinates(self) -> None:
        """Read coordinates (pixels of the micrograph) and origins (pixels or A)."""
        x, y = self.take("rlnCoordinateX"), self.take("rlnCoordinateY")
        if x is not None and y is not None:
            pixels = np.stack([x, y], 1)
            size = self.of_group("micrograph_pixel_size")
            self.variables |= place_variables(pixels, size)
        origin = [self.take(f"rlnOrigin{axis}") for axis in "XY"]
        angstrom = [self.take(f"rlnOrigin{axis}Angst") for axis in "XY"]
        if angstrom[0] is not None and angstrom[1] is not None:
            self.variables["shift"] = np.stack([angstrom[0], angstrom[1]], 1)
            for axis in "XY":
                self.keep(f"rlnOrigin{axis}")
        elif origin[0] is not None and origin[1] is not None:
            size = self.of_group("pixel_size")
            if not np.isfinite(size).all():
                raise InputError(
                    f"{self.path}: origins in pixels but no pixel size in the file; "
                    "give --pixel-size"
                )
            self.variables["shift"] = np.stack([origin[0], origin[1]], 1) * size[:, None]

    def poses(self) -> None:
        """Read Euler angles; the originals stay, for those that are not canonical."""
        angles = [self.take(label) for label in EULER]
        if all(a is None for a in angles):
            return
        given = [np.zeros(self.count) if a is None else a * _DEGREE for a in angles]
        self.variables["pose"] = matrix_from_euler(*given)
        for label in EULER:
            self.keep(label)

    def plain(self) -> None:
        """Read the columns that are one number of one variable."""
        for label, name, factor in PLAIN:
            values = self.take(label)
            if values is None:
                continue
            values = values * factor
            if name in _DEFAULTS and np.isnan(values).all():
                values = np.full_like(values, _DEFAULTS[name])
            dtype = np.dtype(schema.PARTICLES.variables[name].dtype)
            if dtype.kind == "i":
                values = integers(self.path, label, values).astype(dtype)
            elif dtype.itemsize == 4:
                self.keep(label)
                values = np.clip(values, -3e38, 3e38)
            self.variables[name] = values

    def classes(self) -> None:
        """Read classes (from 1 there, from 0 here) and half sets."""
        if self.take("rlnClassNumber") is not None:
            number = integers(self.path, "rlnClassNumber", self.columns["rlnClassNumber"])
            self.variables["class_index"] = np.maximum(number - 1, -1)
        if self.take("rlnRandomSubset") is not None:
            number = integers(self.path, "rlnRandomSubset", self.columns["rlnRandomSubset"])
            self.variables["half_set"] = np.where((number == 1) | (number == 2), number, 0)

    def identities(self) -> None:
        """Read uids, or derive them from what a particle is cut from."""
        if TWIN in self.columns:
            self.used.add(TWIN)
            self.variables["twin"] = _unsigned(self.path, TWIN, self.columns[TWIN])
        if UID in self.columns:
            self.used.add(UID)
            self.variables["uid"] = _unsigned(self.path, UID, self.columns[UID])
        elif "image_stack" in self.variables:
            self.variables["uid"] = image_uids(
                self.variables["stack_name"],
                self.variables["image_stack"],
                self.variables["image_index"],
            )
        else:
            names = self.variables.get("micrograph_name", [""])
            index = self.variables.get("micrograph", np.zeros(self.count, np.int32))
            place = place_of_uid(self.variables, self.count)
            self.variables["uid"] = pick_uids(names, index, place)

    def extras(self) -> None:
        """Keep every column that was not used; join the columns of .cs fields."""
        fields: dict[tuple[str, str, str], dict[int, NDArray[Any]]] = {}
        for label, values in self.columns.items():
            if label in self.used:
                continue
            match = CS_COLUMN.fullmatch(label)
            if match is None:
                self.variables[f"{EXTRA}{label}"] = ("particle", values)
                continue
            key = (match["field"], match["code"], match["shape"])
            fields.setdefault(key, {})[int(match["part"])] = values
        for (field, code, shape_text), parts in fields.items():
            shape = tuple(int(n) for n in shape_text.split("x")) if shape_text != "0" else ()
            if sorted(parts) != list(range(math.prod(shape))):
                raise InputError(f"{self.path}: the columns of cs:{field} are not complete")
            joined = _join(self.path, f"cs:{field}", code, parts)
            name = f"{EXTRA}cs:{field}:{code}"
            self.variables[name] = ("particle", joined.reshape(self.count, *shape))


def _join(path: str | Path, label: str, code: str, parts: dict[int, NDArray[Any]]) -> NDArray[Any]:
    kind = code[0]
    ordered = [parts[i] for i in range(len(parts))]
    if kind in "SU":
        return np.stack([text(values) for values in ordered], 1)
    try:
        dtype = np.dtype(code)
    except TypeError as error:
        raise InputError(f"{path}: {label} has the unknown type {code}") from error
    if kind not in "biuf":
        raise InputError(f"{path}: {label} has the unknown type {code}")
    if kind == "u":
        return np.stack([_unsigned(path, label, values) for values in ordered], 1).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.stack([numbers(path, label, values) for values in ordered], 1).astype(dtype)


def _unsigned(path: str | Path, label: str, values: NDArray[Any]) -> NDArray[np.uint64]:
    """Return identities exactly: they use all 64 bits."""
    if values.dtype.kind in "iu":
        return values.astype(np.uint64)
    try:
        exact = [int(str(v)) for v in values.tolist()]
        if min(exact) < 0 or max(exact) >= 1 << 64:
            raise ValueError("beyond 64 bits")
    except ValueError as error:
        raise InputError(f"{path}: {label} holds something else than whole numbers") from error
    return np.array(exact, np.uint64)
