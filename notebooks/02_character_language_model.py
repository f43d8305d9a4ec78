# %% [markdown]
# # A character-level language model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zoneout-jax/zoneout_jax/blob/v0.1.0/notebooks/02_character_language_model.ipynb)
#
# An LSTM without zoneout and one with it learn to predict the characters of Python's own standard
# library, from so little text that the first one overfits. Runs the experiment `char_ptb`; needs a
# checkout, which the first cell fetches in Colab.

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
from IPython.display import Image, Markdown, clear_output, display

from experiments import reproduce, sample

absl.logging.set_verbosity("error")  # no word of each checkpoint that is read

# %% [markdown]
# ## Two rows, one seed
#
# A rate of 0.5 for the cells and 0.05 for the states, as in the paper. About two minutes on two CPU
# cores.

# %%
PRESET = "laptop"  # "small": 250,000 characters of the Penn Treebank; downloads 6 MB, minutes

out = pathlib.Path(tempfile.mkdtemp())
rows = ("LSTM", "zoneout")
options = reproduce.Options(
    experiment="char_ptb", preset=PRESET, seeds=(0,), rows=rows, out=out / PRESET
)
with contextlib.redirect_stdout(None):  # what it prints is shown below
    table = reproduce.reproduce(options)
clear_output()

# %%
display(Markdown(reproduce.markdown(table)))
display(Image(out / PRESET / "curves.png"))

# %% [markdown]
# Dashed lines are training, solid lines validation, in bits per character. The LSTM overfits after
# some nine epochs: its solid line rises while its dashed line still falls. The line of zoneout ends
# lower and flat. Both runs stop after six epochs without a better validation metric. Training
# metrics are measured with masks drawn, so zoneout looks worse in training than its expectation is.
#
# ## What they write
#
# A symbol is drawn from softmax(logits / temperature): the lower the temperature, the more often
# the most probable symbol. From so little text both models learn words and signs of Python, not
# sentences.

# %%
for row in rows:
    for temperature in (0.3, 0.7, 1.0):
        draw = sample.Options(
            workdir=out / PRESET / f"{row}-seed0",
            prompt="def ",
            length=200,
            temperature=temperature,
        )
        print(f"--- {row}, temperature {temperature}\n{sample.sample(draw)}\n")
