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
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.dataflow.runner import Result
from dspa.stages.class2d.controls import weigh
from dspa.stages.class2d.folds import draw_folds, draw_unseen, fold_chunks, unseen_count
from dspa.stages.class2d.mstep import FOLDS
from dspa.stages.class2d.noise import noise_groups
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.class2d.schedule import Workload, nothing_to_see, workload
from dspa.stages.class2d.state import Classification
from dspa.stages.particles.chunks import minibatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model
    from dspa.stages.class2d.plan import ClassPlan
    from dspa.stages.class2d.schedule import Schedule
    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk
    from dspa.stages.stage import Context

    Report = Callable[[int, ClassPlan, Result], None]

# Poor fits are too many from this many times what chance makes of two equal sets.
BEYOND_CHANCE = 3.0
FEWEST = 20  # particles that found a class, at least
MEASURE = "fit"  # what tells particles of views that no class shows
TAIL = 0.1  # of the old ones: the best fits are too few to estimate shares from


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
    if old.size < FEWEST or new.size == 0:
        return 0.0
    at = np.sort(new)
    before = np.searchsorted(np.sort(old), at, side="right") / old.size
    gap = np.arange(1, at.size + 1) / at.size - before
    most = int(np.argmax(gap))
    if gap[most] <= BEYOND_CHANCE * np.sqrt(0.25 * (1.0 / old.size + 1.0 / new.size)):
        return 0.0
    share = gap[before <= 1.0 - TAIL] / (1.0 - before[before <= 1.0 - TAIL])
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
    wanted = max(round(strange * int(able.sum())), FEWEST * classes)
    order = np.argsort(np.where(able, seen[MEASURE], np.inf), kind="stable")
    poor = np.sort(order[: min(wanted, int(able.sum()))])
    classes = min(classes, poor.size // FEWEST)
    return Founding(int(classes), index[poor], strange)


def _needed(known: Classification, strange: float) -> int:
    """Classes for so many particles that none shows: as many as keep the particles of a class."""
    each = max(float(FEWEST), known.images / known.classes)
    return min(known.classes, round(strange / each))


@dataclass(frozen=True, eq=False)
class Growth:
    """What to do with particles that arrive.

    Attributes
    ----------
    schedule : Schedule
        Of a new classification; its numbers of classes and particles are set here.
    new_classes : int, optional
        Classes to found; by default as many as the new particles need.
    everything : bool
        Pass over all particles at the end, not only over the new ones.
    """

    schedule: Schedule
    new_classes: int | None = None
    everything: bool = True


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
    group, names = noise_groups(particles, known=known.model["noise_names"].tolist())
    growth = replace(growth, schedule=replace(growth.schedule, groups=max(1, len(names))))
    state: dict[str, NDArray[Any]] = {"fold": fold, "group": group}

    def chunks(rows: NDArray[np.int64], size: int | None = None) -> tuple[ParticleChunk, ...]:
        return fold_chunks(particles, known.spec, rows, seed=context.seed, state=state, size=size)

    founding, images = Founding(0, new, 0.0), 0
    everything = growth.everything and new.size < uid.size
    if new.size:
        seen = look(context, known, growth.schedule, chunks(new), name="look001")
        images = int(seen["valid"].sum())
        if not images and not everything:
            raise nothing_to_see(chunks(new))
        founding = found(known, new, seen, left_out[new], classes=growth.new_classes)
        _tell(context, known, founding, images, wanted=growth.new_classes)
    schedule = _schedule(growth.schedule, known, founding.classes, founders=founding.rows.size)
    size = schedule.chunk_size(known.spec) if founding.classes else None
    passed = chunks(np.arange(uid.size) if everything else new)
    unseen = np.flatnonzero(left_out)
    full = sum(len(chunk) for chunk in passed)
    result = _course(
        context,
        known,
        schedule,
        founders=chunks(founding.rows, size) if founding.classes else (),
        chunks=passed,
        step=1.0 if everything else images / max(images + known.images, 1),
        report=report(schedule.visits(full=full), full + unseen.size),
    )
    result = replace(result, model={**result.model, "noise_names": np.array(names)})
    grown = _grown(known, result, uid, fold, forget=everything)
    last = schedule.plan(known.spec, result.model, schedule.passes)
    grown = weigh(context, grown, last, passed)
    return judge_unseen(context, grown, growth.schedule, chunks(unseen) if unseen.size else ())


def look(
    context: Context,
    known: Classification,
    schedule: Schedule,
    chunks: Sequence[ParticleChunk],
    *,
    name: str,
) -> dict[str, NDArray[Any]]:
    """Compare particles with the averages as they are: rows in the order of the particles."""
    latest = context.runner.checkpoints.latest(name.rstrip("0123456789"))
    if latest is not None:
        rows = latest.rows
    else:
        plan = look_plan(schedule, known.spec, known.model, classes=known.classes)
        rows = context.runner.run(Class2D(plan), chunks, known.model, name=name).rows
    return dict(rows)


def look_plan(
    schedule: Schedule, spec: ImageSpec, model: Model | None, *, classes: int
) -> ClassPlan:
    """Plan a look: a full pass of which only the rows are wanted."""
    once = replace(schedule, classes=classes, online=0, full=1, noise=False)
    # Nothing is made of the sums, so nobody minds how they are added up.
    return replace(once.plan(spec, model, 1), blind=False, recentre=False)


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
        able = np.isfinite(known.unseen).sum() >= FEWEST
        wanted = _needed(known, new) if able else 0
    wanted = min(wanted, new // FEWEST)

    def add_up(classes: int) -> Workload:
        schedule = _schedule(growth.schedule, known, classes, founders=new)
        made = workload(schedule, full=uid.size if everything else new, unseen=unseen)
        return replace(made, passes=made.passes + (new > 0), visits=made.visits + new)  # the look

    return add_up(0 if growth.new_classes is None else wanted), add_up(wanted)


def judge_unseen(
    context: Context,
    known: Classification,
    schedule: Schedule,
    chunks: Sequence[ParticleChunk],
) -> Classification:
    """Measure how well the averages fit particles that had no part in making them.

    Parameters
    ----------
    context : Context
    known : Classification
        Its first particles are those of the table that the chunks were cut from.
    schedule : Schedule
    chunks : sequence of ParticleChunk
        Of particles that no online step saw; may be empty.
    """
    if not chunks:
        return known
    rows = look(context, known, schedule, chunks, name="unseen001")
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
    if np.isfinite(known.unseen).sum() >= FEWEST:
        context.events.message(
            f"{images} new particles; {100 * founding.share:.0f} percent of them are of views that "
            f"the {known.classes} classes lack, going by their fit"
        )
    elif wanted is None:
        context.events.warning(
            "the earlier job had too few particles to leave some out, without which new views "
            "cannot be told from old ones; --new-classes N founds classes all the same"
        )
    if wanted is not None and founding.classes < wanted:
        context.events.warning(
            f"--new-classes {wanted} are more than {images} new particles can found; "
            f"{founding.classes} are founded, of {FEWEST} particles at least"
        )
    if founding.classes:
        first, last = known.classes + 1, known.classes + founding.classes
        numbers = f"class {first}" if first == last else f"classes {first} to {last}"
        context.events.message(f"{founding.rows.size} of them found {numbers}")


def _schedule(schedule: Schedule, known: Classification, new: int, *, founders: int) -> Schedule:
    """Online steps over the founders of new classes, if there are any, then the full passes."""
    return replace(
        schedule,
        classes=known.classes + new,
        held=known.classes,
        online=schedule.online if new else 0,
        batch=schedule.batch // schedule.classes * new,
        particles=founders,
    )


def _course(
    context: Context,
    known: Classification,
    schedule: Schedule,
    *,
    founders: Sequence[ParticleChunk],
    chunks: Sequence[ParticleChunk],
    step: float,
    report: Report,
) -> Result:
    """Make the passes: online steps beside classes that hold still, then full ones."""
    runner, spec, old = context.runner, known.spec, known.classes
    extra = schedule.classes - old
    base = {
        name: np.concatenate(
            [known.model[name], np.zeros_like(known.model[name][:, :1]).repeat(extra, axis=1)], 1
        )
        for name in ("sums", "counts")
    }
    latest = runner.checkpoints.latest()
    if latest is not None:
        done, result = latest.iteration, Result(latest.model, latest.rows)
        context.events.message(f"going on after pass {done} of {schedule.passes}")
    else:
        done, result = 0, Result(known.model, {})
        if extra:
            plan = schedule.plan(spec, None, 0)
            start = {**known.model, **base}
            result = runner.run(Class2D(plan), founders, start, name="it000")
    for number in range(done + 1, schedule.passes + 1):
        plan, model = schedule.plan(spec, result.model, number), result.model
        if number <= schedule.steps:
            # The noise waits for averages that are finished.
            plan = replace(plan, update_noise=False)
            part: Sequence[ParticleChunk] = minibatch(
                founders, schedule.step_size, number - 1, multiple=FOLDS
            )
        else:
            # New sums on top of the old ones, every time: what founded classes counts once.
            plan, part, model = replace(plan, step=step, share=step), chunks, {**model, **base}
        result = runner.run(Class2D(plan), part, model, name=f"it{number:03d}")
        report(number, plan, result)
    return result


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
        model=result.model,
        uid=np.concatenate([uid, known.uid[others]]),
        fold=np.concatenate([fold, known.fold[others]]),
        rows=rows,
        images=seen if forget else known.images + seen,
        unseen=np.concatenate(
            [np.where(known.uid[place] == uid, known.unseen[place], np.nan), known.unseen[others]]
        ),
        growths=known.growths + 1,
    )
