"""Converters reject unknown weights with clear messages."""

import functools

import jax
import numpy as np
import pytest

from zoneout_jax import GRU, LSTM, RNN, IndRNN, interop

F, H = 4, 5


def zeros(**shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


HASTE_LSTM = {"kernel": (F, 20), "recurrent_kernel": (H, 20), "bias": (20,)}
OURS = {"input": (F, 20), "recurrent": (H, 20), "bias": (20,)}


@pytest.mark.parametrize(
    ("convert", "given", "message"),
    [
        # Weights and options that other libraries do not have.
        (interop.to_linen, zeros(input=(F, 4 * H)), "lack bias, recurrent"),
        (interop.to_torch, [GRU(F, H, reset_after=False)], r"GRU\(reset_after=True\)"),
        (interop.to_haste, GRU(F, H, reset_after=False), r"GRU\(reset_after=True\)"),
        (interop.to_equinox, GRU(F, H, reset_after=False), r"GRU\(reset_after=True\)"),
        (interop.to_haiku, GRU(F, H), r"GRU\(reset_after=False\)"),
        (interop.to_haste, RNN(F, H), r"\[H, 4H\] \(LSTM\) or \[H, 3H\] \(GRU\) for Haste"),
        (interop.to_equinox, RNN(F, H), r"for Equinox, got \[5, 5\]"),
        (interop.to_nnx, LSTM(F, H, learned_carry=True), "initial_c, initial_h"),
        (interop.to_linen, LSTM(F, H, normalization="layer"), "cell_beta"),
        (interop.to_keras, LSTM(F, H, proj_size=2), "Keras has no place for projection"),
        (interop.to_torch, [GRU(F, H, normalization="layer")], "no place for input_gamma"),
        (interop.to_haste, LSTM(F, H, proj_size=2), "Haste has no place for projection"),
        (interop.to_haste, IndRNN(F, H, learned_carry=True), "no place for initial_h"),
        (
            interop.to_haste,
            zeros(**OURS, input_gamma=(20,), recurrent_gamma=(20,)),
            "layer of Haste has .*'cell_beta'.*, got .*'input_gamma', 'recurrent_gamma'",
        ),
        (
            interop.to_haste,
            zeros(input=(F, H), recurrent=(H,), bias=(4,)),
            r"^bias must be \[5\], got \[4\]",
        ),
        (
            interop.to_torch,
            [zeros(**OURS | {"recurrent": (2, 20)}, projection=(H, 3))],
            r"^projection must be \[5, 2\], got \[5, 3\]",
        ),
        (
            functools.partial(interop.to_torch, cell=True),
            [LSTM(F, H, proj_size=2)],
            "torch's LSTMCell has no place for projection; nn.LSTM has",
        ),
        (interop.to_keras, zeros(**OURS | {"bias": (19,)}), r"^bias must be \[20\], got \[19\]"),
        (interop.to_torch, [zeros(**OURS | {"input": (F, 21)})], r"^input must be \[F, 20\]"),
        # Names.
        (interop.from_flax, {"q": {}}, r"got \['q'\]; known are .*'hf'"),
        (interop.from_torch, zeros(weight_hr_l0=(2, 2)), "lacks weight_ih_l0"),
        (interop.from_torch, zeros(weight_xx_l0=(2, 2)), "got .*'weight_xx_l0'.*known .*weight_ih"),
        (interop.from_torch, {}, "known names are weight_ih"),
        (interop.from_torch, zeros(weight_ih_l0=(20, F)), "lacks weight_hh_l0"),
        (
            interop.from_torch,
            zeros(weight_ih_l1=(20, F), weight_hh_l1=(20, H)),
            "lacks weight_ih_l0",
        ),
        (
            interop.from_torch,
            zeros(weight_ih_l0=(20, F), weight_hh_l0=(20, H), weight_ih=(20, F)),
            "both a cell and layers",
        ),
        (interop.from_haste, zeros(kernel=(F, 20), bias=(20,)), "got .*'bias'.*recurrent_kernel"),
        (interop.from_haste, zeros(**HASTE_LSTM, gamma=(2, 20)), "'gamma'"),
        (
            interop.from_haste,
            zeros(**HASTE_LSTM, recurrent_bias=(20,)),
            r"^recurrent_kernel must be \[H, 3H\] \(GRU\) for Haste, got \[5, 20\]",
        ),
        (
            interop.from_haste,
            zeros(kernel=(F, H), recurrent_scale=(H,), bias=(H,), gamma=(2, H)),  # LayerNormIndRNN
            "got .*'gamma'.*recurrent_scale and bias of an IndRNN",
        ),
        (interop.from_haste, {f"net.{n}": 0 for n in HASTE_LSTM}, "set `prefix`, to 'net'"),
        (interop.from_keras, [np.zeros((4, 20))], r"\(4, 20\).*recurrent_kernel"),
        (interop.from_keras, zeros(kernel=(F, 20)), r"got \['kernel'\]"),
        (interop.from_keras, [np.zeros((F, 15)), np.zeros((H, 15))], "set it"),
        (interop.from_equinox, zeros(weight_ih=(20, F)), "weight_hh and bias"),
        (interop.from_equinox, zeros(weight_ih=(20, F), weight_hh=(20, H), bias_n=(H,)), "only a"),
        (
            functools.partial(interop.from_haiku, prefix="lstm"),
            {"gru": zeros(w_i=(F, 15), w_h=(H, 15), b=(15,))},
            "none of them below 'lstm/'.*set `prefix`, to 'gru'",
        ),
        (
            functools.partial(interop.from_haiku, prefix="lstm"),
            {"lstm/linear": zeros(w=(9, 20))},
            "got .*'linear/w'.*known are linear/w",
        ),
        # Shapes.
        (
            interop.from_torch,
            zeros(weight_ih_l0=(20, F), weight_hh_l0=(20, 7)),
            r"^weight_hh_l0 must be \[4H, H\] .*, got \[20, 7\]",
        ),
        (
            interop.from_torch,
            zeros(weight_ih_l0=(16, F), weight_hh_l0=(20, H)),
            r"^weight_ih_l0 must be \[20, F\], got \[16, 4\]",
        ),
        (
            interop.from_torch,
            zeros(
                weight_ih_l0=(20, F),
                weight_hh_l0=(20, H),
                weight_ih_l1=(20, F),
                weight_hh_l1=(20, H),
            ),
            r"^weight_ih_l1 must be \[20, 5\]",
        ),
        (interop.from_haste, zeros(**HASTE_LSTM | {"bias": (5,)}), r"^bias must be \[20\]"),
        (
            interop.from_haste,
            zeros(**HASTE_LSTM, gamma=(1, 20), gamma_h=(H,), beta_h=(H,)),
            r"^gamma must be \[2, 20\]",
        ),
        (
            interop.from_torch,
            zeros(weight_ih_l0=(20, F), weight_hh_l0=(20, 2), weight_hr_l0=(2, 6)),
            r"^weight_hh_l0 must be \[24, 2\], got \[20, 2\]",
        ),
        (
            interop.from_keras,
            [np.zeros((F, 15)), np.zeros((H, 15)), np.zeros((3, 15))],
            r"^bias must be \[2, 15\]",
        ),
        (
            functools.partial(interop.from_keras, reset_after=True),
            [np.zeros((F, 15)), np.zeros((H, 15)), np.zeros(15)],
            "belongs to reset_after=False",
        ),
        (
            interop.from_equinox,
            zeros(weight_ih=(15, F), weight_hh=(15, H), bias=(15,), bias_n=(15,)),
            r"^bias_n must be \[5\]",
        ),
        (
            functools.partial(interop.from_haiku, prefix="gru"),
            {"gru": zeros(w_i=(F, 20), w_h=(H, 20), b=(20,))},
            r"^w_h must be \[H, 3H\]",
        ),
        (
            functools.partial(interop.from_haiku, prefix="net/lstm"),
            {"net/lstm/linear": zeros(w=(4, 20), b=(20,))},
            r"^linear/w must be \[F \+ H, 4H\], got \[4, 20\]",
        ),
        (
            interop.from_flax,
            {
                name: {"kernel": np.zeros((H, H + (name == "hz")))}
                for name in "ir iz in hr hz hn".split()
            },
            r"^hz/kernel must be \[5, 5\], got \[5, 6\]",
        ),
        # Layers.
        (interop.to_torch, [(zeros(**OURS),) * 3], "layer 0 has 3 dicts"),
        (interop.to_torch, [(zeros(**OURS),) * 2, zeros(**OURS)], "layer 1 has 1 dicts"),
        (interop.to_torch, [zeros(**OURS), zeros(**OURS)], "layer 1 must have 5 inputs, got 4"),
        (
            interop.to_torch,
            [(zeros(**OURS), zeros(**OURS | {"input": (3, 20)}))],
            "layer 0_reverse must have 4 inputs, got 3",
        ),
        (
            interop.to_torch,
            [zeros(**OURS), zeros(input=(H, 24), recurrent=(6, 24), bias=(24,))],
            r"weight_hh is \[24, 6\] in layer 1, \[20, 5\] before",
        ),
    ],
)
def test_errors(convert, given, message):
    def made(value):
        return value.init(jax.random.key(0)) if hasattr(value, "init") else value

    given = [made(p) for p in given] if isinstance(given, list) else made(given)
    with pytest.raises(ValueError, match=message):
        convert(given)


@pytest.mark.parametrize(
    ("convert", "advice"),
    [
        (interop.from_torch, "as module.state_dict"),
        (interop.from_equinox, "vars.cell. of"),
        (interop.from_keras, "weights must be layer.get_weights"),
    ],
)
def test_a_module_in_place_of_its_weights(convert, advice):
    with pytest.raises(TypeError, match=f"{advice}.*got tests"):
        convert(SomeModule())


class SomeModule:
    """A layer of another library."""


def test_layers_and_cells_of_torch_are_not_mixed_up():
    params = LSTM(F, H).init(jax.random.key(0))
    with pytest.raises(TypeError, match=r"to_torch\(\[params\]\)"):
        interop.to_torch(params)
    for layers in ([params, params], [(params, params)]):
        with pytest.raises(ValueError, match="a cell has one layer and one direction"):
            interop.to_torch(layers, cell=True)


def test_whether_a_bias_is_zero_must_be_known():
    with pytest.raises(TypeError, match="recurrent_bias must be known"):
        jax.jit(interop.to_nnx)(GRU(F, H).init(jax.random.key(0)))
