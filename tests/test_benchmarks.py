"""The benchmark of optimizer steps runs for whatever optimizer is added."""

import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "core/benchmarks/optimizer_step.py"


def load():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load()


@pytest.mark.parametrize("name", benchmark.competitors())
def test_every_optimizer_is_timed_and_its_bytes_counted(monkeypatch, name):
    monkeypatch.setitem(benchmark.SETS, "tiny", lambda: [(7, 3), (5,)])
    rows = benchmark.measure(name, "tiny", rounds=1, device=torch.device("cpu"))
    ours = [row for row in rows if row["implementation"].startswith("steepest")]
    assert ours and all(row["ms"] > 0 for row in rows)
    if name in ("Adam", "AdamW"):
        theirs = next(row for row in rows if row["implementation"] == "torch, fused")
        assert theirs["over_torch_fused"] == 1
        assert {row["bytes_per_parameter"] for row in [*ours, theirs]} == {28}
