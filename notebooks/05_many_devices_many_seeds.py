# %% [markdown]
# # Many devices, many seeds, and a run that is killed
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zoneout-jax/zoneout_jax/blob/v0.1.0/notebooks/05_many_devices_many_seeds.ipynb)
#
# The same masks and losses on one device and on eight; several seeds in one program; a run that is
# killed and resumes. Needs a checkout, which the first cell fetches in Colab.

# %%
# Outside a checkout, as in Colab, fetch one of a release and install what it needs.
import pathlib
import subprocess
import sys

REPOSITORY, RELEASE = "https://github.com/zoneout-jax/zoneout_jax", "v0.1.0"
checkout = pathlib.Path("..").resolve()
if not (checkout / "experiments").is_dir():
    checkout = pathlib.Path(f"zoneout_jax-{RELEASE}").resolve()  # whole: pip looks for a slash
    if not checkout.is_dir():
        clone = ["git", "clone", "-q", "--depth=1", f"--branch={RELEASE}", REPOSITORY, checkout]
        subprocess.run(clone, check=True)
    package = f"{checkout}[training]"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)
sys.path.insert(0, str(checkout))

# %%
# A CPU becomes eight virtual devices; must be said before JAX is imported.
import os

VIRTUAL = "--xla_force_host_platform_device_count="
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {VIRTUAL}8"

# %%
import json
import shutil
import signal
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Image, display

from zoneout_jax import LSTM, Zoneout, unroll
from zoneout_jax.training import draw_curves, shown

# %% [markdown]
# ## The same masks
#
# A mask depends on its example: the key is folded with the index of the example in the whole batch.
# To know that index, `sample` takes the index of the first example on the device, and `unroll` the
# name of the axis over which the batch is spread. With a single GPU the notebook uses eight virtual
# devices of the CPU.

# %%
devices = jax.devices() if jax.device_count() > 1 else jax.devices("cpu")
jax.config.update("jax_default_device", devices[0])
steps, batch, units = 20, 16, 32
share = batch // len(devices)
cell = LSTM(in_features=8, hidden_features=units)
params = cell.init(jax.random.key(0))
xs = jax.random.normal(jax.random.key(1), (steps, batch, 8))
spec, key = Zoneout(cells=0.5, states=0.05), jax.random.key(2)


def on_a_device(xs):
    """Masks and outputs of a device's share of the batch."""
    masks = spec.sample(key, steps, share, units, offset=jax.lax.axis_index("data") * share)
    _, ys = unroll(cell, params, xs, zoneout=spec, key=key, axis_name="data")
    return masks, ys


masks = spec.sample(key, steps, batch, units)
_, ys = unroll(cell, params, xs, zoneout=spec, key=key)
shards = jnp.stack(jnp.split(xs, len(devices), axis=1))
spread = jax.pmap(on_a_device, axis_name="data", devices=devices)(shards)
spread_masks, spread_ys = jax.tree.map(lambda x: np.concatenate(x, axis=1), spread)

assert jax.tree.all(jax.tree.map(np.array_equal, spread_masks, masks))
np.testing.assert_allclose(spread_ys, ys, rtol=1e-5, atol=1e-5)
print(f"the masks on {len(devices)} devices of kind {devices[0].device_kind} are those on one;")
print(f"the outputs differ by at most {np.abs(spread_ys - ys).max():.1g}")

# %% [markdown]
# ## The same losses
#
# Twenty epochs of the character-level experiment with tiny settings, on one virtual device and on
# eight. Eight devices add up in another order, which changes the last bits of float32. The
# difference grows in long runs: see docs/training.md.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
SMALL = ("--preset=smoke", "--z_prob_cells=0.5", "--z_prob_states=0.05", "--epochs=20")
# add "--dataset=ptb" for the Penn Treebank; downloads 6 MB


def start(name, *flags, devices=1):
    """Starts or resumes a run in a new process, on virtual devices of the CPU."""
    command = [sys.executable, "-m", "experiments.char_ptb", f"--workdir={folder / name}"]
    environment = {"XLA_FLAGS": f"{VIRTUAL}{devices}", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command, *SMALL, *flags],
        cwd=checkout,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def finish(process):
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said)


def metrics(name):
    return (folder / name / "metrics.jsonl").read_text()


def history(name):
    return [json.loads(line) for line in metrics(name).splitlines()]


def result(name):
    return json.loads((folder / name / "result.json").read_text())


for number in (1, 8):
    finish(start(f"devices-{number}", devices=number))
one, eight = ([e["validation_bpc"] for e in history(f"devices-{n}")] for n in (1, 8))
np.testing.assert_allclose(one, eight, rtol=1e-5)
print("epoch   1 device     8 devices   (validation BPC)")
for epoch in (1, 2, 5, 10, 20):
    print(f"{epoch:5} {one[epoch - 1]:12.8f} {eight[epoch - 1]:12.8f}")

# %% [markdown]
# ## Many seeds in one program
#
# `--num_seeds=8` trains eight seeds at once, each with its own weights, batches, masks and early
# stopping. On eight devices each device has one seed, and they exchange nothing. For comparison,
# one seed spreads its batch over the same devices, which costs more than it gains for so small a
# model. The figure shows how much the curves differ between seeds.

# %%
finish(start("seeds", "--num_seeds=8", devices=8))
for name in ("devices-8", "seeds"):
    found = result(name)
    speed, seeds = found["steps_per_second"], 8 if name == "seeds" else 1
    print(f"{seeds} seed(s): {speed * seeds:.0f} steps of a seed in a second")
print("validation BPC:", shown(result("seeds"), "validation_bpc"))

runs = [[e for e in history("seeds") if e["seed"] == seed] for seed in range(8)]
draw_curves(folder / "seeds.png", {"eight seeds": runs}, "bpc")
display(Image(folder / "seeds.png"))

# %% [markdown]
# ## Killed and resumed
#
# A run that saves after every fifth step is killed after its second epoch, without a warning. The
# same command resumes from the last checkpoint, and ends with the same metrics as the run that was
# never killed, to the last bit: every batch and mask depends on the seed and the step alone.

# %%
shutil.rmtree(folder / "killed", ignore_errors=True)
process = start("killed", "--checkpoint_steps=5")
while not (folder / "killed" / "metrics.jsonl").exists() or metrics("killed").count("\n") < 2:
    if process.poll() is not None:
        raise RuntimeError(process.communicate())
    time.sleep(0.01)
process.send_signal(signal.SIGKILL)
process.communicate()
assert process.returncode == -signal.SIGKILL
print(f"killed with {len(history('killed'))} epochs in its log")

finish(start("killed", "--checkpoint_steps=5"))
assert result("killed")["resumed"] == 1
assert metrics("killed") == metrics("devices-1")
print(f"resumed to {len(history('killed'))} epochs, as if it had never been killed")
