"""What noise and contrast ask of the plan of a pass, whichever stage makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dspa.stages.particles.chunks import ImageSpec


class PassSettings(Protocol):
    """What stays the same through a run."""

    @property
    def groups(self) -> int:
        """Groups of images that share their noise."""
        ...


class PassPlan(Protocol):
    """A pass over particles."""

    @property
    def spec(self) -> ImageSpec:
        """Of the images."""
        ...

    @property
    def settings(self) -> PassSettings:
        """What stays the same through a run."""
        ...

    @property
    def reach(self) -> int:
        """Radius to which references explain images, Fourier pixels."""
        ...

    @property
    def uncertainty(self) -> float:
        """Factor on the noise power."""
        ...

    @property
    def step(self) -> float:
        """Weight of this pass against what was known: 1 forgets."""
        ...

    @property
    def share(self) -> float:
        """Of all particles that this pass visits."""
        ...

    @property
    def iteration(self) -> int:
        """Number of the pass."""
        ...

    @property
    def update_noise(self) -> bool:
        """Whether to estimate the noise from what references leave of the images."""
        ...

    @property
    def blind(self) -> bool:
        """Whether coefficients are added up with weights they had no say in."""
        ...

    @property
    def image_scale(self) -> bool:
        """Whether to fit the contrast of every image."""
        ...
