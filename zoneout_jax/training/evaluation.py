"""Evaluations and calibrations of a task, compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax.training import parallel
from zoneout_jax.training.task import Evaluation, Task


def evaluator(
    task: Task, evaluation: Evaluation, placement: parallel.Placement
) -> Callable[[Any, Any], dict[str, list[float]]]:
    """Compiles an evaluation: placed params and model state to metrics of each seed, by name."""

    def named(params, model_state, batch):
        total, count = evaluation.loss(params, model_state, batch)
        return total if isinstance(total, dict) else {task.metric: total}, count

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
