"""Import particles: STAR or cryoSPARC files whose stacks stay where they are; or picks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.store import chosen, spans
from dspa.io.coordinates import pixel_coordinates
from dspa.io.cs_particles import Orientation, read_cs_particles
from dspa.io.images import ParticleImages
from dspa.io.locate import matching, spelling
from dspa.io.particles import read_particles, write_particles
from dspa.io.picks import SUFFIXES, read_picks
from dspa.io.picture import montage
from dspa.io.plausible import check_values, has_defocus, lacking_defocus
from dspa.io.star_blocks import images_named
from dspa.io.star_optics import one_for_all
from dspa.io.star_particles import read_star_particles
from dspa.ops.images.prints import NUMBERS
from dspa.stages.imports.copies import (
    mark_twins,
    tell_copies,
    tell_repeated_picks,
    tell_shared_uids,
)
from dspa.stages.imports.expansion import know_expansion
from dspa.stages.imports.lines import in_file, rows_of_file, unnumbered
from dspa.stages.imports.optics import tell_denials
from dspa.stages.imports.picks import (
    common_pixel_size,
    place_on_micrographs,
    placed,
    scaled_by_micrographs,
    warn_of_other_size,
    within_micrographs,
)
from dspa.stages.imports.stacks import on_stacks, set_aside, with_pixel_size
from dspa.stages.particles.checks import ImageReport, examine, judge_contrast
from dspa.stages.particles.lead import BASE, table_bytes
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

MM = 1e7  # mm to A
_FEW_LOST = 0.1  # of the rows; more without a voltage are no accident
RUN = 1024  # images a task looks at
FEW_RUNS = 4
_SIZELESS = "in pixels of unknown size; give --micrographs or --micrograph-pixel-size"
# Without one of these an image is of no use.
_PER_IMAGE = "defocus_u defocus_v defocus_angle phase_shift bfactor ctf_scale pose shift".split()
_CORRECTIONS = frozenset(
    "rlnBeamTiltX rlnBeamTiltY rlnOddZernike rlnEvenZernike rlnMagMat00 rlnMagMat01 rlnMagMat10 "
    "rlnMagMat11 ctf/tilt_A ctf/shift_A ctf/trefoil_A ctf/tetra_A ctf/anisomag".split()
)


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa import particles``."""

    file: str | tuple[str, ...] = param(
        help="STAR or .cs file (of a cryoSPARC job its passthrough file too); of pick files (.box, "
        ".cbox, .csv) several, or a pattern.",
        several=True,
    )
    images_root: str | None = param(
        None, "Folder that stack paths are relative to (the RELION or cryoSPARC project)."
    )
    pixel_size: float | None = param(
        None, "Pixel size of images, not the file's.", unit="A", minimum=0.01, maximum=1e4
    )
    micrograph_pixel_size: float | None = param(
        None, "Pixel size of coordinates, not the file's.", unit="A", minimum=0.01, maximum=1e4
    )
    voltage: float | None = param(
        None, "Acceleration voltage, instead of the file's.", unit="kV", minimum=10, maximum=1e07
    )
    cs: float | None = param(
        None, "Spherical aberration, instead of the file's.", unit="mm", minimum=0, maximum=1e09
    )
    amplitude_contrast: float | None = param(
        None, "Amplitude contrast, instead of the file's.", minimum=0, maximum=1
    )
    contrast: str = param(
        "auto",
        "Particles are bright or dark in the stacks; auto looks at the images.",
        choices=("auto", "bright", "dark"),
    )
    coordinate_origin: str = param(
        "bottom-left",
        "Corner from which a .cs file counts coordinates.",
        choices=("bottom-left", "top-left"),
    )
    mirror_y: bool = param(
        False, "Mirror poses, shifts and astigmatism of a .cs file in y (patch motion)."
    )
    check: str = param(
        "full", "Look at every pixel, or at headers only.", choices=("full", "headers")
    )

    @property
    def named(self) -> str:
        """The files, as messages name them."""
        return spelling(self.file)

    @property
    def roots(self) -> list[str]:
        """Folders that names of stacks are relative to, where one is given."""
        return [] if self.images_root is None else [self.images_root]


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Import particles or picks."""
    micrographs = inputs.get("micrographs")
    known = common_pixel_size(micrographs) if micrographs else None
    table = _read(context, params, known)
    _tell_of_rows(context, table)
    given = params.micrograph_pixel_size
    if known is not None and given is None and "micrograph_pixel_size" in table.variables:
        warn_of_other_size(context, table, known)
    if "image_stack" not in table.variables:
        if params.pixel_size is not None:
            raise InputError(
                f"{params.named}: picks, and --pixel-size is that of images; give the size of "
                "their micrographs with --micrograph-pixel-size"
            )
        table = placed(context, table)
        if micrographs:
            table = place_on_micrographs(context, table, micrographs, source=params.named)
        elif "coordinate_pixels" in table.variables:
            raise InputError(f"{params.named}: coordinates {_SIZELESS}")
        _judge_values(context, table, params)
        table = within_micrographs(context, table, source=params.named)
        tell_repeated_picks(context, table)
        return _finish(context, table, "picks")
    if micrographs:
        table = scaled_by_micrographs(context, table, micrographs, source=params.named)
    with rows_of_file(table):
        table = _with_optics(context, table, params)
    _name_unused(context, table)
    table, infos = on_stacks(context, table, params.named, roots=params.roots)
    table = with_pixel_size(
        context, table, infos, params.named, given=params.pixel_size is not None
    )
    _judge_values(context, table, params)
    table = within_micrographs(context, table, source=params.named)
    table = _without_nan(context, table)
    if params.check == "full":
        table = _look(context, table, params)
    elif params.contrast != "auto":
        table = _signed(table, -1 if params.contrast == "dark" else 1)
    table = tell_copies(context, know_expansion(context, table))
    tell_shared_uids(context, table)
    _picture(context, table)
    return _finish(context, table, "particles")


def _read(context: Context, params: Params, known_size: float | None) -> xr.Dataset:
    """Read the table; its columns stay on the disk of the job."""
    files = matching(params.file)
    if Path(params.named).suffix == ".zarr":
        return _rescaled(read_particles(params.named, lazy=True), params)
    if not files:
        folder = Path(params.named)
        what = "a folder" if folder.is_dir() else "no such file"
        kinds = {p.suffix.lower() for p in folder.iterdir()} if folder.is_dir() else set()
        held = next((each for each in SUFFIXES if each in kinds), None)
        if held is not None:
            raise InputError(f"{params.named}: a folder; give its files: '{params.named}/*{held}'")
        raise InputError(f"{params.named}: {what}; name a .star or .cs file")
    suffix = files[0].suffix.lower()
    if suffix == ".cs":
        corner = params.coordinate_origin == "bottom-left"
        orientation = Orientation(bottom_left=corner, mirrored=params.mirror_y)
        table = read_cs_particles(
            *files,
            roots=params.roots,
            orientation=orientation,
            folder=context.folder,
            numbered=True,
        )
        return _rescaled(table, params)
    size = params.micrograph_pixel_size or known_size
    if suffix == ".star" and len(files) == 1:
        table = read_star_particles(
            files[0],
            roots=params.roots,
            pixel_size=params.pixel_size,
            micrograph_pixel_size=params.micrograph_pixel_size,
            folder=context.folder,
            numbered=True,
        )
        # A file of picks that names no micrograph is named after it.
        if size is None or {"micrograph", "image_stack"} & set(table.variables):
            return table
    if suffix == ".star" and len(files) > 1 and images_named(files[0]):
        raise InputError(
            f"{params.named}: {len(files)} files, of which {files[0]} lists particle images; "
            "import each by itself and join them with dspa particle-sets"
        )
    if suffix in SUFFIXES:
        picks = read_picks(files, pixel_size=size or 1.0)
        if size is None:
            raise InputError(f"{params.named}: picks {_SIZELESS}")
        return picks
    raise InputError(
        f"{params.named}: particles are imported from .star or .cs files, picks from "
        f"{', '.join(SUFFIXES)} files"
    )


def _rescaled(table: xr.Dataset, params: Params) -> xr.Dataset:
    """Count coordinates and shifts, which are in pixels, in pixels of the given sizes."""
    size = params.pixel_size
    if size is not None and "shift" in table.variables and "pixel_size" in table.variables:
        factor = size / table["pixel_size"].values[table["optics"].values]
        shift = table["shift"].values * np.where(np.isfinite(factor), factor, 1.0)[:, None]
        table = table.assign(shift=(("particle", "xy"), shift))
    size, pixels = params.micrograph_pixel_size, pixel_coordinates(table)
    if size is None or pixels is None:
        return table
    there = table["micrograph_pixel_size"].values
    one = one_for_all(params.named, "micrograph_pixel_size", there, size)
    table = table.drop_vars("coordinate_pixels", errors="ignore")
    return table.assign(
        coordinate=(("particle", "xy"), pixels * size), micrograph_pixel_size=("optics", one)
    )


def _tell_of_rows(context: Context, table: xr.Dataset) -> None:
    """Say which rows the reader has left out."""
    note = table.attrs.pop("set_aside", "")
    if note:
        context.events.warning(f"set aside {note}")
    for doubt in filter(None, table.attrs.pop("doubts", "").split(" | ")):
        context.events.warning(doubt)
    tell_denials(context, table)


def _judge_values(context: Context, table: xr.Dataset, params: Params) -> None:
    """Refuse optics and defocus that no microscope has; tell what is odd."""
    given = {
        "pixel_size": params.pixel_size,
        "micrograph_pixel_size": params.micrograph_pixel_size,
        "voltage": params.voltage,
        "spherical_aberration": params.cs,
        "amplitude_contrast": params.amplitude_contrast,
    }
    with rows_of_file(table):
        doubts = check_values(table, params.named, given=given)
    for doubt in doubts:
        context.events.warning(f"{in_file(doubt, table)}; check the file")


def _with_optics(context: Context, table: xr.Dataset, params: Params) -> xr.Dataset:
    """Put given optics in place of the file's; refuse a CTF whose optics are unknown."""
    given = {
        "pixel_size": (params.pixel_size, 1.0, "--pixel-size"),
        "voltage": (params.voltage, 1.0, "--voltage"),
        "spherical_aberration": (params.cs, MM, "--cs"),
        "amplitude_contrast": (params.amplitude_contrast, 1.0, "--amplitude-contrast"),
    }
    for name, (value, factor, _) in given.items():
        if value is not None and name in table.variables:
            there = table[name].values.astype(np.float64)
            one = one_for_all(params.named, name, there, value * factor)
            table = table.assign({name: ("optics", one)})
    if not has_defocus(table):
        context.events.warning(
            f"{lacking_defocus(table, params.named)}: particles are used without a CTF"
        )
        columns = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")
        return table.drop_vars([n for n in columns if n in table.variables])
    table = _without_lost(context, table)
    used = np.unique(table["optics"].values)
    for name in ("voltage", "spherical_aberration"):
        lost = used[np.isnan(table[name].values[used])]
        if lost.size:
            rows = np.isin(table["optics"].values, lost)
            of = ""
            if not rows.all():
                first = int(np.argmax(rows)) + 1
                of = f" of {rows.sum()} of {counted(rows.size, 'row')} (row {first} is the first)"
            raise InputError(
                f"{params.named}: the {name.replace('_', ' ')}{of} is unknown; give "
                f"{given[name][2]}"
            )
    contrast = table["amplitude_contrast"].values
    if np.isnan(contrast).any():
        context.events.warning("the file has no amplitude contrast; 0.1 is used")
        table = table.assign(amplitude_contrast=("optics", np.nan_to_num(contrast, nan=0.1)))
    return table


def _without_lost(context: Context, table: xr.Dataset) -> xr.Dataset:
    """Set a few rows aside whose voltage or spherical aberration is no number."""
    optics = table["optics"].values
    for name in ("voltage", "spherical_aberration"):
        lost = np.isnan(table[name].values)[optics]
        if lost.any() and lost.sum() <= max(1, _FEW_LOST * lost.size) and not lost.all():
            what = f"a {name.replace('_', ' ')} that is no number"
            set_aside(context, table, lost, what)
            table = chosen(table, np.flatnonzero(~lost), context.folder)
            optics = table["optics"].values
    return table


def _name_unused(context: Context, table: xr.Dataset) -> None:
    """Say which optical corrections of rows the file has: they are kept but not applied."""
    found = []
    for name, array in table.variables.items():
        words = str(name).removeprefix("extra:").removeprefix("cs:").split(":")[0]
        # Those of a table of optics groups are applied; rows of RELION 3.0 and .cs are not.
        if words not in _CORRECTIONS or array.dims[:1] != ("particle",):
            continue
        if any(_says_something(words, piece[name].values) for piece in spans(table[[name]])):
            found.append(words)
    if found:
        context.events.warning(
            f"kept for the way back but not applied: {', '.join(sorted(found))}; dspa ctf-refine "
            "measures them anew"
        )


def _says_something(name: str, values: NDArray[Any]) -> bool:
    if values.dtype.kind not in "iuf":  # lists of Zernike coefficients
        return any(c in "123456789" for text in values.ravel().tolist() for c in str(text))
    nothing = 1.0 if name in ("rlnMagMat00", "rlnMagMat11") else 0.0
    return bool((np.nan_to_num(values, nan=nothing) != nothing).any())


def _without_nan(context: Context, table: xr.Dataset) -> xr.Dataset:
    """Set aside rows whose CTF, pose, shift or coordinate is no number, or beyond any."""
    good = np.ones(table.sizes["particle"], bool)
    columns = {name: table[name].values for name in _PER_IMAGE if name in table.variables}
    if (pixels := pixel_coordinates(table)) is not None and np.isfinite(pixels).any():
        columns["coordinate"] = pixels
    lacking = []
    for name, values in columns.items():
        sound = np.isfinite(values).reshape(len(good), -1).all(1)
        if not sound.all():
            lacking.append(name.replace("_", " "))
        good &= sound
    if not good.all():
        what = f"a {' or '.join(lacking)} that is out of all bounds or no number"
        set_aside(context, table, ~good, what)
        if not good.any():
            raise InputError(f"every particle has {what}")
        table = chosen(table, np.flatnonzero(good), context.folder)
    return table


def _look(context: Context, table: xr.Dataset, params: Params) -> xr.Dataset:
    """Look at every image: set the unusable aside, and tell bright from dark."""
    unsigned = table.drop_vars("image_sign") if "image_sign" in table.variables else table
    images = ParticleImages(unsigned)
    starts = range(0, len(images), RUN)
    order = np.lexsort((table["image_index"].values, table["image_stack"].values))
    runs = [order[start : start + RUN] for start in starts]
    parts = [images.select(rows) for rows in runs]
    if len(parts) <= FEW_RUNS:  # not worth the start of a cluster
        reports = [examine(part) for part in parts]
    else:
        reports = context.runner.map(examine, parts, name="look")
    fault = next((r.fault for r in reports if r.fault), "")
    if fault:
        raise InputError(fault)
    bad = np.zeros(len(images), bool)
    for kind in ("not_finite", "constant"):
        rows = [run[getattr(r, kind)] for run, r in zip(runs, reports, strict=True)]
        these = np.zeros(len(images), bool)
        these[np.concatenate(rows)] = True
        what = "NaN or infinite pixels" if kind == "not_finite" else "one value only"
        set_aside(context, table, these, what)
        bad |= these
    if bad.all():
        raise InputError(f"{params.named}: no image can be used")
    table = _signed(table, _sign(context, table, reports, params))
    prints = np.empty((len(images), NUMBERS), np.int16)
    for run, report in zip(runs, reports, strict=True):
        prints[run] = report.prints
    table = mark_twins(table, prints, ~bad)
    return chosen(table, np.flatnonzero(~bad), context.folder) if bad.any() else table


def _sign(
    context: Context, table: xr.Dataset, reports: Sequence[ImageReport], params: Params
) -> int | None:
    """Return the sign to set, None to leave the file's."""
    seen = judge_contrast(reports)
    words = {1: "bright", -1: "dark"}
    finding = (
        f"over {counted(seen.images, 'image')} particles look {words[seen.sign]} "
        f"({seen.significance:+.0f} standard errors)"
        if seen.sign
        else f"over {counted(seen.images, 'image')} it cannot be told whether particles are bright "
        "or dark"
    )
    if params.contrast != "auto":
        sign = 1 if params.contrast == "bright" else -1
        if seen.sign == -sign:
            context.events.warning(f"{finding}, but --contrast {params.contrast} is used")
        return sign
    if "image_sign" in table.variables:
        said = table["image_sign"].values
        if seen.sign and (said == -seen.sign).mean() > 0.5:
            context.events.warning(
                f"{finding}, but the file says {words[-seen.sign]}, which is used; "
                f"--contrast {words[seen.sign]} overrules it"
            )
        else:
            context.events.message(f"{finding}; the file's sign is used")
        return None
    if not seen.sign:
        context.events.warning(f"{finding}; bright is assumed, --contrast dark overrules it")
        return 1
    context.events.message(f"{finding}; they are read so that they are bright")
    return seen.sign


def _signed(table: xr.Dataset, sign: int | None) -> xr.Dataset:
    if sign is None:
        return table
    return table.assign(image_sign=("particle", np.full(table.sizes["particle"], sign, np.int8)))


def _picture(context: Context, table: xr.Dataset) -> None:
    count = table.sizes["particle"]
    rows = np.unique(np.linspace(0, count - 1, min(count, 24)).astype(np.int64))
    images = ParticleImages(table.isel(particle=rows)).read(np.arange(len(rows)))
    context.events.picture("particles", montage(images), title="particles, turned bright")


def _finish(context: Context, table: xr.Dataset, kind: str) -> Mapping[str, Path]:
    table = unnumbered(table)
    write_particles(table, context.folder / f"{kind}.zarr")
    write_particles(table, context.folder / f"{kind}.star")
    count = table.sizes["particle"]
    figures: dict[str, Any] = {kind: count}
    if "pixel_size" in table.variables and math.isfinite(float(table["pixel_size"].values[0])):
        figures["pixel_size"] = float(table["pixel_size"].values[0])
    if kind == "particles":
        figures["box"] = int(table["box_size"].values[0])
    micrographs = counted(table.sizes.get("micrograph", 0), "micrograph")
    context.events.message(f"{counted(count, kind.removesuffix('s'))} from {micrographs}")
    context.events.emit("result", **figures)
    return {kind: context.folder / f"{kind}.zarr"}


def _lead(_inputs: Mapping[str, Any], params: Params) -> int:
    """Memory for the rows of the files."""
    return BASE + sum(table_bytes(path, 170) for path in matching(params.file))


PARTICLES_STAGE = Stage(
    "import particles",
    "bring in particles from a STAR or cryoSPARC file",
    Params,
    (
        Input(
            "micrographs",
            "micrographs",
            positional=False,
            optional=True,
            help="Of picks: where they lie; gives the pixel size, and what extract needs.",
        ),
    ),
    run,
    lead=_lead,
)
