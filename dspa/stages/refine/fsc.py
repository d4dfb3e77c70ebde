"""Validation of maps without refining again: FSC in masks, by direction, and against a model."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io import picture
from dspa.io.fsc_xml import write_fsc_xml
from dspa.io.volumes import check_cubic, read_volume, write_volume
from dspa.ops.maps.directional import (
    ANISOTROPIC,
    BY_CHANCE,
    FEWEST,
    DirectionalFSC,
    directional_fsc,
)
from dspa.ops.maps.fsc import TRUTH, resolution_shell
from dspa.stages.em.parameters import mask_diameter
from dspa.stages.refine.half_maps import tell
from dspa.stages.refine.model_fsc import compare_with_model
from dspa.stages.refine.output import draw_fsc, write_fsc
from dspa.stages.refine.postprocess import (
    SYMMETRY_HELP,
    given_maps,
    measure_halves,
    no_figure,
    read_halves,
    read_mask,
    read_pair,
    refuse_dark,
)
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dspa.dataflow.events import Events
    from dspa.ops.maps.resolution import Resolution


@dataclass(frozen=True)
class FSCParams:
    """Parameters of `dspa fsc`."""

    model: str = param(
        "", "atomic model, PDB or mmCIF (.gz too), to correlate with instead of a second map"
    )
    assembly: str = param("1", "biological assembly of the model to build; empty for none")
    align: bool = param(False, "find the motion that takes the model onto the map")
    mask_diameter: float = mask_diameter("diameter of the spherical mask", "the whole box")
    symmetry: str = param("", SYMMETRY_HELP)

    def together(self) -> None:
        """Refuse an alignment of nothing, and a group that is none."""
        if self.symmetry:
            check_symmetry(self.symmetry)
        if self.align and not self.model:
            raise InputError("--align moves a model onto the map; give --model FILE too")


def admit(inputs: Mapping[str, Any], params: FSCParams) -> None:
    """Refuse more maps than are correlated.

    Parameters
    ----------
    inputs : mapping
    params : FSCParams
    """
    maps = given_maps(inputs)
    if params.model and len(maps) != 1:
        raise InputError(f"{len(maps)} maps and --model; give one map with a model")
    if len(maps) > 2:
        raise InputError(f"{len(maps)} maps; give a job with half maps, or two maps")
    if params.model and not Path(params.model).expanduser().exists():
        raise InputError(f"{params.model}: there is no such file (--model)")


def run(context: Context, inputs: Mapping[str, Any], params: FSCParams) -> dict[str, Path]:
    """Correlate maps shell by shell.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``volume``: two maps, or one whose folder holds ``half1.mrc`` and ``half2.mrc``, or any one
        with a model; ``mask``: optional.
    params : FSCParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    admit(inputs, params)
    if params.model:
        return _against_model(context, inputs, params)
    maps, events = given_maps(inputs), context.events
    first, second = read_halves(maps[0]) if len(maps) == 1 else read_pair(*maps)
    refuse_dark(maps[0], first, second, events)
    pixel_size, box = first.pixel_size, first.density.shape[0]
    measured = measure_halves(context, inputs, (first, second), diameter=params.mask_diameter)
    reason = no_figure(context, maps, (first, second), measured, symmetry=params.symmetry)
    of = "the half maps" if len(maps) == 1 else "the two maps"
    extent, shells = box * pixel_size, (box - 1) // 2
    resolution = extent / max(min(measured.shell, float(shells)), 1e-3)
    outputs = _write(context, measured, pixel_size, resolution, reason=reason, of=of)
    cones = directional_fsc(
        first.density, second.density, mask=measured.mask, last=measured.last,
        claimed=measured.shell,
    )  # fmt: skip
    outputs["cones"] = context.folder / "cones.csv"
    write_cones(outputs["cones"], cones, extent=extent)
    if reason:
        events.emit("result", resolution=None, reason=reason, cfar=None)
        return outputs
    draw_directions(events, cones, extent=extent)
    say_directions(events, cones, extent=extent)
    plain = extent / max(min(measured.unmasked, shells), 1e-3)
    events.emit("result", resolution=resolution, unmasked_resolution=plain, cfar=cones.cfar)
    return outputs


def _against_model(
    context: Context, inputs: Mapping[str, Any], params: FSCParams
) -> dict[str, Path]:
    """Correlate a map with a model; the resolution is where the masked curve falls below 0.5."""
    volume, events = read_volume(given_maps(inputs)[0]), context.events
    pixel_size, box = volume.pixel_size, volume.density.shape[0]
    check_cubic(given_maps(inputs)[0], volume)
    mask = read_mask(inputs.get("mask"), volume.density, pixel_size=pixel_size, events=events)
    measured = compare_with_model(
        volume,
        Path(params.model).expanduser(),
        assembly=params.assembly,
        aligned=params.align,
        mask=mask,
        diameter=params.mask_diameter if params.mask_diameter > 0 else box * pixel_size,
        events=events,
        seed=context.seed,
    )
    extent, shells = box * pixel_size, (box - 1) // 2
    shell = resolution_shell(measured.curve("tight")[: shells + 1], threshold=TRUTH)
    reason = ""
    if shell < 1.0:
        reason = "map and model do not correlate; is the model in the frame of the map (--align)?"
    resolution = extent / max(shell, 1e-3)
    outputs = _write(
        context, measured, pixel_size, resolution, reason=reason, of="map and model", curve="tight"
    )
    if reason:
        events.emit("result", resolution=None, reason=reason)
        return outputs
    events.message(f"map and model correlate by 0.5 at {resolution:.2f} A in the mask")
    events.message(
        "the model may have been fitted to this map: the curve then says how well it was fitted, "
        "not how good either is"
    )
    events.emit("result", resolution=resolution)
    return outputs


def _write(
    context: Context,
    measured: Resolution,
    pixel_size: float,
    resolution: float,
    *,
    reason: str,
    of: str,
    curve: str = "corrected",
) -> dict[str, Path]:
    """Write mask and curves, and draw them; ``curve`` is the one that is deposited."""
    folder, box = context.folder, measured.mask.shape[0]
    extent, shells = box * pixel_size, (box - 1) // 2
    outputs = {"mask": folder / "mask.mrc", "fsc": folder / "fsc.star", "xml": folder / "fsc.xml"}
    write_volume(outputs["mask"], measured.mask, pixel_size=pixel_size)
    write_fsc(
        outputs["fsc"], measured.curves, extent=extent, shells=shells, resolution=resolution,
        reason=reason,
    )  # fmt: skip
    index = np.arange(shells + 1)
    name = "masked" if curve == "tight" else curve
    title = f"FSC of {of}, {name}"
    write_fsc_xml(outputs["xml"], index / extent, measured.curve(curve)[: shells + 1], title=title)
    tell(context.events, reason)
    draw_fsc(context.events, measured.curves, extent=extent, shells=shells, of=of)
    return outputs


def write_cones(path: Path, cones: DirectionalFSC, *, extent: float) -> None:
    """Write axis, resolution, area and curve of every cone as CSV.

    Parameters
    ----------
    path : Path
    cones : DirectionalFSC
    extent : float
        Edge of the box, A.
    """
    shells = cones.curves.shape[1] - 1
    frequency = [f"fsc_{shell / extent:.5f}" for shell in range(cones.first, shells + 1)]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["x", "y", "z", "resolution", "area", *frequency])
        for axis, shell, area, curve in zip(
            cones.axes, cones.shell, cones.area, cones.curves, strict=True
        ):
            numbers = (*axis, extent / max(shell, 1e-3), area, *curve[cones.first :])
            writer.writerow([f"{number:.5f}" for number in numbers])


def say_directions(events: Events, cones: DirectionalFSC, *, extent: float) -> None:
    """Say whether directions differ, and which is the poorest.

    Parameters
    ----------
    events : Events
    cones : DirectionalFSC
    extent : float
        Edge of the box, A.
    """
    left_out = (
        f"shells coarser than {extent / cones.first:.1f} A are left out: a cone holds fewer than "
        f"{FEWEST} coefficients there"
    )
    if cones.cfar is None:
        events.message(f"no cFAR: the map ends where cones begin to be counted ({left_out})")
        return
    best, worst = extent / cones.shell.max(), extent / cones.shell.min()
    x, y, z = cones.poorest
    where = f"poorest along x, y, z = ({x:.2f}, {y:.2f}, {z:.2f}) of the map"
    events.message(
        f"by direction {best:.2f} (as over all) to {worst:.2f} A; cFAR {cones.cfar:.2f}, {where}; "
        f"{left_out}"
    )
    if cones.anisotropic:
        events.warning(
            f"anisotropic: cFAR {cones.cfar:.2f} is below {ANISOTROPIC:g}, {where}; views across "
            "this direction are missing or poor, as where most particles are seen along it"
        )
    elif cones.cfar < ANISOTROPIC:
        events.message(
            f"directions differ no more than by chance in so few coefficients ({cones.short:.1f} "
            f"standard deviations; {BY_CHANCE:g} is asked for): no verdict on preferred views"
        )
    else:
        events.message("directions do not differ by much: no sign of preferred views")


def draw_directions(events: Events, cones: DirectionalFSC, *, extent: float) -> None:
    """Emit the picture of resolution by direction: half the sphere, areas kept, z in the middle.

    Parameters
    ----------
    events : Events
    cones : DirectionalFSC
    extent : float
        Edge of the box, A.
    """
    x, y, z = cones.axes.T
    scale = 1.0 / np.sqrt(1.0 + z)
    events.picture(
        "directions",
        picture.scatter(
            x * scale,
            y * scale,
            colour=extent / np.maximum(cones.shell, 1e-3),
            title="resolution by direction (A)",
            xlabel="x (z in the middle, x and y at the rim)",
            ylabel="y",
            equal=True,
        ),
        title="resolution by direction",
    )


STAGE = Stage(
    "fsc",
    "correlate half maps, two maps, or a map and a model, and say if directions differ",
    FSCParams,
    (
        Input(
            "volume", "volume", many=True,
            help="job with half maps, or a map with them beside, or two maps",
        ),
        Input("mask", "mask", positional=False, optional=True, help="mask; made if left out"),
    ),
    run,
    admit=admit,
)  # fmt: skip
