"""Particles as cryoSPARC datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.data.store import extra_columns
from dspa.geometry.rotation import rotvec_from_matrix
from dspa.io.coordinates import micrograph_pixel_sizes, pixel_coordinates
from dspa.io.cs import write_cs
from dspa.io.cs_particles import COPY, PICKS, SOURCE, Orientation, interpret, mirror
from dspa.io.cs_tables import MM
from dspa.io.images import SHARD, stack_link
from dspa.io.uids import image_uids

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray

_F, _U = np.float32, np.uint32
# What fields a variable shows in, and how far a kept field may be from it (house units).
_SHOWS_IN: dict[str, tuple[tuple[str, ...], float]] = {
    "pose": (("pose",), 1e-5),
    "shift": (("shift", "psize_A"), 1e-4),
    "half_set": (("split",), 0.5),
    "class_index": (("class",), 0.5),
    "posterior": (("class_posterior",), 1e-6),
    "defocus_u": (("ctf/df1_A",), 1e-2),
    "defocus_v": (("ctf/df2_A",), 1e-2),
    "defocus_angle": (("ctf/df_angle_rad",), 1e-6),
    "phase_shift": (("ctf/phase_shift_rad",), 1e-6),
    "bfactor": (("ctf/bfactor",), 1e-3),
    "image_index": (("blob/idx",), 0.5),
    "image_sign": (("blob/sign",), 0.5),
    "ncc": (("pick_stats/ncc_score",), 1e-6),
    "power": (("pick_stats/power",), 1e-2),
    "pick_template": (("pick_stats/template_idx",), 0.5),
    "pick_angle": (("pick_stats/angle_rad",), 1e-6),
    "coordinate": (("location/center_x_frac", "location/center_y_frac"), 1e-2),
}
_ALIGNED = ("pose", "shift", "half_set", "class_index", "posterior")


def write_cs_particles(
    dataset: xr.Dataset,
    path: str | Path,
    *,
    orientation: Orientation | None = None,
    spell: Callable[[str], str] | None = None,
) -> None:
    """Write particles as a ``.cs`` file.

    Parameters
    ----------
    dataset : Dataset
        Particles. Fields of the ``.cs`` file they came from are kept where they still hold.
    path : path
    orientation : Orientation, optional
    spell : callable, optional
        Takes the path of a stack and returns how it is to be named.
    """
    if dataset.attrs.get("kind") != "particles":
        raise InputError(f"{path}: a dataset of {dataset.attrs.get('kind')}, not particles")
    orientation = orientation or Orientation()
    kept = _kept_fields(dataset)
    prefix = _alignment_prefix(dataset, kept)
    made = _made_fields(dataset, prefix, orientation)
    if "posterior" not in dataset.variables and any(k.startswith(prefix) for k in kept):
        made.pop(f"{prefix}/class_posterior", None)
    fields: dict[str, NDArray[Any]] = {"uid": dataset["uid"].values.astype(np.uint64)}
    if not kept:
        fields |= made
    else:
        before = interpret(str(path), {**kept, "uid": fields["uid"]}, orientation)
        changed = _changed(dataset, before, prefix)
        for name, values in kept.items():
            rows = changed.get(name)
            fields[name] = values
            if rows is not None and rows.any() and name in made:
                fields[name] = values.copy()
                fields[name][rows] = made[name][rows].astype(values.dtype)
        fields |= {n: v for n, v in made.items() if n not in fields and _adds(n, kept)}
        if _moved_stacks(dataset, before):
            fields |= {name: v for name, v in made.items() if name.startswith("blob/")}
    if spell is not None and "blob/path" in fields:
        fields["blob/path"] = _image_fields(dataset, spell)["blob/path"]
    write_cs(path, fields)


def _adds(name: str, kept: dict[str, NDArray[Any]]) -> bool:
    """Whether a field is news to a kept dataset: of a family it lacks, or of its alignment."""
    family = name.split("/")[0] + "/"
    return family.startswith("alignments") or not any(k.startswith(family) for k in kept)


def _kept_fields(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    fields = {}
    for label, values in extra_columns(dataset, "particle").items():
        if label.startswith("cs:"):
            name, _, code = label[3:].rpartition(":")
            if name != "uid":
                fields[name] = _bytes(values, code) if code[0] in "SU" else values
    return fields


def _bytes(values: NDArray[Any], code: str) -> NDArray[np.bytes_]:
    encoded = np.array([str(v).encode() for v in values.ravel().tolist()])
    width = max(int(code[1:] or 1), encoded.dtype.itemsize, 1)
    return encoded.astype(f"S{width}").reshape(values.shape)


def _alignment_prefix(dataset: xr.Dataset, kept: dict[str, NDArray[Any]]) -> str:
    """Return the family of fields the pose belongs to: 2D while every view is along z."""
    if "alignments3D/pose" in kept or "pose" not in dataset.variables:
        return "alignments3D"
    planar = np.allclose(
        np.nan_to_num(dataset["pose"].values[:, 2, 2], nan=1.0), 1.0, rtol=0, atol=1e-9
    )
    return "alignments2D" if planar else "alignments3D"


def _made_fields(
    dataset: xr.Dataset, prefix: str, orientation: Orientation
) -> dict[str, NDArray[Any]]:
    return {
        **_image_fields(dataset),
        **_ctf_fields(dataset, orientation),
        **_alignment_fields(dataset, prefix, orientation),
        **_location_fields(dataset, orientation),
        **_pick_fields(dataset),
        **_expansion_fields(dataset),
    }


def _expansion_fields(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Return what symmetry copies come from, if they are such."""
    if "expanded_from" not in dataset.variables:
        return {}
    made = {SOURCE: dataset["expanded_from"].values.astype(np.uint64)}
    if "symmetry_copy" in dataset.variables:
        made[COPY] = np.maximum(dataset["symmetry_copy"].values, 0).astype(_U)
    return made


def _pick_fields(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Return scores of picks, if they have any."""
    if "ncc" not in dataset.variables:
        return {}
    made: dict[str, NDArray[Any]] = {
        f"pick_stats/{field}": dataset[name].values.astype(_F)
        for field, name in PICKS.items()
        if name in dataset.variables
    }
    if "pick_template" in dataset.variables:
        number = np.maximum(dataset["pick_template"].values, 0)
        made["pick_stats/template_idx"] = number.astype(_U)
    return made


def _image_fields(
    dataset: xr.Dataset, spell: Callable[[str], str] | None = None
) -> dict[str, NDArray[Any]]:
    if "image_stack" not in dataset.variables:
        return {}
    stack, index = dataset["image_stack"].values, dataset["image_index"].values
    optics = dataset["optics"].values
    paths = [str(p) for p in dataset["stack_path"].values]
    known_as = paths if spell is not None else _spelt(dataset)
    names = [p if Path(p).exists() else n for p, n in zip(paths, known_as, strict=True)]
    stored = np.array([p.endswith(".zarr") for p in paths])[stack]
    text = np.array([*names, ""], object)[stack]
    for row in np.flatnonzero(stored):
        text[row] = stack_link(paths[stack[row]], int(index[row]) // SHARD)
    if spell is not None:
        known = {str(name): spell(str(name)) for name in np.unique(text.astype(str)) if name}
        text = np.array([known.get(str(name), "") for name in text], object)
    box = dataset["box_size"].values[optics] if "box_size" in dataset else np.zeros(len(stack))
    sign = dataset["image_sign"].values if "image_sign" in dataset else np.ones(len(stack))
    return {
        "blob/path": np.array([str(t).encode() for t in text.tolist()], "S"),
        "blob/idx": np.where(stored, index % SHARD, index).astype(_U),
        "blob/shape": np.stack([box, box], 1).astype(_U),
        "blob/psize_A": dataset["pixel_size"].values[optics].astype(_F),
        "blob/sign": sign.astype(_F),
    }


def _spelt(dataset: xr.Dataset) -> list[str]:
    name = "stack_name" if "stack_name" in dataset.variables else "stack_path"
    return [str(n) for n in dataset[name].values]


def _ctf_fields(dataset: xr.Dataset, orientation: Orientation) -> dict[str, NDArray[Any]]:
    if "defocus_u" not in dataset.variables:
        return {}
    optics, count = dataset["optics"].values, dataset.sizes["particle"]

    def value(name: str, absent: float) -> NDArray[np.float32]:
        if name not in dataset.variables:
            return np.full(count, absent, _F)
        return dataset[name].values.astype(_F)

    sign = _F(-1.0 if orientation.mirrored else 1.0)
    return {
        "ctf/type": np.full(count, b"imported"),
        "ctf/exp_group_id": optics.astype(_U),
        "ctf/accel_kv": dataset["voltage"].values[optics].astype(_F),
        "ctf/cs_mm": (dataset["spherical_aberration"].values[optics] / MM).astype(_F),
        "ctf/amp_contrast": dataset["amplitude_contrast"].values[optics].astype(_F),
        "ctf/df1_A": value("defocus_u", 0.0),
        "ctf/df2_A": value("defocus_v", 0.0),
        "ctf/df_angle_rad": sign * value("defocus_angle", 0.0),
        "ctf/phase_shift_rad": value("phase_shift", 0.0),
        "ctf/scale": value("ctf_scale", 1.0),
        "ctf/scale_const": np.zeros(count, _F),
        "ctf/bfactor": value("bfactor", 0.0),
    }


def _alignment_fields(
    dataset: xr.Dataset, prefix: str, orientation: Orientation
) -> dict[str, NDArray[Any]]:
    if "pose" not in dataset.variables:
        return {}
    count = dataset.sizes["particle"]
    placed: dict[str, Any] = {"pose": dataset["pose"].values, "shift": np.zeros((count, 2))}
    if "shift" in dataset.variables:
        placed["shift"] = dataset["shift"].values
    if orientation.mirrored:
        placed |= mirror(placed)
    size = dataset["pixel_size"].values[dataset["optics"].values]
    pose = np.where(np.isfinite(placed["pose"]), placed["pose"], np.eye(3))
    if prefix == "alignments3D":
        angles = rotvec_from_matrix(np.swapaxes(pose, -1, -2))
    else:
        angles = np.arctan2(pose[:, 0, 1], pose[:, 0, 0]) % (2 * np.pi)
    made = {
        f"{prefix}/shift": (placed["shift"] / size[:, None]).astype(_F),
        f"{prefix}/pose": angles.astype(_F),
        f"{prefix}/psize_A": size.astype(_F),
        f"{prefix}/class_posterior": np.ones(count, _F),
    }
    half = dataset["half_set"].values.astype(np.int64) if "half_set" in dataset.variables else 0
    if np.any(half):  # 2: in neither
        made[f"{prefix}/split"] = np.where(half > 0, half - 1, 2).astype(_U)
    if "class_index" in dataset.variables and (dataset["class_index"].values >= 0).any():
        made[f"{prefix}/class"] = np.maximum(dataset["class_index"].values, 0).astype(_U)
    if "posterior" in dataset.variables:
        made[f"{prefix}/class_posterior"] = dataset["posterior"].values.astype(_F)
    return made


def _location_fields(dataset: xr.Dataset, orientation: Orientation) -> dict[str, NDArray[Any]]:
    """Return places on micrographs; they are fractions, so the shape must be known."""
    needed = ("micrograph", "micrograph_shape", "micrograph_name")
    pixels = pixel_coordinates(dataset)
    if pixels is None or not all(name in dataset.variables for name in needed):
        return {}
    optics, index = dataset["optics"].values, dataset["micrograph"].values
    shape = np.vstack([dataset["micrograph_shape"].values, [[1, 1]]])[index]
    names = [str(n) for n in dataset["micrograph_name"].values]
    size = micrograph_pixel_sizes(dataset)
    place = pixels / np.maximum(shape[:, ::-1], 1)
    y = 1.0 - place[:, 1] if orientation.bottom_left else place[:, 1]
    known = {"location/micrograph_psize_A": size.astype(_F)} if np.isfinite(size).all() else {}
    return {
        "location/micrograph_uid": image_uids(names, np.arange(len(names)), np.arange(len(names)))[
            index
        ],
        "location/exp_group_id": optics.astype(_U),
        "location/micrograph_path": np.array([n.encode() for n in names] + [b""])[index],
        "location/micrograph_shape": shape.astype(_U),
        "location/center_x_frac": place[:, 0].astype(_F),
        "location/center_y_frac": y.astype(_F),
        **known,
    }


def _changed(
    dataset: xr.Dataset, before: dict[str, Any], prefix: str
) -> dict[str, NDArray[np.bool_]]:
    """Return, by field, the rows whose interpreted value is no longer that of the kept field."""
    changed: dict[str, NDArray[np.bool_]] = {}
    for name, (fields, tolerance) in _SHOWS_IN.items():
        if name == "coordinate" and name in dataset.variables and "coordinate_pixels" in before:
            # Micrographs have told the pixel size since, and boxes may have moved.
            changed |= dict.fromkeys(fields, np.ones(dataset.sizes["particle"], np.bool_))
        if name not in dataset.variables or name not in before:
            continue
        now = np.asarray(dataset[name].values, np.float64)
        then = np.asarray(before[name], np.float64)
        apart = ~(np.abs(now - then) <= tolerance) & ~(np.isnan(now) & np.isnan(then))
        rows = np.asarray(apart.reshape(len(now), -1).any(1))
        for field in fields:
            changed[f"{prefix}/{field}" if name in _ALIGNED else field] = rows
    return changed


def _moved_stacks(dataset: xr.Dataset, before: dict[str, Any]) -> bool:
    """Whether the images are no longer those the kept fields name (re-extracted)."""
    if "stack_name" not in before or "image_stack" not in dataset.variables:
        return False
    if any(str(p).endswith(".zarr") for p in dataset["stack_path"].values):
        return True
    # A link with another suffix, made for RELION, is still the same stack.
    stems = {Path(str(n)).stem for n in before["stack_name"]}
    return not {Path(n).stem for n in _spelt(dataset)} <= stems
