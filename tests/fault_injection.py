"""Kills runs at random moments, damages their disks and files, and mistypes their commands.

    python -m tests.fault_injection                  # everything; a report at the end
    python -m tests.fault_injection --parts kills    # one part: kills, days or commands

Kills: a small training that saves after every step is killed by SIGKILL at random moments, again
and again, until it is finished; it must end with the same bits as a run that was never killed.
Days: everything that can go wrong on a bad day is really done, and the message of the run is shown.
Commands: bad values of every flag of every experiment, made from the types and ranges of the flags.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import orbax.checkpoint as ocp

from experiments.lib.experiment import find
from tests import bad_data
from tests.bad_commands import commands
from tests.reports import write_report
from zoneout_jax.training import Measurement, parse_measurement

ROOT = pathlib.Path(__file__).parents[1]
# This training overshoots, so that early stopping is compared too.
TRAINING = (
    *("--preset=smoke", "--z_prob_cells=0.5", "--z_prob_states=0.05", "--learning_rate=0.3"),
    *("--epochs=8", "--patience=1", "--checkpoint_steps=1", "--steps_per_call=5"),
)
TIMED = {"seconds", "steps_per_second", "peak_memory_bytes", "resumed"}


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to test."""

    parts: tuple[Literal["kills", "days", "commands"], ...] = ("kills", "days", "commands")
    """Parts to run."""
    kills: int = 50
    """Minimum number of kills."""
    commands: int = 200
    """Minimum number of bad command lines."""
    seed: int = 0
    """Seed of the random moments and values."""


def launch(
    experiment: str, flags: Sequence[str], log: pathlib.Path, patch: Callable | None
) -> None:
    """Runs an experiment in this process, which was just forked."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if patch is not None:
        patch()
    find(experiment).main(list(flags))


class Runs:
    """Starts runs in a folder; for speed, all runs share imports and compiled code."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["experiments.char_ptb"])

    def log(self, workdir: pathlib.Path) -> pathlib.Path:
        """Path of the output of a run, on a disk that is not filled."""
        return self.folder / f"{workdir.name}.log"

    def start(self, workdir: pathlib.Path, *flags: str, patch=None, experiment="char_ptb"):
        """Starts a process that trains in a workdir."""
        arguments = (experiment, (*flags, f"--workdir={workdir}"), self.log(workdir), patch)
        process = self._context.Process(target=launch, args=arguments)
        process.start()
        return process

    def run(self, workdir: pathlib.Path, *flags: str, **options) -> tuple[int, str]:
        """Trains to the end; returns the exit code and the last printed line."""
        process = self.start(workdir, *flags, **options)
        process.join()
        lines = self.log(workdir).read_text().splitlines()
        return process.exitcode, lines[-1] if lines else ""


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns everything that a run produced except times: bytes, numbers and bits."""
    result = json.loads((workdir / "result.json").read_text())
    folder = workdir / "checkpoints"
    step = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder.absolute() / str(step) / "arrays")
    flat = ocp.utils.to_flat_dict(arrays)
    return {
        "step": step,
        "metrics": (workdir / "metrics.jsonl").read_bytes(),
        "result": {name: value for name, value in result.items() if name not in TIMED},
        "arrays": {path: np.asarray(flat[path]).tobytes() for path in sorted(flat)},
    }


def wait_for(process, workdir: pathlib.Path, step: int) -> None:
    """Waits until a run has a checkpoint of this step or a later one, or has ended."""
    folder = workdir / "checkpoints"
    while process.exitcode is None:
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        if any(name.isdecimal() and int(name) >= step for name in names):
            return
        process.join(0.01)


def kills(runs: Runs, at_least: int, rng: random.Random) -> dict[str, Any]:
    """Kills runs at random moments, `at_least` times; all must end like an undisturbed run."""
    start = time.monotonic()
    warm = runs.folder / "warm"
    runs.run(warm, *TRAINING)  # fills the compilation cache
    begun = time.monotonic()
    whole = runs.folder / "whole"
    code, line = runs.run(whole, *TRAINING)
    if code:
        raise SystemExit(f"the run to compare with failed: {line}")
    seconds = time.monotonic() - begun
    wanted = outcome(whole)
    report = {"kills": 0, "in the middle of writing": 0, "runs": 0, "identical": 0, "different": []}
    while report["kills"] < at_least:
        workdir = runs.folder / f"killed{report['runs']}"
        for _ in range(rng.randint(2, 5)):
            process = runs.start(workdir, *TRAINING)
            wait_for(process, workdir, rng.randrange(wanted["step"]))
            process.join(rng.uniform(0, 0.3))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            report["kills"] += 1
            left = [path.name for path in workdir.rglob("*") if "tmp" in path.name]
            report["in the middle of writing"] += bool(left)
        code, line = runs.run(workdir, *TRAINING)
        report["runs"] += 1
        if code == 0 and outcome(workdir) == wanted:
            report["identical"] += 1
        else:
            report["different"].append({"workdir": workdir.name, "code": code, "line": line})
        print(f"{report['kills']} kills, {report['identical']} of {report['runs']} identical")
        shutil.rmtree(workdir, ignore_errors=True)
    report["steps"], report["epochs"] = wanted["step"], wanted["result"]["epochs"]
    report["best_epoch"] = wanted["result"]["best_epoch"]
    report["seconds of a run"] = round(seconds, 1)
    report["seconds"] = round(time.monotonic() - start)
    return report


def bad_days(runs: Runs, rng: random.Random) -> list[dict[str, Any]]:
    """Causes each failure; reports what happened, the message, and if it was as it should be."""
    whole = runs.folder / "days" / "whole"
    whole.parent.mkdir(exist_ok=True)
    runs.run(whole, *TRAINING)
    wanted = outcome(whole)
    report = []

    def note(what: str, code: int, said: str, well: bool) -> None:
        report.append({"what": what, "exit code": code, "said": said, "as it should": well})
        print(f"{'ok ' if well else 'BAD'} {what}: exit code {code}: {said}")

    def begun(name: str, steps: int = 20) -> pathlib.Path:
        """Makes a run that is killed after this many steps."""
        workdir = whole.with_name(name)
        process = runs.start(workdir, *TRAINING)
        wait_for(process, workdir, steps)
        process.kill()
        process.join()
        return workdir

    def written(workdir: pathlib.Path) -> list[pathlib.Path]:
        # Not what the kill cut off: orbax writes to a folder of another name first.
        found = (p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
        return sorted(found, key=lambda path: int(path.name))

    def largest(checkpoint: pathlib.Path) -> pathlib.Path:
        files = [path for path in (checkpoint / "arrays").rglob("*") if path.is_file()]
        return max(files, key=lambda path: path.stat().st_size)

    def said_of(workdir: pathlib.Path, words: str) -> str:
        lines = runs.log(workdir).read_text().splitlines()
        return next((line for line in lines if words in line), "")

    def cut(file: pathlib.Path) -> None:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def flip(file: pathlib.Path) -> None:
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)

    for name, spoil in (("truncated", cut), ("one bit flipped", flip)):
        workdir = begun(name.replace(" ", "_"))
        spoil(largest(written(workdir)[-1]))
        code, _ = runs.run(workdir, *TRAINING)
        said = said_of(workdir, "cannot be read")
        well = code == 0 and bool(said) and outcome(workdir) == wanted
        note(f"newest checkpoint {name}", code, said, well)

    workdir = begun("both")
    for checkpoint in written(workdir):
        cut(largest(checkpoint))
    code, said = runs.run(workdir, *TRAINING)
    note("both checkpoints truncated", code, said, code == 1 and "none was changed" in said)

    workdir = begun("configuration")
    (workdir / "config.json").write_text("")
    code, said = runs.run(workdir, *TRAINING)
    note("configuration emptied", code, said, code == 2 and "config.json cannot be read" in said)

    for name, number in (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)):
        workdir = whole.with_name(name)
        process = runs.start(workdir, *TRAINING)
        wait_for(process, workdir, 12)
        os.kill(process.pid, number)
        process.join()
        said = said_of(workdir, "resume with")
        runs.run(workdir, *TRAINING)
        well = process.exitcode == 128 + number and bool(said) and outcome(workdir) == wanted
        note(name, process.exitcode, said, well)

    workdir = whole.with_name("minutes")
    code, said = runs.run(workdir, *TRAINING, "--max_minutes=0.03")
    runs.run(workdir, *TRAINING)
    note("--max_minutes=0.03", code, said, code == 0 and outcome(workdir) == wanted)

    disk = whole.with_name("disk")
    if bad_data.tmpfs(disk, "size=3m"):
        try:
            workdir, filler = disk / "saving", disk / "filler"
            process = runs.start(workdir, *TRAINING)
            wait_for(process, workdir, 10)
            with filler.open("ab", buffering=0) as file:
                while process.exitcode is None:  # also takes space that is freed later
                    with contextlib.suppress(OSError):
                        file.write(bytes(4096))
                    process.join(0.0001)
            filler.unlink()
            note_disk(runs, "disk full while saving", workdir, process, wanted, note)
            shutil.rmtree(workdir)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    else:
        print("no small disk can be mounted here: full and read-only disks are not tested")

    workdir = whole.with_name("logging")
    process = runs.start(workdir, *TRAINING)
    wait_for(process, workdir, 1)
    (workdir / "link").symlink_to("/dev/full")  # every write to this file fails
    (workdir / "link").rename(workdir / "metrics.jsonl")
    process.join()
    note_disk(runs, "disk full while logging", workdir, process, wanted, note)

    workdir = whole.with_name("nan")
    # With a smaller clip_norm, clipping would reduce the infinite gradient to zero.
    bad = (*TRAINING, "--epochs=2", "--clip_by=gradient")
    bad += ("--learning_rate=1e38", "--clip_norm=1e38")
    code, said = runs.run(workdir, *bad)
    batch = json.loads((workdir / "not_finite.json").read_text())
    well = (
        code == 1
        and f"step {batch['step']}" in said
        and written(workdir)[-1].name == str(batch["step"])
    )
    note("loss not finite", code, said, well)
    code, said = runs.run(workdir, *bad, "--on_nan=skip")
    note(
        "the same with --on_nan=skip",
        code,
        said,
        code == 1 and "start again with other settings" in said,
    )

    workdir = whole.with_name("two")
    long = (*TRAINING, "--epochs=1000", "--patience=1000", f"--workdir={workdir}")
    first = runs.start(workdir, *long)
    wait_for(first, workdir, 12)
    second = subprocess.run(
        [sys.executable, "-m", "experiments.char_ptb", *long],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    well = second.returncode == 2 and "in use" in second.stderr and first.is_alive()
    first.kill()
    note("two runs in one workdir", second.returncode, second.stderr.splitlines()[-1], well)

    code, said = runs.run(whole, *TRAINING, "--seed=1")
    note("another configuration", code, said, code == 2 and "seed is 0 there, 1 here" in said)

    bad_data.data_days(runs, note)
    return report


def note_disk(runs, what, workdir, process, wanted, note) -> None:
    """Reports the message of a run on a full disk, and if it resumes once there is space."""
    lines = runs.log(workdir).read_text().splitlines()
    said = next((line for line in lines if line.startswith("error: ")), "")
    code, _ = runs.run(workdir, *TRAINING)
    well = process.exitcode == 1 and "No space left" in said and code == 0
    note(what, process.exitcode, said, well and outcome(workdir) == wanted)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts and writes the report."""
    about = "Kills runs, damages their disks and files, and mistypes their commands."
    options, out = parse_measurement(Options, argv, "tests.fault_injection", about)
    rng = random.Random(options.seed)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        if "kills" in options.parts:
            report["kills"] = kills(Runs(folder), options.kills, rng)
        if "days" in options.parts:
            report["days"] = bad_days(Runs(folder), rng)
        if "commands" in options.parts:
            report["commands"] = commands(folder / "commands", options.commands, rng)
    print(json.dumps({k: v for k, v in report.items() if k != "days"}, indent=2))
    write_report(out, "fault_injection", options, report)
    well = all(day["as it should"] for day in report.get("days", []))
    well = well and report.get("kills", {"different": []})["different"] == []
    others = report.get("commands", {"others": [], "files left behind": []})
    if not well or others["others"] or others["files left behind"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
