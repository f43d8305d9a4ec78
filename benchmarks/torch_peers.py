"""Recurrent layers in torch, in a process of its own: `python -m benchmarks.torch_peers THREADS`.

Reads one JSON object a line, writes one a line: {"shape": [B, T, F, H, input_gradient]} sets up;
{"peer": name, "pass": "forward" | "backward", "calls": n} answers the seconds of n calls.
"""

import json
import sys
import time

import torch

CELLS, STATES = 0.5, 0.05


class ZoneoutLoop(torch.nn.Module):
    """Zoneout as torch users write it: a Python loop over `nn.LSTMCell`."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.cell = torch.nn.LSTMCell(inputs, units)

    def forward(self, xs):
        """Outputs [T, B, H], and nothing besides."""
        h = c = xs.new_zeros(xs.shape[1], self.cell.hidden_size)
        ys = []
        for x in xs:
            new_h, new_c = self.cell(x, (h, c))
            h = torch.where(torch.rand_like(h) < STATES, h, new_h)
            c = torch.where(torch.rand_like(c) < CELLS, c, new_c)
            ys.append(h)
        return torch.stack(ys), None


def make_peers(batch, steps, inputs, units, input_gradient):
    """Functions by name and pass."""
    xs = torch.randn(steps, batch, inputs, requires_grad=bool(input_gradient))
    layers = {
        "torch nn.LSTM": torch.nn.LSTM(inputs, units),
        "torch loop with zoneout": ZoneoutLoop(inputs, units),
    }

    def forward(layer):
        with torch.no_grad():
            layer(xs)

    def backward(layer):
        wanted = [*layer.parameters()] + ([xs] if input_gradient else [])
        torch.autograd.grad(layer(xs)[0].square().sum() / 2, wanted)

    return layers, {"forward": forward, "backward": backward}


def main() -> None:
    """Serves until its input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    layers, passes = {}, {}
    for line in sys.stdin:
        order = json.loads(line)
        if "shape" in order:
            layers, passes = make_peers(*order["shape"])
            answer = {"peers": [*layers], "version": torch.__version__}
        else:
            run, layer = passes[order["pass"]], layers[order["peer"]]
            start = time.perf_counter()
            for _ in range(order["calls"]):
                run(layer)
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
