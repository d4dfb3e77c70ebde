"""The schema of every dataset: names, dims, dtypes, units, meaning, layout version.

One table is the truth; `validate` holds a dataset against it on open and on write.
See ``docs/method/code/data-model.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LAYOUT_VERSION = 1
# Columns of other formats that dspa does not interpret are kept under this prefix.
EXTRA = "extra:"
MAXIMUM_NAME = 200

FIXED_DIMS = {"xy": 2, "i": 3, "j": 3, "yx": 2, "surface": 6, "to": 2, "from": 2}
FREE_DIMS = ("odd", "even")  # coefficients of aberrations: as many as a file gives


@dataclass(frozen=True)
class Variable:
    """One variable of a schema.

    Attributes
    ----------
    dims : tuple of str
    dtype : str
        NumPy name, or ``str`` for text (an object array of ``str`` in memory).
    unit : str
        House unit; empty for counts and indices.
    meaning : str
    required : bool
        Whether a dataset without it is refused.
    """

    dims: tuple[str, ...]
    dtype: str
    unit: str
    meaning: str
    required: bool = False


@dataclass(frozen=True)
class Schema:
    """The variables of one kind of dataset and the dims that extra columns may have."""

    kind: str
    variables: Mapping[str, Variable]
    tables: tuple[str, ...]


def _optics(what: str) -> dict[str, Variable]:
    return {
        "optics_name": Variable(("optics",), "str", "", "name of the optics group"),
        "voltage": Variable(("optics",), "float64", "kV", "acceleration voltage"),
        "spherical_aberration": Variable(("optics",), "float64", "A", "spherical aberration"),
        "amplitude_contrast": Variable(("optics",), "float64", "1", "amplitude contrast fraction"),
        "pixel_size": Variable(("optics",), "float64", "A", f"pixel size of the {what}"),
    }


def _ctf(item: str) -> dict[str, Variable]:
    return {
        "defocus_u": Variable((item,), "float64", "A", "larger defocus, positive underfocus"),
        "defocus_v": Variable((item,), "float64", "A", "smaller defocus"),
        "defocus_angle": Variable((item,), "float64", "rad", "from x to the axis of defocus_u"),
        "phase_shift": Variable((item,), "float64", "rad", "phase plate shift"),
    }


PARTICLES = Schema(
    "particles",
    {
        "uid": Variable(
            ("particle",), "uint64", "", "identity that survives every job", required=True
        ),
        "micrograph": Variable(("particle",), "int32", "", "index into micrograph_name, -1 none"),
        "optics": Variable(
            ("particle",), "int32", "", "index into the optics table", required=True
        ),
        "coordinate": Variable(("particle", "xy"), "float64", "A", "from the first pixel's centre"),
        "coordinate_pixels": Variable(
            ("particle", "xy"), "float64", "px", "coordinate where its pixel size is unknown"
        ),
        "image_stack": Variable(("particle",), "int32", "", "index into stack_path"),
        "image_index": Variable(("particle",), "int64", "", "0-based image in the stack"),
        "image_sign": Variable(("particle",), "int8", "", "-1: particles dark in the stack"),
        "twin": Variable(("particle",), "uint64", "", "uid of the first copy of the same image"),
        "file_row": Variable(("particle",), "int64", "", "row of the file it is read from, from 1"),
        "expanded_from": Variable(
            ("particle",), "uint64", "", "uid of the particle that a symmetry copy comes from"
        ),
        "symmetry_copy": Variable(
            ("particle",), "int32", "", "operator that turned the pose, 0 the identity"
        ),
        "pose": Variable(("particle", "i", "j"), "float64", "1", "rotation matrix A"),
        "shift": Variable(("particle", "xy"), "float64", "A", "brings the particle to the centre"),
        **_ctf("particle"),
        "bfactor": Variable(("particle",), "float64", "A^2", "CTF envelope exp(-B k^2 / 4)"),
        "ctf_scale": Variable(("particle",), "float64", "1", "scale of the CTF"),
        "class_index": Variable(("particle",), "int32", "", "0-based class, -1 none"),
        "half_set": Variable(("particle",), "int8", "", "1 or 2, 0 none"),
        "posterior": Variable(("particle",), "float32", "1", "largest probability of a pose"),
        "log_likelihood": Variable(("particle",), "float32", "1", "log-likelihood"),
        "fit": Variable(
            ("particle",), "float32", "1", "log-likelihood in deviations from a perfect match's"
        ),
        "scale": Variable(("particle",), "float32", "1", "contrast against the class or map"),
        "cut_x": Variable(("particle",), "float64", "A", "place in the whole map (x from its"),
        "cut_y": Variable(("particle",), "float64", "A", "centre, y, z) that was put into"),
        "cut_z": Variable(("particle",), "float64", "A", "the centre when images were cut"),
        "moved_x": Variable(("particle",), "float64", "A", "by which the whole image was moved"),
        "moved_y": Variable(("particle",), "float64", "A", "before this one was cut out of it"),
        "evidence": Variable(
            ("particle",), "float32", "1", "log-likelihood above what half of pure noise attains"
        ),
        "noise_probability": Variable(("particle",), "float32", "1", "of being noise"),
        "structure_noise": Variable(
            ("particle",), "float32", "1", "probability that noise explains the structure"
        ),
        "near_class": Variable(
            ("particle",), "int32", "", "class, from 1, that resolves structure and fits; 0 none"
        ),
        "near_angle": Variable(("particle",), "float32", "rad", "angle in that class"),
        "near_x": Variable(("particle",), "float32", "A", "shift along x in that class"),
        "near_y": Variable(("particle",), "float32", "A", "shift along y in that class"),
        "ncc": Variable(("particle",), "float32", "1", "pick: shape score, -1..1"),
        "power": Variable(("particle",), "float32", "1", "pick: density score"),
        "ncc_relative": Variable(("particle",), "float32", "1", "ncc against the defocus trend"),
        "power_relative": Variable(("particle",), "float32", "1", "power against the trend"),
        "model_score": Variable(("particle",), "float32", "1", "pick: log-odds of a trained model"),
        "pick_template": Variable(("particle",), "int32", "", "template or blob that fits best"),
        "pick_angle": Variable(
            ("particle",), "float32", "rad", "turn of the template from x towards y: minus psi"
        ),
        "pick_diameter": Variable(("particle",), "float32", "A", "diameter of the pick"),
        "micrograph_name": Variable(("micrograph",), "str", "", "as the source names it"),
        "micrograph_shape": Variable(("micrograph", "yx"), "int32", "px", "rows, columns"),
        "stack_path": Variable(("stack",), "str", "", "MRC stack or image store"),
        "stack_name": Variable(("stack",), "str", "", "stack as the source file spells it"),
        **_optics("particle images"),
        "beam_tilt": Variable(("optics", "xy"), "float64", "rad", "tilt of the beam"),
        "odd_zernike": Variable(("optics", "odd"), "float64", "rad", "antisymmetric aberrations"),
        "even_zernike": Variable(("optics", "even"), "float64", "rad", "symmetric aberrations"),
        "magnification": Variable(
            ("optics", "to", "from"), "float64", "1", "M: frequency k shows the particle's M k"
        ),
        "micrograph_pixel_size": Variable(("optics",), "float64", "A", "of the coordinates"),
        "box_size": Variable(("optics",), "int32", "px", "edge of the images"),
    },
    ("particle", "optics", "micrograph", "stack"),
)

_MICROGRAPH_VARIABLES: dict[str, Variable] = {
    "path": Variable(("micrograph",), "str", "", "image file", required=True),
    "micrograph_name": Variable(
        ("micrograph",), "str", "", "as the source names it", required=True
    ),
    "file_row": Variable(("micrograph",), "int64", "", "row of the file it is read from, from 1"),
    "shape": Variable(("micrograph", "yx"), "int32", "px", "rows, columns"),
    "optics": Variable(("micrograph",), "int32", "", "index into the optics table", required=True),
    **_ctf("micrograph"),
    "ctf_resolution": Variable(("micrograph",), "float64", "A", "where the CTF fit ends"),
    "ctf_score": Variable(("micrograph",), "float64", "1", "figure of merit of the CTF fit"),
    "ctf_quality": Variable(("micrograph",), "int8", "", "2 good, 1 weak, 0 failed, -1 not tried"),
    "defocus_surface": Variable(
        ("micrograph", "surface"),
        "float64",
        "A",
        "local defocus above the mean: factors of 1, x, y, x^2, x y, y^2 of the coordinate",
    ),
    "defocus_range": Variable(("micrograph",), "float64", "A", "spread of the local defocus"),
    "ice_ring": Variable(
        ("micrograph",), "float64", "1", "excess power at the ice rings (3.9 to 3.4 A), 0 none"
    ),
    "rows_turned": Variable(
        ("micrograph",), "int8", "", "1: rows of the file (TIFF) are turned over on reading"
    ),
    "contrast_sign": Variable(("micrograph",), "int8", "", "-1: particles dark"),
    "dose": Variable(("micrograph",), "float64", "e/A^2", "total dose"),
    "frames": Variable(("micrograph",), "int32", "", "frames of the movie"),
    "motion": Variable(("micrograph",), "float64", "A", "way of the whole frame, frame to frame"),
    "local_motion": Variable(
        ("micrograph",), "float64", "A", "largest displacement beyond the whole frame's"
    ),
    "stage_position": Variable(("micrograph", "xy"), "float64", "m", "stage, from EPU"),
    "beam_shift": Variable(("micrograph", "xy"), "float64", "1", "beam shift, from EPU"),
    **_optics("micrographs"),
}

MICROGRAPHS = Schema("micrographs", _MICROGRAPH_VARIABLES, ("micrograph", "optics"))
MOVIES = Schema("movies", _MICROGRAPH_VARIABLES, ("micrograph", "optics"))
VOLUME = Schema(
    "volume",
    {
        "density": Variable(
            ("z", "y", "x"), "float32", "1", "density, molecules bright", required=True
        ),
        "pixel_size": Variable((), "float64", "A", "edge of a voxel", required=True),
    },
    (),
)

SCHEMAS = {s.kind: s for s in (PARTICLES, MICROGRAPHS, MOVIES, VOLUME)}

# What an index variable points into, and the smallest value that means something or nothing.
_SPAN = 1 << 20  # rows that are looked at together
_INDEX_INTO = {"micrograph": "micrograph", "optics": "optics", "image_stack": "stack"}


def validate(dataset: xr.Dataset, source: str = "dataset") -> None:
    """Raise InputError naming the first departure from the schema.

    Parameters
    ----------
    dataset : Dataset
        With ``attrs["kind"]`` and ``attrs["layout_version"]``.
    source : str
        File or origin, for the message.
    """
    kind, version = dataset.attrs.get("kind"), dataset.attrs.get("layout_version")
    if not isinstance(kind, str) or kind not in SCHEMAS:
        raise InputError(f"{source}: kind is {kind!r}; a dspa dataset is one of {list(SCHEMAS)}")
    if version != LAYOUT_VERSION:
        raise InputError(
            f"{source}: layout version {version!r}, this dspa reads {LAYOUT_VERSION}; "
            "open it with the dspa that wrote it"
        )
    schema = SCHEMAS[kind]
    for name, variable in schema.variables.items():
        if variable.required and name not in dataset.variables:
            raise InputError(f"{source}: the variable {name} ({variable.meaning}) is missing")
    for key, array in dataset.variables.items():
        name = str(key)
        if name.startswith(EXTRA):
            _check_extra(schema, name, array, source)
        elif name in schema.variables:
            _check_variable(schema.variables[name], name, array, source)
        else:
            raise InputError(f"{source}: unknown variable {name!r} in a {kind} dataset")
    for dim, size in dataset.sizes.items():
        if FIXED_DIMS.get(str(dim), size) != size:
            raise InputError(f"{source}: dim {dim} has {size} entries, not {FIXED_DIMS[str(dim)]}")
    _check_indices(dataset, source)


def _check_variable(variable: Variable, name: str, array: Any, source: str) -> None:
    if tuple(array.dims) != variable.dims:
        raise InputError(f"{source}: {name} has dims {tuple(array.dims)}, not {variable.dims}")
    if variable.dtype == "str":
        if not is_text(array.dtype):
            raise InputError(f"{source}: {name} has dtype {array.dtype}, not text")
    elif array.dtype != np.dtype(variable.dtype):
        raise InputError(f"{source}: {name} has dtype {array.dtype}, not {variable.dtype}")


def _check_extra(schema: Schema, name: str, array: Any, source: str) -> None:
    if len(name) > MAXIMUM_NAME:
        raise InputError(f"{source}: the column name {name[:40]}... is too long")
    if not array.dims or array.dims[0] not in schema.tables:
        raise InputError(f"{source}: {name} has dims {tuple(array.dims)}; the first is no table")
    if not (is_text(array.dtype) or array.dtype.kind in "biuf"):
        raise InputError(f"{source}: {name} has dtype {array.dtype}; use numbers or text")


def _check_indices(dataset: xr.Dataset, source: str) -> None:
    for name, table in _INDEX_INTO.items():
        if name not in dataset.variables or dataset[name].ndim != 1 or not dataset[name].size:
            continue
        low, high = _range(dataset.variables[name])
        if low < -1 or high >= dataset.sizes.get(table, 0):
            raise InputError(
                f"{source}: {name} points to entry {high if low >= -1 else low} "
                f"of a {table} table of {dataset.sizes.get(table, 0)}"
            )
    if "image_index" in dataset.variables and dataset["image_index"].size:
        if _range(dataset.variables["image_index"])[0] < -1:
            raise InputError(f"{source}: image_index has negative entries")


def _range(array: xr.Variable) -> tuple[int, int]:
    """Smallest and largest value of a column, which may lie on disk."""
    spans = (array[at : at + _SPAN].values for at in range(0, array.shape[0], _SPAN))
    ends = [(int(part.min()), int(part.max())) for part in spans]
    return min(low for low, _ in ends), max(high for _, high in ends)


def is_text(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype holds text (object, fixed-width or variable-width)."""
    return dtype.kind in "OUT"


def make(kind: str, variables: Mapping[str, Any], **attributes: Any) -> xr.Dataset:
    """Make a valid dataset from plain arrays: dims and dtypes come from the schema.

    Parameters
    ----------
    kind : str
        ``particles``, ``micrographs``, ``movies`` or ``volume``.
    variables : mapping
        Name to array. Extra columns are ``extra:LABEL``, given as ``(table, array)``; their
        further axes get dims of their own.
    **attributes : Any
        Further attributes (plain numbers and text).

    Raises
    ------
    InputError
        If a name or a shape departs from the schema.
    """
    made = {name: column(kind, name, value) for name, value in variables.items()}
    return complete(kind, made, **attributes)


def column(kind: str, name: str, value: Any) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Return the dims and the values of one variable.

    Parameters
    ----------
    kind : str
    name : str
    value : array, or (table, array)
        As for `make`.
    """
    if name.startswith(EXTRA):
        table, values = value
        values = _text(np.asarray(values))
        return _extra_dims(table, values), values
    schema = SCHEMAS[kind]
    if name not in schema.variables:
        raise InputError(f"unknown variable {name!r} in a {kind} dataset")
    variable = schema.variables[name]
    dtype = object if variable.dtype == "str" else np.dtype(variable.dtype)
    return variable.dims, _text(np.asarray(value, dtype))


def complete(kind: str, variables: Mapping[str, Any], **attributes: Any) -> xr.Dataset:
    """Make a valid dataset from arrays with dims.

    Parameters
    ----------
    kind : str
    variables : mapping
        Name to what `xarray.Dataset` takes.
    **attributes : Any
        As for `make`.
    """
    try:
        dataset = xr.Dataset(
            variables, attrs={"kind": kind, "layout_version": LAYOUT_VERSION, **attributes}
        )
    except ValueError as error:
        raise InputError(f"{kind}: tables of different lengths ({error})") from error
    validate(dataset, kind)
    return dataset


def _text(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(object) if is_text(values.dtype) else values


def _extra_dims(table: str, values: NDArray[Any]) -> tuple[str, ...]:
    return (table, *(f"axis{size}_{n}" for n, size in enumerate(values.shape[1:])))
