"""Settings of a training run of any task."""

import contextlib
import dataclasses
import functools
from typing import Annotated, ClassVar, Literal

import jax

from zoneout_jax._files import local_folder
from zoneout_jax.training.settings import Count, NotNegative, Positive, Range, Seed, Settings
from zoneout_jax.training.sweep import Member, members, parse_sweep

PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Settings of a training run of any task."""

    seed: Seed = 0
    """Seed of all random numbers."""
    num_seeds: Annotated[int, Range(1, 10_000)] = 1
    """Number of seeds trained together in one program: seed, seed + 1, …"""
    sweep: tuple[str, ...] = ()
    """Rates of masks; every combination is trained in one program. Example: `--sweep
    z_prob_cells=0,0.25,0.5 z_prob_states=0,0.05`."""
    epochs: Count = 200
    """Maximum number of epochs."""
    patience: Count = 25
    """Stop after this many epochs without a better validation metric."""
    batch_size: Count = 32
    """Number of examples in a batch, over all devices."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the operands of matrix products."""
    rng_impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """Random number generator: the same on all hardware, or the hardware's own, fast on TPUs."""
    on_nan: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is not finite: stop before the step, or skip the step."""
    steps_per_call: Annotated[int, Range(1, 100_000)] = 10
    """Number of training steps in one call of the compiled function."""
    checkpoint_minutes: NotNegative = 1.0
    """Save a checkpoint when this many minutes have passed since the last one."""
    checkpoint_steps: Count | None = None
    """Also save a checkpoint every time this many steps are done."""
    max_minutes: Positive | None = None
    """Save a checkpoint and end after this many minutes; the same command resumes."""
    workdir: str | None = None
    """Run directory; default: runs/<experiment>/<changed settings>."""
    resume: bool = True
    """On: resume the run in the directory. Off: the directory must be new."""
    coordinator: str | None = None
    """Address host:port of process 0, if there are several processes. On a TPU pod and under
    Slurm's srun, neither this nor the next three flags are needed."""
    num_processes: Count | None = None
    """Number of processes that train together."""
    process_id: Annotated[int, Range(0)] | None = None
    """Number of this process, from 0; only process 0 writes."""
    heartbeat_timeout: Annotated[int, Range(1, 86_400)] = 100
    """Seconds of silence after which a process counts as dead and all processes end."""

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset(
        "on_nan steps_per_call checkpoint_minutes checkpoint_steps max_minutes workdir resume "
        "coordinator num_processes process_id heartbeat_timeout".split()
    )

    @functools.cached_property
    def members(self) -> list[Member]:
        """Seed and rates of each model that is trained in this run."""
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
                "generator draws other numbers for many keys at once than for each key alone"
            )
        together = {name: getattr(self, name) for name in PROCESS_FLAGS}
        missing = [name for name, value in together.items() if value is None]
        if missing and len(missing) < len(together):
            raise ValueError(
                f"{', '.join(together)} must be given together, {missing[0]} is missing"
            )
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
        """Returns a context that computes matrix products in float32 on every kind of device.

        With `precision="bfloat16"` it leaves the precision to the device.
        """
        whole = self.precision == "float32"
        return jax.default_matmul_precision("float32" if whole else "default")
