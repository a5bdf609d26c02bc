"""Options of the algorithms: declared once, as fields of the algorithm, and read as a table by the registry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints


class OptionError(ValueError):
    """An algorithm or an option that cannot be used. `option` names it, as the user wrote it."""

    def __init__(self, message: str, *, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class Option:
    """One option of an algorithm. `type` is int, float, str or bool; the bounds are inclusive."""

    name: str
    type: type
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, value: Any) -> Any:
        """`value`, which may be text from a command line, as this option's type. Raises OptionError."""
        parsed = self._convert(value)
        if self.choices and parsed not in self.choices:
            raise self._error(value, f"one of {', '.join(self.choices)}")
        too_low = self.minimum is not None and parsed < self.minimum
        too_high = self.maximum is not None and parsed > self.maximum
        if too_low or too_high:
            raise self._error(value, self._range())
        return parsed

    def _convert(self, value: Any) -> Any:
        if self.type is bool:
            known = {"true": True, "false": False}
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in known:
                return known[value.lower()]
            raise self._error(value, "true or false")
        if self.type is str:
            if isinstance(value, str):
                return value
            raise self._error(value, "text")
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self._error(value, "a number")
        try:
            number = float(value)
        except ValueError:
            raise self._error(value, "a number") from None
        if not math.isfinite(number):
            raise self._error(value, "a finite number")
        if self.type is int:
            if not number.is_integer():
                raise self._error(value, "a whole number")
            return int(value) if isinstance(value, int) else int(number)
        return number

    def _range(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f"between {self.minimum:g} and {self.maximum:g}"
        return f"at least {self.minimum:g}" if self.minimum is not None else f"at most {self.maximum:g}"

    def _error(self, value: Any, wanted: str) -> OptionError:
        return OptionError(f"{self.name} must be {wanted}, not {value!r}", option=self.name)


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is an option of the algorithm that declares it."""
    described = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata={"option": described})


def options_of(algorithm: type) -> dict[str, Option]:
    """The option table of an algorithm class, in the order of declaration."""
    hints = get_type_hints(algorithm)
    table = {}
    for item in fields(algorithm):
        if "option" in item.metadata:
            kinds = [t for t in get_args(hints[item.name]) if t is not type(None)] or [hints[item.name]]
            table[item.name] = Option(item.name, kinds[0], item.default, **item.metadata["option"])
    return table


def resolve(algorithm: type, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of `algorithm` with the given values in place; None means the default.

    Raises OptionError for an option that this algorithm does not use and for a value out of its bounds.
    """
    table = options_of(algorithm)
    resolved = {key: known.default for key, known in table.items()}
    for written, value in given.items():
        key = written.replace("-", "_")
        if key not in table:
            uses = f"it uses {', '.join(table)}" if table else "it has no options"
            raise OptionError(f"{name} does not use the option {written!r}; {uses}", option=written)
        if value is not None:
            resolved[key] = table[key].parse(value)
    return resolved
