"""What importing the package costs, and pulls in; and that its names are documented."""

import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys

import steepest

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


def public():
    """Path and value of every public class and function."""
    for found in pkgutil.iter_modules(steepest.__path__):
        if found.ispkg:
            room = importlib.import_module(f"steepest.{found.name}")
            assert room.__doc__
            for name, value in vars(room).items():
                own = getattr(value, "__module__", "").startswith("steepest.")
                if own and not name.startswith("_") and (inspect.isclass(value) or callable(value)):
                    yield f"{found.name}.{name}", value


def test_every_public_name_is_documented():
    names = dict(public())
    assert len(names) > 150
    silent = [name for name, value in names.items() if not value.__doc__]
    assert not silent, f"no docstring: {silent}"


def test_every_public_name_has_an_example():
    """But for errors, protocols, results without behavior, and what begins with a download."""
    without = {
        name
        for name, value in public()
        if ">>>" not in (inspect.getdoc(value) or "")
        and not (inspect.isclass(value) and issubclass(value, tuple | BaseException))
        and not dataclasses.is_dataclass(value)
        and not getattr(value, "_is_protocol", False)
        and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert without == {"lightning.CIFAR10Data", "lightning.WikiText2Data"}, "docstrings lack >>>"
