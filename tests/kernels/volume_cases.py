"""Tiny inputs of the volume kernels, for the CPU, for numba's CUDA simulator and for PTX.

Run as a script under NUMBA_ENABLE_CUDASIM=1 it holds the CUDA launcher against the references.
"""

import importlib
import sys

import numpy as np

from dspa.device.launcher import Kernel
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.kernels import insert, project, score, symmetrise
from dspa.ops.project import frames_of, interleaved

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


CASES = {case.kernel.name: case for case in (Project, Insert, Symmetrise, Score)}


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
