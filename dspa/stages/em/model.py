"""Models as named types: between processes and on disk they are plain named arrays."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]


class NamedArrays:
    """Base of dataclasses of arrays and numbers, of mappings of these, and of dataclasses of these.

    Attributes
    ----------
    PARTS : mapping of name to type
        Fields that are dataclasses, mappings (``dict``) or tuples of dataclasses (``(kind,)``).
    """

    PARTS: ClassVar[Mapping[str, Any]] = {}

    def arrays(self) -> Arrays:
        """Return it as plain arrays: ``averages``, ``census.age``, ``nuisance.noise`` ..."""
        plain: Arrays = {}
        for name, value in _values(self).items():
            if isinstance(value, tuple):
                for number, part in enumerate(value):
                    plain |= _under(f"{name}.{number}", _values(part))
            elif name in self.PARTS:
                part = _values(value) if dataclasses.is_dataclass(value) else value
                plain |= _under(name, part)
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
        _refuse_missing(cls._plain_names(), arrays)
        given: dict[str, Any] = {}
        for name in _names(cls):
            kind = cls.PARTS.get(name)
            if kind is None:
                given[name] = _value(arrays[name])
            elif kind is dict:
                given[name] = under(arrays, f"{name}.")
            elif isinstance(kind, tuple):
                given[name] = _several(kind[0], under(arrays, f"{name}."))
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
            elif kind is not dict and not isinstance(kind, tuple):
                names += [f"{name}.{each}" for each in _names(kind)]
        return names


def under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    """Return the arrays whose names begin so, without that."""
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def _under(prefix: str, part: Mapping[str, Any]) -> Arrays:
    """Return plain arrays under the names that `under` finds them by."""
    return {f"{prefix}.{name}": np.asarray(value) for name, value in part.items()}


def _several(kind: Any, arrays: Arrays) -> tuple[Any, ...]:
    """Make dataclasses of the arrays ``0.name``, ``1.name`` ..."""
    parts = []
    for number in range(len({name.partition(".")[0] for name in arrays})):
        part = under(arrays, f"{number}.")
        _refuse_missing(_names(kind), part)
        parts.append(kind(**{name: _value(part[name]) for name in _names(kind)}))
    return tuple(parts)


def _refuse_missing(names: Iterable[str], arrays: Mapping[str, Any]) -> None:
    missing = sorted(set(names) - set(arrays))
    if missing:
        raise InputError(
            f"the checkpoints of this job hold no {missing[0]}: another version of dspa wrote "
            "them; make the job again (dspa rerun), or resume it with that version"
        )


def _names(kind: Any) -> list[str]:
    return [item.name for item in fields(kind)]


def _values(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in _names(part)}


def _value(array: NDArray[Any]) -> Any:
    """Return a number where an array has no axis."""
    return array if np.ndim(array) else np.asarray(array).item()
