"""Trimming of good classes: noise goes, particles stay."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import write_image_stack
from dspa.ops.poses.evidence import noise_probability
from dspa.stages.class2d.admission import least_evidence
from dspa.stages.class2d.select2d import Params, run
from dspa.stages.stage import Context
from tests.stages.stack_table import write_stack_table


def mixture(rng, noise=500, particles=4500, gain=13.0):
    """Evidence, its probability of noise, and which images hold a particle."""
    evidence = np.concatenate([rng.normal(0, 1.5, noise), rng.normal(gain, 3.0, particles)])
    probability = noise_probability(evidence, rng.normal(0, 1.5, 1000))
    return evidence, probability, np.arange(evidence.size) >= noise


def test_noise_is_trimmed_and_hardly_a_particle(rng):
    evidence, probability, real = mixture(rng)
    least = least_evidence(evidence, probability, np.ones(real.size, bool), share=0.04)
    assert np.mean(evidence[~real] < least) > 0.95
    assert np.mean(evidence[real] < least) < 0.02


def test_where_both_overlap_the_share_given_up_is_kept_to(rng):
    evidence, probability, real = mixture(rng, gain=8.0)
    least = least_evidence(evidence, probability, np.ones(real.size, bool), share=0.04)
    assert 0.02 < np.mean(evidence[real] < least) < 0.06
    assert np.mean(evidence[~real] < least) > 0.9


def test_rejected_classes_take_nothing_from_the_share(rng):
    evidence, probability, real = mixture(rng)
    inside = np.arange(real.size) % 2 == 0
    least = least_evidence(evidence, probability, inside, share=0.04)
    assert np.mean(evidence[inside & ~real] < least) > 0.95


def test_what_classes_of_noise_give_up_counts(rng):
    evidence, probability, real = mixture(rng, gain=8.0)
    inside = np.arange(real.size) >= 300  # of the 500 images of noise
    inside[-45:] = False  # one of a hundred particles
    few = least_evidence(evidence, probability, inside, share=0.04, lost=~inside)
    more = least_evidence(evidence, probability, inside, share=0.04)
    kept = [np.mean(inside[real] & (evidence[real] >= least)) for least in (few, more)]
    assert kept[0] > kept[1] + 0.005
    assert 0.95 < kept[0] < 0.98
    assert least_evidence(evidence, probability, inside, share=0.005, lost=~inside) == -np.inf


def test_without_noise_nothing_is_trimmed(rng):
    evidence, probability, real = mixture(rng, noise=0, gain=40.0)
    assert least_evidence(evidence, probability, np.ones(real.size, bool), share=0.04) == -np.inf


@pytest.mark.parametrize(("trim", "kept"), [(None, 30), (0.04, 29)])
def test_named_classes_are_trimmed_only_when_asked(tmp_path, rng, trim, kept):
    path = write_stack_table(tmp_path, rng.standard_normal((40, 16, 16)), pixel_size=3.0)
    member = np.repeat([0, 1, 2, 3], 10)
    faint = np.arange(40) == 12  # noise explains this one
    table = read_particles(path).assign(
        class_index=("particle", member.astype(np.int32)),
        evidence=("particle", np.where(faint, -1.0, 20.0).astype(np.float32)),
        noise_probability=("particle", np.where(faint, 1.0, 0.0).astype(np.float32)),
    )
    write_particles(table, path)
    write_image_stack(tmp_path / "c.mrcs", rng.random((4, 16, 16), np.float32), pixel_size=3.0)
    said = []
    (tmp_path / "job").mkdir()
    events = Events(tmp_path / "job", (said.append,))
    context = Context(tmp_path / "job", InlineRunner(tmp_path / "runner"), events, seed=0)
    inputs = {"particles": path, "averages": tmp_path / "c.mrcs"}
    outputs = run(context, inputs, Params(classes=(1, 2, 4), trim=trim))
    (told,) = (e["text"] for e in said if e["kind"] == "message")
    counts = [int(number) for number in re.findall(r"\b(\d+) (?:particles|in )", told)]
    assert counts[0] == 40 - kept == sum(counts[1:])
    assert read_particles(outputs["particles"]).sizes["particle"] == kept
    assert read_particles(outputs["rejected"]).sizes["particle"] == 40 - kept
