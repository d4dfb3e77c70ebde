"""Numbers that 2D classification goes by and that users do not set, each with what it does.

A figure in brackets is a measured effect: of RNA polymerase at SNR 0.05 unless it says otherwise,
with the value here and then with another. ``python -m benchmarks.class2d_ablation`` measures them
anew; its table is in ``docs/records/class2d.md``. What has no figure was set once and not varied.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDS = 4  # of the particles: images of one are compared with averages of the other three


@dataclass(frozen=True)
class Constants:
    """Numbers of 2D classification; lengths in Fourier pixels and shares unless named."""

    # The search.
    # Radius of the coarse level (12 keeps half of the cells for 1.6 times the time; 8 costs more).
    coarse_radius: int = 10
    # A tight mask needs this many periods across it at the coarse level, up to a largest radius.
    coarse_periods: float = 9.0
    largest_coarse: int = 12
    # Radius compared at first.
    start_radius: int = 14
    # Shells compared beyond what the averages reach, and added up beyond those compared.
    margin: int = 3
    # Deviations of the bound in online steps, while averages still change (1.5: the best cell is
    # found for 99.7 percent of the images; 2: 99.8 percent, with 1.8 times the cells).
    online_deviations: float = 1.5

    # The online steps.
    # Steps of an iteration, each with averages made anew (5: median 51 degrees, 1: 69, of 2,000
    # images in 25 classes).
    steps_each: int = 5
    # Weight of a step against all before it (0.6: 63 percent within 20 degrees after 100 steps;
    # 0.3: 54, 0.15: 44), until a share of the steps, from where it falls, so that averages gather
    # more images than one step holds.
    step: float = 0.6
    last_step: float = 0.15
    hold: float = 0.7
    # Share of the steps, at first, that average over the whole coarse lattice.
    soft: float = 0.3
    # Share of the steps, at the end, that gather many images, all alike.
    settle: float = 0.1
    # Least and largest number of particles of a chunk; a step is a chunk of each fold.
    small_chunk: int = 16
    large_chunk: int = 256
    # Passes from one centring of the averages to the next, which costs another solution of all;
    # moves below this many pixels are not made.
    recentre: int = 3
    least_move: float = 0.25

    # Which classes go on.
    # Classes at first, of those asked for (1.6: 67 to 68 percent within 20 degrees; 1: 62).
    extra: float = 1.6
    # Between these shares of the steps their number falls to what was asked for.
    prune_from: float = 0.65
    prune_to: float = 0.85
    # Every so many steps a share of the classes gives way to halves of others, up to a share of
    # the steps; those that mix views are halved up to an earlier one (going on with as many
    # classes as asked for: 62 percent).
    round: int = 4
    renew: float = 0.2
    halve_until: float = 0.97
    mixed_until: float = 0.7
    # Log-likelihood at most that an image loses with its class: there may be no other for it.
    most_lost: float = 12.0
    # Shares of the mean class. Larger ones than the first do not go to others and are held back
    # by this power of their size: images of nothing fit all classes of nothing alike, and would
    # end in one. Larger ones than the second are halved; what shows no particle needs fewer
    # classes, and comes to no more than 6 percent of all images with 50.
    prunable: float = 1.25
    prior: float = 2.0
    too_many: float = 1.6
    too_many_faint: float = 2.2
    # Of the median log-likelihood: classes below it show no particle, and are halved only by size.
    clear: float = 0.7
    # These, and classes below a share of the mean, are missed by a share of what others are (junk
    # takes 3 or 4 of 50 classes with it; 5 to 8 without).
    tiny: float = 1.0 / 3.0
    little_missed: float = 0.25
    # Passes after which a class is judged.
    adult: int = 3
    # Of the mean class: smaller ones are not worth halving. Images of a fold that a new class
    # begins with, at least.
    half: float = 0.5
    least_poor: float = 0.5
    # Whether classes form in pairs of mirror images (74 to 75 percent; without: 66 to 68). A pair
    # is parted when one class has fewer images than this share of the other's.
    pairs: bool = True
    parted: float = 0.5

    # Evidence.
    # Images of noise that are weighed beside the particles.
    controls: int = 1000
    # Pixels of images of edges, and share of the box over which they rise.
    edge_box: int = 32
    edge_width: float = 0.03
    # Least share of a class in the prior of the weighing.
    faintest: float = 1e-6
    # Structure is what has more periods than this across the mask. Classes whose particles show
    # less of it than this share of what is usual do not witness for particles.
    structure_periods: float = 3.0
    witness: float = 2.0 / 3.0

    # Particles that arrive later.
    # Share of the particles that no online step sees, of a set of so many at least, and how many
    # at most: how well averages fit images they were not made from.
    unseen: float = 0.05
    unseen_from: int = 400
    unseen_most: int = 2048
    # Poor fits are too many from this many times what chance makes of two equal sets.
    beyond_chance: float = 3.0
    # Share of the old ones that estimates no share: the best fits are too few.
    tail: float = 0.1
    # Particles that found a class, at least.
    founders: int = 20

    # What is refused, warned of and shown.
    # Of the box: how far particles may lie off the centre by default, and at most.
    shift: float = 0.08
    farthest: float = 0.25
    # Shells that the coarse level compares, at least, below --min-alignment-resolution.
    fewest_shells: int = 3
    # Particles a class on average below which averages are mostly noise.
    few: int = 20
    # Of the mean class: smaller ones are not counted as classes.
    alive: float = 0.15
    # Passes from picture to picture.
    pictured: int = 5
    # Share of the particles that noise explains from which a user is warned.
    mostly_noise: float = 0.5
    # Probability of being noise below which no particle is trimmed; share that noise explains from
    # which a class is one of noise.
    doubtful: float = 0.1
    noise_class: float = 0.5
    # Part of what may be given up that goes to members of classes that resolve little.
    given_up: float = 0.25
    # Resolution in A that a search is taken to reach, and bytes of a worker that holds nothing,
    # for the memory in a plan.
    reached: float = 13.0
    process: int = 380 << 20


_CURRENT: ContextVar[Constants] = ContextVar("class2d_constants", default=Constants())  # noqa: B039


def tuned() -> Constants:
    """Return the constants that are in force here."""
    return _CURRENT.get()


@contextmanager
def tuned_to(**changes: Any) -> Iterator[Constants]:
    """Change constants in this process for a while: for experiments with the inline runner."""
    token = _CURRENT.set(replace(tuned(), **changes))
    try:
        yield tuned()
    finally:
        _CURRENT.reset(token)
