"""Export picks, particles, micrographs or maps for RELION and cryoSPARC."""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dspa.data import store
from dspa.data.atomic import write_atomically
from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.places import physical
from dspa.io import mrc
from dspa.io.coordinates import micrograph_pixel_sizes
from dspa.io.cs_particles import Orientation
from dspa.io.cs_write import write_cs_particles
from dspa.io.images import ParticleImages, stack_link, stacks_of
from dspa.io.pick_folders import FORMS, write_pick_folder
from dspa.io.star_micrographs import write_star_micrographs
from dspa.io.star_write import write_star_particles
from dspa.io.volumes import read_volume
from dspa.stages.export_micrographs import (
    read_table,
    with_micrograph_names,
    with_micrograph_shapes,
)
from dspa.stages.particles.lead import leading
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import xarray as xr
    from numpy.typing import NDArray

RELION_31 = "relion-3.1"
_KINDS = ("particles", "picks", "micrographs")
_TABLES = ("particles", "picks", "exposures")  # what may be exported; --micrographs only helps
_JOB = re.compile(r"J(\d+)")
MAPS = (".mrc", ".map")
_MODE_16 = 12  # of MRC: 16 bit floats
_READ = 256  # images copied at a time


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa export``."""

    out: str = param(
        help="File to write: .star or .cs; .mrc or .map for a map or mask, named with its output "
        "(J9.volume); a folder for a file of coordinates per micrograph."
    )
    to: str | None = param(
        None,
        "Format; the suffix of OUT decides if it is left out. relion-3.1 is a STAR file whose "
        "images are 32 bit: others are copied. A folder of NAME_autopick.star "
        "(RELION), .box (EMAN) or .cbox (crYOLO) files holds where picks or particles are.",
        choices=("star", RELION_31, "cs", *FORMS),
    )
    box: int = param(
        0, "Box in .box and .cbox files (0: of the particles, or 1.5 diameters).", unit="px",
        minimum=0, maximum=16384
    )  # fmt: skip
    what: str = param("auto", "What to export; auto takes the latest.", choices=("auto", *_KINDS))
    images: bool = param(
        False, "Also copy the images to an MRC stack beside OUT, particles bright, 32 bit."
    )
    paths: str = param(
        "as-found",
        "Names of images and micrographs: as they were found, absolute, or relative.",
        choices=("as-found", "absolute", "relative"),
    )
    relative_to: str | None = param(
        None, "With --paths relative: the folder that names start from (left out: that of OUT)."
    )
    overwrite: bool = param(False, "Replace OUT if it is there.")
    coordinate_origin: str = param(
        "bottom-left",
        "Corner from which a .cs file counts coordinates.",
        choices=("bottom-left", "top-left"),
    )
    mirror_y: bool = param(
        False, "Mirror poses, shifts and astigmatism of a .cs file in y (patch motion)."
    )

    def together(self) -> None:
        """Refuse a suffix that is no format, and a folder for names that are not relative."""
        suffix = Path(self.out).suffix
        known = ("", ".star", ".cs", *MAPS)
        if self.to is None and suffix not in known and not self.is_folder:
            raise InputError(
                f"OUT is {self.out}: no format has the suffix {suffix}; end it in .star or .cs (a "
                f"map in .mrc), or name the format with --to {'|'.join(('star', 'cs', *FORMS))}"
            )
        if self.relative_to is not None and self.paths != "relative":
            raise InputError("--relative-to does nothing without --paths relative")

    @property
    def is_folder(self) -> bool:
        """Whether OUT names a folder."""
        return self.out.endswith("/") or Path(self.out).expanduser().is_dir()


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Write one table, or copy one map, for another program."""
    source = _map_to_copy(inputs, params)
    if source is not None:
        return _copy_map(context, source, params)
    kind, table, target, form = _chosen(inputs, params)
    if form != "star":
        table = store.loaded(table)
    if form in FORMS:
        return _write_folder(context, table, target, params, inputs)
    spell = _spelling(params, target)
    if kind != "micrographs" and spell is not None:
        table = with_micrograph_names(context, table, inputs, spell)
    if params.images or (params.to == RELION_31 and kind == "particles" and _is_small(table)):
        table = _with_copied_images(table, target.with_suffix(".mrcs"))
    elif kind == "particles" and form == "star":
        _advise(context, table)
    if form == "cs":
        corner = params.coordinate_origin == "bottom-left"
        orientation = Orientation(bottom_left=corner, mirrored=params.mirror_y)
        table = with_micrograph_shapes(context, table, inputs)
        write_cs_particles(table, target, orientation=orientation, spell=spell)
    elif kind == "micrographs":
        write_star_micrographs(table, target, spell=spell)
    else:
        write_star_particles(table, target, spell=spell)
    count = table.sizes["micrograph" if kind == "micrographs" else "particle"]
    context.events.message(f"wrote {count} {kind}{_of_job(inputs, kind)} to {target}")
    context.events.emit("result", **{kind: count})
    return {}


def _chosen(inputs: Mapping[str, Any], params: Params) -> tuple[str, xr.Dataset, Path, str]:
    """Return what is written, where, and in which format; refuse what cannot be."""
    kind, table = _choose(inputs, params)
    target, form = _target(params, kind)
    if table.sizes["micrograph" if kind == "micrographs" else "particle"] == 0:
        raise InputError(f"nothing to export: the table of {kind} is empty")
    if form in FORMS and kind != "micrographs":
        if not {"coordinate", "coordinate_pixels"} & set(table.variables):
            raise InputError(
                f"--to {form}: the {kind} have no coordinates in micrographs; use --to star or cs"
            )
    elif kind == "particles":
        stacks_of(table)  # all are there
    _refuse(params, kind, target, form)
    return kind, table, target, form


def _map_to_copy(inputs: Mapping[str, Any], params: Params) -> Path | None:
    """Return the map or mask that is meant, None if a table is; refuse one without the other."""
    source = None if inputs.get("particles") is None else Path(inputs["particles"])
    given = source is not None and source.suffix in MAPS
    wanted = params.to is None and Path(params.out).suffix in MAPS
    if wanted and not given:
        raise InputError(
            f"OUT is {params.out}: name the map with its output (dspa export J9.volume "
            f"{params.out}; dspa show J9 lists the outputs)"
        )
    if not given:
        return None
    if not wanted:
        raise InputError(f"{source} is a map: end OUT in .mrc or .map, without --to")
    _refuse(params, "map", _map_target(params), "mrc")
    return source


def _map_target(params: Params) -> Path:
    return Path(params.out).expanduser().absolute()


def _copy_map(context: Context, source: Path, params: Params) -> Mapping[str, Path]:
    """Copy a map or mask as it is, every voxel and the header."""
    target, volume = _map_target(params), read_volume(source)  # what is damaged goes no further

    def copy(stream: IO[bytes]) -> None:
        with source.open("rb") as found:
            shutil.copyfileobj(found, stream)

    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, copy)
    box = volume.density.shape[0]
    context.events.message(f"wrote {box} voxels of {volume.pixel_size:.4g} A to {target}")
    context.events.emit("result", box=box, pixel_size=volume.pixel_size)
    return {}


def _admit(inputs: Mapping[str, Any], params: Params) -> None:
    """Refuse what cannot be written."""
    if _map_to_copy(inputs, params) is None:
        _chosen(inputs, params)


def _refuse(params: Params, kind: str, target: Path, form: str) -> None:
    """Refuse what cannot be written, and what would replace something."""
    if form != "star" and kind == "micrographs":
        raise InputError("micrographs are exported to STAR files; use --to star")
    if params.images and kind != "particles":
        raise InputError(f"--images: {kind} have no particle images")
    copied = params.images or params.to == RELION_31
    stack = target.with_suffix(".mrcs")
    for path in (target, *([stack] if copied and form not in FORMS else [])):
        if params.overwrite or not path.exists():
            continue
        if path.is_file() or (form in FORMS and any(path.iterdir())):
            raise InputError(f"{path} is there already; name another OUT, or add --overwrite")
    there = next(folder for folder in target.parents if folder.exists())
    if not there.is_dir():
        raise InputError(f"OUT is {params.out}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"OUT is {params.out}: you may not write in {there}")


def _spelling(params: Params, target: Path) -> Callable[[str], str] | None:
    """Return how paths are named; None as they were found."""
    if params.paths == "as-found":
        return None
    if params.paths == "absolute":
        return _absolute
    start = Path(params.relative_to or target.parent).expanduser().absolute()
    # From a linked folder ``..`` leads out of the link's target.
    return partial(os.path.relpath, start=os.path.realpath(start))


def _absolute(path: str) -> str:
    return str(physical(Path(path).absolute()))


def _is_small(table: xr.Dataset) -> bool:
    """Tell whether an image is stored in 16 bit floats, which RELION 3.1 does not read."""
    firsts = (stack_link(p, 0) if p.endswith(".zarr") else p for p in stacks_of(table))
    return any(mrc.read_header(first).mode == _MODE_16 for first in firsts)


def _write_folder(
    context: Context, table: xr.Dataset, target: Path, params: Params, inputs: Mapping[str, Any]
) -> Mapping[str, Path]:
    """Write a file of coordinates for each micrograph."""
    form = params.to or "autopick"
    box = float(params.box) or _usual_box(table)
    if form != "autopick" and not box > 0:
        raise InputError(f"--to {form}: the size of the boxes is unknown; give --box")
    files = write_pick_folder(table, target, form=form, box=box)
    micrographs = inputs.get("micrographs") or inputs.get("exposures")
    if form == "autopick" and micrographs is not None:
        # RELION 3.1 names the micrographs in a file beside the coordinates.
        write_star_micrographs(read_table(Path(micrographs)), target / "micrographs.star")
        (target / "coords_suffix_autopick.star").write_text(f"{target / 'micrographs.star'}\n")
    count = table.sizes["particle"]
    context.events.message(
        f"wrote {counted(count, 'coordinate')} in {counted(files, 'file')} to {target}"
    )
    context.events.emit("result", picks=count, files=files)
    return {}


def _usual_box(table: xr.Dataset) -> float:
    """Return the particles' box in pixels of the micrographs, or 1.5 diameters; 0 if unknown."""
    size = float(micrograph_pixel_sizes(table)[0])
    if {"box_size", "pixel_size"} <= set(table.variables):
        box = float(table["box_size"].values[0] * table["pixel_size"].values[0]) / size
        if box > 0:
            return round(box)
    if "pick_diameter" in table.variables:
        diameter = float(np.nanmedian(table["pick_diameter"].values))
        return 2.0 * round(0.75 * diameter / size) if diameter > 0 else 0.0
    return 0.0


def _choose(inputs: Mapping[str, Any], params: Params) -> tuple[str, xr.Dataset]:
    """Return the table to export: what is asked for, or that of the latest job."""
    given = {kind: Path(inputs[kind]) for kind in _TABLES if inputs.get(kind) is not None}
    given |= {"micrographs": given.pop("exposures")} if "exposures" in given else {}
    if inputs.get("micrographs") is not None and (not given or params.what == "micrographs"):
        given.setdefault("micrographs", Path(inputs["micrographs"]))
    if params.what != "auto":
        if params.what not in given:
            raise InputError(f"--what {params.what}: the job and those before it have none")
        given = {params.what: given[params.what]}
    if not given:
        raise InputError("nothing to export: the job gives no particles, picks or micrographs")
    path = max(given.values(), key=_job_number)
    table = read_table(path)
    if table.attrs["kind"] == "particles":
        return ("particles" if "image_stack" in table.variables else "picks"), table
    return "micrographs", table


def _of_job(inputs: Mapping[str, Any], kind: str) -> str:
    """Say of which job a table is, and of which another one that is not written."""
    tables = {k: Path(inputs[k]) for k in ("particles", "picks") if inputs.get(k) is not None}
    number = {k: _job_number(path) for k, path in tables.items()}
    if not number.get(kind):
        return ""
    others = [f"{k} of J{n}" for k, n in number.items() if n and n != number[kind]]
    left = f" (the {others[0]} are left out; --what)" if others else ""
    return f" of J{number[kind]}{left}"


def _job_number(path: Path) -> int:
    match = _JOB.match(path.parent.name)
    return int(match[1]) if match else 0


def _target(params: Params, kind: str) -> tuple[Path, str]:
    """Return where to write, and the format."""
    target = Path(params.out).expanduser().absolute()
    form = "star" if params.to == RELION_31 else params.to
    form = form or {".cs": "cs"}.get(target.suffix, "star")
    other = {"star": ".cs", "cs": ".star"}.get(form, "none")
    if target.suffix == other:
        raise InputError(f"{params.out}: named {other} but --to {form}; make them agree")
    if form in FORMS:
        if target.suffix in (".star", ".cs", ".box", ".cbox") or target.is_file():
            raise InputError(f"{params.out}: --to {form} writes a folder; name one")
        return target, form
    if params.is_folder and kind == "picks" and params.to is None:
        return target, "autopick"
    if params.is_folder:
        return target / f"{kind}.{form}", form
    return (target if target.suffix == f".{form}" else Path(f"{target}.{form}")), form


def _advise(context: Context, table: xr.Dataset) -> None:
    """Say what RELION would stumble over."""
    if "image_sign" in table.variables and (table["image_sign"].values < 0).any():
        context.events.warning(
            "the particles are dark in their stacks, and RELION takes them as bright; "
            "add --images to write a stack with bright particles"
        )
    if _is_small(table):
        context.events.warning(
            "the images are 16 bit, which RELION 4 and later read and 3.1 does not; "
            f"--to {RELION_31} copies them as 32 bit"
        )


def _with_copied_images(table: xr.Dataset, target: Path) -> xr.Dataset:
    images = ParticleImages(table)
    count, box = len(images), images.box
    mrc.write(
        target,
        _bright(images),
        shape=(count, box, box),
        pixel_size=images.pixel_size,
        stack=True,
    )
    table = table.drop_vars(["stack_path", "stack_name"], errors="ignore")
    return table.assign(
        image_stack=("particle", np.zeros(count, np.int32)),
        image_index=("particle", np.arange(count, dtype=np.int64)),
        image_sign=("particle", np.ones(count, np.int8)),
        stack_path=("stack", np.array([str(target)], object)),
        stack_name=("stack", np.array([str(target)], object)),
        box_size=("optics", np.full(table.sizes["optics"], box, np.int32)),
    )


def _bright(images: ParticleImages) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(images), _READ):
        yield from images.read(np.arange(start, min(start + _READ, len(images))))


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Say what would be written."""
    if _map_to_copy(inputs, params) is not None:
        return {"map": str(inputs["particles"]), "file": str(_map_target(params))}
    kind, table, target, form = _chosen(inputs, params)
    figures: dict[str, Any] = {
        kind: table.sizes["micrograph" if kind == "micrographs" else "particle"],
        "file": str(target),
        "format": form,
    }
    if params.images and kind == "particles":
        images = ParticleImages(table)
        figures["stack"] = f"{math.ceil(len(images) * images.box**2 * 4 / 1e6)} MB"
    return figures


def _lead(inputs: Mapping[str, Any], params: Params) -> int:
    """Memory for the table: all of it for what is not a STAR file."""
    if Path(params.out).suffix in MAPS:
        return 0
    whole = params.to in ("cs", *FORMS) or Path(params.out).suffix == ".cs" or params.is_folder
    return leading(400 if whole else 50)(inputs, params)


STAGE = Stage(
    "export",
    "write picks, particles, micrographs or a map for other programs",
    Params,
    (
        Input("particles", "particles", optional=True, help="particles of a job, or a file"),
        Input("picks", "picks", optional=True),
        Input("exposures", "micrographs", optional=True, help="micrographs to export"),
        Input(
            "micrographs",
            "micrographs",
            positional=False,
            optional=True,
            help="Where the micrographs of the particles are, and their shapes",
        ),
    ),
    run,
    plan,
    admit=_admit,
    contained=False,
    lead=_lead,
)
