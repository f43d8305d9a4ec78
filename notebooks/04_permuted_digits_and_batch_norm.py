# %% [markdown]
# # Permuted digits, zoneout and recurrent batch normalization
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zoneout-jax/zoneout_jax/blob/v0.1.0/notebooks/04_permuted_digits_and_batch_norm.ipynb)
#
# The five rows of permuted sequential MNIST, on 8×8 digits: 64 pixels in an order drawn at random.
# Runs the experiment `permuted_mnist`; needs a checkout, which the first cell fetches in Colab.

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

from IPython.display import Image, Markdown, clear_output, display

from experiments import permuted_mnist, reproduce

# %% [markdown]
# The rows, and the flags that make them:

# %%
for name, row in permuted_mnist.ROWS.items():
    print(f"{name}: {' '.join(row.flags) or 'none'}")

# %% [markdown]
# One seed of each, 50 epochs. Two to three minutes on two CPU cores.

# %%
PRESET = "laptop"  # "paper" for MNIST; downloads 12 MB, takes a GPU or days

out = pathlib.Path(tempfile.mkdtemp())
options = reproduce.Options(
    experiment="permuted_mnist", preset=PRESET, seeds=(0,), out=out / PRESET
)
with contextlib.redirect_stdout(None):  # what it prints is shown below
    table = reproduce.reproduce(options)
clear_output()

# %%
display(Markdown(reproduce.markdown(table)))
display(Image(out / PRESET / "curves.png"))

# %% [markdown]
# Dashed lines are training, with masks drawn; solid lines are validation. The two rows with batch
# normalization learn fastest at first, recurrent dropout most slowly. The test has 300 images, so a
# difference of 0.02 is six images: only recurrent dropout and zoneout differ clearly. On so few
# images noise does not help yet. The paper's order holds after 150 epochs on 50,000 images.
