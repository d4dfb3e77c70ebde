"""Run topaz (doi:10.1038/s41592-019-0575-8) as a child process that does not outlive its job.

Topaz and the PyTorch below it are never imported: they may live in an environment of their own.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.dataflow.program import run_program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VARIABLE = "DSPA_TOPAZ"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SEEDED = "dspa: topaz is seeded"
# Topaz has no seed of its own. Its interpreter imports this first: generators that nobody seeds
# follow from ours.
_SEED = """
import itertools, random, sys
random.seed({seed})
try:
    import numpy
    numpy.random.seed({seed} % 2**32)
    _make, _numbers = numpy.random.default_rng, itertools.count()
    def default_rng(seed=None):
        return _make([{seed}, next(_numbers)] if seed is None else seed)
    numpy.random.default_rng = default_rng
    import torch
    torch.manual_seed({seed})
    print({sign!r}, file=sys.stderr, flush=True)
except ImportError:
    pass
"""


def find_topaz(given: str = "") -> str:
    """Return the path of the topaz program.

    Parameters
    ----------
    given : str
        Path or name; empty to look at the variable ``DSPA_TOPAZ``, beside this Python, and on the
        search path.
    """
    for source, name in (("--topaz", given), (VARIABLE, os.environ.get(VARIABLE, ""))):
        if name:
            found = shutil.which(Path(name).expanduser())
            if found is None:
                raise InputError(f"{source} is {name!r}, which is no program that can be run")
            return str(Path(found).absolute())
    beside = str(Path(sys.executable).parent)
    found = shutil.which("topaz", path=beside) or shutil.which("topaz")
    if found is None:
        raise InputError(
            "there is no program topaz: pip install 'dspa[topaz]', or name one with --topaz PATH "
            f"or the variable {VARIABLE}"
        )
    return str(Path(found).absolute())


@dataclass(frozen=True)
class Topaz:
    """The program and how it runs.

    Attributes
    ----------
    path : str
        From `find_topaz`.
    threads : int
        Of each process.
    """

    path: str
    threads: int = 1

    def run(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        told: Callable[[str], None] | None = None,
        seed: int | None = None,
    ) -> None:
        """Run topaz in a folder until it ends; kill it if this call ends before.

        Parameters
        ----------
        arguments : sequence of str
            ``train``, ``extract``... and their options; relative paths start at ``folder``.
        folder : Path
            Where it runs.
        told : callable, optional
            Takes each line that topaz prints, as it comes.
        seed : int, optional
            Makes what topaz draws at random repeat.

        Raises
        ------
        InputError
            If topaz ends with a failure of its own; with the last line it printed.
        RuntimeError
            If something killed it.
        """
        made = run_program(
            [self.path, *arguments],
            folder=folder,
            environment=self._environment(folder, seed),
            told=told,
        )
        if made.signal:
            raise RuntimeError(
                f"topaz {arguments[0]} was killed ({made.signal}), perhaps for want of memory"
            )
        if made.status > 0:
            why = made.lines[-1].lstrip("# ") if made.lines else "it said nothing"
            raise InputError(f"topaz {arguments[0]} failed with status {made.status}: {why}")

    def _environment(self, folder: Path, seed: int | None) -> dict[str, str]:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        environment |= {name: str(self.threads) for name in THREADS}
        if seed is not None:
            place = folder / "seed"
            place.mkdir(exist_ok=True)
            code = _SEED.format(seed=seed, sign=SEEDED)
            (place / "sitecustomize.py").write_text(code, encoding="utf-8")
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([str(place), *([before] if before else [])])
        return environment
