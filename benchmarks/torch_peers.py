"""Runs recurrent layers of torch in a separate process: `python -m benchmarks.torch_peers 2 cpu`.

The arguments are the number of threads and the device. The process reads one JSON object per line,
and writes one per line:

    {"shape": [B, T, F, H, input_gradient], "kind": "LSTM", "precisions": ["tf32"]}   sets up;
    {"peer": name, "pass": "forward" | "backward", "calls": n}   answers the seconds of n calls,
        and on a GPU the peak bytes of arrays that the calls made.

With precisions, the name of a peer ends in its precision. In "bfloat16" everything has that type;
"float32" and "tf32" are the two precisions of float32 products. The answer to an order that fails
is {"error": line}.
"""

import contextlib
import json
import sys
import time

import torch

CELLS, STATES = 0.5, 0.05


class ZoneoutLoop(torch.nn.Module):
    """Zoneout as torch users write it: a Python loop over `nn.LSTMCell` or `nn.GRUCell`."""

    def __init__(self, kind: str, inputs: int, units: int):
        super().__init__()
        self.has_cells = kind == "LSTM"
        self.cell = getattr(torch.nn, f"{kind}Cell")(inputs, units)

    def forward(self, xs):
        """Returns outputs [T, B, H], and None in place of a state."""
        h = c = xs.new_zeros(xs.shape[1], self.cell.hidden_size)
        ys = []
        for x in xs:
            if self.has_cells:
                new_h, new_c = self.cell(x, (h, c))
                c = torch.where(torch.rand_like(c) < CELLS, c, new_c)
            else:
                new_h = self.cell(x, h)
            h = torch.where(torch.rand_like(h) < STATES, h, new_h)
            ys.append(h)
        return torch.stack(ys), None


class Peers:
    """Layers on a device, and their passes."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        self.layers = {}

    def set_up(self, shape, kind="LSTM", precisions=(None,)) -> dict:
        """Makes the layers of a shape."""
        batch, steps, inputs, units, input_gradient = shape
        self.layers = {}
        for precision in precisions:
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            xs = torch.randn(
                steps,
                batch,
                inputs,
                requires_grad=bool(input_gradient),
                device=self.device,
                dtype=dtype,
            )
            layers = {
                "torch": getattr(torch.nn, kind)(inputs, units),
                "torch loop with zoneout": ZoneoutLoop(kind, inputs, units),
            }
            for name, layer in layers.items():
                name += f", {precision}" if precision else ""
                self.layers[name] = (precision, layer.to(self.device, dtype), xs)
        return {"peers": [*self.layers], "version": torch.__version__}

    def measure(self, peer, of, calls) -> dict:
        """Measures the seconds of a number of calls of a pass."""
        precision, layer, xs = self.layers[peer]
        if precision:
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
        run = getattr(self, of)
        if on_gpu := self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            kept = torch.cuda.memory_allocated()
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            run(layer, xs)
            self.wait()
        answer = {"seconds": time.perf_counter() - start}
        if on_gpu:
            answer["peak_bytes"] = torch.cuda.max_memory_allocated() - kept
        return answer

    @staticmethod
    def forward(layer, xs) -> None:
        """Computes the outputs."""
        with torch.no_grad():
            layer(xs)

    @staticmethod
    def backward(layer, xs) -> None:
        """Computes the gradients of half the sum of the squared outputs."""
        wanted = [*layer.parameters()] + ([xs] if xs.requires_grad else [])
        torch.autograd.grad(layer(xs)[0].square().sum() / 2, wanted)


def main() -> None:
    """Answers orders until the input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    peers = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            # Output of libraries must not come between the answers.
            with contextlib.redirect_stdout(sys.stderr):
                peers = peers or Peers(sys.argv[2])
                if "shape" in order:
                    answer = peers.set_up(**order)
                else:
                    answer = peers.measure(order["peer"], order["pass"], order["calls"])
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
