# %% [markdown]
# # How far gradients reach
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zoneout-jax/zoneout_jax/blob/v0.1.0/notebooks/03_gradient_propagation.ipynb)
#
# The loss after the last step, and its gradient with respect to the state after each step before:
# the paper's figure, on 8×8 digits read pixel by pixel. Runs the experiment `gradient_propagation`;
# needs a checkout, which the first cell fetches in Colab.

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
import contextlib
import tempfile

import absl.logging
from IPython.display import Image, clear_output, display

from experiments import gradient_propagation

absl.logging.set_verbosity("error")  # no word of each checkpoint that is read

# %% [markdown]
# Four models, one seed, read 64 pixels in an order drawn at random. Zoneout is that of the cells,
# at a rate of 0.5; *static identity* has its expectation in place of its noise: the shortcut alone.
# Recurrent dropout leaves out half of the updates of the cells. About a minute on two CPU cores.

# %%
PRESET = "laptop"  # "paper" for MNIST: 784 steps; downloads 12 MB, takes an hour

settings = gradient_propagation.PRESETS[PRESET].replace(
    models=("LSTM", "zoneout", "static identity", "recurrent dropout"),
    out=pathlib.Path(tempfile.mkdtemp()),
)
with contextlib.redirect_stdout(None):
    result = gradient_propagation.measure(settings)
clear_output()

# %% [markdown]
# The norms as they are, on a logarithmic axis; those of c begin one step before the last, as the
# loss depends on h alone there. At initialization (above) each falls by about a constant factor a
# step, but for h's last one: zoneout's by the smallest, noise or not, as half of each cell goes on
# as it is; recurrent dropout's by the largest. After twenty epochs (below) none falls by much more
# than ten times over 64 steps, and the gradients for c of zoneout and the static identity are the
# larger ones at the early steps. The paper's effect after training takes longer sequences: see
# experiments/results for MNIST, with 784 steps.

# %%
display(Image(settings.out / "norms.png"))

# %% [markdown]
# Each divided by its sum, as in the paper. After training the curves of zoneout and of the static
# identity for c are flatter than the others: more of the whole is at the first steps.

# %%
display(Image(settings.out / "normalized.png"))
