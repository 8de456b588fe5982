"""What importing the package costs, and pulls in."""

import subprocess
import sys

HEAVY = ("lightning", "triton", "numba", "sklearn", "matplotlib")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light():
    code = f"""
import sys, torch
before = set(sys.modules)
import steepest
import steepest.kernels, steepest.estimators, steepest.optim
print(sorted(set({HEAVY}) & (set(sys.modules) - before)))
"""
    assert run(code) == "[]"


def test_import_takes_at_most_three_tenths_of_a_second_beyond_torch():
    code = """
import time, torch
start = time.perf_counter()
import steepest
import steepest.optim
print(time.perf_counter() - start)
"""
    assert min(float(run(code)) for _ in range(3)) <= 0.3


def test_every_public_name_is_documented():
    code = """
import steepest.optim, steepest.kernels, steepest.estimators
for room in (steepest.optim, steepest.kernels, steepest.estimators):
    assert room.__doc__
    for name, value in vars(room).items():
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("steepest"):
            assert value.__doc__, name
"""
    run(code)
