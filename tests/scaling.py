"""One run on many devices, in many processes, with many seeds, and over many steps.

    python -m tests.scaling                            # everything; a report at the end
    python -m tests.scaling --parts devices processes  # only these parts

Devices: the same run on 1, 2, 4 and 8 virtual devices. Processes: the run in two and in four
processes on this machine, against one process; then one process is killed: what the others print,
how soon they end, and if the run resumes. Seeds: four seeds in one program against four runs.
Memory: its growth over 10,000 steps. Costs: how long saving and evaluation keep a run of the
paper's size from training.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.lib.experiment import find
from tests.processes import environment
from tests.reports import write_report
from zoneout_jax import Zoneout
from zoneout_jax.training import Measurement, parse_measurement

ROOT = pathlib.Path(__file__).parents[1]
ZONEOUT = ("--preset=smoke", "--z_prob_cells=0.5", "--z_prob_states=0.05")
ROWS = {
    "char_ptb, zoneout": ("char_ptb", (*ZONEOUT, "--epochs=9")),
    "permuted_mnist, zoneout, batch norm": (
        "permuted_mnist",
        (*ZONEOUT, "--batch_normalization", "--batch_size=8", "--epochs=9"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure."""

    parts: tuple[Literal["devices", "processes", "seeds", "memory", "costs"], ...] = (
        *("devices", "processes", "seeds"),
        *("memory", "costs"),
    )
    """Parts to run."""
    processes: tuple[int, ...] = (2, 4)
    """Numbers of processes."""


def masks(devices: int, file: pathlib.Path) -> None:
    """Draws the masks of a batch of 8 that is split over devices; needs a separate process."""
    spec, local = Zoneout(cells=0.5, states=0.05), 8 // devices

    def draw(_):
        offset = local * jax.lax.axis_index("data")
        return spec.sample(jax.random.key(7), 30, local, 16, offset)

    parts = jax.pmap(draw, axis_name="data")(np.arange(devices))
    whole = [np.concatenate(list(np.asarray(mask)), axis=1) for mask in parts if mask is not None]
    np.savez(file, *whole)


def call(devices: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in this new process, with this many virtual devices."""
    os.environ.update(environment(devices))
    jax.config.update("jax_platforms", "cpu")
    function(*arguments)


def fresh(devices: int, function: Callable[..., None], *arguments: Any) -> float:
    """Calls a function in a new process; returns the seconds it took."""
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=call, args=(devices, function, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        name = function.__name__
        raise SystemExit(f"{name} on {devices} devices ended with {process.exitcode}")
    return time.monotonic() - start


def train(workdir: pathlib.Path, experiment: str, flags: Sequence[str], devices: int = 1) -> float:
    """Trains in a new process; returns the seconds it took."""
    return fresh(devices, run, experiment, [*flags, f"--workdir={workdir}"])


def run(experiment: str, flags: Sequence[str]) -> None:
    """Trains in this process."""
    find(experiment).main(flags)


def parameters(workdir: pathlib.Path) -> dict[tuple, np.ndarray]:
    """Returns the arrays of the last checkpoint."""
    folder = workdir.absolute() / "checkpoints"
    step = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder / str(step) / "arrays")
    return {path: np.asarray(x) for path, x in ocp.utils.to_flat_dict(arrays).items()}


def curve(workdir: pathlib.Path) -> np.ndarray:
    """Returns all numbers of the metrics."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([list(json.loads(line).values()) for line in lines])


def difference(a: pathlib.Path, b: pathlib.Path) -> dict[str, float]:
    """Largest differences between two runs: relative for curves, absolute for parameters."""
    ours, theirs = parameters(a), parameters(b)
    return {
        "curve, relative": float(np.max(np.abs(curve(a) / curve(b) - 1))),
        "parameters, absolute": float(
            max(
                np.max(np.abs(ours[k] - theirs[k].astype(ours[k].dtype)))
                for k in ours
                if "params" in k
            )
        ),
    }


def devices(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Compares the same runs and masks on 1, 2, 4 and 8 devices."""
    report = []
    for row, (experiment, flags) in ROWS.items():
        for number in (1, 2, 4, 8):
            workdir = folder / f"{experiment}{number}"
            train(workdir, experiment, flags, number)
            fresh(number, masks, number, folder / f"masks{number}.npz")
            one, here = (np.load(folder / f"masks{n}.npz") for n in (1, number))
            last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
            loss = next(name for name in last if name.startswith("train_"))
            report.append(
                {
                    "row": row,
                    "devices": number,
                    "step": last["step"],
                    loss: last[loss],
                    **difference(workdir, folder / f"{experiment}1"),
                    "masks equal": all(np.array_equal(one[k], here[k]) for k in one),
                }
            )
            print(report[-1])
    return report


class Together:
    """Processes that train one run."""

    def __init__(self, count: int, workdir: pathlib.Path, flags: Sequence[str]):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.logs = [workdir.with_name(f"{workdir.name}.{n}.log") for n in range(count)]
        self.command = (
            *("python", "-m", "experiments.char_ptb", *flags, f"--workdir={workdir}"),
            *(f"--coordinator=localhost:{port}", f"--num_processes={count}"),
        )
        self.processes = [
            subprocess.Popen(
                [sys.executable, *self.command[1:], f"--process_id={n}"],
                cwd=ROOT,
                env=environment(1) | {"PYTHONPATH": str(ROOT)},
                stdout=log.open("w"),
                stderr=subprocess.STDOUT,
            )
            for n, log in enumerate(self.logs)
        ]

    def wait_for_metrics(self, workdir: pathlib.Path, epochs: int) -> None:
        """Waits until this many epochs are logged."""
        file = workdir / "metrics.jsonl"
        while not file.exists() or len(file.read_text().splitlines()) < epochs:
            time.sleep(0.01)
            if any(process.poll() is not None for process in self.processes):
                raise SystemExit(f"a process ended too early: {self.logs[0].read_text()[-2000:]}")

    def wait(self) -> list[int]:
        """Waits for all processes; returns their exit codes."""
        return [process.wait() for process in self.processes]

    def said(self, number: int) -> str:
        """Returns the lines in which a process says why it ended."""
        lines = self.logs[number].read_text().splitlines()
        telling = [line for line in lines if re.match("error: |F[0-9]{4} |stopped", line)]
        return " | ".join(line[:400] for line in telling)


def processes(folder: pathlib.Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Trains one run in several processes; then kills one of them and restarts all."""
    flags = (*ZONEOUT, "--epochs=9", "--checkpoint_steps=5", "--heartbeat_timeout=10")
    one = folder / "one"
    train(one, "char_ptb", flags)
    report = []
    for count in counts:
        workdir = folder / f"{count}"
        run = Together(count, workdir, flags)
        codes = run.wait()
        report.append(
            {
                "processes": count,
                "command": " ".join(run.command[:-2]) + " --coordinator=HOST:PORT "
                f"--num_processes={count} --process_id=0 … {count - 1}",
                "exit codes": codes,
                **difference(workdir, one),
            }
        )
        print(report[-1])
        for victim in (count - 1, 0):
            workdir = folder / f"{count}-killed{victim}"
            slow = (*flags[:-3], "--epochs=2000", "--patience=2000", *flags[-2:])
            run = Together(count, workdir, slow)
            run.wait_for_metrics(workdir, 8)
            run.processes[victim].kill()
            killed = time.monotonic()
            codes = run.wait()
            seconds = time.monotonic() - killed
            said = {n: run.said(n) for n in range(count) if n != victim}
            again = Together(count, workdir, (*slow, "--max_minutes=0.05"))
            after = again.wait()
            resumed = "resuming from step" in again.logs[0].read_text()
            report.append(
                {
                    "processes": count,
                    "killed": victim,
                    "exit codes": codes,
                    "seconds until all had ended": round(seconds, 1),
                    "said": said,
                    "exit codes of the restart": after,
                    "restart resumed": resumed,
                }
            )
            print(report[-1])
    workdir = folder / "preempted"
    # A call lasts a whole epoch, so the run stops at the end of an epoch.
    whole = ("--epochs=2000", "--patience=2000", "--steps_per_call=12")
    run = Together(2, workdir, (*ZONEOUT, *whole))
    run.wait_for_metrics(workdir, 1)
    run.processes[1].send_signal(signal.SIGTERM)
    codes = run.wait()
    report.append(
        {"processes": 2, "SIGTERM to": 1, "exit codes": codes, "said": [run.said(0), run.said(1)]}
    )
    print(report[-1])
    return report


def seeds(folder: pathlib.Path) -> dict[str, Any]:
    """Compares four seeds in one program, on one and two devices, with four separate runs."""
    flags = ("--preset=laptop", "--z_prob_cells=0.5", "--z_prob_states=0.05", "--epochs=6")
    flags = (*flags, "--hidden_features=64", "--patience=6")
    alone = [train(folder / f"seed{n}", "char_ptb", (*flags, f"--seed={n}")) for n in range(4)]
    report: dict[str, Any] = {"flags": " ".join(flags), "four runs, seconds": sum(alone)}
    for number in (1, 2):
        workdir = folder / f"seeds{number}"
        seconds = train(workdir, "char_ptb", (*flags, "--num_seeds=4"), number)
        lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
        worst = 0.0
        for n in range(4):
            mine = [list(line.values())[1:] for line in lines if line["seed"] == n]
            wanted = curve(folder / f"seed{n}")
            worst = max(worst, float(np.max(np.abs(np.array(mine) / wanted - 1))))
        report[f"one program, {number} devices"] = {
            "seconds": seconds,
            "time relative to four runs": seconds / sum(alone),
            "largest relative difference of a curve": worst,
        }
    print(report)
    return report


def memory(folder: pathlib.Path) -> dict[str, Any]:
    """Measures the resident memory of a run from step 1,000 on."""
    workdir = folder / "long"
    flags = (*ZONEOUT, "--epochs=1000", "--patience=1000", "--checkpoint_minutes=0.1")
    command = [sys.executable, "-m", "experiments.char_ptb", *flags, f"--workdir={workdir}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    found: dict[int, float] = {}
    while process.poll() is None:
        time.sleep(0.1)
        file = workdir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        step = 12 * len(lines) // 1000 * 1000
        if step and step not in found:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            found[step] = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    report = {"MiB at step": found, "saves": "every 6 s", "steps": 12 * len(lines)}
    print(report)
    return report


def costs(folder: pathlib.Path) -> dict[str, Any]:
    """Measures the time of saving (five times an epoch, in the background) and evaluation."""
    flags = ("--dataset=stdlib", "--z_prob_cells=0.5", "--z_prob_states=0.05", "--epochs=3")
    flags = (*flags, "--train_size=163200", "--eval_size=40000", "--checkpoint_steps=10")
    train(folder / "costs", "char_ptb", flags)
    lines = (folder / "costs" / "times.jsonl").read_text().splitlines()
    newest = max(
        (folder / "costs" / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime
    )
    size = sum(path.stat().st_size for path in newest.rglob("*"))
    # The first epoch includes the compilation.
    epochs = [json.loads(line) for line in lines[1:]]
    report = {"flags": " ".join(flags), "MB of a checkpoint": round(size / 1e6), "epochs": epochs}
    print(report)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts and writes the report."""
    about = "One run on many devices, in many processes, with many seeds, and over many steps."
    options, out = parse_measurement(Options, argv, "tests.scaling", about)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for part in options.parts:
            folder = pathlib.Path(directory) / part
            folder.mkdir()
            more = (options.processes,) if part == "processes" else ()
            report[part] = globals()[part](folder, *more)
    write_report(out, "scaling", options, report)


if __name__ == "__main__":
    main()
