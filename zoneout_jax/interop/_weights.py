"""Functions that the converters share, for names, shapes and the order of gates."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax._checks import described

Arrays = dict[str, Any]
Named = tuple[str, Any]
"""An array and its name in the other library, for messages."""

GATES = {4: "ifgo", 3: "rzn", 1: "h"}
"""The gates in our order, by their number."""

KINDS = {4: "LSTM", 3: "GRU", 1: "plain RNN"}


class Weights(NamedTuple):
    """A cell's weights: [F, kH]; [H, kH] or, with a projection, [P, kH]; [kH]; [kH]; and k.

    `recurrent_bias` is added to the recurrent product. It is 0 except for n; None if there is none.
    """

    kernel: Any
    recurrent: Any
    bias: Any
    recurrent_bias: Any
    k: int


@dataclasses.dataclass(frozen=True)
class Library:
    """How a library stores its weights.

    Attributes:
      name: name of the library, for messages.
      gates: order of the gates, in our letters, by their number; no entry for a missing cell.
      transposed: True if kernels are [kH, F] and [kH, H].
      reset_after: `reset_after` of the GRU; None if the library has both kinds.
    """

    name: str
    gates: Mapping[int, str]
    transposed: bool = False
    reset_after: bool | None = True

    def ours(
        self,
        kernel: Named,
        recurrent: Named,
        bias: Named | None = None,
        recurrent_bias: Named | None = None,
        *,
        features: int | None = None,
        hidden: int | None = None,
        reset_after: bool = True,
    ) -> Arrays:
        """Returns our parameters; a bias of None counts as 0, `features` of None as any number.

        `hidden` is H of an LSTM with a projection, whose recurrent weights do not show H.
        """
        if hidden is None:
            count, hidden = self.count(*recurrent), min(recurrent[1].shape)
        else:
            count, rows = 4, recurrent[1].shape[1 if self.transposed else 0]
            shape = rows, 4 * hidden
            check_shape(*recurrent, *(shape[::-1] if self.transposed else shape))
        width = count * hidden
        check_shape(*kernel, *((width, features) if self.transposed else (features, width)))
        none = np.zeros(width, recurrent[1].dtype)
        biases = []
        for named in (bias, recurrent_bias):
            if named:
                check_shape(*named, width)
            biases.append(named[1] if named else none)
        arrays = kernel[1], recurrent[1], *biases
        if self.transposed:
            arrays = kernel[1].T, recurrent[1].T, *biases
        x, h, b_x, b_h = (reorder(array, self.gates[count], GATES[count]) for array in arrays)
        params = {"input": x, "recurrent": h, "bias": b_x + b_h}
        if count == 3 and reset_after:
            params["bias"] = concatenate([params["bias"][:-hidden], b_x[-hidden:]])
            params["recurrent_bias"] = b_h[-hidden:]
        return params

    def theirs(self, params: Mapping[str, Any], *, hidden: int | None = None) -> Weights:
        """Returns the weights of our parameters in the library's order, not transposed.

        `hidden` is H of an LSTM whose projection was removed from the parameters.
        """
        missing = {"input", "recurrent", "bias"} - set(params)
        if missing:
            raise ValueError(f"parameters lack {', '.join(sorted(missing))}: got {[*params]}")
        self.check_known(params, {"input", "recurrent", "bias", "recurrent_bias"})
        arrays = {name: to_array(array) for name, array in params.items()}
        rows = len(arrays["recurrent"])
        if hidden is None:
            count = self.count("recurrent", arrays["recurrent"], transposed=False)
            hidden = rows
        else:
            count = 4
        after = "recurrent_bias" in arrays
        if count == 3 and self.reset_after not in (after, None):
            raise ValueError(
                f"the GRU of {self.name} has its reset gate"
                f" {'before' if after else 'after'} the recurrent product, which differs from ours;"
                f" use GRU(reset_after={self.reset_after})"
            )
        shapes: dict[str, tuple[int | None, ...]] = {
            "input": (None, count * hidden),
            "recurrent": (rows, count * hidden),
            "bias": (count * hidden,),
        }
        if count == 3 and after:
            shapes["recurrent_bias"] = (hidden,)
        self.check_known(params, shapes)
        for name, shape in shapes.items():
            check_shape(name, arrays[name], *shape)
        recurrent_bias = None
        if count == 3 and after:
            none = np.zeros(2 * hidden, arrays["bias"].dtype)
            recurrent_bias = concatenate([none, arrays["recurrent_bias"]])
        kernel, recurrent, bias = (
            reorder(arrays[name], GATES[count], self.gates[count])
            for name in ("input", "recurrent", "bias")
        )
        return Weights(kernel, recurrent, bias, recurrent_bias, count)

    def check_known(self, params: Mapping[str, Any], known: Collection[str]) -> None:
        """Raises ValueError for parameters that the library has no place for."""
        unknown = set(params) - set(known)
        if unknown:
            raise ValueError(f"{self.name} has no place for {', '.join(sorted(unknown))}")

    def count(self, name: str, recurrent: Any, *, transposed: bool | None = None) -> int:
        """Returns the number of gates of recurrent weights, by default in the library's layout."""
        transposed = self.transposed if transposed is None else transposed
        shape = recurrent.shape[::-1] if transposed else recurrent.shape
        for count in self.gates:
            if len(shape) == 2 and shape[0] and shape[1] == count * shape[0]:
                return count
        known = []
        for count in self.gates:
            wide = f"{count}H" if count > 1 else "H"
            known.append(f"[{f'{wide}, H' if transposed else f'H, {wide}'}] ({KINDS[count]})")
        raise ValueError(
            f"{name} must be {' or '.join(known)} for {self.name}, got {list(recurrent.shape)}"
        )


def check_mapping(state: Any, what: str) -> None:
    """Raises TypeError unless arrays are given by name: a module itself is a likely slip."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"arrays of {what} must come by name, as module.state_dict() of torch and vars(cell) of"
            f" Equinox give them; got {described(state)}"
        )


def select(
    state: Mapping[str, Any],
    prefix: str,
    what: str,
    pattern: str,
    known: str,
    required: Sequence[str] = (),
    separator: str = ".",
) -> Arrays:
    """Returns the entries below a prefix, with the prefix removed from their names.

    Args:
      state: arrays by name.
      prefix: the prefix, with or without a separator at its end.
      what: the cells that the names belong to, for messages.
      pattern: regular expression that names must match.
      known: the names that match, for messages.
      required: names that must be present.
      separator: separator between the parts of a name.
    """
    check_mapping(state, what)
    prefix = ended(prefix, separator)
    found = {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}
    if found and set(required) <= set(found) and all(re.fullmatch(pattern, n) for n in found):
        return found
    got = f"{[*found]}" if found else f"{[*state]}, none of them below {prefix!r}"
    matches = (re.search(rf"(?:^|{separator})(?:{pattern})$", name) for name in state)
    places = {m.string[: m.start()] for m in matches if m} - {prefix.removesuffix(separator)}
    hint = f"; set `prefix`, to {' or '.join(map(repr, sorted(places)))}" if places else ""
    raise ValueError(f"not the weights of {what}: got {got}; known names are {known}{hint}")


def ended(prefix: str, separator: str = ".") -> str:
    """Returns the prefix with the separator at its end, unless the prefix is empty."""
    return prefix if not prefix or prefix.endswith(separator) else prefix + separator


def check_shape(name: str, array: Any, *shape: int | None) -> None:
    """Raises ValueError unless the array has the shape; None stands for any size."""
    if len(array.shape) != len(shape) or any(
        want not in (None, got) for want, got in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("F" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be [{wanted}], got {list(array.shape)}")


def to_array(value: Any) -> Any:
    """Converts to a NumPy array; copies torch tensors and leaves traced arrays unchanged."""
    if isinstance(value, jax.core.Tracer):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which torch cannot convert to NumPy
            return value.float().numpy().astype(jnp.bfloat16)
        return value.numpy().copy()
    return np.asarray(value)


def for_torch(array: Any) -> Any:
    """Returns a contiguous array that `torch.tensor` takes; traced arrays stay as they are."""
    if isinstance(array, jax.core.Tracer):
        return array
    return np.array(array.astype(np.float32) if array.dtype == jnp.bfloat16 else array, order="C")


def reorder(array: Any, given: str, wanted: str) -> Any:
    """Reorders the blocks of the last axis."""
    if given == wanted:
        return array
    blocks = dict(zip(given, split(array, len(given)), strict=True))
    return concatenate([blocks[gate] for gate in wanted], -1)


def split(array: Any, count: int) -> Any:
    """Splits the last axis into equal blocks."""
    return modules(array).split(array, count, -1)


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Concatenates arrays along an axis."""
    return modules(*arrays).concatenate(arrays, axis)


def modules(*arrays: Any) -> Any:
    """Returns `jax.numpy` if any of the arrays is traced, else `numpy`."""
    return jnp if any(isinstance(array, jax.core.Tracer) for array in arrays) else np
