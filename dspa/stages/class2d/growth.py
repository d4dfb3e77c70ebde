"""Particles that arrive later: a classification takes them up, and views it lacked found classes.

First the new particles are looked at with the averages as they are. How much less well they fit
than old particles that no average was made from says how many of them show what no class shows;
those found classes of their own, appended behind the old ones, by the schedule of a new
classification in which the old classes compete and hold still. Then one pass over everything, or,
if the old particles are not at hand or not to be looked at again, over the new ones, whose sums are
added to the old sums (incremental EM: Neal & Hinton 1998, doi:10.1007/978-94-011-5014-9_12). Old
classes keep their numbers throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.dataflow.runner import Result
from dspa.stages.class2d.constants import tuned
from dspa.stages.class2d.evidence import weigh
from dspa.stages.class2d.inputs import draw_folds, draw_unseen, fold_chunks, unseen_count
from dspa.stages.class2d.march import Onto, march, nothing_to_see
from dspa.stages.class2d.model import Classification, ClassModel
from dspa.stages.class2d.plan import Settings, Workload, workload
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.em.march import Pass, once
from dspa.stages.em.noise import noise_groups
from dspa.stages.particles.copies import as_first_copy, particle_copies

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.class2d.averages import Statistics
    from dspa.stages.class2d.march import Report
    from dspa.stages.particles.chunks import ParticleChunk
    from dspa.stages.stage import Context

MEASURE = "fit"  # what tells particles of views that no class shows


def strangers(old: NDArray[np.floating[Any]], new: NDArray[np.floating[Any]]) -> float:
    """Estimate the share of the new fits that are not like the old ones.

    If a share p of the new is strange, the distributions obey new - old <= p (1 - old) everywhere,
    with equality where all the strange ones lie below: the largest quotient estimates p. It is 0
    where the distributions differ by no more than chance makes of them (one-sided statistic of
    Smirnov).

    Parameters
    ----------
    old, new : (n,), (m,) float
    """
    if old.size < tuned().founders or new.size == 0:
        return 0.0
    at = np.sort(new)
    before = np.searchsorted(np.sort(old), at, side="right") / old.size
    gap = np.arange(1, at.size + 1) / at.size - before
    most = int(np.argmax(gap))
    if gap[most] <= tuned().beyond_chance * np.sqrt(0.25 * (1.0 / old.size + 1.0 / new.size)):
        return 0.0
    share = gap[before <= 1.0 - tuned().tail] / (1.0 - before[before <= 1.0 - tuned().tail])
    return float(np.clip(share.max(initial=gap[most]), 0.0, 1.0))


@dataclass(frozen=True)
class Founding:
    """Which particles found how many classes.

    Attributes
    ----------
    classes : int
    rows : (m,) int64
        Rows of the particles that found them.
    share : float
        Of the new particles that no old class shows.
    """

    classes: int
    rows: NDArray[np.int64]
    share: float


def found(
    known: Classification,
    index: NDArray[np.int64],
    seen: Mapping[str, NDArray[Any]],
    left_out: NDArray[np.bool_],
    *,
    classes: int | None,
) -> Founding:
    """Decide how many classes the new particles found.

    Parameters
    ----------
    known : Classification
    index : (m,) int64
        Rows of the new particles.
    seen : mapping of name to (m, ...) arrays
        What the look at them gave.
    left_out : (m,) bool
        Particles that found none.
    classes : int, optional
        As many classes, if there are particles for them; by default as many as keep the number of
        particles of a class.
    """
    fits = seen[MEASURE][seen["valid"]]
    strange = strangers(known.unseen[np.isfinite(known.unseen)], fits)
    if classes is None:
        classes = _needed(known, strange * fits.size)
    able = seen["valid"] & ~left_out
    # As many of the poorest as are strange; if classes are wanted all the same, enough for them.
    wanted = max(round(strange * int(able.sum())), tuned().founders * classes)
    order = np.argsort(np.where(able, seen[MEASURE], np.inf), kind="stable")
    poor = np.sort(order[: min(wanted, int(able.sum()))])
    classes = min(classes, poor.size // tuned().founders)
    return Founding(int(classes), index[poor], strange)


def _needed(known: Classification, strange: float) -> int:
    """Classes for so many particles that none shows: as many as keep the particles of a class."""
    each = max(float(tuned().founders), known.images / known.classes)
    return min(known.classes, round(strange / each))


@dataclass(frozen=True, eq=False)
class Growth:
    """What to do with particles that arrive.

    Attributes
    ----------
    settings : Settings
        Of a new classification; its numbers of classes and particles are set here.
    everything : bool
        Pass over all particles at the end, not only over the new ones.
    """

    settings: Settings
    everything: bool = True

    @property
    def new_classes(self) -> int | None:
        """Classes to found; None: as many as the new particles need."""
        wanted = self.settings.params.new_classes
        return None if wanted < 0 else wanted

    def about(self, known: Classification, new: int, *, founders: int) -> Settings:
        """Online steps over the founders of new classes, if there are any, then full passes."""
        params, classes = self.settings.params, known.classes + new
        if not new:
            params = replace(params, online_iterations=0)
        return replace(
            self.settings, params=params, classes=classes, held=known.classes, particles=founders
        )


def grow(
    context: Context,
    known: Classification,
    particles: xr.Dataset,
    growth: Growth,
    *,
    report: Callable[[Sequence[int], int], Report],
) -> Classification:
    """Take up particles: those of the table that a classification does not know by their uid.

    Parameters
    ----------
    context : Context
        Its runner, events and seed; a run that was cut short goes on from its checkpoints.
    known : Classification
    particles : Dataset
        Old and new ones, or new ones alone.
    growth : Growth
    report : callable
        ``report(visits, after)`` gives what is called after each pass, from the images of each and
        those looked at after the last.

    Returns
    -------
    grown : Classification
        Its particles begin with those of the table, in its order.
    """
    uid = np.asarray(particles["uid"].values, np.uint64)
    place = known.find(uid)
    new = np.flatnonzero(place < 0)
    rng = np.random.default_rng([context.seed, 0x4A1F, known.growths + 1])
    fold, left_out = known.fold[place], np.isfinite(known.unseen[place])
    fold[new], left_out[new] = draw_folds(rng, new.size), draw_unseen(rng, new.size)
    copies = particle_copies(particles)
    fold[new] = as_first_copy(fold, copies, place >= 0)[new]
    left_out[new] = as_first_copy(left_out, copies, place >= 0)[new]
    group, names = noise_groups(particles, known=known.groups.tolist())
    growth = replace(growth, settings=replace(growth.settings, groups=max(1, len(names))))
    state: dict[str, NDArray[Any]] = {"fold": fold, "group": group}

    def chunks(rows: NDArray[np.int64], size: int | None = None) -> tuple[ParticleChunk, ...]:
        return fold_chunks(particles, known.spec, rows, seed=context.seed, state=state, size=size)

    founding, images = Founding(0, new, 0.0), 0
    everything = growth.everything and new.size < uid.size
    if new.size:
        seen = look(context, known, growth.settings, chunks(new), name="compare")
        images = int(seen["valid"].sum())
        if not images and not everything:
            raise nothing_to_see(chunks(new))
        founding = found(known, new, seen, left_out[new], classes=growth.new_classes)
        _tell(context, known, founding, images, wanted=growth.new_classes)
    settings = growth.about(known, founding.classes, founders=founding.rows.size)
    size = settings.chunk_size if founding.classes else None
    founders = chunks(founding.rows, size) if founding.classes else ()
    passed = chunks(np.arange(uid.size) if everything else new)
    unseen, full = np.flatnonzero(left_out), sum(len(chunk) for chunk in passed)
    base = known.model.statistics.widen(founding.classes)
    result = march(
        context,
        settings,
        online=founders,
        full=passed,
        begin=partial(_begin, context, settings, known, base, founders),
        report=report(settings.visits(full=full), full + unseen.size),
        onto=Onto(base, 1.0 if everything else images / max(images + known.images, 1)),
    )
    grown = _grown(known, result, uid, fold, forget=everything)
    grown = replace(grown, groups=np.array(names))
    grown = weigh(context, grown, settings.plan(grown.model, settings.passes), passed)
    return judge_unseen(context, grown, growth.settings, chunks(unseen) if unseen.size else ())


def look(
    context: Context,
    known: Classification,
    settings: Settings,
    chunks: Sequence[ParticleChunk],
    *,
    name: str,
) -> dict[str, NDArray[Any]]:
    """Compare particles with the averages as they are: rows in the order of the particles."""
    task = Class2D(settings.look(known.model, classes=known.classes))
    return dict(once(context, Pass(task, chunks, known.model.arrays()), name).rows)


def expect(
    known: Classification, uid: NDArray[np.uint64], growth: Growth
) -> tuple[Workload, Workload]:
    """Add up the passes of `grow` before anything is known of the new particles.

    Parameters
    ----------
    known : Classification
    uid : (n,) uint64
        Particles of the table.
    growth : Growth

    Returns
    -------
    least, most : Workload
        If no class is founded (or as many as were asked for), and if as many as may be.
    """
    place = known.find(uid)
    new = int((place < 0).sum())
    everything = growth.everything and new < uid.size
    unseen = int(np.isfinite(known.unseen[place[place >= 0]]).sum()) + unseen_count(new)
    wanted = growth.new_classes
    if wanted is None:
        able = np.isfinite(known.unseen).sum() >= tuned().founders
        wanted = _needed(known, new) if able else 0
    wanted = min(wanted, new // tuned().founders)

    def add_up(classes: int) -> Workload:
        settings = growth.about(known, classes, founders=new)
        made = workload(settings, full=uid.size if everything else new, unseen=unseen)
        looks = made.passes + (new > 0)
        return replace(made, passes=looks, visits=made.visits + new, founded=classes)

    return add_up(0 if growth.new_classes is None else wanted), add_up(wanted)


def judge_unseen(
    context: Context,
    known: Classification,
    settings: Settings,
    chunks: Sequence[ParticleChunk],
) -> Classification:
    """Measure how well the averages fit particles that had no part in making them.

    Parameters
    ----------
    context : Context
    known : Classification
        Its first particles are those of the table that the chunks were cut from.
    settings : Settings
    chunks : sequence of ParticleChunk
        Of particles that no online step saw; may be empty.
    """
    if not chunks:
        return known
    rows = look(context, known, settings, chunks, name="unseen")
    fits = known.unseen.copy()
    fits[rows["item"]] = np.where(rows["valid"], rows[MEASURE], np.nan)
    return replace(known, unseen=fits)


def _tell(
    context: Context,
    known: Classification,
    founding: Founding,
    images: int,
    *,
    wanted: int | None,
) -> None:
    """Say what the look at the new particles found; ``wanted`` classes were asked for."""
    if np.isfinite(known.unseen).sum() >= tuned().founders:
        context.events.message(
            f"{counted(images, 'new particle')}; {100 * founding.share:.0f} percent of them are of "
            f"views that the {counted(known.classes, 'class lacks', 'classes lack')}, going by "
            "their fit"
        )
    elif wanted is None:
        context.events.warning(
            "the earlier job had too few particles to leave some out, without which new views "
            "cannot be told from old ones; --new-classes N founds classes all the same"
        )
    if wanted is not None and founding.classes < wanted:
        context.events.warning(
            f"--new-classes {counted(wanted, 'is', 'are')} more than "
            f"{counted(images, 'new particle')} can found; "
            f"{counted(founding.classes, 'is', 'are')} founded, of {tuned().founders} particles at "
            "least"
        )
    if founding.classes:
        first, last = known.classes + 1, known.classes + founding.classes
        numbers = f"class {first}" if first == last else f"classes {first} to {last}"
        context.events.message(f"{founding.rows.size} of them found {numbers}")


def _begin(
    context: Context,
    settings: Settings,
    known: Classification,
    base: Statistics,
    founders: Sequence[ParticleChunk],
) -> Result:
    """Begin from the classes as they are, and founders in new ones drawn from their numbers."""
    if not founders:
        return Result(known.model.arrays(), {})
    start = Class2D(settings.plan(None, 0))
    model = replace(known.model, statistics=base)
    return context.runner.run(start, founders, model.arrays(), name="it000")


def _grown(
    known: Classification,
    result: Result,
    uid: NDArray[np.uint64],
    fold: NDArray[np.int8],
    *,
    forget: bool,
) -> Classification:
    """Put together what is known now: the table's particles, then others whose sums are kept."""
    place = known.find(uid)
    others = np.setdiff1d(np.arange(known.uid.size), place) if not forget else place[:0]
    index = result.rows["item"]
    rows = {}
    for name, values in known.rows.items():
        column = values[place]
        # What the pass did not measure is measured later, and is nothing until then.
        column[index] = result.rows.get(name, np.nan)
        rows[name] = np.concatenate([column, values[others]])
    seen = int(np.sum(result.rows["valid"]))
    return Classification(
        spec=known.spec,
        model=ClassModel.read(result.model),
        groups=known.groups,
        uid=np.concatenate([uid, known.uid[others]]),
        fold=np.concatenate([fold, known.fold[others]]),
        rows=rows,
        images=seen if forget else known.images + seen,
        unseen=np.concatenate(
            [np.where(known.uid[place] == uid, known.unseen[place], np.nan), known.unseen[others]]
        ),
        growths=known.growths + 1,
    )
