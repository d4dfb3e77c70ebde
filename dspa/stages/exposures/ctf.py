"""Estimate the CTF of micrographs: defocus, astigmatism, phase shift, and how far to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.ops.ctf.estimation import CTFFit, DefocusSearch, Microscope
from dspa.ops.ctf.ice_ring import ice_ring
from dspa.ops.ctf.local import Kind, LocalFit, fit_local, local_tile
from dspa.ops.ctf.search import fit_ctf
from dspa.ops.ctf.spectrum import patch_spectra, tile_size
from dspa.ops.ctf.surface import extent_of, surface_range
from dspa.stages.exposures.ctf_report import (
    QUALITIES,
    Estimate,
    fit_picture,
    picture_path,
    summarise,
)
from dspa.stages.exposures.tasks import (
    COPIES,
    MicrographTask,
    contained,
    in_known_order,
    keep_results,
    micrograph_tasks,
    report_failures,
    warn_of_rows,
)
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xarray as xr

_KINDS: dict[str, Kind] = {"none": "none", "plane": "plane", "surface": "surface"}


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa ctf``."""

    min_resolution: float = param(
        25.0, "Low end of the fitted range.", unit="A", minimum=10, maximum=1000
    )
    max_resolution: float = param(
        4.0, "High end of the fitted range.", unit="A", minimum=1.5, maximum=1000
    )
    min_defocus: float = param(
        1_000.0, "Smallest defocus searched.", unit="A", minimum=100, maximum=200000
    )
    max_defocus: float = param(
        40_000.0, "Largest defocus searched.", unit="A", maximum=200_000, minimum=100
    )
    astigmatism: float = param(
        1_000.0, "Expected astigmatism (standard deviation).", unit="A", minimum=1, maximum=200000
    )
    min_phase_shift: float = param(
        0.0, "Smallest phase shift searched.", unit="deg", minimum=-360, maximum=360
    )
    max_phase_shift: float = param(
        0.0,
        "Largest phase shift searched (a phase plate: 160, say).",
        unit="deg",
        minimum=-360,
        maximum=360,
    )
    local: str = param(
        "surface",
        "Local defocus, as far as the evidence supports it.",
        choices=("none", "plane", "surface"),
    )
    tile: int = param(
        512, "Tile of the power spectrum, enlarged to 700 A.", unit="px", minimum=128, maximum=8192
    )
    micrographs: int = param(
        0, "Only so many micrographs (0: all).", minimum=0, maximum=1_000_000_000
    )

    def together(self) -> None:
        """Refuse ranges that end before they begin."""
        if self.max_defocus <= self.min_defocus:
            raise InputError("--max-defocus must be above --min-defocus")
        if self.max_resolution >= self.min_resolution:
            raise InputError("--max-resolution is the finer end: fewer A than --min-resolution")
        if self.max_phase_shift and self.max_phase_shift < self.min_phase_shift:
            raise InputError("--max-phase-shift must not be below --min-phase-shift")


@dataclass(frozen=True)
class _Settings:
    folder: Path
    params: Params


def _search(params: Params) -> DefocusSearch:
    return DefocusSearch(
        minimum=params.min_defocus,
        maximum=params.max_defocus,
        astigmatism=params.astigmatism,
        phase_minimum=math.radians(params.min_phase_shift),
        phase_maximum=math.radians(max(params.max_phase_shift, params.min_phase_shift)),
    )


def _estimate(settings: _Settings, task: MicrographTask) -> Estimate | str:
    """Fit one micrograph and leave its picture in the job's folder."""
    return contained(partial(_fit, settings, task))


def _fit(settings: _Settings, task: MicrographTask) -> Estimate:
    params = settings.params
    pixels = task.read()
    shape = (pixels.shape[0], pixels.shape[1])
    microscope = Microscope(task.voltage, task.spherical_aberration, task.amplitude_contrast)
    search = _search(params)
    measure = partial(
        patch_spectra,
        pixels,
        pixel_size=task.pixel_size,
        low=params.min_resolution,
        high=params.max_resolution,
    )
    tile = tile_size(shape, task.pixel_size, minimum=params.tile)
    whole = measure(tile)
    fit = fit_ctf(whole.mean, microscope=microscope, search=search)
    small = local_tile(fit, tile, microscope=microscope, pixel_size=task.pixel_size)
    extent = extent_of(shape, task.pixel_size)
    fit, local, spectrum = fit_local(
        whole if small == tile or params.local == "none" else measure(small),
        fit,
        whole=whole,
        microscope=microscope,
        search=search,
        extent=extent,
        pixel_size=task.pixel_size,
        allow=_KINDS[params.local],
    )
    estimate = Estimate(
        fit,
        local,
        surface_range(local.surface, extent),
        ice_ring(whole.total, task.pixel_size),
    )
    picture = fit_picture(spectrum, estimate, microscope=microscope, extent=extent, name=task.name)
    picture_path(settings.folder, task).write_bytes(picture)
    return estimate


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Fit every micrograph; a task each."""
    table = read_micrographs(inputs["micrographs"])
    warn_of_rows(context, table)
    _search(params)
    tasks = micrograph_tasks(table, limit=params.micrographs)
    (context.folder / "ctf").mkdir(exist_ok=True)
    settings = _Settings(context.folder, params)
    keep = keep_results(context, params, Estimate, CTFFit, LocalFit)
    results = context.runner.map(partial(_estimate, settings), tasks, name="ctf", keep=keep)
    report_failures(context, tasks, results, what="ctf")
    done = [
        (task, found)
        for task, found in zip(tasks, results, strict=True)
        if isinstance(found, Estimate)
    ]
    order = in_known_order(context, "micrographs.zarr", [task.name for task, _ in done])
    done = [done[row] for row in order]
    result = _with_fits(table, done)
    write_micrographs(result, context.folder / "micrographs.zarr")
    write_micrographs(result, context.folder / "micrographs.star")
    summarise(context, done)
    return {"micrographs": context.folder / "micrographs.zarr"}


def _with_fits(table: xr.Dataset, done: Sequence[tuple[MicrographTask, Estimate]]) -> xr.Dataset:
    """Keep the micrographs that were fitted, with what was found."""
    rows = [task.index for task, _ in done]
    found = [estimate for _, estimate in done]
    fits = [estimate.fit for estimate in found]
    result = table.isel(micrograph=rows)
    columns = {
        "defocus_u": [fit.defocus_u for fit in fits],
        "defocus_v": [fit.defocus_v for fit in fits],
        "defocus_angle": [fit.defocus_angle for fit in fits],
        "phase_shift": [fit.phase_shift for fit in fits],
        "ctf_resolution": [min(fit.resolution, 999.0) for fit in fits],
        "ctf_score": [fit.score for fit in fits],
        "defocus_range": [estimate.range for estimate in found],
        "ice_ring": [estimate.ice_ring for estimate in found],
    }
    for name, values in columns.items():
        result[name] = ("micrograph", np.asarray(values, np.float64))
    surfaces = np.stack([estimate.local.surface for estimate in found])
    result["defocus_surface"] = (("micrograph", "surface"), surfaces)
    quality = np.array([QUALITIES.index(fit.quality) for fit in fits], np.int8)
    result["ctf_quality"] = ("micrograph", quality)
    return result


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Estimate work and memory."""
    tasks = micrograph_tasks(read_micrographs(inputs["micrographs"]), limit=params.micrographs)
    pixels = tasks[0].read().size
    return {
        "micrographs": len(tasks),
        "memory per worker (MiB)": math.ceil(COPIES * 4 * pixels / 2**20),
        "estimate (s per core)": round(len(tasks) * (1.5 + pixels / 2e7), 1),
    }


STAGE = Stage(
    name="ctf",
    summary="estimate defocus, astigmatism and phase shift of micrographs",
    params=Params,
    inputs=(Input("micrographs", "micrographs"),),
    run=run,
    plan=plan,
    grows=True,
)
