"""The two-product expectation against a plain sum over all poses and shifts."""

import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.ops.abinitio import (
    CoarseSlices,
    ball,
    centre_of_mass,
    expectation,
    move_sums,
    polish,
    widen_sums,
)
from dspa.ops.images.transform import shift_phases
from dspa.ops.sums.backproject import Accumulator, accumulator, insert_into
from dspa.ops.sums.reconstruct import reconstruct


def complex_normal(rng, shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_expectation_is_the_marginal_over_everything(temperature):
    rng = np.random.default_rng(1)
    members = band(16, 4)
    f, images, classes, poses = members.count, 5, 2, 7
    slices = complex_normal(rng, (classes, poses, f))
    y = complex_normal(rng, (images, f)) / 4
    c2 = rng.uniform(0, 0.3, (images, f)).astype(np.float32)
    shifts = np.array([[0.0, 0.0], [1.0, -0.5], [0.3, 2.0]])
    phases = np.conj(shift_phases(members, shifts)).astype(np.complex64)
    prior = np.array([0.0, -0.5, -1.0], np.float32)
    found = expectation(
        CoarseSlices.make(slices), y, c2, phases=phases, log_prior=prior, temperature=temperature
    )
    every = np.concatenate([slices, slices.conj()], axis=1).astype(complex)  # half turns
    cross = np.einsum("nf,tf,kpf->ntkp", y, phases, every).real
    norm = np.einsum("nf,kpf->nkp", c2, np.abs(every) ** 2)
    score = (2 * cross - norm[:, None] + prior[:, None, None]) / temperature
    weight = np.exp(score)
    total = weight.sum((1, 2, 3), keepdims=True)
    weight /= total
    assert np.allclose(found.log_likelihood, np.log(total[:, 0, 0, 0] / 28), atol=1e-3)
    assert np.allclose(found.class_posterior, weight.sum((1, 3)), atol=1e-4)
    assert np.allclose(found.sample_size, 1 / (weight**2).sum((1, 2, 3)), rtol=1e-3)
    numerator = np.einsum("ntkp,nf,tf->kpf", weight, y.conj(), phases.conj())
    numerator = numerator[:, :poses] + numerator[:, poses:].conj()
    share = np.einsum("ntkp,nf->kpf", weight, c2)
    # The pairs of under 1e-4 that are left out show in the last digits.
    assert np.allclose(found.numerators, numerator, atol=2e-3)
    assert np.allclose(found.weights, share[:, :poses] + share[:, poses:], atol=2e-3)


def test_moving_sums_moves_the_map_and_widening_keeps_it():
    rng = np.random.default_rng(2)
    members = band(20, 6)
    sums = accumulator(20, 6)
    poses = np.linalg.qr(rng.standard_normal((400, 3, 3)))[0]
    poses *= np.linalg.det(poses)[:, None, None]
    # A point at (2, 1, -3): every projection has it at the first two components of A p.
    at = (poses @ np.array([2.0, 1.0, -3.0]))[:, :2]
    numerators = shift_phases(members, at)
    insert_into(
        sums, poses, numerators, weights=np.ones(numerators.shape, np.float32), band=members
    )
    wide = widen_sums(sums.sums[None], (1, *accumulator(20, 9).sums.shape))[0]
    moved = move_sums(wide, np.array([-2.0, -1.0, 3.0]), box=20, padding=2)
    for grid, radius, place in ((sums.sums, 6, (7, 11, 12)), (moved, 9, (10, 10, 10))):
        density = reconstruct(Accumulator(grid, 20, radius, 2))
        assert np.unravel_index(int(density.argmax()), density.shape) == place


def test_polish_weakens_what_is_negative_and_masks():
    rng = np.random.default_rng(3)
    density = rng.standard_normal((16, 16, 16)).astype(np.float32)
    mask = ball(16, 7.0)
    free = polish(density, radius=5.0, negative=1.0, mask=mask)
    soft = polish(density, radius=5.0, negative=0.25, mask=mask)
    assert np.allclose(soft, np.where(free < 0, 0.25 * free, free), atol=1e-6)
    assert np.all(free[0] == 0)
    power = np.abs(np.fft.fftn(polish(density, radius=3.0, negative=1.0, mask=np.ones_like(mask))))
    k = np.fft.fftfreq(16) * 16
    distance = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    assert power[distance > 4].max() < 1e-3


def test_centre_of_mass_is_x_y_z():
    density = np.zeros((12, 12, 12), np.float32)
    density[8, 7, 5] = 1.0
    assert np.allclose(centre_of_mass(density), [-1, 1, 2])
    assert np.allclose(centre_of_mass(np.zeros((8, 8, 8), np.float32)), 0)
