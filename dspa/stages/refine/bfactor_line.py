"""Resolution over the number of particles: the B-factor line of a refinement, nothing refined anew.

Random parts of the particles, each twice as large as the one before, are added up at the poses of
the refinement, and the half maps of each part are correlated in the mask of the whole. See
``docs/method/bfactor-line.md``.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.runner import PROCESS, Result
from dspa.io import picture
from dspa.ops.maps.bfactor_line import SURE, Line, fit_line
from dspa.stages.ctf_refine.views import read_posed, usable
from dspa.stages.em.march import Pass, march
from dspa.stages.em.memory import batch_bytes, kept_bands
from dspa.stages.em.parameters import mask_diameter
from dspa.stages.particles.chunks import image_spec, particle_chunks
from dspa.stages.particles.lead import leading
from dspa.stages.particles.noise import BackgroundNoise
from dspa.stages.particles.optics import shift_in_particle
from dspa.stages.refine.added import Added
from dspa.stages.refine.half_maps import symmetry_beside
from dspa.stages.refine.postprocess import SYMMETRY_HELP, agreeing_halves, table_beside
from dspa.stages.refine.start import resample
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk

LEAD_PARTICLE = 700
MOST_SIZES = 16
FEWEST_SIZES = 3
WILSON = 10.0  # A: coarser than this amplitudes follow the shape of the particle
AT_END = 1.0  # shells before the last in which the pixels, not the particles, limit
APART = 0.03  # of two resolutions of the same particles, beyond which it is told
MORE = (2, 4, 10)  # times as many particles


@dataclass(frozen=True)
class LineParams:
    """Parameters of `dspa bfactor-line`."""

    draws: int = param(3, "how often the parts are drawn", minimum=1, maximum=50)
    minimum: int = param(
        100, "fewest particles of a part", unit="particles", minimum=8, maximum=10_000_000
    )
    fit_from: float = param(
        15.0, "coarsest resolution that the line is put through",
        unit="A", minimum=3.0, maximum=100.0,
    )  # fmt: skip
    target: float = param(
        0.0, "resolution to say the number of particles for; 0: none",
        unit="A", minimum=0.0, maximum=100.0,
    )  # fmt: skip
    mask_diameter: float = mask_diameter("diameter of the circle outside which is background")
    symmetry: str = param("", SYMMETRY_HELP)

    def together(self) -> None:
        """Refuse a group that is none."""
        if self.symmetry:
            check_symmetry(self.symmetry)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Which images each pass adds.

    Attributes
    ----------
    chunks : tuple of tuples of ParticleChunk
        By pass.
    draw, size : (passes,) int64
        Number of the drawing, and of the part in it, from 0.
    """

    chunks: tuple[tuple[ParticleChunk, ...], ...]
    draw: NDArray[np.int64]
    size: NDArray[np.int64]


def run(context: Context, inputs: Mapping[str, Any], params: LineParams) -> dict[str, Path]:
    """Measure how the resolution rises with the number of particles.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles`` of a refinement, with its half maps beside or with ``volume``; ``mask``.
    params : LineParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    particles, spec = _particles(inputs, params)
    volume = _volume(inputs)
    halves, measured = agreeing_halves(
        context, {**inputs, "volume": volume}, use="parts of particles that reach none reach less"
    )
    mask = np.clip(
        resample(
            replace(halves[0], density=measured.mask),
            box=spec.crop,
            pixel_size=spec.crop_pixel_size,
        ),
        0.0,
        1.0,
    )
    symmetry = symmetry_beside(params.symmetry, table_beside((volume,)))
    parts = draw_parts(particles, spec, params, seed=context.seed)
    context.events.message(
        f"{counted(int(parts.size.max()) + 1, 'part')} of the particles, {params.draws} times, in "
        f"{symmetry}, at the poses of the refinement of all: refined by themselves the smaller "
        "parts would come out worse, and the line steeper"
    )
    result = _march(context, spec, parts, symmetry, mask=mask.astype(np.float32))
    refined = halves[0].pixel_size * len(measured.mask) / max(measured.shell, 1e-3)
    _tell_refined(context, spec, result, refined)
    return _report(context, spec, parts, params, result)


def _tell_refined(context: Context, spec: ImageSpec, result: Result, refined: float) -> None:
    """Say if the refinement, which adds images up by their posterior, came out otherwise."""
    most = int(np.argmax(result.model["count"]))
    whole = spec.extent / max(float(result.model["shell"][most]), 1e-3)
    if abs(whole / refined - 1.0) > APART:
        context.events.message(
            f"added up at their best poses all particles come to {whole:.2f} A, where the half "
            f"maps of the refinement agree to {refined:.2f} A; the line is of the former"
        )


def _particles(inputs: Mapping[str, Any], params: LineParams) -> tuple[xr.Dataset, ImageSpec]:
    particles = read_posed(inputs["particles"])
    rows = np.flatnonzero(usable(particles))
    if rows.size < particles.sizes["particle"]:
        particles = particles.isel(particle=rows)
    diameter = params.mask_diameter if params.mask_diameter > 0 else None
    return particles, image_spec(particles, mask_diameter=diameter)


def _volume(inputs: Mapping[str, Any]) -> Path:
    """Return the map whose half maps lie beside it: as given, or that of the particles' job."""
    given = inputs.get("volume")
    if given:
        return Path(given)
    volume = Path(inputs["particles"]).parent / "volume.mrc"
    if not volume.exists():
        raise InputError(
            f"{inputs['particles']}: no volume.mrc beside it; name the refinement with --volume"
        )
    return volume


def draw_parts(particles: xr.Dataset, spec: ImageSpec, params: LineParams, *, seed: int) -> _Parts:
    """Draw parts of the particles, each with the images of those before and as many more.

    Parameters
    ----------
    particles : Dataset
        All with poses and half sets.
    spec : ImageSpec
    params : LineParams
    seed : int

    Raises
    ------
    InputError
        If there are too few particles for a line.
    """
    halves = np.asarray(particles["half_set"].values)
    rows = [np.flatnonzero(halves == half) for half in (1, 2)]
    sizes = part_sizes(min(each.size for each in rows), params.minimum)
    state = _state(particles)
    chunks, draw, size = [], [], []
    for number in range(params.draws):
        orders = [
            np.random.default_rng([seed, number, half, 0xB11E]).permutation(each)
            for half, each in enumerate(rows, 1)
        ]
        # All of the particles are the same part however often it is drawn.
        for level in range(len(sizes) if number == 0 else len(sizes) - 1):
            start = sizes[level - 1] if level else 0
            ends = [each.size if level == len(sizes) - 1 else sizes[level] for each in rows]
            own = [
                chunk
                for order, end in zip(orders, ends, strict=True)
                for chunk in particle_chunks(
                    particles, spec, seed=None, state=state, rows=np.sort(order[start:end]),
                    resident=True,
                )
            ]  # fmt: skip
            chunks.append(tuple(replace(chunk, number=at) for at, chunk in enumerate(own)))
            draw.append(number)
            size.append(level)
    return _Parts(tuple(chunks), np.array(draw), np.array(size))


def part_sizes(half: int, minimum: int) -> list[int]:
    """Say how many particles of a half set each part has: half as many as the next.

    Parameters
    ----------
    half : int
        Particles of the smaller half set.
    minimum : int
        Fewest of a part, both halves together.
    """
    sizes = [half]
    while len(sizes) < MOST_SIZES and sizes[0] // 2 >= max(minimum / 2, 4):
        sizes.insert(0, sizes[0] // 2)
    if len(sizes) < FEWEST_SIZES:
        raise InputError(
            f"half sets of {counted(half, 'particle')} give {counted(len(sizes), 'part')} of at "
            f"least {minimum}, and a line needs {FEWEST_SIZES}; use a smaller --minimum"
        )
    return sizes


def _state(particles: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Collect what a pass needs of every particle."""
    count = int(particles.sizes["particle"])
    shift, scale = np.zeros((count, 2)), np.ones(count)
    if "shift" in particles:
        shift = shift_in_particle(particles, np.nan_to_num(particles["shift"].values))
    if "scale" in particles:
        scale = np.asarray(particles["scale"].values, np.float64)
        scale = np.where(np.isfinite(scale), scale, 1.0)
    return {
        "pose": np.asarray(particles["pose"].values, np.float64),
        "shift": shift,
        "scale": scale,
        "half_set": np.asarray(particles["half_set"].values, np.int8),
    }


def _march(
    context: Context, spec: ImageSpec, parts: _Parts, symmetry: str, *, mask: NDArray[np.float32]
) -> Result:
    """Make the passes."""
    shells = spec.crop // 2 + 1

    def begin() -> tuple[int, Result]:
        """Measure the noise on all images, once."""
        everything = tuple(
            replace(chunk, number=number)
            for number, chunk in enumerate(
                chunk
                for chunks, draw in zip(parts.chunks, parts.draw, strict=True)
                if draw == 0
                for chunk in chunks
            )
        )
        noise = context.runner.run(BackgroundNoise(spec), everything, {}, name="noise000").model
        known = {name: noise[name] for name in ("noise", "strongest")}
        nothing = {"curve": np.zeros((0, shells)), "shell": np.zeros(0), "count": np.zeros(0)}
        return 0, Result(known | nothing | {"mask": mask}, {})

    def step(number: int, result: Result) -> Pass:
        """Add the next part to those before, or begin another drawing."""
        anew = parts.size[number - 1] == 0
        task = Added(spec, symmetry, bool(anew))
        model = dict(result.model)
        if anew:
            model.pop("map", None)
        return Pass(task, parts.chunks[number - 1], model)

    def report(number: int, made: Pass, result: Result) -> None:
        """Tell how many particles were added up, and the resolution they reach."""
        count, shell = (float(result.model[name][-1]) for name in ("count", "shell"))
        context.events.emit(
            "iteration",
            iteration=number,
            at_most=len(parts.chunks),
            particles=int(count),
            resolution=spec.extent / max(shell, 1e-3),
        )

    return march(
        context, last=len(parts.chunks), begin=begin, step=step, report=report, prefix="part"
    )


def _report(
    context: Context, spec: ImageSpec, parts: _Parts, params: LineParams, result: Result
) -> dict[str, Path]:
    """Put a line through what was found; write, draw and say it."""
    events = context.events
    counts = np.asarray(result.model["count"], np.float64)
    shell = np.asarray(result.model["shell"], np.float64)
    resolution = spec.extent / np.maximum(shell, 1e-3)
    ended = shell >= spec.radius - AT_END
    used = ~ended & (resolution <= params.fit_from)
    line = fit_line(counts[used], resolution[used])
    outputs = {"table": context.folder / "bfactor_line.csv", "json": context.folder / "line.json"}
    _write_table(outputs["table"], parts, counts, resolution, used=used)
    found = _figures(line, counts, resolution, params)
    outputs["json"].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _draw(context, parts, counts, resolution, line=line)
    if ended.any():
        events.warning(
            f"{counted(int(ended.sum()), 'part')} reach the last shells, where the pixels and not "
            "the particles limit; they are left out of the line"
        )
    if line is None:
        events.warning(
            f"no line: fewer than {FEWEST_SIZES} numbers of particles give a resolution finer than "
            f"{params.fit_from:g} A that the pixels do not limit (--fit-from, --minimum)"
        )
    elif not math.isfinite(line.bfactor_range[1]):
        events.warning("the line may be flat: its slope is not known to be above 0")
    if line is not None and (resolution[used] > WILSON).any():
        events.message(
            f"some of the line lies beyond {WILSON:g} A, where amplitudes follow the shape of the "
            "particle: the B-factor says how the line rises there, not what sharpens a map"
        )
    if line is not None:
        _say(context, line, float(counts.max()), params)
    events.emit("result", **found)
    return outputs


def _figures(
    line: Line | None,
    counts: NDArray[np.float64],
    resolution: NDArray[np.float64],
    params: LineParams,
) -> dict[str, Any]:
    """Collect the figures of the end."""
    most = float(counts.max())
    whole = float(resolution[int(np.argmax(counts))])
    found: dict[str, Any] = {"particles": int(most), "resolution": whole, "bfactor": None}
    if line is None:
        return found
    low, high = line.bfactor_range
    found |= {
        "bfactor": _finite(line.bfactor),
        "bfactor_least": _finite(low),
        "bfactor_most": _finite(high),
        "points": line.points,
        "slope": line.slope,
        "slope_error": line.slope_error,
    }
    if line.slope > 0.0:
        for times in MORE:
            found[f"resolution_with_{times}_times"] = line.resolution(times * most)
        if params.target > 0.0:
            best, least, upper = line.particles(params.target)
            found["target_particles"] = _finite(best)
            found["target_particles_least"] = _finite(least)
            found["target_particles_most"] = _finite(upper)
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_table(
    path: Path,
    parts: _Parts,
    counts: NDArray[np.float64],
    resolution: NDArray[np.float64],
    *,
    used: NDArray[np.bool_],
) -> None:
    """Write a row for each part."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("draw", "particles", "ln_particles", "resolution_A", "1/d2", "in_line"))
        for draw, count, each, kept in zip(parts.draw, counts, resolution, used, strict=True):
            row = (f"{math.log(count):.5f}", f"{each:.4f}", f"{each**-2:.8f}", int(kept))
            writer.writerow((int(draw) + 1, int(count), *row))


def _draw(
    context: Context,
    parts: _Parts,
    counts: NDArray[np.float64],
    resolution: NDArray[np.float64],
    *,
    line: Line | None,
) -> None:
    """Draw 1 / d^2 of every drawing over ln N, and the line."""
    first = parts.draw == 0
    x, series = np.log(counts[first]), {}
    for number in range(int(parts.draw.max()) + 1):
        values = np.full(x.size, np.nan)
        at = parts.draw == number
        values[parts.size[at]] = resolution[at] ** -2.0
        series[f"drawing {number + 1}"] = values
    if line is not None:
        series[f"line, B {line.bfactor:.0f} A^2"] = np.array(
            [line.frequency2(count) for count in counts[first]]
        )
    context.events.picture(
        "line",
        picture.curves(x, cast("Mapping[str, Any]", series), xlabel="ln(number of particles)",
                       ylabel="1 / resolution^2 (1/A^2)"),
        title="resolution over the number of particles",
    )  # fmt: skip


def _say(context: Context, line: Line, most: float, params: LineParams) -> None:
    """Say what the line is and what more particles would bring."""
    low, high = (f"{each:.0f}" if math.isfinite(each) else "any" for each in line.bfactor_range)
    events = context.events
    events.message(
        f"B-factor of the line {line.bfactor:.0f} A^2 ({SURE:.0%}: {low} to {high}), of "
        f"{counted(line.points, 'part')}"
    )
    if line.slope <= 0.0:
        return
    gains = ", ".join(f"{line.resolution(times * most):.2f} A with {times} times" for times in MORE)
    events.message(
        f"the line comes to {line.resolution(most):.2f} A with these particles, {gains} as many"
    )
    if params.target > 0.0:
        best, least, upper = line.particles(params.target)
        events.message(
            f"{params.target:g} A would take about {_rounded(best)} particles ({SURE:.0%}: "
            f"{_rounded(least)} to {_rounded(upper)})"
        )


def _rounded(count: float) -> str:
    """Say a number of particles as far as it is known."""
    if not math.isfinite(count) or count >= 1e12:
        return "no number known"
    digits = max(0, math.floor(math.log10(max(count, 1.0))) - 1)
    return f"{int(round(count, -digits)):,}"


def plan(inputs: Mapping[str, Any], params: LineParams) -> dict[str, Any]:
    """Tell what a run would take, for ``--dry-run``."""
    check(params)
    particles, spec = _particles(inputs, params)
    _volume(inputs)
    halves = np.asarray(particles["half_set"].values)
    sizes = part_sizes(int(min((halves == half).sum() for half in (1, 2))), params.minimum)
    task = Added(spec, params.symmetry or "C1", anew=True)
    largest = max(len(chunk) for chunk in particle_chunks(particles, spec))
    peak = PROCESS + task.bytes_of_sums() + batch_bytes(task.bytes_per_item(), largest)
    return {
        "particles": int(particles.sizes["particle"]),
        "parts": ", ".join(str(2 * size) for size in sizes),
        "drawn": f"{counted(params.draws, 'time')}",
        "memory per worker": f"{(peak + kept_bands(spec, halves.size)) / 2**30:.2f} GiB",
    }


STAGE = Stage(
    "bfactor-line",
    "measure how the resolution rises with the number of particles, and what more would bring",
    LineParams,
    (
        Input("particles", "particles", help="refinement, or particles with poses and half sets"),
        Input("volume", "volume", positional=False, optional=True,
              help="refinement with the half maps; by default that of the particles"),
        Input("mask", "mask", positional=False, optional=True, help="mask of the FSC"),
    ),
    run,
    plan,
    lead=leading(LEAD_PARTICLE),
)  # fmt: skip
