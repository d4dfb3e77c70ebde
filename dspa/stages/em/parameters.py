"""Parameters that several stages have, each declared once."""

from __future__ import annotations

from typing import Any

from dspa.stages.stage import param


def mask_diameter(
    what: str = "diameter of the circular mask on the images", whole: str = "nine tenths of the box"
) -> Any:
    """Declare ``mask_diameter``: of what, and what 0 stands for."""
    return param(0.0, f"{what}; 0: {whole}", unit="A", minimum=0.0, maximum=5000.0)


def max_resolution(whole: str = "as far as the pixels allow") -> Any:
    """Declare ``max_resolution``: what 0 stands for."""
    return param(
        0.0, f"finest resolution to go to; 0: {whole}", unit="A", minimum=0.0, maximum=100.0
    )


def max_shift(whole: str = "a tenth of the box") -> Any:
    """Declare ``max_shift``: what 0 stands for."""
    what = "largest shift against the centre of the box"
    return param(0.0, f"{what}; 0: {whole}", unit="A", minimum=0.0, maximum=1000.0)


def image_scale() -> Any:
    """Declare ``image_scale``."""
    return param(True, "fit the contrast of every image")
