# %% [markdown]
# # How far gradients reach
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zoneout-jax/zoneout_jax/blob/v0.1.0/notebooks/03_gradient_propagation.ipynb)
#
# The gradient of the loss after the last step, with respect to the state after each earlier step:
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
# Four models, one seed, read 64 pixels in a random order. Zoneout acts on the cells, at a rate of
# 0.5. *Static identity* has the expectation in place of the noise: the shortcut alone. Recurrent
# dropout drops half of the updates of the cells. About a minute on two CPU cores.

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
# The norms, on a logarithmic axis. For c they begin one step before the last, since at the last
# step the loss depends on h alone. At initialization (above) each norm falls by about a constant
# factor a step, except the last one of h. It falls least with zoneout, with noise or without, since
# half of each cell passes unchanged, and most with recurrent dropout. After twenty epochs (below)
# no norm falls by much more than a factor of ten over 64 steps, and at the early steps the
# gradients for c are largest with zoneout and static identity. The paper's effect after training
# needs longer sequences: see experiments/results for MNIST, with 784 steps.

# %%
display(Image(settings.out / "norms.png"))

# %% [markdown]
# Each norm divided by its sum over the steps, as in the paper. After training the curves of zoneout
# and static identity for c are flatter than the others: the first steps have a larger share.

# %%
display(Image(settings.out / "normalized.png"))
