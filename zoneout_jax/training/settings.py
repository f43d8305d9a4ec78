"""Settings: frozen dataclasses whose values are checked, and that may be made of others."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self, get_args, get_type_hints


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a number may have: `Annotated[float, Range(0, 1)]`.

    Attributes:
      low: least value.
      high: greatest value; None means any finite one.
      above: `low` itself is not allowed.
      below: `high` itself is not allowed.
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
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1)]
DropRate = Annotated[float, Range(0, 1, below=True)]


def ranges(settings: Any) -> dict[str, Range]:
    """The range of each field of a dataclass, or of its items, that was given one."""

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


def check_ranges(settings: Any) -> None:
    """Raises ValueError unless each field of a dataclass is in its range; None always is."""
    for name, allowed in ranges(type(settings)).items():
        value = getattr(settings, name)
        for item in value if isinstance(value, tuple) else (value,):
            _check_range(name, item, allowed)


def _check_range(name: str, value: float | None, allowed: Range) -> None:
    if value is not None and value not in allowed:
        unbounded = allowed.high is None and not math.isfinite(value)
        finite = "finite and " if unbounded else ""
        raise ValueError(f"{name} must be {finite}{allowed}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings of a run: dataclasses, whose fields may be settings again.

    A field has a name that no other part has, as names are flags: `--epochs`, not `--run.epochs`.

    Raises:
      ValueError: a number out of the `Range` of its annotation.
    """

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset()
    """Settings that decide no number of a run; they may change when it goes on."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def flat(self, incidental: bool = True) -> dict[str, Any]:
        """All settings by name, those of the parts too; without the incidental ones if asked."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Settings):
                found |= value.flat(incidental)
            elif incidental or field.name not in self.INCIDENTAL:
                found[field.name] = value
        return found

    def identity(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run."""
        return self.flat(incidental=False)

    def check(self, name: str, value: float) -> None:
        """Raises ValueError unless a setting may have a value, whatever the others are.

        Args:
          name: of the setting, here or in a part.
          value: a number.
        """
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if isinstance(part, Settings) and name in part.flat():
                part.check(name, value)
        allowed = ranges(type(self)).get(name)
        if allowed is not None:
            _check_range(name, value, allowed)

    def replace(self, **changes: Any) -> Self:
        """The settings with some changed, by name, wherever they are.

        Raises:
          TypeError: there is no setting of that name.
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
