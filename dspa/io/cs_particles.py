"""Particles in cryoSPARC datasets: fields, units, origins of coordinates, signs.

Every field is kept as it is (``extra:cs:FIELD:TYPE``). What dspa interprets comes on top; when a
dataset is written as ``.cs``, a kept field is written unless the interpreted value has changed
since, so that rotation vectors longer than pi and figures of other jobs survive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.growing import Growing
from dspa.data.schema import EXTRA
from dspa.geometry.rotation import matrix_from_euler, matrix_from_rotvec
from dspa.io.coordinates import place_variables
from dspa.io.cs_join import Joined
from dspa.io.cs_tables import Tables, exact
from dspa.io.locate import locate_all, places_of
from dspa.io.plausible import unset_as_nan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

# Symmetry copies: the particle they come from, and the operator.
SOURCE, COPY = "sym_expand/src_uid", "sym_expand/idx"
_PLACE = ("location/center_x_frac", "location/center_y_frac")
_CLASS_POSE = re.compile(r"alignments_class_(\d{1,4})/pose")
# Fields of the family pick_stats, and what they are here.
PICKS = {
    "ncc_score": "ncc",
    "power": "power",
    "template_idx": "pick_template",
    "angle_rad": "pick_angle",
}


@dataclass(frozen=True)
class Orientation:
    """How cryoSPARC's rows relate to the rows of the images dspa reads.

    Attributes
    ----------
    bottom_left : bool
        Coordinates count from the bottom row of the micrograph, as cryoSPARC stores them.
    mirrored : bool
        The micrographs were turned upside down before particles were cut (patch motion): shifts,
        poses and the angle of astigmatism are mirrored in y.
    """

    bottom_left: bool = True
    mirrored: bool = False


def read_cs_particles(
    path: str | Path,
    *more: str | Path,
    roots: Sequence[str | Path] = (),
    orientation: Orientation | None = None,
    folder: Path | None = None,
    numbered: bool = False,
) -> xr.Dataset:
    """Read particles from the ``.cs`` file, or files, of a job.

    Parameters
    ----------
    path : path
    *more : path
        The passthrough file of the same job: its fields are joined by uid.
    roots : sequence of path
        Folders where stacks are looked for first (the cryoSPARC project folder).
    orientation : Orientation, optional
    folder : path, optional
        Where columns are laid down on disk, as of `Growing`; by default they are in memory.
    numbered : bool
        With ``file_row``, the row of each in the file that gives the rows, which ``attrs["file"]``
        names.

    Returns
    -------
    Dataset
        Particles; ``attrs["set_aside"]`` says in a phrase what was not taken up, and
        ``attrs["doubts"]`` in a sentence what was read otherwise than it is written.
    """
    joined = Joined([path, *more], folder)
    if not joined.count:
        raise InputError(f"{path}: no particles; is the file whole?")
    labels, tables = joined.labels(), Tables()
    with Growing(folder) as grown:
        for fields in joined.spans():
            made = interpret_rows(str(path), fields, orientation or Orientation(), tables)
            for name, values in fields.items():
                if name != "uid":
                    label = f"{EXTRA}cs:{name}:{labels[name]}"
                    made[label] = ("particle", decoded(path, values))
            if numbered:
                made["file_row"] = joined.rows[grown.rows : grown.rows + len(fields["uid"])] + 1
            grown.append(made, len(fields["uid"]))
        common = tables.finish()
        if "stack_name" in common:
            names = common["stack_name"]
            found = locate_all(names, path, roots=roots)
            common["stack_path"] = places_of(names, found, roots=roots)
        lost = "pose" not in made and _class_numbers(labels)
        notes = (
            [f"the poses of {counted(len(lost), 'class')} without class_posterior"] if lost else []
        )
        if _PLACE[0] in labels and "location/micrograph_shape" not in labels:
            notes.append("the coordinates, which need location/micrograph_shape")
        notes = [*joined.left_out, *notes]
        note = {"set_aside": " and ".join(notes)} if notes else {}
        if numbered:
            note["file"] = str(joined.first)
        return grown.finish(common, **note, **tables.told(str(joined.first)))


def decoded(path: str | Path, values: NDArray[Any]) -> NDArray[Any]:
    """Return text fields as ``str`` objects, numbers as they are.

    Parameters
    ----------
    path : path
        For the message.
    values : (n, ...) array
    """
    if values.dtype.kind != "S":
        return values.astype(object) if values.dtype.kind == "U" else values
    codes, unique = pd.factorize(values.ravel().astype(object))
    try:
        words = np.array([u.decode() for u in unique], object)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: text that is not UTF-8; export it again") from error
    return np.asarray(words[codes].reshape(values.shape), object)


def interpret(
    path: str, fields: Mapping[str, NDArray[Any]], orientation: Orientation
) -> dict[str, Any]:
    """Turn fields into variables of the particle schema, stacks by their names in the file.

    Parameters
    ----------
    path : str
        For messages.
    fields : mapping
        As `read_cs` returns them.
    orientation : Orientation
    """
    tables = Tables()
    return interpret_rows(path, fields, orientation, tables) | tables.finish()


def interpret_rows(
    path: str, fields: Mapping[str, NDArray[Any]], orientation: Orientation, tables: Tables
) -> dict[str, Any]:
    """Turn the fields of a span of rows into variables of the particle schema.

    Parameters
    ----------
    path, fields, orientation
        As of `interpret`.
    tables : Tables
        Of the rows before, to which those of these rows are added.
    """
    reader = _Fields(path, fields, orientation, tables)
    variables: dict[str, Any] = {"uid": fields["uid"], "optics": reader.optics(tables)}
    variables |= reader.images(tables)
    variables |= reader.ctf()
    variables |= reader.alignment()
    variables |= reader.picks()
    variables |= reader.expansion()
    tables.rows += reader.count
    size = np.concatenate([exact(part["micrograph"]) for part in tables.optics])
    return variables | reader.location(tables, size[variables["optics"]])


class _Fields:
    """Reads one dataset's fields, checking their shapes."""

    def __init__(
        self,
        path: str,
        fields: Mapping[str, NDArray[Any]],
        orientation: Orientation,
        tables: Tables,
    ) -> None:
        self.path, self.fields, self.orientation, self.tables = path, fields, orientation, tables
        self.count = len(fields["uid"])

    def number(self, name: str, *shape: int) -> NDArray[np.float64] | None:
        """Return a numeric field as float64, infinite values as NaN; None if it is absent."""
        values = self.fields.get(name)
        if values is None:
            return None
        if values.shape[1:] != shape or values.dtype.kind not in "iufb":
            raise InputError(f"{self.path}: the field {name} has shape {values.shape[1:]}")
        result = values.astype(np.float64)
        return np.where(np.isfinite(result), result, np.nan)

    def or_nan(self, name: str) -> NDArray[np.float64]:
        """Return a numeric field, NaN if it is absent."""
        values = self.number(name)
        return np.full(self.count, np.nan) if values is None else values

    def whole(self, name: str) -> NDArray[np.int64] | None:
        """Return an integer field, None if it is absent."""
        values = self.number(name)
        if values is None:
            return None
        if not (np.abs(values) < 2**31).all():
            raise InputError(f"{self.path}: the field {name} holds absurd numbers")
        return values.astype(np.int64)

    def words(self, name: str) -> NDArray[Any] | None:
        """Return a text field."""
        values = self.fields.get(name)
        if values is None:
            return None
        if values.ndim != 1 or values.dtype.kind not in "SUO":
            raise InputError(f"{self.path}: the field {name} is not text")
        return decoded(self.path, values)

    def optics(self, tables: Tables) -> NDArray[np.int64]:
        """Return the optics group of each row: the exposure group and its numbers."""
        group = self.whole("ctf/exp_group_id")
        frame = pd.DataFrame(
            {
                "group": np.zeros(self.count, np.int64) if group is None else group,
                "voltage": self._known("ctf/accel_kv"),
                "cs": self.or_nan("ctf/cs_mm"),
                "contrast": self.or_nan("ctf/amp_contrast"),
                "pixel": self._known("blob/psize_A"),
                "micrograph": self._known("location/micrograph_psize_A"),
                "box": self._box(),
            }
        )
        index, new = tables.groups.rows(frame)
        tables.optics.append(frame.iloc[new])
        return index

    def _known(self, name: str) -> NDArray[np.float64]:
        """Return a field, NaN where it is 0: never set."""
        return unset_as_nan(self.or_nan(name))

    def _box(self) -> NDArray[np.int64]:
        shape = self.number("blob/shape", 2)
        if shape is None:
            return np.zeros(self.count, np.int64)
        return np.clip(np.nan_to_num(shape[:, 0]), 0, 1 << 20).astype(np.int64)

    def images(self, tables: Tables) -> dict[str, Any]:
        """Return stacks, indices and signs."""
        paths, index = self.words("blob/path"), self.whole("blob/idx")
        if paths is None or index is None:
            return {}
        made: dict[str, Any] = {"image_stack": tables.stacks.words(paths), "image_index": index}
        sign = self.number("blob/sign")
        if sign is not None and sign.any():  # 0 says nothing
            made["image_sign"] = np.where(sign < 0, -1, 1)
        return made

    def ctf(self) -> dict[str, Any]:
        """Return the CTF of each particle."""
        made: dict[str, Any] = {}
        for field, name in (
            ("ctf/df1_A", "defocus_u"),
            ("ctf/df2_A", "defocus_v"),
            ("ctf/df_angle_rad", "defocus_angle"),
            ("ctf/phase_shift_rad", "phase_shift"),
            ("ctf/bfactor", "bfactor"),
        ):
            values = self.number(field)
            if values is not None:
                mirrored = self.orientation.mirrored and name == "defocus_angle"
                made[name] = -values if mirrored else values
        return made

    def picks(self) -> dict[str, Any]:
        """Return what a picker said of each."""
        made: dict[str, Any] = {}
        for field, name in PICKS.items():
            values = self.number(f"pick_stats/{field}")
            if values is not None:
                made[name] = values
        return made

    def expansion(self) -> dict[str, Any]:
        """Return the particles that symmetry copies come from, and the operators."""
        source = self.fields.get(SOURCE)
        if source is None:
            return {}
        if source.ndim != 1 or source.dtype.kind not in "ui":
            raise InputError(f"{self.path}: the field {SOURCE} is no uid")
        copy = self.whole(COPY)
        made: dict[str, Any] = {"expanded_from": source.astype(np.uint64)}
        return made if copy is None else {**made, "symmetry_copy": copy}

    def alignment(self) -> dict[str, Any]:
        """Return pose, shift, class and half set: of 3D where there is one, else of 2D."""
        if "alignments3D/pose" in self.fields:
            pose = self.number("alignments3D/pose", 3)
            assert pose is not None
            return self._placed("alignments3D", pose_matrices(pose))
        if "alignments3D_multi/pose" in self.fields:
            return self._best_of_classes(self.fields)
        numbers = _class_numbers(self.fields)
        best = self._best_of_classes(_stacked(self.path, self.fields, numbers)) if numbers else {}
        if best:
            return best
        if "alignments2D/pose" in self.fields:
            angle = self.or_nan("alignments2D/pose")
            return self._placed("alignments2D", matrix_from_euler(0.0, 0.0, angle))
        return {}

    def _best_of_classes(self, fields: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the pose in the most probable class of several maps."""
        both = {**fields, "uid": self.fields["uid"]}
        of = _Fields(self.path, both, self.orientation, self.tables)
        prefix = "alignments3D_multi"
        classes = of.fields[f"{prefix}/pose"].shape[1] if self.count else 0
        pose = of.number(f"{prefix}/pose", classes, 3)
        posterior = of.number(f"{prefix}/class_posterior", classes)
        if pose is None or posterior is None or not classes:
            return {}
        best = np.nan_to_num(posterior).argmax(1)
        rows = np.arange(self.count)
        made: dict[str, Any] = {
            "pose": pose_matrices(pose[rows, best]),
            "class_index": best,
            "posterior": posterior[rows, best],
        }
        shift = of.number(f"{prefix}/shift", classes, 2)
        size = of.number(f"{prefix}/psize_A", classes)
        if shift is not None:
            pixel = None if size is None else size[rows, best]
            made["shift"] = self._in_angstrom(shift[rows, best], f"{prefix}/psize_A", pixel)
        return made | (mirror(made) if self.orientation.mirrored else {})

    def _placed(self, prefix: str, pose: NDArray[np.float64]) -> dict[str, Any]:
        made: dict[str, Any] = {"pose": pose}
        shift = self.number(f"{prefix}/shift", 2)
        if shift is not None:
            name = f"{prefix}/psize_A"
            made["shift"] = self._in_angstrom(shift, name, self.number(name))
        split = self.whole(f"{prefix}/split")
        if split is not None:
            made["half_set"] = np.where((split == 0) | (split == 1), split + 1, 0)
        number = self.whole(f"{prefix}/class")
        if number is not None:
            made["class_index"] = np.maximum(number, -1)
        posterior = self.number(f"{prefix}/class_posterior")
        if posterior is not None:
            made["posterior"] = posterior
        if self.orientation.mirrored:
            made |= mirror(made)
        return made

    def _in_angstrom(
        self, shift: NDArray[np.float64], field: str, size: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Return shifts in pixels of the size in a field, where that is none of the images' own."""
        images = self.or_nan("blob/psize_A")
        if size is not None:
            known = size > 0
            self.tables.note_unsized(field, size, ~known & (shift != 0).any(axis=1))
            images = np.where(known, size, images)
        return shift * images[:, None]

    def location(self, tables: Tables, size: NDArray[np.float64]) -> dict[str, Any]:
        """Return micrographs and coordinates in A, counted down the rows, of pixels of a size."""
        made: dict[str, Any] = {}
        paths = self.words("location/micrograph_path")
        if paths is not None:
            known = len(tables.micrographs.known)
            made["micrograph"] = codes = tables.micrographs.words(paths)
        x, y = map(self.number, _PLACE)
        if (x is None) != (y is None):
            there, lost = _PLACE if y is None else _PLACE[::-1]
            raise InputError(
                f"{self.path}: has {there} but no {lost}, which says nothing; export it again"
            )
        shape = self.number("location/micrograph_shape", 2)
        if x is None or y is None or shape is None:
            return made
        shape = np.where(shape > 0, shape, np.nan)  # 0 is what nobody has set
        y = 1.0 - y if self.orientation.bottom_left else y
        place = np.stack([x * shape[:, 1], y * shape[:, 0]], 1)
        if np.isfinite(place).any():
            made |= place_variables(place, size)
        if paths is not None:
            number, first = np.unique(codes, return_index=True)
            tables.shapes.append(np.nan_to_num(shape[first[number >= known]]))
        return made


def pose_matrices(rotvec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return poses A of cryoSPARC's rotation vectors, whose matrices are A transposed.

    Parameters
    ----------
    rotvec : (n, 3) float
        Any length; beyond pi they mean the same as modulo 2 pi. NaN gives NaN.
    """
    finite = np.isfinite(rotvec).all(1)
    matrices = np.full((len(rotvec), 3, 3), np.nan)
    matrices[finite] = np.swapaxes(matrix_from_rotvec(rotvec[finite]), -1, -2)
    return matrices


def _class_numbers(fields: Iterable[str]) -> list[int]:
    """Return the K of ``alignments_class_K``, the alignments of ab initio jobs."""
    matches = map(_CLASS_POSE.fullmatch, fields)
    return sorted(int(match[1]) for match in matches if match)


def _stacked(
    path: str, fields: Mapping[str, NDArray[Any]], numbers: Sequence[int]
) -> dict[str, NDArray[Any]]:
    """Return ``alignments_class_K`` as the fields of ``alignments3D_multi``, classes second."""
    made = {}
    for name in ("pose", "shift", "psize_A", "class_posterior"):
        each = [fields.get(f"alignments_class_{k}/{name}") for k in numbers]
        there = [values for values in each if values is not None]
        if len(there) < len(each):
            continue
        if len({values.shape for values in there}) > 1:
            raise InputError(f"{path}: alignments_class_K/{name} differ in shape; export it again")
        made[f"alignments3D_multi/{name}"] = np.stack(there, axis=1)
    return made


def mirror(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Mirror poses and shifts in y: A to diag(1, -1, -1) A, shift y to minus y.

    Parameters
    ----------
    variables : mapping
        With ``pose`` (n, 3, 3) and ``shift`` (n, 2).
    """
    made: dict[str, Any] = {}
    if "pose" in variables:
        made["pose"] = np.array([1.0, -1.0, -1.0])[:, None] * variables["pose"]
    if "shift" in variables:
        made["shift"] = variables["shift"] * np.array([1.0, -1.0])
    return made
