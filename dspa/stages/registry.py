"""The table of stages: a name, the module that holds it, one line for ``dspa --help``.

A module is imported when its stage is asked for, so that the table alone is quick to show.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from dspa.stages.stage import Stage


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes
    ----------
    name : str
        As typed: ``class2d``, ``pick blob``.
    module : str
        Module of ``dspa.stages`` with ``STAGE``, or ``STAGES`` for several.
    summary : str
    gives : tuple of str
        Kinds of what its jobs may give, so that a chain of stages can be checked before any runs;
        empty if that is not known.
    takes : bool
        Whether its first argument is a job or more: known without its module, for completion.
    """

    name: str
    module: str
    summary: str
    gives: tuple[str, ...] = ()
    takes: bool = True


ENTRIES = (
    Entry(
        "import micrographs",
        "imports.stages",
        "bring in micrographs, from image files or a STAR file",
        ("micrographs",),
        takes=False,
    ),
    Entry(
        "import movies",
        "imports.stages",
        "bring in movies, summed over their frames",
        ("movies", "micrographs"),
        takes=False,
    ),
    Entry(
        "import particles",
        "imports.stages",
        "bring in particles from a STAR or cryoSPARC file",
        ("particles", "picks"),
        takes=False,
    ),
    Entry("import volume", "imports.stages", "bring in a map", ("volume",), takes=False),
    Entry(
        "simulate micrographs",
        "simulation.micrographs",
        "make micrographs with known truth",
        ("micrographs",),
        takes=False,
    ),
    Entry(
        "simulate movies",
        "simulation.movies",
        "make movies with known motion",
        ("movies",),
        takes=False,
    ),
    Entry(
        "simulate particles",
        "simulation.particles",
        "make a particle stack with known truth",
        ("particles",),
        takes=False,
    ),
    Entry("motion", "motion.stage", "correct movies for motion", ("micrographs",)),
    Entry(
        "ctf", "exposures.ctf", "estimate defocus and astigmatism of micrographs", ("micrographs",)
    ),
    Entry(
        "curate-exposures",
        "exposures.curate",
        "keep the micrographs worth going on with",
        ("micrographs", "picks", "particles"),
    ),
    Entry("pick blob", "picks.blob", "find particles by their size", ("picks",)),
    Entry(
        "pick template",
        "picks.template",
        "find particles by 2D classes or views of a map",
        ("picks",),
    ),
    Entry(
        "topaz train",
        "picks.topaz_train",
        "train topaz, a deep picker, on the picks of a job",
        ("model",),
    ),
    Entry("pick topaz", "picks.topaz", "find particles with a topaz model", ("picks",)),
    Entry("inspect-picks", "picks.inspect", "keep picks by their scores", ("picks", "edits")),
    Entry(
        "extract", "extraction.extract", "cut particle images out of micrographs", ("particles",)
    ),
    Entry(
        "remove-duplicates",
        "particles.duplicates",
        "of particles closer than a distance keep the best",
        ("particles",),
    ),
    Entry(
        "particle-sets",
        "particles.sets",
        "join, intersect or subtract sets of particles",
        ("particles",),
    ),
    Entry(
        "subset",
        "particles.subset",
        "keep particles by a score, at random, or one of each image",
        ("particles",),
    ),
    Entry(
        "symmetry-expand",
        "particles.expand",
        "take every particle once for each operator of its symmetry",
        ("particles",),
    ),
    Entry(
        "split-particles",
        "particles.split",
        "divide particles by class, half set, micrographs, score or at random",
        ("particles",),
    ),
    Entry(
        "class2d",
        "class2d.stage",
        "sort particles into 2D classes",
        ("particles", "classes", "classification"),
    ),
    Entry(
        "select2d",
        "class2d.select2d",
        "keep the particles of good 2D classes",
        ("particles", "classes"),
    ),
    Entry(
        "abinitio",
        "abinitio.stage",
        "find a first map, or K maps, from particles alone",
        ("volume", "particles"),
    ),
    Entry(
        "refine",
        "refine.stage",
        "refine a map to high resolution, halves kept apart",
        ("volume", "mask", "particles"),
    ),
    Entry(
        "hetero",
        "hetero.stage",
        "sort particles of several structures into as many maps",
        ("volume", "particles"),
    ),
    Entry(
        "class3d",
        "class3d.stage",
        "sort particles whose poses are known into classes, in a mask",
        ("volume", "particles"),
    ),
    Entry(
        "ctf-refine",
        "ctf_refine.stage",
        "refine defocus, astigmatism, beam tilt and other aberrations against half maps",
        ("particles",),
    ),
    Entry(
        "local",
        "focus.local",
        "refine a part of the particle near the poses it has",
        ("volume", "mask", "particles"),
    ),
    Entry(
        "subtract",
        "focus.subtract",
        "take off particle images what their map shows outside a mask",
        ("particles", "volume", "mask"),
    ),
    Entry(
        "postprocess",
        "refine.postprocess",
        "sharpen a map and measure its resolution in a mask",
        ("volume", "mask"),
    ),
    Entry(
        "fsc",
        "refine.fsc",
        "correlate half maps, two maps, or a map and a model, and say if directions differ",
        ("mask",),
    ),
    Entry(
        "bfactor-line",
        "refine.bfactor_line",
        "measure how the resolution rises with the number of particles",
    ),
    Entry(
        "local-resolution",
        "refine.local",
        "measure the resolution about each voxel of half maps, and filter the map to it",
        ("volume", "mask"),
    ),
    Entry(
        "mask",
        "volumes.mask",
        "make a mask from a map, an atomic model or a shape",
        ("mask",),
    ),
    Entry(
        "volume",
        "volumes.volume",
        "move, resample, filter, symmetrise, cut, mask and add up maps",
        ("volume",),
    ),
    Entry("export", "export", "write picks, particles, micrographs or a map for other programs"),
)


def entries() -> tuple[Entry, ...]:
    """Return the stages whose modules are installed."""
    return tuple(
        entry for entry in ENTRIES if importlib.util.find_spec(f"dspa.stages.{entry.module}")
    )


def find_stage(name: str) -> Stage:
    """Return a stage by its name, importing its module.

    Parameters
    ----------
    name : str
        As typed; ``pick_blob`` works as well as ``pick blob``.
    """
    plain = name.replace("_", " ").replace("-", " ").strip()
    for entry in ENTRIES:
        if entry.name.replace("-", " ") == plain:
            module = importlib.import_module(f"dspa.stages.{entry.module}")
            stages: tuple[Stage, ...] = getattr(module, "STAGES", None) or (module.STAGE,)
            for stage in stages:
                if stage.name == entry.name:
                    return stage
            raise LookupError(f"{module.__name__} does not hold the stage {entry.name!r}")
    known = [entry.name for entry in ENTRIES]
    near = difflib.get_close_matches(plain, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    raise InputError(f"there is no stage {name!r}; {hint}")
