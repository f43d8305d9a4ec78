"""Settings of a training run, whatever the task."""

import contextlib
import dataclasses
import functools
from typing import Annotated, ClassVar, Literal

import jax

from zoneout_jax._files import local_folder
from zoneout_jax.training.settings import Count, NotNegative, Positive, Range, Settings
from zoneout_jax.training.sweep import Member, members, parse_sweep

PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Settings of a training run, whatever the task."""

    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of all randomness."""
    num_seeds: Annotated[int, Range(1, 10_000)] = 1
    """Seeds trained at once in one program: seed, seed + 1, …"""
    sweep: tuple[str, ...] = ()
    """Rates of masks, each combination trained in the same program, as in `--sweep
    z_prob_cells=0,0.25,0.5 z_prob_states=0,0.05`."""
    epochs: Count = 200
    """Epochs at most."""
    patience: Count = 25
    """Stop after so many epochs without a better validation."""
    batch_size: Count = 32
    """Examples in a batch, over all devices."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the operands of matrix products."""
    rng_impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """Generator of random numbers: the same everywhere, or the hardware's own, fast on TPUs."""
    on_nan: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop before the step, or leave it out."""
    steps_per_call: Annotated[int, Range(1, 100_000)] = 10
    """Training steps in one call of the compiled function."""
    checkpoint_minutes: NotNegative = 1.0
    """Save when so much time has passed since the last checkpoint."""
    checkpoint_steps: Count | None = None
    """Save also after every so many steps."""
    max_minutes: Positive | None = None
    """End with a checkpoint after so much time; the same command goes on."""
    workdir: str | None = None
    """Run directory; by default runs/<experiment>/<the settings that were changed>."""
    resume: bool = True
    """Go on with the run that the directory holds; with --no_resume it must be new."""
    coordinator: str | None = None
    """Address host:port of the first of several processes. On a TPU pod and under Slurm's srun
    none of these four flags is needed."""
    num_processes: Count | None = None
    """Number of processes that train together."""
    process_id: Annotated[int, Range(0)] | None = None
    """Number of this process, from 0; only process 0 writes."""
    heartbeat_timeout: Annotated[int, Range(1, 86_400)] = 100
    """Seconds of silence after which another process counts as dead, and all end."""

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset(
        "on_nan steps_per_call checkpoint_minutes checkpoint_steps max_minutes workdir resume "
        "coordinator num_processes process_id heartbeat_timeout".split()
    )

    @functools.cached_property
    def members(self) -> list[Member]:
        """The models that are trained at once, by seed and rates."""
        return members(self.sweep, range(self.seed, self.seed + self.num_seeds))

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sweep(self.sweep)
        if self.workdir is not None:
            local_folder(self.workdir, "workdir")
        last = self.seed + self.num_seeds - 1
        if last >= 2**32:
            raise ValueError(f"the last seed must be in [0, {2**32 - 1}], got {last}")
        if self.rng_impl == "rbg" and len(self.members) > 1:
            raise ValueError(
                "rng_impl must be threefry2x32 for several models at once: the hardware's "
                "generator draws other numbers for many keys at once than for each alone"
            )
        together = {name: getattr(self, name) for name in PROCESS_FLAGS}
        missing = [name for name, value in together.items() if value is None]
        if missing and len(missing) < len(together):
            flags = " ".join(f"--{name}" for name in together)
            raise ValueError(f"{flags} must be given together, {missing[0]} is missing")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 2**16):
                raise ValueError(
                    f"coordinator must be host:port with a port in [1, 65535], got "
                    f"{self.coordinator!r}"
                )
            process, processes = together["process_id"], together["num_processes"]
            if process >= processes:
                raise ValueError(
                    f"process_id must be in [0, {processes - 1}] as num_processes is "
                    f"{processes}, got {process}"
                )

    def matmul_precision(self) -> contextlib.AbstractContextManager:
        """A context in which float32 products are just that, on every kind of device."""
        whole = self.precision == "float32"
        return jax.default_matmul_precision("float32" if whole else "default")
