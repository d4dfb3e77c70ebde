"""A mask from a map, an atomic model, or a shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.model import read_model
from dspa.io.overlay import mask_over_slices
from dspa.io.rendering import volume_rendering
from dspa.io.volumes import Volume, check_cubic, write_volume
from dspa.ops.maps.mask import largest_component, soft_cylinder, soft_dilation, soft_sphere
from dspa.ops.maps.region import (
    DENSITY,
    LEVEL,
    NOISE,
    automatic_level,
    near_atoms,
    pieces,
    without_holes,
)
from dspa.ops.maps.resolution import TIGHT
from dspa.ops.maps.sharpen import low_pass
from dspa.stages.refine.model_fsc import check_in_box, onto_map
from dspa.stages.refine.reference import check_contrast
from dspa.stages.stage import Context, Input, Stage, check, param
from dspa.stages.volumes.reading import is_mask, read_map

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events

FULL = 0.9  # of the box: such a mask hides nothing
SCATTERED = 0.9  # of the region: less in the largest piece is told


@dataclass(frozen=True)
class MaskParams:
    """Parameters of `dspa mask`."""

    threshold: float | None = param(
        None,
        "density where the particle begins, after the low-pass; found if left out",
        minimum=-1e12,
        maximum=1e12,
    )
    lowpass: float = param(
        15.0, "low-pass before the threshold; 0: none", unit="A", minimum=0.0, maximum=200.0
    )
    dilate: float | None = param(
        None, "how far the mask reaches beyond; 6 if left out, 0 for a sphere or cylinder",
        unit="A", minimum=0.0, maximum=500.0,
    )  # fmt: skip
    soft_edge: float = param(
        6.0, "width of the cosine edge added to that", unit="A", minimum=0.0, maximum=200.0
    )
    keep_largest: bool = param(False, "keep the largest piece alone")
    fill_holes: bool = param(False, "fill what the density encloses")
    invert: bool = param(False, "1 outside and 0 inside")
    model: str = param("", "atomic model, PDB or mmCIF (.gz too), to make the mask of")
    assembly: str = param("", "biological assembly of the model to build; empty: atoms as they are")
    align: bool = param(False, "find the motion that takes the model onto the map")
    atom_radius: float = param(
        3.0, "distance from an atom that counts as model", unit="A", minimum=0.5, maximum=6.0
    )
    sphere: float | None = param(
        None, "diameter of a sphere to make the mask of", unit="A", minimum=1.0, maximum=10000.0
    )
    cylinder: tuple[float, float] | None = param(
        None, "diameter and height of a cylinder along z", unit="A", minimum=1.0, maximum=10000.0
    )
    centre: tuple[float, float, float] = param(
        (0.0, 0.0, 0.0), "x, y, z of the sphere or cylinder from the centre of the box", unit="A",
        minimum=-10000.0, maximum=10000.0,
    )  # fmt: skip

    @property
    def shaped(self) -> bool:
        """Whether the mask is a sphere or a cylinder."""
        return self.sphere is not None or self.cylinder is not None

    @property
    def near(self) -> float:
        """How far the mask reaches beyond what it is made of, A."""
        if self.dilate is not None:
            return self.dilate
        return 0.0 if self.shaped else TIGHT[0]

    def together(self) -> None:
        """Refuse options that are of different masks."""
        made = [name for name, given in (
            ("--threshold", self.threshold is not None), ("--model", bool(self.model)),
            ("--sphere", self.sphere is not None), ("--cylinder", self.cylinder is not None),
        ) if given]  # fmt: skip
        if len(made) > 1:
            raise InputError(f"{' and '.join(made)} make different masks; give one of them")
        if (self.align or self.assembly) and not self.model:
            raise InputError("--align and --assembly are of a model; give --model FILE too")
        if self.shaped and (self.keep_largest or self.fill_holes):
            raise InputError("--keep-largest and --fill-holes do nothing to a sphere or cylinder")
        if any(self.centre) and not self.shaped:
            raise InputError("--centre is of a shape; give --sphere or --cylinder too")


def prepare(inputs: Mapping[str, Any], params: MaskParams) -> Volume:
    """Read the map, and refuse what no mask can be made of.

    Parameters
    ----------
    inputs : mapping
    params : MaskParams
    """
    path = Path(inputs["volume"])
    volume = read_map(path)
    check_cubic(path, volume)
    if params.model and not Path(params.model).expanduser().exists():
        raise InputError(f"{params.model}: there is no such file (--model)")
    if params.threshold is None and not params.model and not params.shaped:
        if is_mask(volume.density):
            raise InputError(
                f"{path}: is a mask (0 to 1); give a map, or --threshold 0.5 --lowpass 0 to make "
                "another mask of it"
            )
    elif params.threshold is not None and params.threshold > float(volume.density.max()):
        raise InputError(
            f"--threshold {params.threshold:g} is above the largest density of {path}, "
            f"{float(volume.density.max()):.4g}"
        )
    return volume


def run(context: Context, inputs: Mapping[str, Any], params: MaskParams) -> dict[str, Path]:
    """Make a mask on the grid of a map.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``volume``: the map; with a model or a shape its grid alone counts.
    params : MaskParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    volume, events = prepare(inputs, params), context.events
    figures: dict[str, Any] = {}
    if params.shaped:
        mask = _shape(volume, params)
    else:
        if params.model:
            region = _of_model(volume, params, events)
        else:
            region, figures["threshold"] = _of_density(inputs["volume"], volume, params, events)
        region = _tidied(region, volume.pixel_size, params, events)
        mask = soft_dilation(
            region, pixel_size=volume.pixel_size, near=params.near,
            far=params.near + params.soft_edge,
        )  # fmt: skip
    if not mask.any():
        raise InputError("the mask is empty: nothing of the shape lies in the box")
    mask = (1.0 - mask).astype(np.float32) if params.invert else mask
    figures |= _judged(mask, volume.pixel_size, inverted=params.invert, events=events)
    target = context.folder / "mask.mrc"
    write_volume(target, mask, pixel_size=volume.pixel_size, origin=volume.origin)
    events.picture("mask", mask_over_slices(volume.density, mask), title="the mask over the map")
    events.picture("rendering", volume_rendering(mask, level=0.5), title="surface of the mask")
    events.emit("result", **figures)
    return {"mask": target}


def _of_density(
    path: str | Path, volume: Volume, params: MaskParams, events: Events
) -> tuple[NDArray[np.bool_], float]:
    """Threshold a map; returns the region and the threshold."""
    density, of = volume.density, "the map"
    if params.lowpass > 0:
        low_passed = low_pass(density, params.lowpass, pixel_size=volume.pixel_size)
        density, of = np.asarray(low_passed, np.float32), f"the map at {params.lowpass:g} A"
    if params.threshold is not None:
        if params.threshold > float(density.max()):
            raise InputError(
                f"--threshold {params.threshold:g} is above the largest density of {of}, "
                f"{float(density.max()):.4g}: the mask would be empty"
            )
        events.message(f"threshold {params.threshold:.4g}, as given, in {of}")
        return density >= np.float32(params.threshold), params.threshold
    check_contrast(path, density, events)
    level = automatic_level(density)
    how = f"{LEVEL:g} of the way from the solvent ({level.solvent:.3g}) to the top density"
    how = f"{how} ({level.top:.3g}, mean of the highest thousandth)"
    if level.noisy:
        how = f"above {LEVEL:g} of the way to the top density ({level.top:.3g}), for noise: the "
        how += f"solvent is {level.solvent:.3g} +- {level.deviation:.2g} (at most {NOISE:g} times)"
    events.message(f"threshold {level.value:.4g} in {of}: {how}")
    return density >= np.float32(level.value), level.value


def _of_model(volume: Volume, params: MaskParams, events: Events) -> NDArray[np.bool_]:
    """Tell which voxels are near atoms."""
    path, box = Path(params.model).expanduser(), volume.density.shape[0]
    atoms = read_model(path, assembly=params.assembly, centred=False)
    centre = np.array(volume.origin) + (box // 2) * volume.pixel_size
    if params.align:
        atoms = onto_map(atoms, volume, centre, events)
    # What weighs less than nothing is the ice that an atom displaces, in the same place.
    positions = atoms.positions[atoms.weights > 0] - centre
    check_in_box(path, positions, volume, events)
    return near_atoms(positions, radius=params.atom_radius, box=box, pixel_size=volume.pixel_size)


def _shape(volume: Volume, params: MaskParams) -> NDArray[np.float32]:
    """Make a sphere or a cylinder."""
    box, pixel_size, wider = volume.density.shape[0], volume.pixel_size, 2.0 * params.near
    if params.sphere is not None:
        radius = 0.5 * (params.sphere + wider)
        return soft_sphere(
            box, radius, pixel_size=pixel_size, edge=params.soft_edge, centre=params.centre
        )
    assert params.cylinder is not None
    diameter, height = (length + wider for length in params.cylinder)
    return soft_cylinder(
        box, radius=0.5 * diameter, height=height, pixel_size=pixel_size, edge=params.soft_edge,
        centre=params.centre,
    )  # fmt: skip


def _tidied(
    region: NDArray[np.bool_], pixel_size: float, params: MaskParams, events: Events
) -> NDArray[np.bool_]:
    """Keep the largest piece and fill holes as asked, and say what the region encloses."""
    sizes = pieces(region)
    if not sizes.size:
        raise InputError("the mask is empty: no voxel is above the threshold or near an atom")
    share = float(sizes[0] / sizes.sum())
    if params.keep_largest:
        region = largest_component(region)
    if params.fill_holes:
        region = without_holes(region)
    events.message(f"before it is widened it encloses {_size(region, pixel_size)}")
    if sizes.size > 1 and params.keep_largest:
        events.message(f"{sizes.size - 1} smaller pieces, {1.0 - share:.1%} of it, are left out")
    elif share < SCATTERED:
        events.warning(
            f"it is in {sizes.size} pieces, {share:.0%} of it in the largest; for a single "
            "particle raise --threshold, low-pass further, or add --keep-largest"
        )
    elif sizes.size > 1:
        events.message(f"it is in {sizes.size} pieces, {share:.1%} of it in the largest")
    return region


def _judged(
    mask: NDArray[np.float32], pixel_size: float, *, inverted: bool, events: Events
) -> dict[str, float]:
    """Say what a mask encloses, and warn of one that is cut off or hides nothing."""
    inside = mask >= 0.5
    if not inside.any():
        raise InputError("the mask holds no value above 0.5; make it larger")
    share = float(inside.mean())
    events.message(f"the mask (0.5 and above) encloses {_size(inside, pixel_size)}, {share:.1%} "
                   "of the box")  # fmt: skip
    faces = [mask.take(at, axis) for axis in range(3) for at in (0, -1)]
    if not inverted and any(face.any() for face in faces):
        events.warning(
            "the mask reaches the faces of the box and is cut off there, without an edge; use a "
            "higher threshold, a smaller dilation, or a larger box"
        )
    if not inverted and share > FULL:
        events.warning(f"the mask fills {share:.0%} of the box; check the threshold")
    volume = float(inside.sum()) * pixel_size**3
    return {"mask_kDa": 1e-3 * DENSITY * volume, "share_of_box": share}


def _size(region: NDArray[np.bool_], pixel_size: float) -> str:
    volume = float(np.count_nonzero(region)) * pixel_size**3
    return f"{volume:,.0f} A^3 ({1e-3 * DENSITY * volume:,.0f} kDa at {DENSITY:g} Da/A^3)"


STAGE = Stage(
    "mask",
    "make a mask from a map, an atomic model or a shape",
    MaskParams,
    (Input("volume", "volume", help="map; the mask has its grid and origin"),),
    run,
    admit=prepare,
)
