"""Cut particles out of micrographs: box, Fourier crop, background at mean 0 and deviation 1."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError, NothingLeft
from dspa.io.images import SHARD, ImageWriter, ParticleImages, write_images
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles, write_particle_tables
from dspa.io.picture import montage
from dspa.io.plausible import other_sizes
from dspa.ops.images.extract import extract_boxes
from dspa.ops.images.filter import low_pass
from dspa.ops.images.normalise import normalise_background
from dspa.ops.images.transform import resize_images
from dspa.stages.exposures.tasks import (
    MicrographTask,
    contained,
    micrograph_tasks,
    names_and_paths,
    warn_of_rows,
)
from dspa.stages.extraction.cuts import (
    Found,
    all_of_one,
    read_cuts,
    store_path,
    write_cuts,
)
from dspa.stages.extraction.tables import (
    Boxes,
    Placement,
    doubt_of_scale,
    find_micrographs,
    match_micrographs,
    particle_table,
    place_boxes,
    with_pixel_size,
)
from dspa.stages.particles.duplicates import DISTANCE
from dspa.stages.stage import Context, Input, Stage, check, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

# Images cut and normalised at once: so many, or fewer if large.
BATCH = 64
BATCH_BYTES = 2**23
# RELION's default circle: three quarters of the box.
BACKGROUND = 0.75
SHOWN = 60


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa extract``."""

    box: int = param(
        help="Box size in pixels of the micrographs.", unit="px", minimum=16, maximum=16384
    )
    crop: int = param(
        0, "Fourier crop to this box (0: do not).", unit="px", minimum=0, maximum=16384
    )
    edge: str = param(
        "drop", "Boxes that leave the micrograph: drop, or fill.", choices=("drop", "fill")
    )
    background_diameter: float = param(
        0.0,
        "Circle outside which is background (0: 3/4 of the box).",
        unit="A",
        minimum=0,
        maximum=100000,
    )
    dust: float = param(
        8.0,
        "Replace pixels beyond so many deviations by noise (0: keep them).",
        minimum=0,
        maximum=1000000,
    )
    dtype: str = param("float16", "How images are stored.", choices=("float16", "float32"))
    recenter: bool = param(False, "Put boxes where the particles' shifts say they are.")
    min_distance: float | None = param(
        None,
        "Of particles closer than this the best is kept, 0: all (default: 20 with --recenter).",
        unit="A",
        minimum=0,
        maximum=100000,
    )
    failed_ctf: str = param(
        "drop", "Particles of micrographs whose CTF fit failed.", choices=("drop", "keep")
    )

    def together(self) -> None:
        """Refuse a crop that is larger than the box."""
        if self.crop > self.box:
            raise InputError(f"--crop {self.crop} is larger than --box {self.box}")


@dataclass(frozen=True)
class _Recipe:
    """How a box becomes an image; lengths in pixels of the micrograph."""

    box: int
    size: int
    background: float
    dust: float
    dtype: str
    seed: int


@dataclass(frozen=True)
class _Piece:
    """The boxes of one micrograph that lie in one shard, in order: boxes are sorted so."""

    task: MicrographTask
    start: NDArray[np.int64]


@dataclass(frozen=True)
class _Shard:
    """What one task writes: a whole shard, so that every shard has one writer."""

    number: int
    pieces: tuple[_Piece, ...]


def _shards(boxes: Boxes) -> list[_Shard]:
    shards = []
    for number, low in enumerate(range(0, boxes.row.size, SHARD)):
        high = min(low + SHARD, boxes.row.size)
        owner = boxes.task[low:high]
        starts = boxes.start[low:high]
        pieces = [_Piece(boxes.tasks[int(t)], starts[owner == t]) for t in np.unique(owner)]
        shards.append(_Shard(number, tuple(pieces)))
    return shards


def _extract_shard(
    writer: ImageWriter, recipe: _Recipe, shard: _Shard
) -> tuple[NDArray[np.bool_], list[str]]:
    """Cut one shard, a batch at a time; which images are good, and what was wrong."""
    valid, faults = [], []
    batch = max(1, min(BATCH, BATCH_BYTES // (4 * recipe.box**2)))
    with writer.shard(shard.number) as stream:
        for piece in shard.pieces:
            pixels = contained(piece.task.read)
            if isinstance(pixels, str):
                faults.append(f"{piece.task.name} set aside: {pixels}")
            for low in range(0, len(piece.start), batch):
                starts = piece.start[low : low + batch]
                if isinstance(pixels, str):
                    images = np.zeros((len(starts), recipe.size, recipe.size), np.float32)
                    good = np.zeros(len(starts), bool)
                else:
                    images, good = _images(pixels, starts, recipe, piece.task)
                stream.append(images.astype(recipe.dtype))
                valid.append(good)
            pixels = ""  # frees this micrograph before the next is read
    return np.concatenate(valid), faults


def _images(
    pixels: NDArray[np.float32],
    start: NDArray[np.int64],
    recipe: _Recipe,
    task: MicrographTask,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cut, clean, crop and normalise boxes; particles bright.

    One by one: how many are taken together shows in the last bits of products of matrices, and an
    image is to be the same whenever it is cut.
    """
    boxes = extract_boxes(pixels, start, recipe.box)
    if task.sign < 0:
        boxes = -boxes
    made = [
        _image(box, recipe, place_seed(recipe.seed, task.name, *place))
        for box, place in zip(boxes, start.tolist(), strict=True)
    ]
    limit = np.finfo(recipe.dtype).max
    images = np.clip(np.concatenate([image for image, _ in made]), -limit, limit)
    return images, np.concatenate([valid for _, valid in made])


def _image(
    box: NDArray[np.float32], recipe: _Recipe, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Make an image of a box: (1, y, x), and whether it is one."""
    image, valid = normalise_background(
        box[None], diameter=recipe.background, dust=recipe.dust, seeds=(seed,)
    )
    if recipe.size != recipe.box:
        small = resize_images(image, recipe.size)
        scale = recipe.size / recipe.box
        image, still = normalise_background(small, diameter=recipe.background * scale)
        valid = valid & still
    return image, valid


def place_seed(seed: int, name: str, x: int, y: int) -> int:
    """Return the seed of a box: that of its place, whenever and beside whatever it is cut.

    Parameters
    ----------
    seed : int
        Of the job.
    name : str
        Of the micrograph.
    x, y : int
        First pixel.
    """
    said = hashlib.blake2b(f"{seed} {x} {y} {name}".encode(), digest_size=8)
    return int.from_bytes(said.digest(), "little")


def _tasks(micrographs: xr.Dataset, params: Params) -> list[MicrographTask]:
    tasks = micrograph_tasks(micrographs)
    if "ctf_quality" in micrographs and params.failed_ctf == "drop":
        failed = micrographs["ctf_quality"].values == 0
        tasks = [task for task in tasks if not failed[task.index]]
    sizes = {round(task.pixel_size, 4) for task in tasks}
    if len(sizes) > 1:
        raise InputError(
            f"micrographs of several pixel sizes ({sorted(sizes)} A); extract them one by one"
        )
    if not tasks:
        raise NothingLeft("no micrograph has a good CTF; use --failed-ctf keep to go on")
    return tasks


def _recipe(params: Params, pixel_size: float, seed: int) -> _Recipe:
    background = params.background_diameter / pixel_size or BACKGROUND * params.box
    if background > 1.2 * params.box:
        raise InputError(
            f"--background-diameter {params.background_diameter:g} A leaves no background in a box "
            f"of {params.box * pixel_size:.0f} A"
        )
    size = params.crop or params.box
    return _Recipe(params.box, size, background, params.dust, params.dtype, seed)


def _placement(params: Params) -> Placement:
    distance = params.min_distance
    if distance is None:
        distance = DISTANCE if params.recenter else 0.0
    return Placement(params.box, params.recenter, params.edge == "fill", distance)


def _source(inputs: Mapping[str, Any]) -> xr.Dataset:
    path = inputs.get("particles") or inputs.get("picks")
    if not path:
        raise InputError("nothing to extract: give a picking job, or --particles")
    return read_particles(path)


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Cut every box; a task for each shard of 1,024 images."""
    check(params)
    micrographs = read_micrographs(inputs["micrographs"])
    warn_of_rows(context, micrographs)
    tasks = _tasks(micrographs, params)
    source = _source(inputs)
    recipe = _recipe(params, tasks[0].pixel_size, context.seed)
    _check_scale(context, source, tasks)
    boxes = place_boxes(source, tasks, _placement(params))
    for note in boxes.set_aside:
        context.events.warning(f"picks set aside: {note}")
    pixel_size = tasks[0].pixel_size * params.box / recipe.size
    found = _images_of(context, boxes, recipe, pixel_size)
    if not found.valid.any():
        raise NothingLeft("no image could be cut: every one is without variance or unreadable")
    if not found.valid.all():
        context.events.warning(
            f"{counted((~found.valid).sum(), 'image')} set aside: NaN, no variance, or an "
            "unreadable micrograph"
        )
    table = particle_table(
        source, boxes, micrographs, pixel_size=pixel_size, size=recipe.size, images=found.images
    ).isel(particle=np.flatnonzero(found.valid))
    valid = found.valid
    outputs = write_particle_tables(table, context.folder)
    _show(context, table)
    context.events.message(
        f"{counted(valid.sum(), 'particle')} in boxes of {recipe.size} px at {pixel_size:.3f} A "
        f"({recipe.size * pixel_size:.0f} A)"
    )
    context.events.emit(
        "result", particles=int(valid.sum()), box=recipe.size, pixel_size=pixel_size
    )
    return outputs


def _images_of(context: Context, boxes: Boxes, recipe: _Recipe, pixel_size: float) -> Found:
    """Cut all boxes, or in a job that grows those that are not cut yet."""
    if not context.grows:
        return all_of_one(context.folder, _cut(context, boxes, recipe, pixel_size))
    cuts = read_cuts(context.folder)
    missing = boxes.some(cuts.missing(boxes))
    if missing.row.size:
        number = cuts.stores + 1
        valid = _cut(context, missing, recipe, pixel_size, number=number)
        cuts = cuts.joined(write_cuts(context.folder, number, missing, valid))
    return cuts.find(boxes)


def _cut(
    context: Context, boxes: Boxes, recipe: _Recipe, pixel_size: float, *, number: int = 1
) -> NDArray[np.bool_]:
    """Cut boxes into an image store of their own; tell which images are good."""
    writer = write_images(
        store_path(context.folder, number), boxes.row.size, recipe.size, dtype=recipe.dtype,
        pixel_size=pixel_size,
    )  # fmt: skip
    results = context.runner.map(
        partial(_extract_shard, writer, recipe), _shards(boxes), name="extract"
    )
    writer.close()
    for fault in dict.fromkeys(fault for _, faults in results for fault in faults):
        context.events.warning(fault)
    return np.concatenate([good for good, _ in results])


def _check_scale(context: Context, source: xr.Dataset, tasks: Sequence[MicrographTask]) -> None:
    """Say whose pixels coordinates are taken for; refuse where they cannot be these."""
    # Versions of one exposure may be picked and cut: denoised ones, and those they were made from.
    matches = match_micrographs(source, *names_and_paths(tasks), source=str(Path.cwd() / "picks"))
    if matches.another:
        context.events.warning(
            f"of the micrographs of the picks, {matches.another}; they are cut from the latter, "
            "which is right only for versions of one exposure"
        )
    where = find_micrographs(source, *names_and_paths(tasks))
    doubt = doubt_of_scale(with_pixel_size(source, where, tasks), where, tasks)
    if "coordinate_pixels" not in source:
        unknown = np.empty(0)
        of_picks = np.asarray(source.get("micrograph_pixel_size", unknown))
        other = other_sizes(of_picks, tasks[0].pixel_size)
        if other.size:
            context.events.warning(
                f"the coordinates are in pixels of {other[0]:.4g} A, the micrographs have "
                f"{tasks[0].pixel_size:.4g} A: they are scaled; check which is right"
            )
        if doubt:
            context.events.warning(f"{doubt}; check the pixel size of the coordinates")
        return
    if doubt:
        raise InputError(
            f"{doubt}, and the file they came from does not tell the pixel size of the "
            "coordinates; import it with --micrograph-pixel-size"
        )
    context.events.message(
        f"the pixel size of the coordinates is unknown; they are taken as pixels of the "
        f"micrographs ({tasks[0].pixel_size:.4g} A)"
    )


def _show(context: Context, table: xr.Dataset) -> None:
    """Put examples, low-passed to 15 A, and the mean image into the report."""
    images = ParticleImages(table)
    count = len(images)
    rows = np.unique(np.round(np.linspace(0, count - 1, min(SHOWN, count))).astype(int))
    resolution = max(15.0, 3.0 * images.pixel_size)
    examples = low_pass(images.read(rows), resolution, pixel_size=images.pixel_size)
    context.events.picture("particles", montage(examples), title="particles, low-passed to 15 A")
    some = np.unique(np.round(np.linspace(0, count - 1, min(1000, count))).astype(int))
    mean = images.read(some).mean(axis=0)
    context.events.picture(
        "mean", montage(mean[None], tile=256), title=f"mean of {counted(some.size, 'particle')}"
    )


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Estimate work, memory and disk."""
    count = int(_source(inputs).sizes["particle"])
    size = params.crop or params.box
    shape = read_micrographs(inputs["micrographs"]).get("shape")
    pixels = 4096**2 if shape is None else int(np.prod(shape.values, axis=1).max())
    item = size * size * np.dtype(params.dtype).itemsize
    return {
        "particles": count,
        "tasks": math.ceil(count / SHARD),
        "disk (MiB)": math.ceil(count * item / 2**20),
        "memory per worker (MiB)": math.ceil((10 * BATCH_BYTES + 8 * pixels) / 2**20 + 256),
        "estimate (s per core)": round(count * params.box**2 / 2e7, 1),
    }


STAGE = Stage(
    name="extract",
    summary="cut particles out of micrographs and normalise them",
    params=Params,
    inputs=(
        Input("picks", "picks", optional=True),
        Input("micrographs", "micrographs"),
        Input(
            "particles",
            "particles",
            positional=False,
            optional=True,
            help="Extract these again (with --recenter: where their shifts put them).",
        ),
    ),
    run=run,
    plan=plan,
    grows=True,
)
