"""Evaluations and calibrations of a task, compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax.training import parallel
from zoneout_jax.training.task import Calibration, Evaluation, Task


def evaluator(
    task: Task, evaluation: Evaluation, placement: parallel.Placement
) -> Callable[[Any], dict[str, list[float]]]:
    """Compiles an evaluation: `run(placed params) -> figures of each seed, by name`."""

    def named(params, data, examples):
        total, count = evaluation.loss(params, data, examples)
        return total if isinstance(total, dict) else {task.metric: total}, count

    sums = parallel.evaluation_sums(named, placement)
    data = parallel.replicate(evaluation.data)
    rows = placement.shared_rows(jax.tree.map(jnp.asarray, evaluation.rows))

    def run(params):
        totals, counts = jax.tree.map(
            lambda x: x.astype(np.float64).sum(axis=1), placement.get(sums(params, data, rows))
        )
        means = {name: (total / counts).tolist() for name, total in totals.items()}
        return means | {task.metric: [task.figure(mean) for mean in means[task.metric]]}

    return run


def calibrator(
    calibration: Calibration | None, placement: parallel.Placement
) -> Callable[[Any], Any]:
    """Compiles a calibration of placed parameters."""
    if calibration is None:
        return lambda params: params
    run = parallel.calibrated(calibration.sums, calibration.apply, placement)
    data = parallel.replicate(calibration.data)
    rows = placement.shared_rows(jax.tree.map(jnp.asarray, calibration.rows))
    return lambda params: run(params, data, rows)
