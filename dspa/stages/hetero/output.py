"""What heterogeneous refinement leaves behind: maps, half maps, particles of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.rotation import view_direction
from dspa.geometry.symmetry import views_around
from dspa.io import picture
from dspa.io.particles import write_particle_tables, write_particles
from dspa.io.rendering import volume_rendering
from dspa.ops.maps.fsc import resolution_shell
from dspa.ops.maps.resolution import CURVES
from dspa.stages.refine.output import posed, write_fsc, write_maps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.refine.model import MapModel, Maps


def resolution_of(maps: Maps, spec: ImageSpec) -> float:
    """Resolution of the half maps of a class, A."""
    shell = resolution_shell(maps.curves[CURVES.index("corrected")])
    return spec.extent / max(min(shell, float(spec.radius)), 1e-3)


def write_classes(
    folder: Path, model: MapModel, spec: ImageSpec, reasons: Sequence[str]
) -> dict[str, Path]:
    """Write maps, half maps, masks and FSC of every class.

    Parameters
    ----------
    folder : Path
    model : MapModel
    spec : ImageSpec
    reasons : sequence of str
        Why a class has no resolution; nothing where it has one.

    Returns
    -------
    outputs : dict
        ``volume_class1``, ``half1_class1``, ``half2_class1``, ``mask_class1``, ``fsc_class1`` ...
    """
    outputs: dict[str, Path] = {}
    shells = int(min(model.reached.radius, spec.radius))
    for number, (maps, reason) in enumerate(zip(model.maps, reasons, strict=True), 1):
        outputs |= write_class(folder, maps, spec, number=number, shells=shells, reason=reason)
    return outputs


def write_class(
    folder: Path, maps: Maps, spec: ImageSpec, *, number: int, shells: int, reason: str
) -> dict[str, Path]:
    """Write maps, half maps, mask and FSC of one class.

    Parameters
    ----------
    folder : Path
    maps : Maps
    spec : ImageSpec
    number : int
        Of the class, from 1.
    shells : int
        That hold data.
    reason : str
        Why it has no resolution, if it has none.
    """
    suffix = f"_class{number}"
    written = write_maps(folder, maps, spec, reason=reason, suffix=suffix)
    outputs = {f"{name}{suffix}": path for name, path in written.items()}
    table = folder / f"fsc{suffix}.star"
    write_fsc(
        table,
        maps.curves,
        extent=spec.extent,
        shells=shells,
        resolution=resolution_of(maps, spec),
        reason=reason,
    )
    return outputs | {f"fsc{suffix}": table}


def write_sorted(
    folder: Path,
    particles: xr.Dataset,
    state: Mapping[str, NDArray[Any]],
    rows: Mapping[str, NDArray[Any]],
    *,
    valid: NDArray[np.bool_],
    classes: int,
) -> dict[str, Path]:
    """Write all particles with class, pose and posterior, and those of each class.

    Parameters
    ----------
    folder : Path
    particles : Dataset
    state : mapping
        ``pose``, ``shift``, ``half_set`` and ``class_index`` of all particles.
    rows : mapping
        ``class_posterior``, ``log_likelihood`` and ``scale`` of all particles.
    valid : (n,) bool
    classes : int
    """
    best = state["class_index"]
    chance = np.nan_to_num(rows["class_posterior"])
    posterior = chance[np.arange(best.size), np.maximum(best, 0)]
    done = posed(
        particles.assign(class_index=("particle", np.asarray(best, np.int32))),
        state, rows, posterior=posterior,
    )  # fmt: skip
    used = np.flatnonzero(valid & (best >= 0))
    outputs = write_particle_tables(done, folder, rows=used)
    outputs["class_posteriors"] = folder / "class_posteriors.npy"
    np.save(outputs["class_posteriors"], chance[used].astype(np.float32))
    for number in range(classes):
        name = f"particles_class{number + 1}"
        own = used[best[used] == number]
        if own.size:
            outputs[name] = folder / f"{name}.zarr"
            write_particles(done, outputs[name], rows=own)
    return outputs


def show_classes(events: Events, made: Sequence[Maps], spec: ImageSpec, *, title: str) -> None:
    """Emit the central slices of all maps, one row per map, and their FSC."""
    volumes = [maps.volume for maps in made]
    centre = volumes[0].shape[0] // 2
    tiles, labels = [], []
    for number, volume in enumerate(volumes, 1):
        tiles += [volume[centre], volume[:, centre], volume[:, :, centre]]
        labels += [f"{number} xy", f"{number} xz", f"{number} yz"]
    drawn = picture.montage(np.stack(tiles), labels=labels, columns=3, tile=160)
    events.picture("slices", drawn, title=title)
    shell = np.arange(1, spec.radius + 1)
    corrected = CURVES.index("corrected")
    curves = {
        f"class {number}": maps.curves[corrected, 1 : spec.radius + 1]
        for number, maps in enumerate(made, 1)
    }
    drawn = picture.curves(
        shell / spec.extent,
        curves,
        title="Fourier shell correlation of the half maps",
        xlabel="resolution (A)",
        ylabel="FSC",
        thresholds={"0.143": 0.143, "0.5": 0.5},
        resolution=True,
        ylim=(-0.1, 1.05),
    )
    events.picture("fsc", drawn, title="gold-standard FSC")


def show_sorted(
    events: Events,
    made: Sequence[Maps],
    state: Mapping[str, NDArray[Any]],
    rows: Mapping[str, NDArray[Any]],
    *,
    valid: NDArray[np.bool_],
    symmetry: str,
) -> None:
    """Emit the pictures of the end: each map, its views, how certain the classes are."""
    best = np.where(valid, state["class_index"], -1)
    total = max(int((best >= 0).sum()), 1)
    for number, maps in enumerate(made, 1):
        own = best == number - 1
        share = f"{100 * own.sum() / total:.0f} % of the particles"
        events.picture(
            f"rendering_class{number}",
            volume_rendering(maps.volume),
            title=f"class {number}: {share}",
        )
        if own.any():
            views = views_around(view_direction(state["pose"][own]), symmetry)
            events.picture(
                f"views_class{number}",
                picture.angular_distribution(views),
                title=f"views of class {number}",
            )
    certain = rows["class_posterior"][best >= 0].max(axis=1, initial=0.0)
    if certain.size:
        events.picture(
            "posterior",
            picture.histogram(certain, xlabel="posterior of the class"),
            title="how certain the classes are",
        )
