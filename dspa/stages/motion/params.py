"""Parameters of ``dspa motion``, named as RELION and cryoSPARC name them."""

from __future__ import annotations

from dataclasses import dataclass

from dspa.data.errors import InputError
from dspa.stages.stage import param


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa motion``."""

    patches: tuple[int, int] = param(
        (5, 5), "Patches along x and y; fewer than 3: whole frames only.", minimum=1, maximum=40
    )
    bfactor: float = param(
        150.0, "B-factor of the first searches.", unit="px^2", minimum=0, maximum=100000
    )
    bin: float = param(
        1.0, "Pixels of a movie, along an edge, in one of the micrograph.", minimum=1, maximum=16
    )
    dose_weighting: bool = param(True, "Weight frames by their dose.")
    dose_per_frame: float | None = param(
        None, "Dose of a frame, if the movies do not say.", unit="e/A^2", minimum=0, maximum=1000
    )
    pre_exposure: float = param(
        0.0, "Dose before the first frame.", unit="e/A^2", minimum=0, maximum=1000
    )
    voltage: float | None = param(
        None, "Acceleration voltage, instead of the movies'.", unit="kV", minimum=10, maximum=1e4
    )
    first_frame: int = param(1, "First frame that is used.", minimum=1, maximum=1000000)
    last_frame: int = param(0, "Last frame that is used (0: all).", minimum=0, maximum=1000000)
    gain: str | None = param(
        None, "Gain reference, instead of that of the import (MRC, TIFF, Falcon .gain)."
    )
    gain_rotate: int = param(
        0, "Quarter turns of the gain reference, clockwise, before the flip.", minimum=0, maximum=3
    )
    gain_flip: str = param(
        "none", "Flip it upside down (y) or left to right (x).", choices=("none", "y", "x")
    )
    gain_use: str = param(
        "auto",
        "Multiply frames with it or divide them by it.",
        choices=("auto", "multiply", "divide"),
    )
    defect: str | None = param(
        None, "Bad pixels: an image of them (1: bad), or a text file of x y width height."
    )
    eer_grouping: int = param(
        40, "Frames of an EER movie that make one.", minimum=1, maximum=100000
    )
    eer_upsampling: str = param(
        "1", "Pixels of an EER movie, along an edge, in a physical one.", choices=("1", "2", "4")
    )
    save_nodw: bool = param(False, "Write the sum without dose weights too.")
    even_odd: bool = param(False, "Write the sums of odd and even frames too.")
    dtype: str = param("float16", "Numbers of micrographs.", choices=("float16", "float32"))
    micrographs: int = param(0, "Only so many movies (0: all).", minimum=0, maximum=1_000_000_000)

    def together(self) -> None:
        """Refuse frames that end before they begin."""
        if self.last_frame and self.last_frame < self.first_frame:
            raise InputError("--last-frame must not be below --first-frame")
        if self.gain is None and (self.gain_rotate or self.gain_flip != "none"):
            raise InputError("--gain-rotate and --gain-flip turn the file of --gain; give it too")
