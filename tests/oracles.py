"""The equations of all cells in NumPy and float64, from the papers, one step at a time.

The recurrent products use h times `o["m"]`, the mask of variational dropout.
"""

import numpy as np

EPSILON = 1e-5


def sigmoid(x):
    """Logistic function."""
    return 1 / (1 + np.exp(-x))


SQUASH = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


def over_features(x):
    """Layer normalization."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)


def over_batch(x, valid):
    """Batch normalization with the statistics of the valid examples."""
    rows = x[valid]
    if not len(rows):
        return np.zeros_like(x)
    return (x - rows.mean(0)) / np.sqrt(rows.var(0) + EPSILON)


def lstm_step(p, o, carry, x, d_c, d_h, u, valid):
    """Computes one step; `o` holds the options, the carry is (c, h, o')."""
    c, h, old_gate = carry
    squash = SQUASH[o.get("activation_fn", "tanh")]
    from_x, from_h = x @ p["input"], (o["m"] * h) @ p["recurrent"]
    if o.get("normalization") == "layer":
        from_x = over_features(from_x) * p["input_gamma"]
        from_h = over_features(from_h) * p["recurrent_gamma"]
    if o.get("normalization") == "batch":
        from_x = over_batch(from_x, valid) * p["input_gamma"]
        from_h = over_batch(from_h, valid) * p["recurrent_gamma"]
    i, f, g, gate = np.split(from_x + from_h + p["bias"], 4, -1)
    i, f, gate = sigmoid(i), sigmoid(f), sigmoid(gate)
    new_c = f * c + u * i * squash(g)
    cell = new_c
    if "normalization" in o:
        layer = o["normalization"] == "layer"
        cell = over_features(cell) if layer else over_batch(cell, valid)
        cell = cell * p["cell_gamma"] + p["cell_beta"]
    if o.get("ogates_zoneout") == "paper":
        gate = u * gate + (1 - u) * old_gate
    new_h = gate * squash(cell)
    if "projection" in p:
        new_h = new_h @ p["projection"]
    kept = d_h * h + (1 - d_h) * new_h
    if o.get("ogates_zoneout") == "repository":
        # As in the authors' code, recurrent.py, lines 190 to 197: after zoneout of the states.
        new_h, kept = u * new_h + (1 - u) * f * h, u * kept + (1 - u) * f * h
    y = new_h if o.get("output") == "candidate" else kept
    return (d_c * c + (1 - d_c) * new_c, kept, gate), y


def gru_step(p, o, carry, x, d_c, d_h, u, valid):
    """Computes one step; the carry is (h,)."""
    (h,) = carry
    squash = SQUASH[o.get("activation_fn", "tanh")]
    dropped = o["m"] * h
    from_x, from_h = x @ p["input"], dropped @ p["recurrent"]
    if o.get("normalization") == "layer":
        from_x = over_features(from_x) * p["input_gamma"]
        from_h = over_features(from_h) * p["recurrent_gamma"]
    x_r, x_z, x_n = np.split(from_x + p["bias"], 3, -1)
    h_r, h_z, h_n = np.split(from_h, 3, -1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    if o.get("reset_after", True):
        n = squash(x_n + r * (h_n + p["recurrent_bias"]))
    else:
        n = squash(x_n + (r * dropped) @ np.split(p["recurrent"], 3, -1)[2])
    assert n.shape == h.shape
    new_h = z * h + (1 - z) * u * n
    kept = d_h * h + (1 - d_h) * new_h
    return (kept,), new_h if o.get("output") == "candidate" else kept


def rnn_step(p, o, carry, x, d_c, d_h, u, valid):
    """Computes one step; the carry is (h,)."""
    (h,) = carry
    dropped = o["m"] * h
    # Independent units have a vector of recurrent weights.
    recurrent = p["recurrent"]
    from_h = dropped @ recurrent if recurrent.ndim == 2 else dropped * recurrent
    new_h = SQUASH[o.get("activation_fn", "tanh")](x @ p["input"] + from_h + p["bias"])
    kept = d_h * h + (1 - d_h) * new_h
    return (kept,), new_h if o.get("output") == "candidate" else kept


STEPS = {
    "lstm": (lstm_step, 4),
    "gru": (gru_step, 3),
    "rnn": (rnn_step, 1),
    "indrnn": (rnn_step, 1),
}
"""Step function of each cell, and its number of feature blocks."""


def run(kind, options, params, xs, masks, lengths=None, reverse=False, carry=None):
    """Runs a cell over `xs` [T, B, F], from zeros by default; returns (arrays of the carry, ys)."""
    step, blocks = STEPS[kind]
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    steps, batch = xs.shape[:2]
    hidden = p["bias"].size // blocks
    out = p["projection"].shape[1] if "projection" in p else hidden

    def full(mask, default, size=hidden):
        mask = default if mask is None else mask
        return np.broadcast_to(mask, (steps, batch, size)).astype(np.float64)

    d_c, d_h, u = full(masks.cells, 0.0), full(masks.states, 0.0, out), full(masks.update, 1.0)
    m = full(masks.hidden, 1.0, out)
    sizes = (hidden, out, hidden) if kind == "lstm" else (out,)
    carry = carry or tuple(np.zeros((batch, size)) for size in sizes)
    ys = np.zeros((steps, batch, out))
    lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    rows = np.arange(batch)
    for number in range(steps):
        valid = number < lengths
        # The position in each example; padding comes last in both directions.
        t = np.where(valid & reverse, lengths - 1 - number, number)
        o = options | {"m": m[t, rows]}
        new, y = step(p, o, carry, xs[t, rows], d_c[t, rows], d_h[t, rows], u[t, rows], valid)
        column = valid[:, None]
        carry = tuple(np.where(column, n, c) for n, c in zip(new, carry, strict=True))
        ys[t[valid], rows[valid]] = y[valid]
    return carry, ys
