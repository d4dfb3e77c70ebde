"""Tiny inputs of the kernels, for the CPU, for numba's CUDA simulator and for PTX.

Run as a script under NUMBA_ENABLE_CUDASIM=1 it holds the CUDA launcher against the references.
"""

import importlib
import sys

import numpy as np

from dspa.device.launcher import Kernel
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.kernels import agree, blend, follow, insert, insert2d, score, slice2d, slice3d, symmetrise
from dspa.ops.poses.score import split
from dspa.ops.sums.project import frames_of, interleaved

RADIUS, PADDING = 3, 2
HALF = PADDING * RADIUS + 1
BAND = band(10, RADIUS)
KX, KY = BAND.kx.astype(np.float32), BAND.ky.astype(np.float32)
FIXED_POINT = 2.0**40


def noise(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def poses(count, seed):
    """Random poses, and those whose slices run along the edges of the grid's cells."""
    upright = [np.eye(3), np.diag([1.0, -1, -1]), np.eye(3)[[1, 2, 0]], -np.eye(3)[[1, 0, 2]]]
    return np.concatenate([np.stack(upright), random_rotations(count - len(upright), seed)])


GRID = noise(2 * HALF + 1, 2 * HALF + 1, HALF + 1)


class Slice3D:
    kernel: Kernel = slice3d.SLICE3D
    items = 6

    def __init__(self, cuda=False):
        frames = frames_of(poses(self.items, 1), padding=PADDING)
        other = noise(*GRID.shape, seed=12)
        member = np.array([0, 1, 0, 0, 1, 1], np.int32)
        self.out = np.zeros((self.items, 2, BAND.count), np.float32)
        grids = np.stack([interleaved(GRID), interleaved(other)])
        self.arrays = (grids, member, frames, KX, KY, self.out)
        both = np.stack([slice3d.reference(each, frames, KX, KY) for each in (GRID, other)])
        self.reference = split(both[member, np.arange(self.items)])

    def result(self):
        return self.out


class Insert:
    kernel: Kernel = insert.INSERT
    items = 5

    def __init__(self, cuda=False):
        copies = poses(self.items, 2)[:, None] @ np.stack([np.eye(3), random_rotations(1, 3)[0]])
        frames = frames_of(copies, padding=PADDING)
        numerators = noise(self.items, BAND.count, seed=4)
        weights = np.abs(noise(self.items, BAND.count, seed=5))
        self.out = np.zeros((*GRID.shape, 3), np.int64)
        factor = np.array([FIXED_POINT], np.float32)
        self.arrays = (frames, interleaved(numerators), weights, KX, KY, factor, self.out)
        self.reference = insert.reference(frames, numerators, weights, kx=KX, ky=KY, half=HALF)

    def result(self):
        return self.out / FIXED_POINT


class Symmetrise:
    kernel: Kernel = symmetrise.SYMMETRISE
    items = (2 * HALF + 1) ** 2

    def __init__(self, cuda=False):
        grid = np.random.default_rng(0).standard_normal((*GRID.shape, 3)).astype(np.float32)
        operators = random_rotations(2, 6).astype(np.float32)
        self.out = np.zeros_like(grid)
        self.arrays = (grid, operators, self.out)
        self.reference = symmetrise.reference(grid, operators)

    def result(self):
        return self.out


LIMIT = HALF
PLANES = noise(3, 2 * LIMIT + 1, LIMIT + 1, seed=11)
# No multiples of pi / 2: on an axis rounding chooses between two opposite points, which are one.
ANGLES = np.array([0.1, 0.8, 2.2, -1.0, 3.0])
TURNS = (2.0 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)).astype(np.float32)
K = np.stack([BAND.kx, BAND.ky], axis=1)
START = np.array([0, 2, 2, 5, 6, 7], np.int32)  # the second item has no shift
SHIFT = np.array([0, 3, 1, 2, 3, 0, 1], np.int32)
IMAGE = np.array([1, 0, 1, 0, 1], np.int32)
PHASES = noise(4, BAND.count, seed=8)


class Slice2D:
    kernel: Kernel = slice2d.SLICE2D
    items = 5

    def __init__(self, cuda=False):
        member = np.array([2, 0, 1, 1, 0], np.int32)
        self.out = np.zeros((self.items, 2, BAND.count), np.float32)
        self.arrays = (interleaved(PLANES), member, TURNS, KX, KY, self.out)
        grids = interleaved(PLANES)
        pairs = zip(member, ANGLES, strict=True)
        self.reference = split(np.stack([slice2d.reference(grids[c], a, K) for c, a in pairs]))

    def result(self):
        return self.out


class Score:
    kernel: Kernel = score.SCORE
    items = 5

    def __init__(self, cuda=False):
        count = BAND.size(2.5)  # a prefix: the last coefficients of y and the phases are not used
        slices = noise(3, count, seed=12)
        pose = np.array([2, 0, 1, 1, 0], np.int32)
        y, c2 = noise(2, BAND.count, seed=9), np.abs(noise(2, BAND.count, seed=10))
        self.cross = np.zeros(SHIFT.size, np.float32)
        self.norm = np.zeros(self.items, np.float32)
        room = np.zeros((self.items if cuda else 1, 2, count), np.float32)
        self.arrays = (
            split(slices), pose, IMAGE, START, SHIFT, split(PHASES), split(y), c2, room,
            self.cross, self.norm,
        )  # fmt: skip
        self.reference = np.zeros(SHIFT.size + self.items)
        for item in range(self.items):
            who, a = IMAGE[item], slices[pose[item]]
            self.reference[SHIFT.size + item] = np.sum(c2[who, :count] * np.abs(a) ** 2)
            for pair in range(START[item], START[item + 1]):
                phase = PHASES[SHIFT[pair], :count]
                self.reference[pair], _ = score.reference(
                    a, y=y[who, :count], c2=c2[who, :count], phase=phase
                )

    def result(self):
        return np.concatenate([self.cross, self.norm])


class Insert2D:
    kernel: Kernel = insert2d.INSERT2D
    items = 5

    def __init__(self, cuda=False):
        target = np.array([1, 0, 1, 0, 0], np.int32)
        weight = np.linspace(0.1, 0.9, SHIFT.size).astype(np.float32)
        y, c2 = noise(2, BAND.count, seed=9), np.abs(noise(2, BAND.count, seed=10))
        self.out = np.zeros((2, 2 * LIMIT + 1, LIMIT + 1, 3), np.int64)
        room = np.zeros((self.items if cuda else 1, 2, BAND.count), np.float32)
        factor = np.array([FIXED_POINT], np.float32)
        self.arrays = (
            target, TURNS, IMAGE, START, SHIFT, weight, split(PHASES), split(y), c2, KX, KY,
            factor, room, self.out,
        )  # fmt: skip
        self.reference = np.zeros(self.out.shape)
        for item in range(self.items):
            who, pairs = IMAGE[item], slice(START[item], START[item + 1])
            phase = weight[pairs] @ PHASES[SHIFT[pairs]].astype(complex)
            self.reference[target[item]] += insert2d.reference(
                ANGLES[item], y=y[who], c2=weight[pairs].sum() * c2[who], phase=phase, k=K,
                limit=LIMIT,
            )  # fmt: skip

    def result(self):
        return self.out / FIXED_POINT


class Blend:
    kernel: Kernel = blend.BLEND
    items = 5

    def __init__(self, cuda=False):
        count = BAND.size(2.5)
        weight = np.linspace(0.1, 0.9, SHIFT.size).astype(np.float32)
        y, c2 = noise(2, BAND.count, seed=9), np.abs(noise(2, BAND.count, seed=10))
        phases = PHASES[:, :count]
        self.out = np.zeros((self.items, count, 2), np.float32)
        self.power = np.zeros((self.items, count), np.float32)
        self.arrays = (
            IMAGE, START, SHIFT, weight, split(phases), split(y), c2, self.out, self.power,
        )  # fmt: skip
        self.reference = np.zeros((self.items, count, 3))
        for item in range(self.items):
            who, pairs = IMAGE[item], slice(START[item], START[item + 1])
            value, power = blend.reference(
                y=y[who, :count], c2=c2[who, :count], phases=phases[SHIFT[pairs]],
                weight=weight[pairs],
            )  # fmt: skip
            self.reference[item] = np.stack([value.real, value.imag, power], axis=1)

    def result(self):
        return np.concatenate([self.out, self.power[..., None]], axis=2)


class _Agree:
    """Three patches of four frames, seven rows and five columns."""

    def __init__(self):
        self.bands, self.along, self.down = (
            noise(3, 4, *size, seed=seed) for size, seed in (((7, 5), 20), ((5,), 21), ((7,), 22))
        )
        self.turns = [_pairs(each) for each in (self.bands, self.along, self.down)]
        self.total = agree.total_reference(self.bands, self.along, self.down)


def _pairs(values):
    return values.view(np.float32).reshape(*values.shape, 2)


class AgreeTotal(_Agree):
    kernel: Kernel = agree.TOTAL
    items = 21

    def __init__(self, cuda=False):
        super().__init__()
        self.out = np.zeros((3, 7, 5, 2), np.float32)
        self.arrays = (*self.turns, self.out)
        self.reference = np.stack([self.total.real, self.total.imag], axis=-1)

    def result(self):
        return self.out


class AgreeSlope(_Agree):
    kernel: Kernel = agree.SLOPE
    items = 21

    def __init__(self, cuda=False):
        super().__init__()
        pull, kx = np.abs(noise(7, 5, seed=23)), np.arange(5, dtype=np.float32)
        self.out = np.zeros((3, 7, 4, 2), np.float32)
        self.arrays = (*self.turns, _pairs(self.total.astype(np.complex64)), pull, kx, self.out)
        self.reference = agree.slope_reference(
            self.bands, self.along, self.down, self.total, pull, kx
        )

    def result(self):
        return self.out


class Follow:
    kernel: Kernel = follow.FOLLOW
    items = 21

    def __init__(self, cuda=False):
        rng = np.random.default_rng(24)
        frames = rng.standard_normal((3, 21, 37)).astype(np.float32)
        path = (3 * rng.standard_normal((3, 21, 2, 4))).astype(np.float32)  # over the edges too
        factor = rng.standard_normal((3, 2)).astype(np.float32)
        self.out = np.zeros((2, 21, 37), np.float32)
        self.arrays = (frames, path, factor, np.zeros((21, 37), np.float32), self.out)
        read = [follow.reference(*each) for each in zip(frames, path, strict=True)]
        self.reference = np.einsum("fr,fyx->ryx", factor, read)

    def result(self):
        return self.out


EVERY = (
    Slice3D, Insert, Symmetrise, Slice2D, Score, Insert2D, Blend, AgreeTotal, AgreeSlope, Follow,
)  # fmt: skip
CASES = {case.kernel.name: case for case in EVERY}


def close(result, reference):
    return np.abs(result - reference).max() <= 2e-5 * np.abs(reference).max()


def simulate(name):
    """Run one kernel in the simulator with four threads a block; True if it is right."""
    case = CASES[name](cuda=True)
    cuda = importlib.import_module("dspa.device.cuda")  # needs numba-cuda
    cuda.run(case.kernel, case.items, case.arrays, lanes=4)
    return close(case.result(), case.reference)


if __name__ == "__main__":
    wrong = [name for name in sys.argv[1:] if not simulate(name)]
    sys.exit(f"the simulator disagrees with the reference: {wrong}" if wrong else 0)
