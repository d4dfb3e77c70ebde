"""Pick particles that look like given images: 2D classes, or views of a map."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.geometry.band import band, maximum_radius
from dspa.geometry.grid import healpix_order, unit_directions
from dspa.geometry.rotation import matrix_from_euler
from dspa.io.micrographs import read_micrographs
from dspa.io.picture import montage
from dspa.io.volumes import check_cubic, read_images, read_volume
from dspa.ops.images.transform import band_to_images, resize_volume
from dspa.ops.picks.candidates import Candidates, PickRules
from dspa.ops.picks.template_search import TEMPLATE_RIM, pick_templates
from dspa.ops.picks.templates import centre_templates, odd_edge, resample_templates
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.exposures.tasks import COPIES, MicrographTask, micrograph_tasks, warn_of_rows
from dspa.stages.picks.search import pick_micrographs
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.ops.picks.search_image import SearchImage

# A map is projected at no finer pixel than this fraction of the low-pass.
PROJECTION_PIXEL = 1.0 / 4.0


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa pick template``."""

    diameter: float = param(help="Particle diameter.", unit="A", minimum=20, maximum=5000)
    classes: tuple[int, ...] = param(
        (),
        "Only these classes, numbered from 1 as in the pictures and by select2d (default: all that "
        "are not empty).",
        minimum=0,
        maximum=1000000,
    )
    angle_step: float = param(
        5.0, "In-plane step of the search.", unit="deg", minimum=0.5, maximum=180
    )
    view_step: float = param(
        15.0, "Step between the views of a map.", unit="deg", minimum=5, maximum=60
    )
    symmetry: str = param("C1", "Of the map, to save views.")
    low_pass: float = param(
        20.0, "Low-pass of micrographs and templates.", unit="A", minimum=3, maximum=1000
    )
    use_ctf: bool = param(True, "See the templates through each micrograph's CTF.")
    min_separation: float = param(
        0.6, "Smallest distance of two picks over the diameter.", minimum=0.1, maximum=5
    )
    edge: float = param(
        0.1, "Nearest a pick may lie to the edge, over the diameter.", minimum=0, maximum=100
    )
    threshold: float = param(0.1, "Lowest NCC kept as a candidate.", minimum=-1, maximum=1)
    max_picks: int = param(4000, "Most candidates of a micrograph.", minimum=1, maximum=10_000_000)
    micrographs: int = param(
        0,
        "Only so many micrographs, spread over the set (0: all).",
        minimum=0,
        maximum=1_000_000_000,
    )


@dataclass(frozen=True)
class _Templates:
    """Images to search with, before they are brought to the pixels of the search.

    Attributes
    ----------
    images : (t, n, n) float32
    pixel_size : float
        A.
    numbers : (t,) int32
        Which class or view each is, from 0.
    """

    images: NDArray[np.float32]
    pixel_size: float
    numbers: NDArray[np.int32]


def _class_templates(path: Path, chosen: tuple[int, ...]) -> _Templates:
    """Read class averages, leaving out the empty ones; classes count from 1."""
    stack = read_images(path)
    count = len(stack.images)
    wrong = [number for number in chosen if not 1 <= number <= count]
    if wrong:
        raise InputError(f"--classes: there is no class {wrong[0]}; {path} holds 1 to {count}")
    numbers = np.array(chosen) - 1 if chosen else np.arange(count)
    images = stack.images[numbers]
    full = np.isfinite(images).all(axis=(1, 2)) & (images.std(axis=(1, 2)) > 0)
    if not full.any():
        raise InputError(f"{path}: every template is empty; select classes first")
    if not stack.pixel_size > 0:
        raise InputError(f"{path}: the header has no pixel size; write it with one")
    return _Templates(images[full], stack.pixel_size, numbers[full].astype(np.int32))


def _volume_templates(path: Path, params: Params) -> _Templates:
    """Project a map along views spread over its asymmetric unit; in-plane turns come later."""
    volume = read_volume(path)
    check_cubic(path, volume)
    if not volume.size_known:
        raise InputError(
            f"{path}: the header says 1 A per voxel, which programs write that do not know it; "
            "bring the map in with import volume --pixel-size"
        )
    box = volume.density.shape[0]
    pixel = volume.pixel_size
    wanted = math.ceil(box * pixel / (params.low_pass * PROJECTION_PIXEL) / 2) * 2
    density = resize_volume(volume.density, wanted) if wanted < box else volume.density
    size = density.shape[0]
    directions = unit_directions(healpix_order(math.radians(params.view_step)), params.symmetry)
    rot = np.arctan2(directions[:, 1], directions[:, 0])
    tilt = np.arccos(np.clip(directions[:, 2], -1.0, 1.0))
    members = band(size, maximum_radius(size))
    reference = prepare_volume(density, members.radius)
    rotations = matrix_from_euler(rot, tilt, np.zeros_like(rot))
    slices = project(reference, rotations, members)
    images = band_to_images(slices, members)
    return _Templates(images, pixel * box / size, np.arange(len(images), dtype=np.int32))


def _load(inputs: Mapping[str, Any], params: Params) -> _Templates:
    templates, volume = inputs.get("templates"), inputs.get("volume")
    if bool(templates) == bool(volume):
        raise InputError("give either --templates (2D classes) or --volume (a map)")
    if templates:
        found = _class_templates(templates, params.classes)
        centred = centre_templates(found.images, diameter=params.diameter / found.pixel_size)
        found = replace(found, images=centred)
    else:
        found = _volume_templates(inputs["volume"], params)
    size = found.images.shape[-1] * found.pixel_size
    if params.diameter > 1.1 * size:
        raise InputError(
            f"--diameter {params.diameter:g} A is larger than the templates' box of {size:.0f} A"
        )
    return found


def _unset(templates: _Templates, pixel_size: float) -> bool:
    """Tell whether a size of 1 A is likely none: it is not that of micrographs, or binned ones."""
    times = 1.0 / pixel_size
    return abs(templates.pixel_size - 1.0) < 1e-6 and abs(times - max(1, round(times))) > 0.01


def _turns(params: Params) -> int:
    """Rotations over a full turn: no coarser than asked for, a multiple of 4."""
    return 4 * max(1, math.ceil(90.0 / params.angle_step - 1e-6))


def _search(
    params: Params,
    templates: _Templates,
    task: MicrographTask,
    field: SearchImage,
    resolution: float,
) -> Candidates:
    coarse = resample_templates(
        templates.images,
        pixel_size=templates.pixel_size,
        to_pixel_size=field.pixel_size,
        edge=odd_edge(params.diameter * TEMPLATE_RIM, field.pixel_size),
        resolution=resolution,
    )
    rules = PickRules(
        separation=params.min_separation * params.diameter,
        threshold=params.threshold,
        limit=params.max_picks,
        resolution=resolution,
        edge=params.edge * params.diameter,
    )
    found = pick_templates(
        field,
        coarse,
        rules,
        diameter=params.diameter,
        turns=_turns(params),
        ctf=task.ctf if params.use_ctf else None,
    )
    return replace(found, template=templates.numbers[found.template])


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Search every micrograph; a task each."""
    micrographs = read_micrographs(inputs["micrographs"])
    warn_of_rows(context, micrographs)
    templates = _load(inputs, params)
    tasks = micrograph_tasks(micrographs, limit=params.micrographs)
    if inputs.get("templates") and _unset(templates, tasks[0].pixel_size):
        context.events.warning(
            f"{inputs['templates']}: the header says 1 A per pixel, which programs write that do "
            "not know it; check it, as templates of another scale find other things"
        )
    context.events.picture(
        "templates", montage(templates.images), title=counted(len(templates.images), "template")
    )
    return pick_micrographs(
        context,
        micrographs,
        tasks,
        search=partial(_search, params, templates),
        params=params,
        low_pass=params.low_pass,
        diameter=params.diameter,
        stage="pick template",
        means=f"{counted(len(templates.images), 'template')} at {_turns(params)} angles",
    )


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Estimate work and memory."""
    tasks = micrograph_tasks(read_micrographs(inputs["micrographs"]), limit=params.micrographs)
    count = len(_load(inputs, params).images) * _turns(params)
    pixels = tasks[0].read().size
    coarse = pixels * (3.0 * tasks[0].pixel_size / params.low_pass) ** 2
    return {
        "micrographs": len(tasks),
        "templates x angles": count,
        "memory per worker (MiB)": math.ceil((COPIES * 4 * pixels + 40 * 4 * coarse) / 2**20),
        "estimate (s per core)": round(
            len(tasks) * (0.15 + 1e-7 * pixels + 1.5e-9 * coarse * count), 1
        ),
    }


STAGE = Stage(
    name="pick template",
    summary="pick particles that look like 2D classes or views of a map",
    params=Params,
    inputs=(
        Input("micrographs", "micrographs"),
        Input("templates", "classes", positional=False, optional=True, help="2D classes."),
        Input("volume", "volume", positional=False, optional=True, help="A map to project."),
    ),
    run=run,
    plan=plan,
    grows=True,
)
