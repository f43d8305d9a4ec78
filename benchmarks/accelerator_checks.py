"""Part 2 of `benchmarks.accelerator`: checks of what the device computes.

Masks must equal the CPU's masks bit for bit (Gaussian ones up to rounding). Outputs, last carries,
statistics and all gradients of every cell, in its default implementation (fused, or associative for
linear cells) and as a plain scan, must be finite, and must equal the results of a plain scan in
float64 on the CPU up to rounding. Two runs should give the same bits; this is reported, but not
required.
"""

import contextlib
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator_common import Context, brief, products_in, side_by_side, table
from zoneout_jax import (
    GRU,
    LRU,
    LSTM,
    RGLRU,
    RNN,
    Cell,
    IndRNN,
    LinearCell,
    Masks,
    MinGRU,
    MinLSTM,
    Zoneout,
    unroll,
)

STEPS, BATCH, INPUTS, UNITS = 12, 16, 24, 128
QUICK_UNITS = 8
BATCH_NORM = {"normalization": "batch", "max_steps": STEPS}
CELLS: dict[str, tuple[type[Cell], dict[str, Any]]] = {
    "lstm": (LSTM, {}),
    "gru": (GRU, {}),
    "rnn": (RNN, {}),
    "gru, reset before": (GRU, {"reset_after": False}),
    "lstm, layer norm": (LSTM, {"normalization": "layer"}),
    "lstm, batch norm": (LSTM, BATCH_NORM),
    "lstm, masks of numbers": (LSTM, {}),
    "lstm, learned carry": (LSTM, {"learned_carry": True}),
    "lstm, output gates": (LSTM, {"ogates_zoneout": "paper"}),
    "lstm, output gates of the repository": (LSTM, {"ogates_zoneout": "repository"}),
    "lstm, batch norm, output gates": (LSTM, BATCH_NORM | {"ogates_zoneout": "paper"}),
    "lstm, relu": (LSTM, {"activation_fn": "relu"}),
    "rnn, relu": (RNN, {"activation_fn": "relu"}),
    "lstm, candidate": (LSTM, {"output": "candidate"}),
    "gru, candidate": (GRU, {"output": "candidate"}),
    "rnn, candidate": (RNN, {"output": "candidate"}),
    "minGRU": (MinGRU, {"activation_fn": "tanh"}),
    "minLSTM": (MinLSTM, {}),
    "RG-LRU": (RGLRU, {}),
    "LRU": (LRU, {"learned_carry": True}),
    "LRU, masks of numbers": (LRU, {}),
    "lstm, hidden, masks of numbers": (LSTM, {}),
    "gru, hidden mask": (GRU, {}),
    "lstm, projected": (LSTM, {"proj_size": UNITS // 4}),
    "gru, layer norm": (GRU, {"normalization": "layer"}),
    "indrnn, tanh": (IndRNN, {"activation_fn": "tanh"}),
}
"""Class and options of each cell, by name; the most used cells first."""
QUICK_CELLS = ("lstm", "gru, reset before", "LRU")
RATES = {"cells": 0.5, "states": 0.3, "update_drop": 0.4}
MASKS = {
    "Bernoulli": Zoneout(**RATES),
    "shared": Zoneout(0.4, 0.4, shared=True),
    "static": Zoneout(0.5, 0.3, static=True),
    "per layer": Zoneout(0.5, 0.3, per_layer=True),
    "Gaussian": Zoneout(**RATES, gaussian=True),
}
PRECISIONS = ("float32", "default", "bfloat16")
"""Full float32, JAX's default for float32, and operands in bfloat16."""
KEY = 7

FLOAT32_EPS = 2.0**-23
BFLOAT16_EPS = 2.0**-7
DEFAULT_EPS = {"gpu": 2.0**-10, "tpu": BFLOAT16_EPS}
"""Spacing of operands at 1, by default: TensorFloat-32, bfloat16; on other devices float32."""


def bounds() -> dict[str, float]:
    """Returns the largest allowed error of an array, relative to its largest value, by precision.

        4 · (eps_operand · √(2T) + eps_float32 · √n),  n = T · (F + 4H + B)

    Rounding errors have random signs, so n of them add up like √n. Rounded operands change each
    product by about their eps, whatever its length. A gradient passes through 2T products in a row,
    with kernels that neither amplify nor damp. Sums are in float32: over F inputs and H units at
    each step, over 4H gates in the backward pass, and over T · B rows at the end. The factor of 4
    is for functions such as tanh, which are accurate to a few eps. Extremes need no factor, as the
    largest error of an array is compared with its largest value.
    """
    sums = FLOAT32_EPS * (STEPS * (INPUTS + 4 * UNITS + BATCH)) ** 0.5
    operands = {
        "float32": FLOAT32_EPS,
        "default": DEFAULT_EPS.get(jax.default_backend(), FLOAT32_EPS),
        "bfloat16": BFLOAT16_EPS,
    }
    return {name: 4 * (eps * (2 * STEPS) ** 0.5 + sums) for name, eps in operands.items()}


GAUSSIAN_BOUND = FLOAT32_EPS * STEPS * BATCH * UNITS
"""Bound of errors of Gaussian masks, relative to the largest value. The masks come from the same
bits x, but through the logarithm of 1 − x², which devices round differently: the smallest 1 − x² of
n draws is about 1/n, with an error of eps."""


def check(context: Context, result: dict[str, Any]) -> None:
    """Checks masks, then cells; lists failed checks in `wrong`."""
    result |= {"wrong": [], "other bits": [], "not reached": []}
    result |= {"bounds": bounds(), "masks": {}, "cells": {}}
    check_masks(result)
    context.save()
    check_cells(context, result)


def check_masks(result: dict[str, Any]) -> None:
    """Compares masks of every kind with the CPU's masks."""
    for name, spec in MASKS.items():
        wanted, got = draw(spec, cpu()), draw(spec, jax.devices()[0])
        if spec.gaussian:
            away = {n: relative_error(got[n], wanted[n]) for n in wanted}
            right = max(away.values()) <= GAUSSIAN_BOUND
            found = f"at most {max(away.values()):.1e} away (bound {GAUSSIAN_BOUND:.1e})"
        else:
            differing = sum(int(np.sum(got[n] != wanted[n])) for n in wanted)
            right = not differing
            found = "equal" if right else f"{differing} differ"
        result["masks"][name] = found
        if not right:
            result["wrong"].append(f"masks, {name}: {found}")


def draw(spec: Zoneout, device: jax.Device) -> dict[str, np.ndarray]:
    """Draws the masks of a sequence on a device; returns them by name."""
    key = jax.device_put(jax.random.key(KEY), device)
    masks = jax.jit(lambda key: spec.sample(key, STEPS, BATCH, UNITS))(key)
    return {name: np.asarray(m) for name, m in masks._asdict().items() if m is not None}


def check_cells(context: Context, result: dict[str, Any]) -> None:
    """Compares cells with float64, the most used first, while there is time."""
    names = QUICK_CELLS if context.quick else tuple(CELLS)
    wanted = {name: precisions_of(name, context.quick) for name in names}
    units = QUICK_UNITS if context.quick else UNITS
    makers = {}
    for name in names:
        makers[name, "reference"] = functools.partial(reference, name, units)
        for precision in wanted[name]:
            makers[name, precision] = functools.partial(on_device, name, units, precision)
    made: dict[tuple[str, str], Any] = {}
    for key, outcome in side_by_side(makers, context.deadline):
        made[key] = outcome
        ready = [k for k in made if k[1] != "reference" and (k[0], "reference") in made]
        for name, precision in ready:
            note(name, precision, made.pop((name, precision)), made[name, "reference"], result)
            context.save()
    for name in names:
        missing = [p for p in wanted[name] if p not in result["cells"].get(name, {})]
        if missing:
            result["not reached"].append(f"{name} ({', '.join(missing)})")


def precisions_of(name: str, quick: bool) -> tuple[str, ...]:
    """Returns the precisions to check a cell in.

    The slope of relu jumps at 0, so rounded operands change single gradients altogether: cells with
    relu are checked in full float32 only.
    """
    if "relu" in name:
        return PRECISIONS[:1]
    return PRECISIONS[::2] if quick else PRECISIONS


def note(name: str, precision: str, runs: Any, wanted: Any, result: dict[str, Any]) -> None:
    """Compares both implementations with the reference, or notes an exception of either."""
    entry = result["cells"].setdefault(name, {})[precision] = {}
    for error in (runs, wanted):
        if isinstance(error, Exception):
            result["wrong"].append(f"{name}, {precision}: {brief(error)}")
            return
    for implementation, (first, second) in runs.items():
        label = f"{name}, {precision}, {implementation}"
        found = entry[implementation] = compare(first, second, wanted)
        result["wrong"] += faults(label, found, result["bounds"][precision])
        result["other bits"] += [] if found["same bits"] else [label]


def faults(label: str, found: dict[str, Any], bound: float) -> list[str]:
    """Lists what is wrong in a comparison."""
    if not found["finite"]:
        return [f"{label}: not finite"]
    if found["error"] > bound:
        return [f"{label}: {found['where']} is {found['error']:.1e} away, bound {bound:.1e}"]
    return []


def compare(first: Any, second: Any, wanted: Any) -> dict[str, Any]:
    """Finds the largest relative error of the first run, and if the second has the same bits."""
    leaves = jax.tree_util.tree_leaves_with_path(first)
    errors = {
        jax.tree_util.keystr(path): relative_error(got, want)
        for (path, got), want in zip(leaves, jax.tree.leaves(wanted), strict=True)
    }
    where = max(errors, key=errors.get)
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return {
        "error": errors[where],
        "where": where,
        "finite": all(bool(np.all(np.isfinite(leaf))) for _, leaf in leaves),
        "same bits": all(np.array_equal(a, b, equal_nan=True) for a, b in pairs),
    }


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Computes the largest error relative to the largest wanted value.

    If all wanted values are 0, any error is infinite.
    """
    away = float(np.max(np.abs(got.astype(np.complex128) - want), initial=0.0))
    largest = float(np.max(np.abs(want), initial=0.0))
    return away / largest if largest else math.inf if away else 0.0


def cpu() -> jax.Device:
    """Returns the CPU, which JAX has in addition to any accelerator."""
    return jax.devices("cpu")[0]


def float64() -> contextlib.AbstractContextManager:
    """Returns a context with 64-bit types."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # older JAX, such as 0.7.0

    return enable_x64(True)


def make(name: str, units: int, **types: Any) -> Cell:
    """Makes a cell by its name."""
    kind, options = CELLS[name]
    return kind(INPUTS, units, **options, **types)


def implementations(cell: Cell) -> tuple[str, ...]:
    """Returns the implementations of a cell, the default one first."""
    if isinstance(cell, LinearCell):
        return ("associative", "scan")
    return ("fused", "scan") if cell.one_product else ("scan",)


class Arrays(NamedTuple):
    """Inputs of a cell, as NumPy arrays.

    Attributes:
      wanted: parameters, inputs, initial carry (None if it is learned) and masks of real numbers.
        Gradients are with respect to these.
      masks: boolean masks by name.
      lengths: lengths of the sequences.
      weights: weights of the outputs in the loss.
    """

    wanted: tuple[Any, np.ndarray, Any, dict[str, np.ndarray]]
    masks: dict[str, np.ndarray]
    lengths: np.ndarray
    weights: np.ndarray


def make_arrays(name: str, units: int) -> Arrays:
    """Makes random arrays for a cell, with orthogonal kernels of gates, as training starts with.

    Uses NumPy only, as JAX would compile each operation.
    """
    rng = np.random.default_rng(0)
    cell = make(name, units)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda params: cell.initial_carry(params, BATCH), params)

    def normal(shape):
        return rng.standard_normal(shape, np.float32)

    def fill(param):
        if param.ndim == 1:
            return normal(param.shape) / 2
        rows, columns = param.shape
        side, width = max(rows, units), min(columns, units)
        gates = [
            np.linalg.qr(normal((side, side)))[0][:rows, :width] for _ in range(columns // width)
        ]
        return np.concatenate(gates, 1)

    def start(array):
        if jnp.iscomplexobj(array):
            return (normal(array.shape) + 1j * normal(array.shape)) / 3
        return normal(array.shape) / 3

    names = (*cell.mask_names, *(["hidden"] if "hidden" in name else []))
    masks = {n: rng.random((STEPS, BATCH, cell.size(n)), np.float32) for n in names}
    if "numbers" not in name:
        masks = {n: mask < 0.5 for n, mask in masks.items()}
    hard = {n: m for n, m in masks.items() if m.dtype == bool}
    lengths = rng.integers(0, STEPS + 1, BATCH)
    # Half have full length: statistics over few examples are ill-conditioned.
    lengths[0], lengths[BATCH // 2 :] = 0, STEPS
    params = {n: fill(param) for n, param in params.items()}
    carry = None if cell.learned_carry else jax.tree.map(start, carry)
    soft = {n: m for n, m in masks.items() if n not in hard}
    return Arrays(
        (params, normal((STEPS, BATCH, INPUTS)), carry, soft),
        hard,
        lengths,
        normal((STEPS, BATCH, cell.output_features)),
    )


def results(cell: Cell, implementation: str, arrays: Arrays) -> Any:
    """Computes outputs, last carry, statistics, and gradients of a loss of outputs and carry."""

    def loss(wanted):
        params, xs, carry, soft = wanted
        out = unroll(
            cell,
            params,
            xs,
            carry,
            masks=Masks(**arrays.masks, **soft),
            seq_lengths=arrays.lengths,
            implementation=implementation,
        )
        last = sum(jnp.sum(jnp.sin(leaf)).real for leaf in jax.tree.leaves(out[0]))
        return jnp.sum(arrays.weights * out[1]) + last, out

    gradients, out = jax.grad(loss, has_aux=True)(arrays.wanted)
    return {"out": out, "gradients": gradients}


def reference(name: str, units: int) -> Any:
    """Computes the results of the plain scan in float64 on the CPU."""
    arrays = make_arrays(name, units)
    # Scalars, such as the number of the step, keep their type.
    types = {np.float32: np.float64, np.complex64: np.complex128}
    wide = jax.tree.map(
        lambda a: a.astype(types.get(a.dtype.type, a.dtype)) if a.ndim else a, arrays
    )
    with float64():
        cell = make(name, units, param_dtype=jnp.float64)
        run = jax.jit(functools.partial(results, cell, "scan"))
        return jax.tree.map(np.asarray, run(jax.device_put(wide, cpu())))


def on_device(name: str, units: int, precision: str) -> dict[str, tuple[Any, Any]]:
    """Computes the results of two runs of each implementation on the device, in float32."""
    cell = make(name, units, dtype=jnp.bfloat16 if precision == "bfloat16" else None)

    def both(arrays):
        return {i: results(cell, i, arrays) for i in implementations(cell)}

    arrays = make_arrays(name, units)
    with products_in(precision):
        run = jax.jit(both).lower(arrays).compile()
    first, second = (jax.tree.map(np.asarray, run(arrays)) for _ in range(2))
    return {i: (first[i], second[i]) for i in first}


def report(result: dict[str, Any]) -> list[str]:
    """Formats the results as lines of Markdown."""
    lines = [f"- masks, {name}: {found}" for name, found in result["masks"].items()]
    lines += ["", "Largest error, relative to the largest value of an array: default, plain scan."]
    lines += [f"Bounds: {', '.join(f'{n} {b:.1e}' for n, b in result['bounds'].items())}.", ""]

    def shown(entry):
        return ", ".join(f"{found['error']:.1e}" for found in entry.values()) or "–"

    lines += table(
        ("cell", *result["bounds"]),
        (
            (name, *(shown(entries.get(precision, {})) for precision in result["bounds"]))
            for name, entries in result["cells"].items()
        ),
    )
    for title in ("wrong", "other bits", "not reached"):
        found = result[title] or ["nothing"]
        lines.append(f"- {title}{' in a second run' * (title == 'other bits')}: {'; '.join(found)}")
    return [*lines, ""]
