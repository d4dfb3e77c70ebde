"""Models as named types: between processes and on disk they are plain named arrays."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]


class NamedArrays:
    """Base of dataclasses of arrays and numbers, of mappings of these, and of dataclasses of these.

    Attributes
    ----------
    PARTS : mapping of name to type
        Fields that are dataclasses, or mappings (``dict``).
    """

    PARTS: ClassVar[Mapping[str, Any]] = {}

    def arrays(self) -> Arrays:
        """Return it as plain arrays: ``averages``, ``census.age``, ``nuisance.noise`` ..."""
        plain: Arrays = {}
        for name, value in _values(self).items():
            if name in self.PARTS:
                part = _values(value) if dataclasses.is_dataclass(value) else value
                plain |= {f"{name}.{each}": np.asarray(own) for each, own in part.items()}
            else:
                plain[name] = np.asarray(value)
        return plain

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Make it of what `arrays` gave.

        Raises
        ------
        InputError
            If an array is missing: another version of dspa wrote them.
        """
        missing = sorted(set(cls._plain_names()) - set(arrays))
        if missing:
            raise InputError(
                f"the checkpoints of this job hold no {missing[0]}: another version of dspa wrote "
                "them; make the job again (dspa rerun), or resume it with that version"
            )
        given: dict[str, Any] = {}
        for name in _names(cls):
            kind = cls.PARTS.get(name)
            if kind is None:
                given[name] = _value(arrays[name])
            elif kind is dict:
                given[name] = under(arrays, f"{name}.")
            else:
                own = {each: _value(arrays[f"{name}.{each}"]) for each in _names(kind)}
                given[name] = kind(**own)
        return cls(**given)

    @classmethod
    def _plain_names(cls) -> list[str]:
        """Names of the plain arrays; of mappings any may be there."""
        names: list[str] = []
        for name in _names(cls):
            kind = cls.PARTS.get(name)
            if kind is None:
                names.append(name)
            elif kind is not dict:
                names += [f"{name}.{each}" for each in _names(kind)]
        return names


def under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    """Return the arrays whose names begin so, without that."""
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def _names(kind: Any) -> list[str]:
    return [item.name for item in fields(kind)]


def _values(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in _names(part)}


def _value(array: NDArray[Any]) -> Any:
    """Return a number where an array has no axis."""
    return array if np.ndim(array) else np.asarray(array).item()
