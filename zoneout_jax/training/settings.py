"""Settings: frozen dataclasses with checked values, which may contain other settings."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self, get_args, get_type_hints


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of the values of a number: `Annotated[float, Range(0, 1)]`.

    Attributes:
      low: smallest value.
      high: largest value; None means any finite value.
      above: True if `low` itself is not allowed.
      below: True if `high` itself is not allowed.
    """

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.low if self.above else value >= self.low
        if self.high is None:
            return high_enough and math.isfinite(value)
        return high_enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high is not None:
            left, right = "(" if self.above else "[", ")" if self.below else "]"
            return f"in {left}{self.low}, {self.high}{right}"
        return f"above {self.low}" if self.above else f"at least {self.low}"


Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1)]
DropRate = Annotated[float, Range(0, 1, below=True)]


def ranges(settings: Any) -> dict[str, Range]:
    """Returns the range of each field of a dataclass, or of its items, that has one."""

    def notes(hint: Any) -> Iterator[Any]:
        yield from getattr(hint, "__metadata__", ())
        for part in get_args(hint):
            yield from notes(part)

    return {
        name: note
        for name, hint in get_type_hints(settings, include_extras=True).items()
        for note in notes(hint)
        if isinstance(note, Range)
    }


def check_range(name: str, value: float | None, allowed: Range) -> None:
    """Raises ValueError unless a value is None or in a range."""
    if value is not None and value not in allowed:
        unbounded = allowed.high is None and not math.isfinite(value)
        finite = "finite and " if unbounded else ""
        raise ValueError(f"{name} must be {finite}{allowed}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of settings: dataclasses whose fields may be settings too.

    Names must be unique over all parts, since they become flags: `--epochs`, not `--run.epochs`.

    Raises:
      ValueError: a number is outside the `Range` of its annotation.
    """

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset()
    """Settings that no number of a run depends on; they may change when it resumes."""

    def __post_init__(self) -> None:
        for name, allowed in ranges(type(self)).items():
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                check_range(name, item, allowed)

    def flat(self, incidental: bool = True) -> dict[str, Any]:
        """Returns all settings by name, also of parts; `incidental=False` drops incidental ones."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Settings):
                found |= value.flat(incidental)
            elif incidental or field.name not in self.INCIDENTAL:
                found[field.name] = value
        return found

    def identity(self) -> dict[str, Any]:
        """Returns the settings that the numbers of a run depend on."""
        return self.flat(incidental=False)

    def range_of(self, name: str) -> Range | None:
        """Returns the range of a setting, here or in a part; None if it has none."""
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if isinstance(part, Settings) and name in part.flat():
                return part.range_of(name)
        return ranges(type(self)).get(name)

    def replace(self, **changes: Any) -> Self:
        """Returns the settings with some values changed by name, also in parts.

        Raises:
          TypeError: no setting has such a name.
        """
        parts, own = {}, {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in changes:
                own[field.name] = changes.pop(field.name)
            elif isinstance(value, Settings):
                theirs = {name: changes.pop(name) for name in value.flat() if name in changes}
                if theirs:
                    parts[field.name] = value.replace(**theirs)
        if changes:
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(changes)}")
        return dataclasses.replace(self, **own, **parts)
