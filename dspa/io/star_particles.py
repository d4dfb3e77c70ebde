"""Particles in STAR files of RELION 3.0, 3.1, 4 and 5: labels, units and origins.

What dspa interprets is turned into house units; every other column is kept as ``extra:LABEL`` and
written back as it was. Where a value was rounded or made canonical inside (Euler angles, single
precision figures) the original column is kept too, and written as long as it still agrees.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.data.growing import Growing, Numbering, UnlikeSpansError
from dspa.data.schema import EXTRA
from dspa.geometry.rotation import matrix_from_euler
from dspa.io.coordinates import place_of_uid, place_variables
from dspa.io.locate import locate_all, places_of
from dspa.io.plausible import known_values
from dspa.io.star import (
    Block,
    Loop,
    find_block,
    integers,
    nameless,
    numbers,
    open_star,
    refuse_fractions,
    text,
)
from dspa.io.star_aberrations import with_aberrations
from dspa.io.star_blocks import particle_block
from dspa.io.star_fields import CS_COLUMN, join_parts, unsigned
from dspa.io.star_kinds import (
    is_sound,
    is_zeroth,
    note_of_rows,
    refuse_misspelt,
    refuse_numberless,
    refuse_particles,
    refuse_tomograms,
    refuse_unplaced,
    refuse_zeroth,
    sound_rows,
)
from dspa.io.star_lines import telling_lines
from dspa.io.star_optics import SHARED, OpticsReader
from dspa.io.uids import distinct, image_words, pick_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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
    ("dspaCutX", "cut_x", 1.0),
    ("dspaCutY", "cut_y", 1.0),
    ("dspaCutZ", "cut_z", 1.0),
    ("dspaMovedX", "moved_x", 1.0),
    ("dspaMovedY", "moved_y", 1.0),
    ("dspaEvidence", "evidence", 1.0),
    ("dspaNoiseProbability", "noise_probability", 1.0),
    ("dspaStructureNoise", "structure_noise", 1.0),
    ("dspaNearClass", "near_class", 1.0),
    ("dspaNearAngle", "near_angle", _DEGREE),
    ("dspaNearX", "near_x", 1.0),
    ("dspaNearY", "near_y", 1.0),
    ("rlnAutopickFigureOfMerit", "ncc", 1.0),
    ("dspaPickPower", "power", 1.0),
    ("dspaPickRelative", "ncc_relative", 1.0),
    ("dspaPowerRelative", "power_relative", 1.0),
    ("dspaModelScore", "model_score", 1.0),
    ("dspaPickTemplate", "pick_template", 1.0),
    ("dspaPickAngle", "pick_angle", _DEGREE),
    ("dspaPickDiameter", "pick_diameter", 1.0),
    ("dspaImageSign", "image_sign", 1.0),
    ("dspaSymmetryCopy", "symmetry_copy", 1.0),
)
# Origins in pixels and in A that agree: by pixels, and by the part of a long one.
_SAME_ORIGIN, _SAME_SCALE = 0.01, 1e-3
UID, TWIN, EXPANDED = "dspaUid", "dspaTwin", "dspaExpandedFrom"
_KNOWN = (
    {"rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnOriginX"}
    | {"rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst", "rlnClassNumber", "rlnRandomSubset"}
    | {"rlnOpticsGroup", "rlnOpticsGroupName", "rlnDetectorPixelSize", "rlnMagnification"}
    | {*EULER, *(label for label, *_ in (*PLAIN, *SHARED)), *(k for s in SIZES.values() for k in s)}
)
# What a missing number means where physics has an answer.
_DEFAULTS = {"phase_shift": 0.0, "bfactor": 0.0, "ctf_scale": 1.0}
_IMAGE = re.compile(r"(\d{1,10})@(.+)", re.DOTALL)


def read_star_particles(
    path: str | Path,
    *,
    roots: Sequence[str | Path] = (),
    pixel_size: float | None = None,
    micrograph_pixel_size: float | None = None,
    folder: Path | None = None,
    numbered: bool = False,
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
    folder : path, optional
        Where columns are laid down on disk, as of `Growing`; by default they are in memory.
    numbered : bool
        With ``file_row``, the row of each in the file.

    Returns
    -------
    Dataset
        Particles. Without stacks if the file names no images. Attributes say what to tell of them.
    """
    opened = open_star(path)
    listing = find_block(opened, "coordinate_files")
    if listing is not None:
        rows: Block | Loop = _read_listing(path, listing.read(), roots)
    else:
        rows = particle_block(path, opened)
    refuse_tomograms(path, opened)
    optics = find_block(opened, "optics")
    refuse_misspelt(path, [rows] if optics is None else [rows, optics], _KNOWN)
    refuse_unplaced(path, rows)
    blocks = [block.read() for block in opened if block is optics]
    if "rlnImageName" not in rows.labels and micrograph_pixel_size is None:
        micrograph_pixel_size = pixel_size  # of picks there is no other
    given = {"pixel_size": pixel_size, "micrograph_pixel_size": micrograph_pixel_size}
    kinds: dict[str, str] = {}
    numbered = numbered and listing is None
    while True:  # again where a column turns out not to be what its first rows were
        reader = _Rows(path, OpticsReader(path, blocks, sizes=SIZES, given=given))
        try:
            with Growing(folder) as grown:
                note = _read_rows(reader, blocks, rows, kinds, grown, numbered=numbered)
                note |= {"file": str(path)} if numbered else {}
                return grown.finish(reader.finish(roots), **note)
        except UnlikeSpansError as found:
            kinds |= found.kinds


def _read_rows(
    reader: _Rows,
    blocks: list[Block],
    rows: Block | Loop,
    kinds: Mapping[str, str],
    grown: Growing,
    *,
    numbered: bool,
) -> dict[str, str]:
    """Read a table of particles span by span; return what to say of it."""
    path, lacking = reader.path, list[int]()
    texts = {name.removeprefix(EXTRA) for name, kind in kinds.items() if kind == "object"}
    with telling_lines(rows):
        for span in rows.spans(texts):
            if not span.rows:
                raise InputError(
                    f"{path}: no particles in block data_{rows.name}; is the file whole?"
                )
            reader.note_zeroth(span)
            kept, bad = sound_rows(path, span, "rlnImageName")
            lacking += bad
            if not kept.rows:
                continue
            kept = replace(kept, first=grown.rows)
            made = _read_span(reader, blocks, rows, span=span, kept=kept)
            if numbered:
                there = np.setdiff1d(np.arange(1, span.rows + 1), np.array(bad) - span.first)
                made["file_row"] = span.first + there
            for name in (name for name, kind in kinds.items() if kind != "object"):
                made[name] = ("particle", made[name][1].astype(kinds[name]))
            grown.append(made, kept.rows)
    note = note_of_rows(path, rows, "rlnImageName", kept=grown.rows, lacking=lacking)
    return {**note, **reader.optics.told()}


def _read_span(
    reader: _Rows, blocks: list[Block], rows: Block | Loop, *, span: Block, kept: Block
) -> dict[str, Any]:
    """Read the sound rows of a span; what is wrong with one is said with its line."""
    path = reader.path

    def count(row: int) -> int:
        sound = np.flatnonzero(is_sound(path, span, "rlnImageName"))
        inside = row - 1 - kept.first
        return span.first + int(sound[inside]) + 1 if 0 <= inside < sound.size else row

    with telling_lines(rows, count):
        refuse_particles(path, blocks, kept)
        return reader.read(kept)


def _read_listing(path: str | Path, listing: Block, roots: Sequence[str | Path]) -> Block:
    """Join the coordinate files that RELION's picker lists."""
    needed = ("rlnMicrographName", "rlnMicrographCoordinates")
    if not all(label in listing.columns for label in needed):
        raise InputError(f"{path}: data_coordinate_files lacks _{needed[0]} or _{needed[1]}")
    frames = []
    micrographs, files = (text(listing.columns[k]).tolist() for k in needed)
    places = locate_all(files, path, roots=roots)
    for micrograph, name, found in zip(micrographs, files, places, strict=True):
        if found is None or not found.is_file():
            raise InputError(f"{path}: the coordinate file {name} is not there; check the path")
        block = particle_block(found, open_star(found)).read()
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
    """Turns spans of rows into variables, and knows what they have in common.

    Of a span: its columns, the variables made of them, and the labels that were used.
    """

    def __init__(self, path: str | Path, optics: OpticsReader) -> None:
        self.path, self.optics = path, optics
        self.stacks, self.names = Numbering(), Numbering()
        self.numberless: dict[str, None] = {}
        self.unknown: set[str] = set()  # variables without a number so far
        self.words: list[NDArray[np.uint64]] = []
        self.zeroth: set[str] = set()  # stacks of which an image 0 is named
        self.last = np.empty(0, np.int64)  # the largest number in each stack

    def note_zeroth(self, rows: Block) -> None:
        """Note the stacks of which an image 0 is named."""
        if "rlnImageName" in rows.columns:
            names = text(rows.columns["rlnImageName"])
            self.zeroth |= {name.partition("@")[2] for name in names[is_zeroth(names)]}

    def read(self, rows: Block) -> dict[str, Any]:
        """Return the variables of a span."""
        self.columns, self.count, self.first = rows.columns, rows.rows, rows.first
        index, used = self.optics.read(rows)
        self.variables: dict[str, Any] = {"optics": index}
        self.used = set(used)
        self.images()
        self.micrographs()
        self.coordinates()
        self.poses()
        self.plain()
        self.classes()
        self.identities()
        self.extras()
        return self.variables

    def finish(self, roots: Sequence[str | Path]) -> dict[str, Any]:
        """Return the tables that rows point into, and what only all rows together tell."""
        made = with_aberrations(self.path, self.optics.finish())
        refuse_fractions(self.path, "rlnImageSize", made["box_size"])
        made["box_size"] = np.nan_to_num(np.clip(made["box_size"], 0, 1 << 20)).astype("i4")
        if "rlnImageName" in self.columns:
            stacks = list(self.stacks.known)
            found = locate_all(stacks, self.path, roots=roots)
            places = dict(zip(stacks, found, strict=True))
            number = np.append(self.last, 0)  # 0 where no other image is of that stack
            last = {name: int(number[self.stacks.known.get(name, -1)]) for name in self.zeroth}
            refuse_zeroth(self.path, last, places)
            refuse_numberless(self.path, {name: places[name] for name in self.numberless})
            paths = places_of(stacks, found, roots=roots)
            made |= {"stack_path": paths, "stack_name": stacks}
        if "rlnMicrographName" in self.columns:
            made["micrograph_name"] = list(self.names.known)
        words = np.concatenate(self.words) if self.words else np.empty(0, np.uint64)
        for name in self.unknown:
            made[name] = np.broadcast_to(_DEFAULTS[name], len(words))
        if self.words:
            made["uid"] = distinct(words)
        return made

    def take(self, label: str) -> NDArray[np.float64] | None:
        """Return a column as numbers, NaN where it is unknown, and note it as used."""
        if label not in self.columns:
            return None
        self.used.add(label)
        return known_values(label, numbers(self.path, label, self.columns[label], self.first))

    def whole(self, label: str) -> NDArray[np.int64]:
        """Return a column as whole numbers."""
        return integers(self.path, label, self.columns[label], self.first)

    def keep(self, label: str) -> None:
        """Keep the original of a column that was taken."""
        self.used.discard(label)

    def of_group(self, name: str) -> NDArray[np.float64]:
        """Return an optics value for each row."""
        return self.optics.value(name)[self.variables["optics"]]

    def images(self) -> None:
        """Read image names."""
        if "rlnImageName" not in self.columns:
            return
        self.used.add("rlnImageName")
        names = text(self.columns["rlnImageName"])
        files = np.empty(self.count, object)
        index = np.empty(self.count, np.int64)
        for row, name in enumerate(names.tolist()):
            match = _IMAGE.fullmatch(name)
            if match:
                index[row], files[row] = int(match[1]) - 1, match[2]
            elif "@" in name or not name:
                raise InputError(
                    f"{self.path}: rlnImageName in row {self.first + row + 1} is {name[:60]!r}, "
                    "not NUMBER@STACK"
                )
            else:
                index[row], files[row] = 0, name
                self.numberless[name] = None
        stack = self.stacks.words(files)
        last = np.zeros(len(self.stacks.known), np.int64)
        last[: self.last.size] = self.last
        np.maximum.at(last, stack, index + 1)
        self.last = last
        self.variables |= {"image_stack": stack, "image_index": index}

    def micrographs(self) -> None:
        """Read micrograph names into a table."""
        if "rlnMicrographName" not in self.columns:
            return
        self.used.add("rlnMicrographName")
        column = text(self.columns["rlnMicrographName"])
        # What stands for no name becomes -1, no micrograph.
        named = pd.Series(column, dtype=object).mask(nameless(column))
        self.variables["micrograph"] = self.names.words(named)

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
            for axis, counted, length in zip("XY", origin, angstrom, strict=True):
                self.keep(f"rlnOrigin{axis}")
                if counted is not None and length is not None:
                    self.same_origin(axis, counted, length)
        elif origin[0] is not None and origin[1] is not None:
            size = self.of_group("pixel_size")
            if not np.isfinite(size).all():
                raise InputError(
                    f"{self.path}: origins in pixels but no pixel size in the file; "
                    "give --pixel-size"
                )
            self.variables["shift"] = np.stack([origin[0], origin[1]], 1) * size[:, None]

    def same_origin(
        self, axis: str, pixels: NDArray[np.float64], length: NDArray[np.float64]
    ) -> None:
        """Refuse an origin in pixels that is not the one in A, at the pixel size of the file."""
        said = self.optics.said("pixel_size")[self.variables["optics"]]
        size = np.where(np.isnan(said), self.of_group("pixel_size"), said)
        # Pixel sizes are rounded in files, which shows in long shifts.
        apart = np.abs(length / size - pixels) > _SAME_ORIGIN + _SAME_SCALE * np.abs(pixels)
        if apart.any():
            row = int(np.flatnonzero(apart)[0])
            label = f"rlnOrigin{axis}"
            raise InputError(
                f"{self.path}: row {self.first + row + 1}: {label}Angst is {length[row]:.6g} A but "
                f"{label} is {pixels[row]:.6g} pixels of {size[row]:.6g} A; remove the column that "
                "is wrong"
            )

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
            if name in _DEFAULTS and not self.first:
                self.unknown.add(name)
            if name in self.unknown and not np.isnan(values).all():
                self.unknown.remove(name)
            dtype = np.dtype(schema.PARTICLES.variables[name].dtype)
            if dtype.kind == "i":
                values = integers(self.path, label, values, self.first).astype(dtype)
            elif dtype.itemsize == 4:
                self.keep(label)
                values = np.clip(values, -3e38, 3e38)
            self.variables[name] = values

    def classes(self) -> None:
        """Read classes (from 1 there, from 0 here) and half sets."""
        if self.take("rlnClassNumber") is not None:
            number = self.whole("rlnClassNumber")
            self.variables["class_index"] = np.maximum(number - 1, -1)
        if self.take("rlnRandomSubset") is not None:
            number = self.whole("rlnRandomSubset")
            self.variables["half_set"] = np.where((number == 1) | (number == 2), number, 0)
            odd = np.flatnonzero((number < 0) | (number > 2))
            if odd.size:
                raise InputError(
                    f"{self.path}: row {self.first + odd[0] + 1}: rlnRandomSubset is "
                    f"{number[odd[0]]}, and halves are 1 and 2; take the column out, or mend it"
                )

    def identities(self) -> None:
        """Read uids, or derive them from what a particle is cut from."""
        for label, name in ((TWIN, "twin"), (EXPANDED, "expanded_from")):
            if label in self.columns:
                self.used.add(label)
                self.variables[name] = unsigned(self.path, label, self.columns[label])
        if UID in self.columns:
            self.used.add(UID)
            self.variables["uid"] = unsigned(self.path, UID, self.columns[UID])
            return
        if "image_stack" in self.variables:
            stack, index = self.variables["image_stack"], self.variables["image_index"]
            words = image_words(list(self.stacks.known), stack, index)
        else:
            micrograph = self.variables.get("micrograph", np.zeros(self.count, np.int32))
            place = place_of_uid(self.variables, self.count)
            words = pick_words(list(self.names.known) or [""], micrograph, place)
        self.words.append(words)
        self.variables["uid"] = words

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
            joined = join_parts(self.path, f"cs:{field}", code, parts, self.first)
            name = f"{EXTRA}cs:{field}:{code}"
            self.variables[name] = ("particle", joined.reshape(self.count, *shape))
