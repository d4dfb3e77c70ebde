"""Import a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspa.data.errors import InputError
from dspa.io.picture import volume_slices
from dspa.io.plausible import check_voxel_size
from dspa.io.volumes import check_cubic, read_volume, write_volume
from dspa.ops.images.normalise import is_flat
from dspa.stages.stage import Context, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa import volume``."""

    file: str = param(help="MRC or CCP4 map.")
    pixel_size: float | None = param(
        None, "Voxel size, instead of the header's.", unit="A", minimum=0.01, maximum=10000
    )
    invert: bool = param(False, "Turn the sign: the molecule is dark in the file.")


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Check a map and write it with standard axes and header."""
    if params.file.lower().endswith(".cs"):
        raise InputError(
            f"{params.file}: a .cs file only lists maps; give the .mrc file that its job wrote"
        )
    volume = read_volume(params.file, pixel_size=params.pixel_size)
    if not volume.size_known:
        raise InputError(
            f"{params.file}: the header says 1 A per voxel, which programs write that do not know "
            "it; give --pixel-size (1 if that is right)"
        )
    check_voxel_size(params.file, volume.pixel_size, given=params.pixel_size is not None)
    density = -volume.density if params.invert else volume.density
    check_cubic(params.file, volume)
    shape = density.shape
    if is_flat(volume.density):
        raise InputError(f"{params.file}: every voxel is {float(volume.density.flat[0]):g}")
    target = context.folder / "volume.mrc"
    write_volume(
        target,
        density,
        pixel_size=volume.pixel_size,
        origin=volume.origin,
        size_sure=volume.size_sure,
    )
    context.events.picture(
        "slices",
        volume_slices(density, pixel_size=volume.pixel_size),
        title="central slices",
    )
    context.events.message(f"{shape[0]} voxels of {volume.pixel_size:.4g} A along each edge")
    context.events.emit("result", box=shape[0], pixel_size=volume.pixel_size)
    return {"volume": target}


VOLUME_STAGE = Stage("import volume", "bring in a map", Params, (), run)
