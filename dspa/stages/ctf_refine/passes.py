"""The passes of CTF refinement over particles, as reductions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace, to_host
from dspa.ops.ctf.defocus_fit import defocus_likelihood
from dspa.ops.ctf.model import wavelength
from dspa.ops.images.transform import band_to_images, images_to_band
from dspa.ops.sums.fixed import add_exact, exact, exact_value
from dspa.stages.ctf_refine.views import Scope, View, Viewer
from dspa.stages.em.halves import HALVES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.particles.chunks import ParticleBatch

RUN = 0.25  # Fourier pixels: coefficients whose |k| is this near turn alike with defocus
# What `Aberrations` sums for every coefficient of an optics group.
ODD = ("cross_real", "cross_imaginary", "power")
EVEN = ("ss", "sc", "cc", "s", "c")
MAGNIFICATION = ("xx", "xy", "yy", "x", "y", "vx", "vy")


@dataclass(frozen=True)
class Scale:
    """Reduction: by what half maps must be multiplied, and the power of what is left.

    Attributes
    ----------
    scope : Scope
    """

    scope: Scope

    def bind(self, model: Model, items: int = 0) -> BoundScale:
        """Make the half maps ready."""
        return BoundScale(Viewer.of(self.scope, model))

    def bytes_per_item(self) -> int:
        """Memory per image."""
        return self.scope.bytes_per_item()

    def bytes_of_sums(self) -> int:
        """Memory of the half maps; the sums are small."""
        return bytes_of_maps(self.scope)


def bytes_of_maps(scope: Scope) -> int:
    """Memory of two half maps and of their padded transforms."""
    return 2 * (4 * scope.spec.crop**3 + 8 * (4 * scope.last + 3) ** 3)


@dataclass(frozen=True, eq=False)
class BoundScale:
    """The pass with its half maps."""

    viewer: Viewer

    def start(self) -> Sums:
        """Return empty sums."""
        shape = (2, self.viewer.scope.last + 1)
        return {name: exact(shape) for name in (*SCALE, "count")}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Add products of images and slices, by half and shell."""
        view, shells = self.viewer.view(batch, raw=True), self.viewer.scope.shells()
        poses = batch.state["pose"][view.rows]
        across = self.viewer.slices(poses, 3 - view.half, reference=view.images)
        products = _scale_products(view, across)
        xp = namespace(view.images)
        for number, half in enumerate(HALVES):
            some = like(np.flatnonzero(view.half == half), reference=view.images)
            for name, values in products.items():
                total = to_host(xp.sum(xp.astype(values[some], xp.float64), axis=0))
                add_exact(sums[name][number], _by_shell(total, shells))
            members = np.full(shells.size, float(some.shape[0]))
            add_exact(sums["count"][number], _by_shell(members, shells))
        return {"valid": batch.valid}

    def finish(self, sums: Sums) -> Model:
        """Return ``amplitude``, ``own`` and ``residual`` (2, shells)."""
        of = {name: exact_value(value) for name, value in sums.items()}
        own = (of["cross"] - of["cross_other"]) / np.maximum(of["share"], 1e-30)
        amplitude = of["cross_other"] / np.maximum(of["other"], 1e-30)
        left = of["images"] - amplitude * of["cross_other"]
        residual = left / np.maximum(of["count"], 1.0)
        return {"amplitude": amplitude, "own": np.maximum(own, 0.0), "residual": residual}


# What `Scale` sums: of an image with the slice of its own half map and of the other.
SCALE = ("cross", "cross_other", "other", "share", "images")


def _scale_products(view: View, across: Any) -> dict[str, Any]:
    """Products of images (n, f) with slices of their own half map and of the other."""
    xp = namespace(view.images)

    def product(one: Any, two: Any) -> Any:
        return xp.real(xp.conj(one) * two)

    model, other = view.slices * view.sine, across * view.sine
    return {
        "cross": product(model, view.images),
        "cross_other": product(other, view.images),
        "other": product(other, other),
        "share": product(view.share * view.sine, view.images),
        "images": product(view.images, view.images),
    }


def _by_shell(values: NDArray[np.float64], shells: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.asarray(np.bincount(shells, values, minlength=int(shells.max()) + 1), np.float64)


@dataclass(frozen=True)
class Focus:
    """Reduction: the log-likelihood of every image over a range of defocus.

    Attributes
    ----------
    scope : Scope
    grid : tuple of float
        Changes of defocus, A.
    """

    scope: Scope
    grid: tuple[float, ...]

    def bind(self, model: Model, items: int = 0) -> BoundFocus:
        """Make the half maps ready."""
        return BoundFocus(Viewer.of(self.scope, model), np.array(self.grid))

    def bytes_per_item(self) -> int:
        """Memory per image."""
        return self.scope.bytes_per_item() + 16 * len(self.grid)

    def bytes_of_sums(self) -> int:
        """Memory of the half maps."""
        return bytes_of_maps(self.scope)


@dataclass(frozen=True, eq=False)
class BoundFocus:
    """The pass with its half maps."""

    viewer: Viewer
    grid: NDArray[np.float64]

    def start(self) -> Sums:
        """Return no sums but a count: the rows are what is asked for."""
        return {"count": exact()}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Tabulate the log-likelihood of a batch; rows without an image are zero."""
        view, scope = self.viewer.view(batch), self.viewer.scope
        add_exact(sums["count"], view.rows.size)
        modulus = scope.spec.band().modulus[: scope.count]
        run = np.floor(modulus / RUN).astype(np.int64)
        starts = np.flatnonzero(np.diff(run, prepend=-1))
        middle = np.add.reduceat(modulus, starts) / np.diff(starts, append=modulus.size)
        k2 = (middle / scope.spec.extent) ** 2
        xp = namespace(view.images)
        cross = xp.real(xp.conj(view.slices) * view.images) * view.weight
        power = xp.real(view.slices * xp.conj(view.slices)) * view.weight
        table = np.zeros((len(batch), self.grid.size), np.float32)
        lengths = wavelength(view.ctf.voltage)
        for length in np.unique(lengths):
            some = np.flatnonzero(lengths == length)
            at = like(some, reference=view.images)
            turns = -np.pi * length * k2[:, None] * self.grid
            found = defocus_likelihood(
                view.sine[at], view.cosine[at], cross[at], power[at], turns=turns, starts=starts
            )
            table[view.rows[some]] = to_host(found)
        return {"likelihood": table, "valid": batch.valid}

    def finish(self, sums: Sums) -> Model:
        """Return nothing."""
        return {}


@dataclass(frozen=True)
class Slope:
    """Reduction: what every image says of a small change of defocus and astigmatism.

    Rows are the slope (3,) of its log-likelihood along the mean defocus and the two parts of the
    vector of astigmatism (1/A), and Fisher's information (3, 3).

    Attributes
    ----------
    scope : Scope
    """

    scope: Scope

    def bind(self, model: Model, items: int = 0) -> BoundSlope:
        """Make the half maps ready."""
        return BoundSlope(Viewer.of(self.scope, model))

    def bytes_per_item(self) -> int:
        """Memory per image."""
        return self.scope.bytes_per_item()

    def bytes_of_sums(self) -> int:
        """Memory of the half maps."""
        return bytes_of_maps(self.scope)


@dataclass(frozen=True, eq=False)
class BoundSlope:
    """The pass with its half maps."""

    viewer: Viewer

    def start(self) -> Sums:
        """Return no sums but a count."""
        return {"count": exact()}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Differentiate the log-likelihood of a batch."""
        view = self.viewer.view(batch)
        add_exact(sums["count"], view.rows.size)
        xp = namespace(view.images)
        kx, ky = self.viewer.scope.frequencies()
        terms = np.stack([kx * kx + ky * ky, kx * kx - ky * ky, 2.0 * kx * ky])
        pairs = np.stack([terms[i] * terms[j] for i in range(3) for j in range(3)])
        power = xp.real(view.slices * xp.conj(view.slices))
        left = xp.real(xp.conj(view.slices) * view.images) - view.sine * power
        first = to_host((2.0 * view.weight * view.cosine * left) @ _column(terms, view))
        second = to_host((2.0 * view.weight * view.cosine**2 * power) @ _column(pairs, view))
        # d gamma / d defocus; the CTF is -E sin gamma.
        turn = -np.pi * wavelength(view.ctf.voltage)[:, None]
        slope, information = np.zeros((len(batch), 3)), np.zeros((len(batch), 3, 3))
        slope[view.rows] = turn * first
        information[view.rows] = (turn**2 * second).reshape(-1, 3, 3)
        return {"slope": slope, "information": information, "valid": batch.valid}

    def finish(self, sums: Sums) -> Model:
        """Return nothing."""
        return {}


def _column(terms: NDArray[np.float64], view: View) -> Any:
    return like(np.ascontiguousarray(terms.T).astype(np.float32), reference=view.images)


@dataclass(frozen=True)
class Aberrations:
    """Reduction: sums over the images of each optics group, for every Fourier coefficient.

    Attributes
    ----------
    scope : Scope
    magnification : bool
        Whether sums for the magnification are made, which take two more transforms an image.
    """

    scope: Scope
    magnification: bool

    def bind(self, model: Model, items: int = 0) -> BoundAberrations:
        """Make the half maps ready."""
        return BoundAberrations(self, Viewer.of(self.scope, model))

    def bytes_per_item(self) -> int:
        """Memory per image."""
        return self.scope.bytes_per_item() + 32 * self.scope.spec.crop**2

    def bytes_of_sums(self) -> int:
        """Memory of the half maps and of the sums."""
        return bytes_of_maps(self.scope) + 48 * 15 * self.scope.groups * self.scope.count


@dataclass(frozen=True, eq=False)
class BoundAberrations:
    """The pass with its half maps."""

    task: Aberrations
    viewer: Viewer

    def _names(self) -> tuple[str, ...]:
        return ODD + EVEN + (MAGNIFICATION if self.task.magnification else ())

    def start(self) -> Sums:
        """Return empty sums."""
        scope = self.task.scope
        made = {name: exact((scope.groups, scope.count)) for name in self._names()}
        return made | {"images": exact((scope.groups,))}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Add the products of a batch to those of its optics groups."""
        view = self.viewer.view(batch)
        xp = namespace(view.images)
        products = self._products(view)
        for group in np.unique(view.optics):
            some = like(np.flatnonzero(view.optics == group), reference=view.images)
            add_exact(sums["images"][group], float(some.shape[0]))
            for name, values in products.items():
                total = xp.sum(xp.astype(values[some], xp.float64), axis=0)
                add_exact(sums[name][group], to_host(total))
        return {"valid": batch.valid}

    def _products(self, view: View) -> dict[str, Any]:
        xp = namespace(view.images)
        cross = xp.conj(view.slices) * view.images * view.weight
        power = xp.real(view.slices * xp.conj(view.slices)) * view.weight
        sine, cosine, along = view.sine, view.cosine, xp.real(cross)
        made = {
            "cross_real": sine * along,
            "cross_imaginary": sine * xp.imag(cross),
            "power": sine**2 * power,
            "ss": sine**2 * power,
            "sc": sine * cosine * power,
            "cc": cosine**2 * power,
            "s": sine * along,
            "c": cosine * along,
        }
        if not self.task.magnification:
            return made
        left = (view.images - sine * view.slices) * view.weight * sine
        slopes = self._gradient(view)
        for one, down in (("x", slopes[0]), ("y", slopes[1])):
            made[one] = xp.real(xp.conj(down) * left)
            made[f"v{one}"] = xp.real(xp.conj(down) * view.slices) * sine**2 * view.weight
        for pair, first, second in (("xx", 0, 0), ("xy", 0, 1), ("yy", 1, 1)):
            product = xp.real(xp.conj(slopes[first]) * slopes[second])
            made[pair] = product * sine**2 * view.weight
        return made

    def _gradient(self, view: View) -> list[Any]:
        """Differentiate slices along kx and ky (1/A): transforms of images times coordinates.

        Of the map as it is, which is compact: steps of the amplitude from shell to shell are not.
        What an image itself put in is a quarter of a turn off its derivative, and may stay.
        """
        spec, count = self.task.scope.spec, self.task.scope.count
        band, xp = spec.band(), namespace(view.plain)
        flat = band_to_images(view.plain, band)
        # A band has no mean: there is nothing along the rim of the box.
        rim = (flat[:, 0] + flat[:, -1] + flat[:, :, 0] + flat[:, :, -1]) / 4.0
        flat = flat - xp.mean(rim, axis=1)[:, None, None]
        place = (np.arange(spec.crop) - spec.crop // 2) * spec.crop_pixel_size
        u = like(place.astype(np.float32), reference=flat)
        turn = -2j * np.float32(np.pi) * view.amplitude
        return [
            turn * images_to_band(flat * axis, band)[:, :count]
            for axis in (u[None, None, :], u[None, :, None])
        ]

    def finish(self, sums: Sums) -> Model:
        """Return the sums as numbers."""
        return {name: exact_value(value) for name, value in sums.items()}
