# %% [markdown]
# # Many devices, many seeds, and a run that is killed
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zoneout-jax/zoneout_jax/blob/v0.1.0/notebooks/05_many_devices_many_seeds.ipynb)
#
# The same masks and losses on one device or eight; several seeds in one program; a run that is
# killed and goes on. Needs a checkout, which the first cell fetches in Colab.

# %%
# Outside a checkout, as in Colab, fetch one of a release and install what it needs.
import pathlib
import subprocess
import sys

REPOSITORY, RELEASE = "https://github.com/zoneout-jax/zoneout_jax", "v0.1.0"
checkout = pathlib.Path("..")
if not (checkout / "experiments").is_dir():
    checkout = pathlib.Path(f"zoneout_jax-{RELEASE}").resolve()
    if not checkout.is_dir():
        clone = ["git", "clone", "-q", "--depth=1", f"--branch={RELEASE}", REPOSITORY, checkout]
        subprocess.run(clone, check=True)
    package = f"{checkout}[experiments]"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)
sys.path.insert(0, str(checkout.resolve()))

# %%
# A CPU becomes eight virtual devices; must be said before JAX is imported.
import os

VIRTUAL = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {VIRTUAL}"

# %%
import json
import signal
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Image, display

from zoneout_jax import Zoneout, lstm, unroll
from zoneout_jax.training import draw_curves, shown

# %% [markdown]
# ## The same masks
#
# A mask belongs to its example: its key is folded with the index of the example in the whole batch.
# `axis_name` says over which axis the batch is spread.

# %%
print(jax.devices())
n = jax.device_count()
cell = lstm(in_features=8, hidden_features=32)
params = cell.init(jax.random.key(0))
xs = jax.random.normal(jax.random.key(1), (20, 16, 8))  # time, batch, features
spec, key = Zoneout(cells=0.5, states=0.05), jax.random.key(2)


def outputs(xs, axis_name=None):
    return unroll(cell, params, xs, zoneout=spec, key=key, axis_name=axis_name)[1]


def masks(batch, offset=0):
    return spec.sample(key, 20, batch, 32, offset)


whole = masks(16)
parts = [masks(16 // n, device * 16 // n) for device in range(n)]
together = jax.tree.map(lambda *part: jnp.concatenate(part, 1), *parts)
print("masks equal:", jax.tree.all(jax.tree.map(np.array_equal, together, whole)))

shards = jnp.stack(jnp.split(xs, n, axis=1))
spread = jax.pmap(lambda xs: outputs(xs, "data"), axis_name="data")(shards)
difference = jnp.abs(jnp.concatenate(spread, 1) - outputs(xs)).max()
print(f"largest difference of the outputs on {n} devices and on one: {difference:.1g}")

# %% [markdown]
# ## The same losses
#
# Eight epochs of the character-level experiment, on one virtual device and on eight. Sums over
# devices are in another order, which changes the last bits of float32, and nothing else.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
SMALL = ("--preset=smoke", "--z_prob_cells=0.5", "--z_prob_states=0.05", "--epochs=8")
# "--dataset=ptb" besides for the Penn Treebank; downloads 6 MB


def start(name, *flags, devices=1):
    """A run in a process of its own, on virtual devices of the CPU."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.char_ptb",
            *SMALL,
            f"--workdir={folder / name}",
            *flags,
        ],
        cwd=checkout.resolve(),
        env=os.environ | {"XLA_FLAGS": count, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def finish(process):
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said)


def history(name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


for devices in (1, 8):
    finish(start(f"{devices}", devices=devices))
print("epoch   1 device     8 devices   (validation BPC)")
for one, eight in zip(history("1"), history("8"), strict=True):
    print(f"{one['epoch']:5} {one['validation_bpc']:12.8f} {eight['validation_bpc']:12.8f}")

# %% [markdown]
# ## Many seeds in one program
#
# `--num_seeds=8` trains eight seeds at once, each with its own weights, batches, masks and early
# stopping; on eight devices each has one.

# %%
begin = time.monotonic()
finish(start("one seed", devices=8))
alone = time.monotonic() - begin
begin = time.monotonic()
finish(start("seeds", "--num_seeds=8", devices=8))
print(f"one seed {alone:.0f} s, eight seeds {time.monotonic() - begin:.0f} s, compilation included")
result = json.loads((folder / "seeds" / "result.json").read_text())
print("validation BPC:", shown(result, "validation_bpc"))

seeds = [[e for e in history("seeds") if e["seed"] == seed] for seed in range(8)]
draw_curves(folder / "seeds.png", {"eight seeds": seeds}, "bpc")
display(Image(folder / "seeds.png"))

# %% [markdown]
# ## Killed, and going on
#
# A run that saves after every fifth step is killed after its second epoch, without a warning. The
# same command goes on from the last checkpoint, and ends with the metrics of the run that was never
# killed, to the last bit: every batch and mask comes from the seed and the step alone.

# %%
process = start("killed", "--checkpoint_steps=5")
metrics = folder / "killed" / "metrics.jsonl"
while not (metrics.exists() and len(history("killed")) >= 2):
    if process.poll() is not None:
        raise RuntimeError(process.communicate())
    time.sleep(0.05)
process.send_signal(signal.SIGKILL)
process.communicate()
print(f"killed: exit code {process.returncode}, {len(history('killed'))} epochs in its log")
finish(start("killed", "--checkpoint_steps=5"))
same = metrics.read_bytes() == (folder / "1" / "metrics.jsonl").read_bytes()
print(f"resumed: {len(history('killed'))} epochs, bytes equal to the run never killed: {same}")
