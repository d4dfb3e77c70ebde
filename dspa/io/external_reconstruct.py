"""RELION's form of an external reconstruction: sums and a STAR table out, a map back in.

RELION can leave the step from sums to a map to another program (``--external_reconstruct``), which
is given a STAR file: numerator and weight of each grid point of the padded transform, in the order
of FFTW (z and y from 0 to the end and then the negative ones, x from 0), and per shell the power
of the signal and the FSC of the halves. The program writes the map that the table names.

A numerator over its weight is a coefficient of an image in RELION's scale, the sum over pixels
divided by their number, and 1 / weight half of the noise power there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.device import to_host
from dspa.io import mrc
from dspa.io.star import Block, write_star
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.sums.grid import half_width, whole_slab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.ops.sums.backproject import Accumulator

_PARTS = ("data_real", "data_imag", "weight")


@dataclass(frozen=True)
class Request:
    """What a program is given, and where its answer is looked for.

    Attributes
    ----------
    folder : Path
        Names in the table are relative to it.
    stem : str
        What all files begin with; tells the half, as RELION's do.
    """

    folder: Path
    stem: str

    @property
    def star(self) -> str:
        """Name of the table."""
        return f"{self.stem}.star"

    @property
    def sums(self) -> dict[str, str]:
        """Names of the sums."""
        return {part: f"{self.stem}_{part}.mrc" for part in _PARTS}

    @property
    def result(self) -> Path:
        """The map that is to be made."""
        return self.folder / f"{self.stem}.mrc"


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the map beside its sums.

    Attributes
    ----------
    prior : (s,) float64
        What a Wiener filter adds to the weights, shell by shell.
    fsc : (s,) float64
        Of the halves, as the filter has it.
    pixel_size, diameter : float
        Of the voxels and of the particle's mask, A.
    mask : (n, n, n) float32, optional
        The user's mask.
    """

    prior: NDArray[np.float64]
    fsc: NDArray[np.float64]
    pixel_size: float
    diameter: float
    mask: NDArray[np.float32] | None = None


def write_request(request: Request, source: Accumulator, known: Known) -> None:
    """Write sums and table; an answer that is there from before is removed.

    Parameters
    ----------
    request : Request
    source : Accumulator
        Sums of slices, symmetrised if need be.
    known : Known
    """
    request.folder.mkdir(parents=True, exist_ok=True)
    request.result.unlink(missing_ok=True)
    padded, scale = source.padding * source.box, 2.0 * float(source.box) ** 2
    sums = to_host(source.sums)
    for column, (part, name) in enumerate(request.sums.items()):
        mrc.write(
            request.folder / name,
            _sections(sums, column, padded, scale / source.box if part != "weight" else scale),
            shape=(padded, padded, padded // 2 + 1),
            pixel_size=known.pixel_size,
        )
    singles = {
        "rlnExtReconsDataReal": request.sums["data_real"],
        "rlnExtReconsDataImag": request.sums["data_imag"],
        "rlnExtReconsWeight": request.sums["weight"],
        "rlnExtReconsResult": request.result.name,
        "rlnExtReconsResultStarfile": f"{request.stem}_out.star",
        "rlnPixelSize": known.pixel_size,
        "rlnParticleDiameter": known.diameter,
        "rlnTau2FudgeFactor": 1.0,
        "rlnPaddingFactor": float(source.padding),
        "rlnReferenceDimensionality": 3,
        "rlnOriginalImageSize": source.box,
        "rlnCurrentImageSize": 2 * source.radius,
    }
    if known.mask is not None:
        singles["rlnMaskName"] = name = f"{request.stem}_mask.mrc"
        write_volume(request.folder / name, known.mask, pixel_size=known.pixel_size)
    general = {label: np.array([value], object) for label, value in singles.items()}
    blocks = [
        Block("external_reconstruct_general", general, loop=False),
        Block("external_reconstruct_tau2", _spectra(source, known, scale), loop=True),
    ]
    write_star(request.folder / request.star, blocks)


def read_answer(request: Request, *, box: int) -> NDArray[np.float32]:
    """Read the map that a program made.

    Parameters
    ----------
    request : Request
    box : int
        Voxels that its edge must have.

    Raises
    ------
    InputError
        If there is none, or it has another box or values that are not finite.
    """
    if not request.result.exists():
        raise InputError(f"{request.result}: it was not written (rlnExtReconsResult)")
    density = read_volume(request.result, pixel_size=1.0).density
    if density.shape != (box,) * 3:
        given = " x ".join(str(edge) for edge in density.shape)
        raise InputError(f"{request.result}: {given} voxels, where rlnOriginalImageSize says {box}")
    return density


def remove_sums(request: Request) -> None:
    """Remove what is large and of no use when the answer is there.

    Parameters
    ----------
    request : Request
    """
    for name in request.sums.values():
        (request.folder / name).unlink(missing_ok=True)


def _sections(
    sums: NDArray[np.float32], column: int, padded: int, scale: float
) -> Iterator[NDArray[np.float32]]:
    """Give planes of constant z, in the order of FFTW; zero where the grid does not reach."""
    half = half_width(sums)
    reach = min(half, (padded - 1) // 2)
    edge = whole_slab(sums, slice(0, 1))[:, :, 0, column]
    rows = np.arange(-reach, reach + 1)
    for number in range(padded):
        plane = np.zeros((padded, padded // 2 + 1), np.float32)
        z = number if number <= padded // 2 else number - padded
        if abs(z) <= reach:
            part = sums[z + half, half - reach : half + reach + 1, : reach + 1, column].copy()
            part[:, 0] = edge[z + half, half - reach : half + reach + 1]
            plane[rows % padded, : reach + 1] = part * np.float32(scale)
        yield plane


def _spectra(source: Accumulator, known: Known, scale: float) -> dict[str, NDArray[Any]]:
    """Power of the signal per shell, such that RELION adds our prior to the weights."""
    shells = source.box // 2 + 1
    tau2, fsc = np.zeros(shells), np.zeros(shells)
    reach = min(shells, known.prior.size, source.radius + 1)
    tau2[:reach] = 1.0 / (float(source.padding) ** 3 * known.prior[:reach] * scale)
    within = min(reach, known.fsc.size)
    fsc[:within] = known.fsc[:within]
    return {
        "rlnSpectralIndex": np.arange(shells),
        "rlnReferenceTau2": tau2,
        "rlnGoldStandardFsc": fsc,
    }
