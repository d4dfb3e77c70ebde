"""Tiny inputs of the kernels, for the CPU, for numba's CUDA simulator and for PTX.

Run as a script under NUMBA_ENABLE_CUDASIM=1 it holds the CUDA launcher against the references.
"""

import importlib
import sys

import numpy as np

from dspa.device.launcher import Kernel
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.kernels import insert, insert2d, project, score, score2d, slice2d, symmetrise
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


class Project:
    kernel: Kernel = project.PROJECT
    items = 6

    def __init__(self, cuda=False):
        frames = frames_of(poses(self.items, 1), padding=PADDING)
        self.out = np.zeros((self.items, BAND.count, 2), np.float32)
        self.arrays = (interleaved(GRID), frames, KX, KY, self.out)
        self.sums = 0
        self.reference = interleaved(project.reference(GRID, frames, KX, KY).astype(np.complex64))

    def result(self, _):
        return self.out


class Insert:
    kernel: Kernel = insert.INSERT
    items = 5

    def __init__(self, cuda=False):
        copies = poses(self.items, 2)[:, None] @ np.stack([np.eye(3), random_rotations(1, 3)[0]])
        frames = frames_of(copies, padding=PADDING)
        numerators = noise(self.items, BAND.count, seed=4)
        weights = np.abs(noise(self.items, BAND.count, seed=5))
        dtype, scale = (np.int64, FIXED_POINT) if cuda else (np.float32, 1.0)
        self.out = np.zeros((*GRID.shape, 3), dtype)
        self.scale = scale
        factor = np.array([scale], np.float32)
        self.arrays = (frames, interleaved(numerators), weights, KX, KY, factor, self.out)
        self.sums = 0
        self.reference = insert.reference(frames, numerators, weights, kx=KX, ky=KY, half=HALF)

    def result(self, _):
        return self.out / self.scale


class Symmetrise:
    kernel: Kernel = symmetrise.SYMMETRISE
    items = (2 * HALF + 1) ** 2

    def __init__(self, cuda=False):
        grid = np.random.default_rng(0).standard_normal((*GRID.shape, 3)).astype(np.float32)
        operators = random_rotations(2, 6).astype(np.float32)
        self.out = np.zeros_like(grid)
        self.arrays = (grid, operators, self.out)
        self.sums = 0
        self.reference = symmetrise.reference(grid, operators)

    def result(self, _):
        return self.out


class Score:
    kernel: Kernel = score.SCORE
    items = 3

    def __init__(self, cuda=False):
        frames = frames_of(random_rotations(self.items, 7), padding=PADDING)
        image = np.array([1, 0, 1], np.int32)
        start = np.array([0, 2, 2, 5], np.int32)  # the second candidate has no shift
        shift = np.array([0, 3, 1, 2, 3], np.int32)
        count = BAND.size(2.5)  # a prefix: the last coefficients of y are not used
        phases = noise(4, count, seed=8)
        y, c2 = noise(2, BAND.count, seed=9), np.abs(noise(2, BAND.count, seed=10))
        self.arrays = (
            interleaved(GRID), frames, image, start, shift,
            interleaved(phases).reshape(4, -1), interleaved(y), c2, KX[:count], KY[:count],
        )  # fmt: skip
        self.sums = 4
        cross, norm = score.reference(
            GRID, frames, image=image, start=start, shift=shift, phases=phases,
            y=y, c2=c2, kx=KX[:count], ky=KY[:count],
        )  # fmt: skip
        self.reference = np.zeros((self.items, self.sums))
        self.reference[:, 0] = norm
        for item in range(self.items):
            part = cross[start[item] : start[item + 1]]
            self.reference[item, 1 : 1 + part.size] = part

    def result(self, sums):
        return sums


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


def planes(values):
    """Parts of complex (..., f) side by side: (..., 2, f) float32."""
    return np.stack([values.real, values.imag], axis=-2).astype(np.float32)


class Slice2D:
    kernel: Kernel = slice2d.SLICE2D
    items = 5

    def __init__(self, cuda=False):
        member = np.array([2, 0, 1, 1, 0], np.int32)
        self.out = np.zeros((self.items, 2, BAND.count), np.float32)
        self.arrays = (interleaved(PLANES), member, TURNS, KX, KY, self.out)
        self.sums = 0
        grids = interleaved(PLANES)
        pairs = zip(member, ANGLES, strict=True)
        self.reference = planes(np.stack([slice2d.reference(grids[c], a, K) for c, a in pairs]))

    def result(self, _):
        return self.out


class Score2D:
    kernel: Kernel = score2d.SCORE2D
    items = 5

    def __init__(self, cuda=False):
        count = BAND.size(2.5)  # a prefix: the last coefficients of y and the phases are not used
        slices = noise(3, count, seed=12)
        pose = np.array([2, 0, 1, 1, 0], np.int32)
        y, c2 = noise(2, BAND.count, seed=9), np.abs(noise(2, BAND.count, seed=10))
        lanes = 4 if cuda else 1
        self.cross = np.zeros((lanes, SHIFT.size), np.float32)
        self.norm = np.zeros((lanes, self.items), np.float32)
        room = np.zeros((self.items if cuda else 1, 2, count), np.float32)
        self.arrays = (
            planes(slices), pose, IMAGE, START, SHIFT, planes(PHASES), planes(y), c2, room,
            self.cross, self.norm,
        )  # fmt: skip
        self.sums = 0
        self.reference = np.zeros(SHIFT.size + self.items)
        for item in range(self.items):
            who, a = IMAGE[item], slices[pose[item]]
            self.reference[SHIFT.size + item] = np.sum(c2[who, :count] * np.abs(a) ** 2)
            for pair in range(START[item], START[item + 1]):
                phase = PHASES[SHIFT[pair], :count]
                self.reference[pair], _ = score2d.reference(
                    a, y=y[who, :count], c2=c2[who, :count], phase=phase
                )

    def result(self, _):
        return np.concatenate([self.cross.sum(axis=0), self.norm.sum(axis=0)])


class Insert2D:
    kernel: Kernel = insert2d.INSERT2D
    items = 5

    def __init__(self, cuda=False):
        target = np.array([1, 0, 1, 0, 0], np.int32)
        weight = np.linspace(0.1, 0.9, SHIFT.size).astype(np.float32)
        y, c2 = noise(2, BAND.count, seed=9), np.abs(noise(2, BAND.count, seed=10))
        dtype, self.scale = (np.int64, FIXED_POINT) if cuda else (np.float32, 1.0)
        self.out = np.zeros((2, 2 * LIMIT + 1, LIMIT + 1, 3), dtype)
        room = np.zeros((self.items if cuda else 1, 2, BAND.count), np.float32)
        factor = np.array([self.scale], np.float32)
        self.arrays = (
            target, TURNS, IMAGE, START, SHIFT, weight, planes(PHASES), planes(y), c2, KX, KY,
            factor, room, self.out,
        )  # fmt: skip
        self.sums = 0
        self.reference = np.zeros(self.out.shape)
        for item in range(self.items):
            who, pairs = IMAGE[item], slice(START[item], START[item + 1])
            phase = weight[pairs] @ PHASES[SHIFT[pairs]].astype(complex)
            self.reference[target[item]] += insert2d.reference(
                ANGLES[item], y=y[who], c2=weight[pairs].sum() * c2[who], phase=phase, k=K,
                limit=LIMIT,
            )  # fmt: skip

    def result(self, _):
        return self.out / self.scale


EVERY = (Project, Insert, Symmetrise, Score, Slice2D, Score2D, Insert2D)
CASES = {case.kernel.name: case for case in EVERY}


def close(result, reference):
    return np.abs(result - reference).max() <= 2e-5 * np.abs(reference).max()


def simulate(name):
    """Run one kernel in the simulator with four threads a block; True if it is right."""
    case = CASES[name](cuda=True)
    sums = np.zeros((case.items, case.sums), np.float32) if case.kernel.sums else None
    cuda = importlib.import_module("dspa.device.cuda")  # needs numba-cuda
    cuda.run(case.kernel, case.items, case.arrays, out=sums, lanes=4)
    return close(case.result(sums), case.reference)


if __name__ == "__main__":
    wrong = [name for name in sys.argv[1:] if not simulate(name)]
    sys.exit(f"the simulator disagrees with the reference: {wrong}" if wrong else 0)
