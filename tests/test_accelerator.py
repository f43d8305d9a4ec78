"""The program for accelerators runs on a CPU, and detects errors."""

import contextlib
import functools
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from benchmarks import (
    accelerator,
    accelerator_checks,
    accelerator_choices,
    accelerator_training,
    rnn,
)
from benchmarks.accelerator_common import Context, side_by_side
from benchmarks.jax_peers import SPEC, Shape, some_params
from benchmarks.rnn import measure_in_turn
from zoneout_jax import LSTM, _fused, unroll


@pytest.fixture
def context(tmp_path) -> Context:
    """A quick run without a deadline; its reference CPU is not JAX's default device."""
    return Context(True, tmp_path, {}, lambda: None, deadline=time.monotonic() + 1e6)


@pytest.fixture(autouse=True)
def another_cpu(monkeypatch):
    monkeypatch.setattr(accelerator_checks, "cpu", lambda: jax.devices("cpu")[1])


def run(*flags: str) -> int:
    """Runs the program and returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        accelerator.main([*flags])
    return stop.value.code


def only_the_rnn(monkeypatch) -> None:
    """Limits the checks to the simplest cell, without masks."""
    monkeypatch.setattr(accelerator_checks, "MASKS", {})
    monkeypatch.setattr(accelerator_checks, "QUICK_CELLS", ("rnn",))


@pytest.fixture
def standard_promotion_in_threads() -> Iterator[None]:
    """Sets JAX's default dtype promotion for one test, in all threads."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion_in_threads")
def test_quick_run_writes_all_parts(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ZONEOUT_RAW_DATA", raising=False)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    out = tmp_path / "deep" / "out"
    assert run("--quick", "--seconds=1e5", f"--out={out}") == 0
    table = (out / "accelerator.md").read_text()
    assert table in capsys.readouterr().out
    parts = json.loads((out / "accelerator.json").read_text())["parts"]
    assert list(parts) == list(accelerator.PARTS)
    assert not any("failed with" in part for part in parts.values())
    assert min(parts["there"]["peaks"].values()) > 0 and not parts["there"]["failed"]
    assert not parts["right"]["wrong"] + parts["right"]["not reached"]
    assert list(parts["right"]["cells"]) == list(accelerator_checks.QUICK_CELLS)
    groups = parts["fast"]["groups"]
    assert len(groups) == 5 and not parts["fast"]["not reached"]
    peers = groups["LSTM, quick, forward + backward"]["peers"]
    for name in ("zoneout, float32", "Flax, bfloat16", "products alone, float32"):
        assert len(peers[name]["seconds"]) == 2 and peers[name]["ratio"] > 0
        assert peers[name]["share of the roofline"] > 0
    assert "words in the step" in groups["LSTM, quick, choices"]["peers"]
    assert groups["LSTM, quick, linear cells"]["peers"]["MinGRU, all at once"]["ratio"] > 0
    assert parts["fast"]["compile seconds"]["zoneout, float32"] > 0
    runs = parts["end to end"]["runs"]
    assert len(runs) == 3 and all(0 < r["share outside"] < 1 < r["steps a second"] for r in runs)
    for row, found in parts["evidence"]["rows"].items():
        history = (out / f"char_ptb-{row}.jsonl").read_text().splitlines()
        assert len(history) == 2 * parts["evidence"]["num_seeds"]
        assert {"validation_bpc", "steps_per_second"} <= json.loads(history[0]).keys()
        assert len(found["best validation"]) == parts["evidence"]["num_seeds"]
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        *("accelerator.json", "accelerator.md"),
        *("char_ptb-LSTM.jsonl", "char_ptb-zoneout.jsonl", "curves.png"),
    ]


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fail(context, result):
        result["so far"] = 1
        raise RuntimeError("no\nluck")

    def check(context, result):
        assert context.left() > 0
        result |= {"wrong": wrong, "cells": cells}

    parts = {
        name: accelerator.Part(name, 1.0, check if name == "right" else fail, lambda r: ["lines"])
        for name in accelerator.PARTS
    }
    monkeypatch.setattr(accelerator, "PARTS", parts)
    monkeypatch.setattr(accelerator, "torch_process", contextlib.nullcontext)
    for wrong, cells in (([], {"rnn": {}}), (["a mask"], {"rnn": {}}), ([], {})):
        assert run(f"--out={tmp_path}") == (bool(wrong) or not cells)
        found = json.loads((tmp_path / "accelerator.json").read_text())["parts"]
        assert list(found) == list(parts)
        for name, part in found.items():
            assert name == "right" or part["failed with"] == "RuntimeError: no luck"
            assert name == "right" or part["so far"] == 1
    assert f"report: {tmp_path}/accelerator.md" in capsys.readouterr().out
    parts["right"] = parts["fast"]
    assert run(f"--out={tmp_path}") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--seconds=0"], "seconds must be above 0, got 0"), (["--quik"], "--quick")],
)
def test_bad_flags(flags, message, capsys):
    assert run(*flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_a_wrong_mask_is_found(monkeypatch):
    draw = accelerator_checks.draw

    def broken(spec, device):
        masks = draw(spec, device)
        if device == jax.devices()[0] and spec.static:
            masks["cells"] = ~masks["cells"]
        if device == jax.devices()[0] and spec.gaussian:
            masks["states"] = masks["states"] + 0.1
        return masks

    result = {"wrong": [], "masks": {}}
    accelerator_checks.check_masks(result)
    assert not result["wrong"] and len(result["masks"]) == 5
    monkeypatch.setattr(accelerator_checks, "draw", broken)
    accelerator_checks.check_masks(result)
    one, other = result["wrong"]
    assert one == f"masks, static: {16 * 128} differ"
    assert other.startswith("masks, Gaussian: at most 4")


def test_a_wrong_gradient_is_found(context, monkeypatch):
    only_the_rnn(monkeypatch)
    monkeypatch.setitem(_fused.SLOPES, "tanh", lambda y: 1.001 - y * y)
    result = {}
    accelerator_checks.check(context, result)
    (wrong,) = result["wrong"]
    assert wrong.startswith("rnn, float32, fused: ['gradients']") and "bound" in wrong
    assert not result["not reached"]
    rows = "\n".join(accelerator_checks.report(result))
    assert wrong in rows and "| rnn | " in rows


def test_what_cannot_be_run_is_wrong(context, monkeypatch):
    def reference(name, units):
        raise MemoryError("no room")

    monkeypatch.setattr(accelerator_checks, "reference", reference)
    monkeypatch.setattr(accelerator_checks, "on_device", lambda *_: {})
    only_the_rnn(monkeypatch)
    result = {}
    accelerator_checks.check(context, result)
    assert sorted(result["wrong"]) == [
        *("rnn, bfloat16: MemoryError: no room", "rnn, float32: MemoryError: no room")
    ]


def test_what_is_not_finite_is_wrong():
    array = np.array([1.0, np.nan], np.float32)
    found = accelerator_checks.compare([array], [array], [np.array([1.0, 2.0])])
    assert accelerator_checks.faults("x", found, 1.0) == ["x: not finite"] and found["same bits"]
    assert accelerator_checks.relative_error(array[:1], np.zeros(1)) == np.inf


@pytest.mark.slow
def test_all_cells_can_be_checked():
    for name in accelerator_checks.CELLS:
        cell = accelerator_checks.make(name, 8)
        arrays = accelerator_checks.make_arrays(name, 8)
        for implementation in accelerator_checks.implementations(cell):
            run = functools.partial(accelerator_checks.results, cell, implementation)
            found = jax.eval_shape(run, arrays)
            assert found["out"][1].shape[-1] == cell.output_features
            shapes = jax.tree.map(np.shape, arrays.wanted)
            assert jax.tree.map(np.shape, found["gradients"]) == shapes


def test_words_in_the_step_are_those_before_the_loop():
    shape = Shape(4, 7, 3, 5)
    cell = LSTM(3, 5)
    params = some_params(cell.init)
    xs = jax.random.normal(jax.random.key(1), (shape.steps, shape.batch, shape.inputs))
    key = jax.random.key(2)
    _, wanted = unroll(cell, params, xs, zoneout=SPEC, key=key)
    masks = accelerator_choices.keys_as_masks(key, shape.batch)
    drawing = accelerator_choices.DrawsInStep(3, 5, cells=SPEC.cells, states=SPEC.states)
    _, got = unroll(drawing, params, xs, masks=masks)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_measurements_end_in_time_and_without_those_that_fail():
    def quick(calls):
        return 0.01 * calls

    def slow(calls):
        return 1e6

    def broken(calls):
        raise MemoryError

    begun = []

    def breaks_later(calls):
        begun.append(calls)
        return quick(calls) if len(begun) < 4 else broken(calls)

    failed = {}
    runs = {"quick": quick, "broken": broken, "breaks later": breaks_later}
    found = measure_in_turn(runs, 3, 0.02, time.monotonic() + 1e3, failed)
    assert found == {"quick": [0.01] * 3} and list(failed) == ["broken", "breaks later"]
    runs = {"quick": quick, "slow": slow}
    assert measure_in_turn(runs, 3, 0.02, time.monotonic() + 1e3) == {
        "quick": [0.01],
        "slow": [1e6],
    }
    assert measure_in_turn(runs, 3, deadline=0.0) == {}


def test_side_by_side_ends_in_time():
    makers = {"a": lambda: 1, "b": lambda: 1 // 0, "c": lambda: time.sleep(1)}
    found = dict(side_by_side(makers, time.monotonic() + 0.5))
    assert found.keys() == {"a", "b"} and found["a"] == 1
    assert isinstance(found["b"], ZeroDivisionError)


def test_the_fastest_products_and_the_seeds_that_are_free_are_chosen():
    rates = {("float32", 1): 80.0, ("bfloat16", 1): 100.0, ("bfloat16", 4): 81.0}
    rates |= {("bfloat16", 8): 79.0, ("float32", 8): 80.0}
    runs = [{"precision": p, "num_seeds": n, "steps a second": r} for (p, n), r in rates.items()]
    runs += [{"precision": "bfloat16", "num_seeds": 1, "steps a second": 200.0}]
    runs += [{"precision": "float32", "num_seeds": 4, "error": "no"}]
    chosen = {"precision": "bfloat16", "num_seeds": 4, "steps a second": 81.0}
    assert accelerator_training.fastest(runs) == chosen
    assert accelerator_training.fastest(runs[-1:]) == accelerator_training.UNMEASURED


def test_a_row_is_cut_to_what_there_is_time_for(context, monkeypatch):
    seen = []
    monkeypatch.delenv("ZONEOUT_RAW_DATA", raising=False)
    monkeypatch.setattr(accelerator_training.Ready, "fit", lambda self: seen.append(self))
    chosen = {"precision": "float32", "num_seeds": 1, "steps a second": 1.0}
    with pytest.raises(FileNotFoundError):  # nothing is trained
        accelerator_training.train(context, "zoneout", 10.0, chosen, {})
    (ready,) = seen
    assert ready.task.steps_per_epoch == 3 and ready.config.run.max_minutes == 10 / 60
    assert not ready.task.test_evaluations and not pathlib.Path(ready.config.run.workdir).exists()


def test_a_torch_process_that_hangs_or_babbles_is_an_error(monkeypatch):
    popen = subprocess.Popen
    for program, seconds, message in (
        ("import time; time.sleep(60)", 1, "torch did not answer within 1 s"),
        ("print('hello', flush=True); input(); input()", 60, "torch's process said 'hello"),
    ):
        monkeypatch.setattr(rnn, "ANSWER_SECONDS", seconds)
        monkeypatch.setattr(
            rnn.subprocess,
            "Popen",
            lambda command, program=program, **options: popen(
                [sys.executable, "-c", program], **options
            ),
        )
        with contextlib.closing(rnn.Torch("cpu")) as torch:
            with pytest.raises(RuntimeError, match=message):
                torch.ask(peer="LSTM")
            with pytest.raises(RuntimeError, match="torch process ended"):
                torch.ask(peer="LSTM")


@pytest.mark.parametrize("files", [{}, {"ptb/ptb.train.txt": "another text"}])
def test_without_the_penn_treebank_another_text_is_used(files, context, tmp_path, monkeypatch):
    monkeypatch.setenv("ZONEOUT_RAW_DATA", str(tmp_path))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    assert accelerator_training.config(context, "LSTM").data.dataset == "stdlib"


def test_compile_times_do_not_come_from_a_cache(tmp_path):
    def compile_one(number):
        jax.clear_caches()
        jax.jit(lambda x: x * number + 1)(np.float32(1))
        return len(list(tmp_path.iterdir()))

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
        jax.config.update(name, value)
    try:
        with accelerator.uncached():
            assert compile_one(2) == 0
        assert compile_one(3) > 0  # the user's cache is in use again
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        accelerator.compilation_cache.reset_cache()
