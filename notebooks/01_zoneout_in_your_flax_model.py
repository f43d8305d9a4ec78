# %% [markdown]
# # Zoneout in your Flax model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/zoneout-jax/zoneout_jax/blob/v0.1.0/notebooks/01_zoneout_in_your_flax_model.ipynb)
#
# What zoneout does, in a picture. Then a small model in Linen and the same model in NNX, where
# zoneout takes one line, a cell that you write yourself, and a linear cell. Needs the package only.

# %%
# Where something is not installed, as in Colab, install a release; in a checkout use that.
import importlib.util
import pathlib
import subprocess
import sys

REPOSITORY, RELEASE = "https://github.com/zoneout-jax/zoneout_jax", "v0.1.0"
if pathlib.Path("../zoneout_jax").is_dir():
    sys.path.insert(0, "..")
elif None in map(importlib.util.find_spec, ("zoneout_jax", "flax", "optax", "sklearn")):
    package = f"zoneout_jax[flax,training] @ git+{REPOSITORY}@{RELEASE}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %%
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import zoneout_jax.nnx
from zoneout_jax import LSTM, Cell, Masks, Zoneout, unroll, zoneout
from zoneout_jax.data import load_images
from zoneout_jax.linen import ZoneoutCell, ZoneoutLSTMCell, ZoneoutMinGRUCell, ZoneoutRNN

# %% [markdown]
# ## What it does
#
# At each step each unit keeps its previous value with some probability, the *rate*. Below, the same
# LSTM reads the same random inputs twice, with masks drawn at a rate of 0.7 for the states. Where
# the mask is black, a unit keeps the state of the previous step: a bar in the picture of the
# states.

# %%
steps, units = 40, 16
cell = LSTM(in_features=8, hidden_features=units)
cell_params = cell.init(jax.random.key(0))
xs = 2 * jax.random.normal(jax.random.key(1), (steps, 1, 8))
mask = Zoneout(states=0.7).sample(jax.random.key(2), steps, 1, units).states
_, plain = unroll(cell, cell_params, xs)
_, zoned = unroll(cell, cell_params, xs, masks=Masks(states=mask))

figure, panels = plt.subplots(3, 1, figsize=(8, 6), sharex=True, layout="constrained")
panels[0].imshow(mask[:, 0].T, cmap="gray_r", aspect="auto", interpolation="nearest")
panels[0].set(title="mask of the states: black keeps the previous value", ylabel="unit")
for axes, states, title in zip(panels[1:], (plain, zoned), ("no zoneout", "zoneout"), strict=True):
    image = axes.imshow(
        states[:, 0].T, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
    )
    axes.set(title=f"states, {title}", ylabel="unit")
panels[-1].set_xlabel("step")
figure.colorbar(image, ax=panels[1:], label="state")
plt.show()

# %% [markdown]
# Evaluation draws nothing. Every unit takes the expectation, `rate * previous + (1 - rate) *
# candidate`.

# %% [markdown]
# ## A Linen model
#
# The task: read an 8×8 image of a digit, a row of pixels at each step, and say which one it is.
# `ZoneoutRNN(ZoneoutLSTMCell(64))` takes the place of `nn.RNN(nn.OptimizedLSTMCell(64))`.

# %%
digits = load_images("digits")  # "mnist" for 28×28 pixels; downloads 12 MB


def split(part):
    return jnp.asarray(part.images / digits.max_value, jnp.float32), jnp.asarray(
        part.labels, jnp.int32
    )


train_x, train_y = split(digits.train)
valid_x, valid_y = split(digits.validation)


class Classifier(nn.Module):
    rnn: nn.Module

    @nn.compact
    def __call__(self, x, **mode):
        return nn.Dense(10)(self.rnn(x, **mode)[:, -1])


plain_model = Classifier(nn.RNN(nn.OptimizedLSTMCell(64)))
zoneout_model = Classifier(ZoneoutRNN(ZoneoutLSTMCell(64, zoneout=Zoneout(cells=0.3, states=0.1))))

# %% [markdown]
# In training the masks come from the random stream "zoneout"; `deterministic=True` evaluates by the
# expectation and needs no stream. `nn.RNN` takes neither argument, so the plain model has empty
# modes.

# %%
optimizer = optax.adam(3e-3)
train_mode, valid_mode = {"deterministic": False}, {"deterministic": True}


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(model, train_mode, valid_mode, epochs=60, batch=100):
    """Returns the parameters, and the training and validation loss after each epoch."""

    def step(state, inputs):
        (params, moments), (chosen, key) = state, inputs

        def loss(params):
            logits = model.apply(params, train_x[chosen], rngs={"zoneout": key}, **train_mode)
            return cross_entropy(logits, train_y[chosen])

        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    @jax.jit
    def epoch(state, key):
        steps = len(train_x) // batch
        order, masks = jax.random.split(key)
        chosen = jax.random.permutation(order, len(train_x))[: steps * batch].reshape(steps, batch)
        state, _ = jax.lax.scan(step, state, (chosen, jax.random.split(masks, steps)))
        losses = [
            cross_entropy(model.apply(state[0], x, **valid_mode), y)
            for x, y in ((train_x, train_y), (valid_x, valid_y))
        ]
        return state, jnp.stack(losses)

    params = model.init(jax.random.key(0), train_x[:1], **valid_mode)
    state, losses = (params, optimizer.init(params)), []
    for key in jax.random.split(jax.random.key(1), epochs):
        state, measured = epoch(state, key)
        losses.append(measured)
    return state[0], np.array(losses)


curves = {}
_, curves["nn.RNN(OptimizedLSTMCell)"] = train(plain_model, {}, {})
params, curves["ZoneoutRNN(ZoneoutLSTMCell)"] = train(zoneout_model, train_mode, valid_mode)

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for number, (name, losses) in enumerate(curves.items()):
    for values, style, part in zip(losses.T, ("--", "-"), ("training", "validation"), strict=True):
        time = np.arange(1, len(values) + 1)
        axes.semilogy(time, values, style, color=f"C{number}", label=f"{name}, {part}")
axes.set(xlabel="epoch", ylabel="cross entropy, nats, by the expectation")
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %% [markdown]
# Zoneout learns more slowly: after 60 epochs the plain model is ahead in training and validation.
# The task is easy and nothing overfits yet. The next notebook has a task where zoneout pays.
#
# ## Monte-Carlo evaluation
#
# Evaluation can draw masks too: each key gives another model with the same weights. The picture
# shows the accuracy of 200 such models, that of their mean probability, and that of the
# expectation, which takes one pass.


# %%
@jax.jit
@jax.vmap
def drawn(key):
    return model_logits(params, valid_x, deterministic=False, rngs={"zoneout": key})


def accuracy(logits):
    return jnp.mean(logits.argmax(-1) == valid_y, axis=-1)


model_logits = zoneout_model.apply
expectation = model_logits(params, valid_x, deterministic=True)
logits = drawn(jax.random.split(jax.random.key(2), 200))
each = accuracy(logits)
mean = accuracy(jax.nn.softmax(logits).mean(0))
print(f"expectation       {accuracy(expectation):.3f}")
print(f"200 draws         {each.mean():.3f} ± {each.std():.3f}")
print(f"mean of the draws {mean:.3f}")

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
bins = np.arange(each.min() * len(valid_y) - 0.5, each.max() * len(valid_y) + 1) / len(valid_y)
axes.hist(each, bins, color="C1", alpha=0.6, label="with drawn masks, 200 keys")
axes.axvline(accuracy(expectation), color="black", label="expectation")
axes.axvline(mean, color="black", linestyle=":", label="mean probability of the draws")
axes.set(xlabel="validation accuracy", ylabel="keys")
axes.legend(loc="upper left")
plt.show()

# %% [markdown]
# A single draw is usually worse than the expectation. The mean of 200 draws is about as good, for
# 200 times the work.
#
# ## The same in NNX
#
# `model.train()` and `model.eval()` switch the mode. The stream "zoneout" is in the model's `rngs`.


# %%
class NNXClassifier(nnx.Module):
    def __init__(self, rngs):
        cell = zoneout_jax.nnx.ZoneoutLSTMCell(
            train_x.shape[-1], 64, zoneout=Zoneout(cells=0.3, states=0.1), rngs=rngs
        )
        self.rnn = zoneout_jax.nnx.ZoneoutRNN(cell)
        self.readout = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.rnn(x)[:, -1])


@nnx.jit
def nnx_step(model, optimizer, x, y):
    loss, gradients = nnx.value_and_grad(lambda model: cross_entropy(model(x), y))(model)
    optimizer.update(model, gradients)
    return loss


model = NNXClassifier(nnx.Rngs(0))
optimizer_state = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
model.train()
shuffle = np.random.default_rng(0)
for _ in range(60 * (len(train_x) // 100)):
    chosen = shuffle.choice(len(train_x), 100, replace=False)
    nnx_step(model, optimizer_state, train_x[chosen], train_y[chosen])
model.eval()
print(f"validation accuracy by the expectation: {accuracy(model(valid_x)):.3f}")

# %% [markdown]
# ## A cell of your own
#
# A cell is a frozen dataclass: the activations of its gates, and an `update` that makes the new
# carry of them. Below, a minimal gated unit (Zhou et al. 2016): one gate f, which forgets and
# resets. A block without an activation gives `update` its two products apart, R h in `gates` and W
# x + b in `rest`. Masks, sequence lengths, the fused gradient and both Flax modules then work with
# the cell.


# %%
@dataclasses.dataclass(frozen=True)
class MinimalGatedUnit(Cell):
    gates = ("sigmoid", None)

    def update(self, params, carry, gates, rest, masks):
        (f, product), (x,) = gates, rest
        candidate = (1 - f) * carry + f * jnp.tanh(x + f * product)
        h = zoneout(carry, candidate, masks.states)
        return h, h


own = MinimalGatedUnit(in_features=train_x.shape[-1], hidden_features=64)
own_model = Classifier(ZoneoutRNN(ZoneoutCell(own, zoneout=Zoneout(states=0.1))))
own_params, _ = train(own_model, train_mode, valid_mode)
own_logits = own_model.apply(own_params, valid_x, deterministic=True)
print(f"minimal gated unit, validation accuracy by the expectation: {accuracy(own_logits):.3f}")

# %% [markdown]
# ## A linear cell
#
# The minGRU (Feng et al. 2024) is linear in its state, with zoneout too. So an associative scan
# computes all steps at once, and the expectation in evaluation is exact: it equals the mean over
# masks, up to the error of the number of draws.

# %%
linear_model = Classifier(ZoneoutRNN(ZoneoutMinGRUCell(64, zoneout=Zoneout(states=0.1))))
linear_params, _ = train(linear_model, train_mode, valid_mode)
linear_logits = linear_model.apply(linear_params, valid_x, deterministic=True)
print(f"minGRU, validation accuracy by the expectation: {accuracy(linear_logits):.3f}")


def distance(model, params, draws=2000):
    """Largest distance of the mean logits over masks from the expectation, in standard errors."""
    keys = jax.random.split(jax.random.key(3), draws)
    few = valid_x[:20]
    mode = {"deterministic": False}
    logits = jax.vmap(lambda key: model.apply(params, few, rngs={"zoneout": key}, **mode))(keys)
    error = logits.std(0) / draws**0.5
    expected = model.apply(params, few, deterministic=True)
    return jnp.max(jnp.abs(logits.mean(0) - expected) / error)


print(f"minGRU: {distance(linear_model, linear_params):.1f} standard errors at most")
print(f"LSTM:   {distance(zoneout_model, params):.1f}")
