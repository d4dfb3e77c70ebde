"""What ab initio leaves behind: maps, particles with classes and poses, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.rotation import view_direction
from dspa.io import picture
from dspa.io.particles import write_particle_tables
from dspa.io.rendering import volume_rendering
from dspa.io.volumes import write_volume
from dspa.ops.images.transform import resize_volume
from dspa.stages.particles.optics import shift_in_image

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.abinitio.model import FirstMaps
    from dspa.stages.abinitio.schedule import StepPlan
    from dspa.stages.particles.chunks import ImageSpec

Rows = dict[str, "NDArray[Any]"]


def write_volumes(folder: Path, density: NDArray[np.float32], spec: ImageSpec) -> dict[str, Path]:
    """Write the maps at the box and pixel size of the particles.

    Parameters
    ----------
    folder : Path
    density : (k, n, n, n) float32
    spec : ImageSpec

    Returns
    -------
    outputs : dict
        ``volume``, or ``volume_class1``...; ``volume`` is then the first.
    """
    outputs: dict[str, Path] = {}
    for number, volume in enumerate(density, start=1):
        name = "volume" if len(density) == 1 else f"volume_class{number}"
        path = folder / f"{name}.mrc"
        full = resize_volume(np.asarray(volume, np.float32), spec.box)
        write_volume(path, full, pixel_size=spec.pixel_size)
        outputs[name] = path
    return outputs


def write_particle_results(
    folder: Path, particles: xr.Dataset, rows: Mapping[str, NDArray[Any]]
) -> dict[str, Path]:
    """Write the particles with class, pose, shift and posterior; those set aside are left out."""
    shift = shift_in_image(particles, np.asarray(rows["shift"], np.float64))
    done = particles.assign(
        pose=(("particle", "i", "j"), np.asarray(rows["pose"], np.float64)),
        shift=(("particle", "xy"), shift),
        class_index=("particle", np.asarray(rows["class_index"], np.int32)),
        posterior=("particle", np.asarray(rows["posterior"], np.float32)),
        log_likelihood=("particle", np.asarray(rows["log_likelihood"], np.float32)),
    )
    used = np.flatnonzero(rows["class_index"] >= 0)
    return write_particle_tables(done, folder, rows=used)


def show_progress(events: Events, model: FirstMaps, plan: StepPlan) -> None:
    """Emit the central slices of all maps after a step."""
    resolution = plan.settings.spec.extent / plan.radius
    events.picture(
        "slices",
        _slices(model.density, plan.settings.spec),
        title=f"maps after step {plan.iteration}, images compared to {resolution:.1f} A",
    )


def show_result(
    events: Events, model: FirstMaps, rows: Mapping[str, NDArray[Any]], spec: ImageSpec
) -> None:
    """Emit slices and renderings of the maps, and where the particles went."""
    density = model.density
    events.picture("slices", _slices(density, spec), title="central slices of the maps")
    classes = rows["class_index"]
    used = classes >= 0
    _show_history(events, model.history)
    for number, volume in enumerate(density, start=1):
        share = float((classes[used] == number - 1).mean()) if used.any() else 0.0
        many = len(density) > 1
        events.picture(
            f"rendering_class{number}" if many else "rendering",
            volume_rendering(volume),
            title=f"class {number}: {100 * share:.0f} % of the particles" if many else "the map",
        )
        chosen = classes == number - 1
        if chosen.any():
            events.picture(
                f"views_class{number}" if many else "views",
                picture.angular_distribution(view_direction(rows["pose"][chosen])),
                title=f"views of class {number}" if many else "views",
            )
    if len(density) > 1 and used.any():
        events.picture(
            "posterior",
            picture.histogram(rows["posterior"][used], xlabel="posterior of the class"),
            title="how certain the classes are",
        )


def _show_history(events: Events, history: NDArray[np.float64]) -> None:
    """Emit how resolution and effective sample size went, step by step."""
    if len(history) < 3:
        return
    series = {"compared to, A": history[1:, 0], "poses per image (effective)": history[1:, 2]}
    drawn = picture.curves(
        np.arange(1, len(history)), series, xlabel="step", logarithmic=True, title="steps"
    )
    events.picture("steps", drawn, title="to where images are compared, and spread of the poses")


def _slices(density: NDArray[np.float32], spec: ImageSpec) -> bytes:
    """Three central slices of every map; one row per map."""
    if len(density) == 1:
        return picture.volume_slices(density[0], pixel_size=spec.crop_pixel_size)
    centre = density.shape[1] // 2
    tiles, labels = [], []
    for number, volume in enumerate(density, start=1):
        tiles += [volume[centre], volume[:, centre], volume[:, :, centre]]
        labels += [f"{number} xy", f"{number} xz", f"{number} yz"]
    return picture.montage(np.stack(tiles), labels=labels, columns=3, tile=160)
