"""What refinement leaves behind: maps, curves, particles with poses, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.symmetry import views_around
from dspa.io import picture
from dspa.io.particles import write_particle_tables
from dspa.io.rendering import volume_rendering
from dspa.io.star import Block, write_star
from dspa.io.volumes import write_volume
from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.postprocess import sharpen_map
from dspa.ops.maps.resolution import CURVES
from dspa.stages.particles.optics import shift_in_image

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.refine.model import MapModel, Maps

NO_RESOLUTION = "dspaNoResolution"  # in fsc.star instead of the resolution: why there is none
RESOLUTION = "rlnFinalResolution"
SYMMETRY = "rlnSymmetryGroup"
SHOWN = ("no mask", "spherical", "loose", "tight", "random phases", "corrected")


def write_maps(
    folder: Path, made: Maps, spec: ImageSpec, *, reason: str, suffix: str = ""
) -> dict[str, Path]:
    """Write the maps of the last iteration at the box and pixel size of the particles.

    Parameters
    ----------
    folder : Path
    made : Maps
        Of the last iteration.
    spec : ImageSpec
    reason : str
        Why there is no resolution; nothing is sharpened then, since nothing says how far.
    suffix : str
        Of the names of the files.

    Returns
    -------
    outputs : dict
        ``volume``, ``half1``, ``half2``, ``mask``, and ``volume_sharpened`` where there is a
        resolution.
    """
    maps = {
        "volume": made.volume,
        "half1": made.half[0],
        "half2": made.half[1],
        "mask": np.clip(made.fsc_mask, 0.0, 1.0),
    }
    if not reason:
        maps["volume_sharpened"] = sharpen_map(
            made.half.mean(axis=0),
            pixel_size=spec.crop_pixel_size,
            fsc=np.clip(made.curves[CURVES.index("corrected")], 0.0, 1.0),
            mask=made.fsc_mask,
        ).density
    outputs = {}
    for name, density in maps.items():
        full = resize_volume(np.asarray(density, np.float32), spec.box)
        outputs[name] = folder / f"{name}{suffix}.mrc"
        write_volume(outputs[name], full, pixel_size=spec.pixel_size)
    return outputs


def write_fsc(
    path: Path,
    curves: NDArray[np.float64],
    *,
    extent: float,
    shells: int,
    resolution: float,
    reason: str = "",
    symmetry: str = "",
) -> None:
    """Write the curves as a STAR file whose first labels are RELION's.

    Parameters
    ----------
    path : Path
    curves : (len(CURVES), s) float64
        In the order of `dspa.ops.maps.resolution.CURVES`.
    extent : float
        Edge of the box, A.
    shells : int
        Shells that hold data.
    resolution : float
        At 0.143 of the corrected curve, A.
    reason : str
        Why that is no resolution; it is written instead.
    symmetry : str
        Point group of the maps, where it is known.
    """
    index = np.arange(1, shells + 1)
    values = {name: curves[number, 1 : shells + 1] for number, name in enumerate(CURVES)}
    general: dict[str, NDArray[Any]] = {RESOLUTION: np.array([resolution])}
    if reason:
        general = {NO_RESOLUTION: np.array([reason], object)}
    if symmetry:
        general[SYMMETRY] = np.array([symmetry], object)
    table: dict[str, NDArray[Any]] = {
        "rlnSpectralIndex": index,
        "rlnResolution": index / extent,
        "rlnAngstromResolution": extent / index,
        "rlnFourierShellCorrelationCorrected": values["corrected"],
        "rlnFourierShellCorrelationUnmaskedMaps": values["no mask"],
        "rlnFourierShellCorrelationMaskedMaps": values["tight"],
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": values["random phases"],
        "dspaFscSpherical": values["spherical"],
        "dspaFscLoose": values["loose"],
    }
    write_star(path, [Block("general", general, loop=False), Block("fsc", table)])


def write_poses(
    folder: Path,
    particles: xr.Dataset,
    state: Mapping[str, NDArray[Any]],
    *,
    rows: Mapping[str, NDArray[Any]],
    valid: NDArray[np.bool_],
) -> dict[str, Path]:
    """Write the particles with their poses, shifts and half sets; those set aside are left out.

    Parameters
    ----------
    folder : Path
    particles : Dataset
    state : mapping
        ``pose``, ``shift``, ``half_set`` of all particles.
    rows : mapping
        ``log_likelihood``, ``probability`` and ``scale`` of all particles.
    valid : (n,) bool
    """
    done = posed(particles, state, rows, posterior=rows["probability"])
    return write_particle_tables(done, folder, rows=np.flatnonzero(valid))


def posed(
    particles: xr.Dataset,
    state: Mapping[str, NDArray[Any]],
    rows: Mapping[str, NDArray[Any]],
    *,
    posterior: NDArray[Any],
) -> xr.Dataset:
    """Put what `write_poses` writes into the columns of particles."""
    shift = shift_in_image(particles, np.asarray(state["shift"], np.float64))
    return particles.assign(
        pose=(("particle", "i", "j"), np.asarray(state["pose"], np.float64)),
        shift=(("particle", "xy"), shift),
        half_set=("particle", np.asarray(state["half_set"], np.int8)),
        posterior=("particle", np.asarray(posterior, np.float32)),
        log_likelihood=("particle", np.asarray(rows["log_likelihood"], np.float32)),
        scale=("particle", np.asarray(rows["scale"], np.float32)),
    )


def show_iteration(events: Events, made: Maps, spec: ImageSpec, *, iteration: int) -> None:
    """Emit the pictures of an iteration: central slices and the curves."""
    pixel_size = spec.crop_pixel_size
    events.picture(
        "slices",
        picture.volume_slices(made.volume, pixel_size=pixel_size),
        title=f"map after iteration {iteration}",
    )
    draw_fsc(events, made.curves, extent=spec.extent, shells=spec.radius)


def _views_title(count: int, symmetry: str) -> str:
    """Say how many particles the views on the whole sphere are of."""
    mates = "" if symmetry == "C1" else f", each with its {symmetry} mates"
    return f"viewing directions of {count:,} particles{mates}"


def draw_fsc(
    events: Events,
    curves: NDArray[np.float64],
    *,
    extent: float,
    shells: int,
    of: str = "the half maps",
) -> None:
    """Emit the picture of the FSC curves."""
    shell = np.arange(1, shells + 1)
    series = {name: curves[CURVES.index(name), 1 : shells + 1] for name in SHOWN}
    events.picture(
        "fsc",
        picture.curves(
            shell / extent,
            series,
            title=f"Fourier shell correlation of {of}",
            xlabel="resolution (A)",
            ylabel="FSC",
            thresholds={"0.143": 0.143, "0.5": 0.5},
            resolution=True,
            ylim=(-0.1, 1.05),
        ),
        title="gold-standard FSC" if of == "the half maps" else "FSC",
    )


def show_result(
    events: Events,
    model: MapModel,
    spec: ImageSpec,
    *,
    directions: NDArray[np.float64],
    symmetry: str,
) -> None:
    """Emit the pictures of the end: rendering, mask, views and their mates, progress."""
    events.picture("rendering", volume_rendering(model.maps[0].volume), title="map")
    mask = model.maps[0].fsc_mask
    events.picture("mask", picture.volume_slices(mask, mask=True), title="FSC mask")
    events.picture(
        "views",
        picture.angular_distribution(
            views_around(directions, symmetry), title=_views_title(len(directions), symmetry)
        ),
        title="viewing directions",
    )
    history = model.history
    if len(history) > 1:
        events.picture(
            "progress",
            picture.curves(
                np.arange(1, len(history) + 1),
                {
                    "FSC 0.143": spec.extent / np.maximum(history[:, 0], 1e-3),
                    "compared to": spec.extent / history[:, 1],
                },
                title="resolution per iteration",
                xlabel="iteration",
                ylabel="A",
            ),
            title="progress",
        )
