"""References made by another program, in RELION's form of an external reconstruction.

The program sees the sums of one half, as RELION's would: Blush and its kin run unchanged. It is
called once for each half, one after the other, and is never shown both.
"""

from __future__ import annotations

import os
import shlex
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.dataflow.program import run_program
from dspa.io.external_reconstruct import (
    Known,
    Request,
    read_answer,
    remove_sums,
    write_request,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dspa.dataflow.program import Ended
    from dspa.ops.sums.backproject import Accumulator

PREFIX = "external:"
SAID = 3  # last lines of a program that failed, in the message
_LONG = 300  # characters of them


@dataclass(frozen=True)
class External:
    """A program that makes references.

    Attributes
    ----------
    command : tuple of str
        Absolute path of the program, and arguments before the table.
    folder : str
        Where files are exchanged and where it runs.
    minutes : float
        Time after which it is killed.
    """

    command: tuple[str, ...]
    folder: str
    minutes: float

    def reconstruct(
        self, source: Accumulator, known: Known, *, iteration: int, half: int
    ) -> NDArray[np.float32]:
        """Have a map made of the sums of a half.

        Parameters
        ----------
        source : Accumulator
        known : Known
        iteration : int
        half : int
            1 or 2.

        Returns
        -------
        (n, n, n) float32

        Raises
        ------
        InputError
            If the program fails, takes too long, or makes no map of that box.
        """
        folder = Path(self.folder)
        self._forget(folder, half, iteration)
        stem = f"run_it{iteration:03d}_half{half}_class001_external_reconstruct"
        request = Request(folder, stem)
        write_request(request, source, known)
        log = folder / f"{stem}.txt"
        with log.open("w", encoding="utf-8") as stream:

            def keep(line: str) -> None:
                stream.write(f"{line}\n")
                stream.flush()

            try:
                ended = run_program(
                    [*self.command, request.star],
                    folder=folder,
                    environment=os.environ,
                    told=keep,
                    seconds=60.0 * self.minutes,
                )
            except OSError as error:
                raise InputError(
                    f"{self.named}: it cannot be run ({error.strerror}); give a program that can"
                ) from error
        self._check(ended, folder / request.star)
        try:
            made = read_answer(request, box=source.box)
        except InputError as error:
            raise InputError(f"{self.named}: {error}; {_last(ended)}") from error
        remove_sums(request)
        return made

    @property
    def named(self) -> str:
        """How messages call it."""
        return f"--regulariser {PREFIX}{shlex.join(self.command)}"

    def _check(self, ended: Ended, star: Path) -> None:
        if ended.late:
            raise InputError(
                f"{self.named}: killed after {self.minutes:g} minutes (--external-minutes) on "
                f"{star}; {_last(ended)}"
            )
        if ended.signal:
            raise InputError(
                f"{self.named}: it was killed ({ended.signal}, perhaps for want of memory) on "
                f"{star}; {_last(ended)}"
            )
        if ended.status:
            raise InputError(
                f"{self.named}: it failed with status {ended.status} on {star}; {_last(ended)}"
            )

    def _forget(self, folder: Path, half: int, iteration: int) -> None:
        """Remove files of other iterations of a half: those of the last are kept."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"run_it*_half{half}_class001_external_reconstruct*"):
            if not path.name.startswith(f"run_it{iteration:03d}_"):
                with suppress(OSError):
                    path.unlink()


def find_command(text: str) -> tuple[str, ...]:
    """Return a command with the absolute path of its program.

    Parameters
    ----------
    text : str
        As typed in a shell; words that name a file from here become absolute paths.

    Raises
    ------
    InputError
        If there is no such program.
    """
    option = f"--regulariser {PREFIX}"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{option}{text}: {error}; write it as in a shell") from None
    if not words:
        raise InputError(f"{option} needs a command, as in {option}relion_external_reconstruct")
    found = shutil.which(Path(words[0]).expanduser())
    if found is None:
        raise InputError(f"{option}{text}: there is no program {words[0]!r} that can be run")
    named = (str(Path(word).absolute()) if Path(word).is_file() else word for word in words[1:])
    return (str(Path(found).absolute()), *named)


def _last(ended: Ended) -> str:
    """Quote the last lines of a program."""
    if not ended.lines:
        return "it said nothing"
    return f"it said last: {' / '.join(ended.lines[-SAID:])[-_LONG:]}"
