"""Compiled evaluations and calibrations of a task."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax.training import parallel
from zoneout_jax.training.parallel import form
from zoneout_jax.training.task import Evaluation, Task


def evaluator(
    task: Task, evaluation: Evaluation, placement: parallel.Placement, monitor: str | None = None
) -> Callable[[Any, Any], dict[str, list[float]]]:
    """Compiles a function from placed parameters and model state to metrics by name, per seed.

    The evaluation must have a total for the task's metric and, if given, for `monitor`.
    """

    def named(params, model_state, batch):
        found = evaluation.loss(params, model_state, batch)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError(f"an evaluation's loss must return (total, count), got {form(found)}")
        total, count = found
        totals = total if isinstance(total, dict) else {task.metric: total}
        values = [*totals.values(), count]
        if not jax.tree_util.all_leaves(values) or any(map(jnp.shape, values)):
            raise TypeError(f"an evaluation's total and count must be scalars, got {form(found)}")
        for name in {task.metric, monitor or task.metric}:
            if name not in totals:
                raise ValueError(f"an evaluation must have {name!r} among its totals: {[*totals]}")
        return totals, count

    sums = parallel.evaluation_sums(named, placement)
    data = parallel.replicate(evaluation.data)
    rows = placement.shared_rows(jax.tree.map(jnp.asarray, evaluation.rows))

    def run(params, model_state):
        found = placement.get(sums(params, model_state, data, rows))
        totals, counts = jax.tree.map(lambda x: x.astype(np.float64).sum(axis=1), found)
        means = {name: (total / counts).tolist() for name, total in totals.items()}
        return means | {task.metric: [task.to_metric(mean) for mean in means[task.metric]]}

    return run


def calibrator(
    calibration: Evaluation | None, placement: parallel.Placement
) -> Callable[[Any, Any], Any]:
    """Compiles a calibration: `run(params, model_state) -> model_state`, all placed."""
    if calibration is None:
        return lambda params, model_state: model_state
    run = parallel.calibrated(calibration.loss, placement)
    data = parallel.replicate(calibration.data)
    rows = placement.shared_rows(jax.tree.map(jnp.asarray, calibration.rows))
    return lambda params, model_state: run(params, model_state, data, rows)
