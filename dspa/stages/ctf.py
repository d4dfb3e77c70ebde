"""Estimate the CTF of micrographs: defocus, astigmatism, phase shift, and how far to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.io.picture import curves, histogram, image, scatter, side_by_side
from dspa.ops.ctf_estimation import (
    CTFFit,
    DefocusSearch,
    Microscope,
)
from dspa.ops.ctf_picture import comparison_image
from dspa.ops.ctf_search import equiphase_average, fit_ctf, ring_agreement
from dspa.ops.ctf_spectrum import PolarSpectrum, polar_spectrum, power_spectrum, tile_size
from dspa.stages.micrograph_tasks import (
    COPIES,
    MicrographTask,
    contained,
    micrograph_tasks,
    report_failures,
)
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr

QUALITIES = ("failed", "weak", "good")
# Pictures that enter the report; all lie in the job's folder ctf/.
SHOWN = 6


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa ctf``."""

    min_resolution: float = param(25.0, "Low end of the fitted range.", unit="A", minimum=10)
    max_resolution: float = param(4.0, "High end of the fitted range.", unit="A", minimum=1.5)
    min_defocus: float = param(1_000.0, "Smallest defocus searched.", unit="A", minimum=100)
    max_defocus: float = param(40_000.0, "Largest defocus searched.", unit="A", maximum=200_000)
    astigmatism: float = param(
        1_000.0, "Expected astigmatism (standard deviation).", unit="A", minimum=1
    )
    min_phase_shift: float = param(0.0, "Smallest phase shift searched.", unit="deg")
    max_phase_shift: float = param(
        0.0, "Largest phase shift searched (a phase plate: 160, say).", unit="deg"
    )
    tile: int = param(512, "Tile of the power spectrum, enlarged to 700 A.", unit="px", minimum=128)
    micrographs: int = param(0, "Only so many micrographs (0: all).", minimum=0)


@dataclass(frozen=True)
class _Settings:
    folder: Path
    params: Params


def _search(params: Params) -> DefocusSearch:
    if params.max_defocus <= params.min_defocus:
        raise ValueError("--max-defocus must be above --min-defocus")
    return DefocusSearch(
        minimum=params.min_defocus,
        maximum=params.max_defocus,
        astigmatism=params.astigmatism,
        phase_minimum=math.radians(params.min_phase_shift),
        phase_maximum=math.radians(max(params.max_phase_shift, params.min_phase_shift)),
    )


def _microscope(task: MicrographTask) -> Microscope:
    return Microscope(task.voltage, task.spherical_aberration, task.amplitude_contrast)


def _estimate(settings: _Settings, task: MicrographTask) -> CTFFit | str:
    """Fit one micrograph and leave its picture in the job's folder."""
    return contained(partial(_fit, settings, task))


def _fit(settings: _Settings, task: MicrographTask) -> CTFFit:
    params = settings.params
    pixels = task.read()
    tile = tile_size((pixels.shape[0], pixels.shape[1]), task.pixel_size, minimum=params.tile)
    spectrum = polar_spectrum(
        power_spectrum(pixels, tile),
        task.pixel_size,
        low=params.min_resolution,
        high=params.max_resolution,
    )
    fit = fit_ctf(spectrum, microscope=_microscope(task), search=_search(params))
    _picture_path(settings.folder, task).write_bytes(_picture(spectrum, fit, task))
    return fit


def _picture_path(folder: Path, task: MicrographTask) -> Path:
    return folder / "ctf" / f"{task.index:05d}_{Path(task.name).stem}.png"


def _picture(spectrum: PolarSpectrum, fit: CTFFit, task: MicrographTask) -> bytes:
    """Draw spectrum beside fit, and the radial curve with the fit and its resolution."""
    microscope = _microscope(task)
    both = image(
        comparison_image(spectrum, fit, microscope=microscope),
        contrast=(0.0, 100.0),
        width=384,
        title=f"{Path(task.name).name}: spectrum | fit",
    )
    frequency, curve, model = equiphase_average(spectrum, fit, microscope=microscope)
    spread = max(float(np.std(curve)), 1e-12)
    radial = curves(
        frequency,
        {
            "spectrum - background": np.clip(curve / (4 * spread), -1, 1),
            "CTF² fit": model - 0.5,
            "agreement": ring_agreement(frequency, curve, model),
        },
        title=(
            f"defocus {fit.defocus:.0f} A, astigmatism {fit.defocus_u - fit.defocus_v:.0f} A, "
            f"fit to {fit.resolution:.1f} A: {fit.quality}"
        ),
        thresholds={"0.5": 0.5},
        resolution=True,
        ylim=(-1.05, 1.05),
    )
    return side_by_side([both, radial])


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Fit every micrograph; a task each."""
    table = read_micrographs(inputs["micrographs"])
    _search(params)
    tasks = micrograph_tasks(table, limit=params.micrographs)
    (context.folder / "ctf").mkdir(exist_ok=True)
    settings = _Settings(context.folder, params)
    results = context.runner.map(partial(_estimate, settings), tasks, name="ctf")
    report_failures(context, tasks, results, what="ctf")
    done = [
        (task, fit) for task, fit in zip(tasks, results, strict=True) if isinstance(fit, CTFFit)
    ]
    result = _with_fits(table, done)
    write_micrographs(result, context.folder / "micrographs.zarr")
    write_micrographs(result, context.folder / "micrographs.star")
    _summarise(context, done)
    return {"micrographs": context.folder / "micrographs.zarr"}


def _with_fits(table: xr.Dataset, done: Sequence[tuple[MicrographTask, CTFFit]]) -> xr.Dataset:
    """Keep the micrographs that were fitted, with what was found."""
    rows = [task.index for task, _ in done]
    fits = [fit for _, fit in done]
    result = table.isel(micrograph=rows)
    columns = {
        "defocus_u": [fit.defocus_u for fit in fits],
        "defocus_v": [fit.defocus_v for fit in fits],
        "defocus_angle": [fit.defocus_angle for fit in fits],
        "phase_shift": [fit.phase_shift for fit in fits],
        "ctf_resolution": [min(fit.resolution, 999.0) for fit in fits],
        "ctf_score": [fit.score for fit in fits],
    }
    for name, values in columns.items():
        result[name] = ("micrograph", np.asarray(values, np.float64))
    quality = np.array([QUALITIES.index(fit.quality) for fit in fits], np.int8)
    result["ctf_quality"] = ("micrograph", quality)
    return result


def _summarise(context: Context, done: Sequence[tuple[MicrographTask, CTFFit]]) -> None:
    fits = [fit for _, fit in done]
    counts = {name: sum(fit.quality == name for fit in fits) for name in QUALITIES}
    for task, fit in done:
        if fit.quality != "good":
            context.events.warning(
                f"{task.name}: the CTF fit is {fit.quality} (fit to {fit.resolution:.1f} A, "
                f"evidence {fit.evidence:.0f})"
            )
    order = sorted(range(len(done)), key=lambda i: fits[i].evidence)
    shown = dict.fromkeys([*order[: SHOWN // 2], *order[-(SHOWN // 2) :]])
    for i in shown:
        path = _picture_path(context.folder, done[i][0])
        context.events.picture(f"ctf_{done[i][0].index:05d}", path.read_bytes(), title=path.stem)
    defocus = np.array([fit.defocus for fit in fits])
    resolution = np.array([min(fit.resolution, 50.0) for fit in fits])
    context.events.picture(
        "defocus", histogram(defocus / 1e4, bins=30, xlabel="defocus (µm)"), title="defocus"
    )
    context.events.picture(
        "resolution_defocus",
        scatter(defocus / 1e4, resolution, xlabel="defocus (µm)", ylabel="fit resolution (A)"),
        title="fit resolution against defocus",
    )
    context.events.message(
        f"{len(fits)} micrographs: {counts['good']} good, {counts['weak']} weak, "
        f"{counts['failed']} failed; median defocus {np.median(defocus):.0f} A, median fit "
        f"resolution {np.median(resolution):.1f} A; a picture of each is in ctf/"
    )
    context.events.emit(
        "result",
        **counts,
        defocus=float(np.median(defocus)),
        resolution=float(np.median(resolution)),
    )


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
)
