"""The files that describe the environment agree: package, lock, environment.yml."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PLATFORMS = ["linux", "darwin"]


def package() -> dict:
    """The table ``project`` of the package."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    return tomllib.loads((ROOT / "core" / "pyproject.toml").read_text("utf-8"))["project"]


def declared(project: dict) -> list[Requirement]:
    """Every dependency, those of the extras included."""
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for group in [project["dependencies"], *extras] for line in group]


def locked(text: str) -> list[Requirement]:
    """The pins of a lock."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def target(python: str, platform: str) -> dict[str, str]:
    """What markers see on a machine."""
    return {
        "extra": "",
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64" if platform == "linux" else "arm64",
        "platform_python_implementation": "CPython",
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[platform],
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": platform,
    }


def applies(requirement: Requirement, machine: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(machine)


def disagreements(wanted: list[Requirement], pins: list[Requirement], machine: dict) -> list[str]:
    """What a machine would lack, or get in the wrong version, or get twice."""
    found: dict[str, list[str]] = {}
    for pin in pins:
        if applies(pin, machine):
            (exact,) = pin.specifier
            found.setdefault(canonicalize_name(pin.name), []).append(exact.version)
    problems = [f"{name} is pinned twice" for name, pinned in found.items() if len(pinned) > 1]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if not applies(requirement, machine):
            continue
        if name not in found:
            problems.append(f"{name} is not in the lock")
        elif not all(requirement.specifier.contains(v, prereleases=True) for v in found[name]):
            problems.append(f"{name} {found[name][0]} is not {requirement.specifier}")
    return problems


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_every_dependency_within_its_bounds(python, platform):
    pins = locked(LOCK.read_text("utf-8"))
    assert disagreements(declared(package()), pins, target(python, platform)) == []


def test_lock_has_exact_pins_and_no_place():
    text = LOCK.read_text("utf-8")
    for pin in locked(text):
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
        assert pin.url is None, pin
    assert not re.search(r"https?:|file:|--(extra-)?index|--find-links", text)


def test_lock_leaves_the_build_of_torch_open():
    pins = {pin.name: pin for pin in locked(LOCK.read_text("utf-8"))}
    assert "+" not in str(pins["torch"].specifier), "a local version exists in one index only"
    assert [name for name in pins if name.startswith(("cuda-", "nvidia-"))] == []


def test_python_versions_agree():
    project = package()
    classified = [c.rpartition(" ")[2] for c in project["classifiers"] if "Python :: 3." in c]
    assert classified == PYTHONS
    assert project["requires-python"] == f">={PYTHONS[0]}"
    (conda,) = (d for d in environment() if isinstance(d, str) and d.startswith("python="))
    assert conda.removeprefix("python=") in PYTHONS


def test_conda_environment_installs_lock_and_package():
    (pip,) = (dependency["pip"] for dependency in environment() if isinstance(dependency, dict))
    assert [line for line in pip if not line.startswith("--extra-index-url")] == [
        "-r requirements.lock",
        "-e ./core",
    ]
    others = {d for d in environment() if isinstance(d, str) and not d.startswith("python=")}
    assert others == {"pip"}, "versions come from the lock alone"


def environment() -> list[str | dict[str, list[str]]]:
    return yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]


def test_makefile_asks_for_the_oldest_python():
    asked = re.findall(r"version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text("utf-8"))
    assert asked == [tuple(PYTHONS[0].split("."))]


@pytest.mark.parametrize(
    ("lock", "problem"),
    [
        ("a==1.5", []),
        ("a==1.4", ["a 1.4 is not >=1.5"]),
        ("b==2.0", ["a is not in the lock"]),
        ("a==1.5 ; sys_platform == 'win32'", ["a is not in the lock"]),
        ("a==1.5\na==1.6 ; python_full_version >= '3.11'", ["a is pinned twice"]),
        ("a==1.5 ; python_full_version < '3.11'\na==1.6 ; python_full_version >= '3.11'", []),
    ],
)
def test_disagreement_is_found(lock, problem):
    wanted = [Requirement("a>=1.5"), Requirement("c; sys_platform == 'darwin'")]
    assert disagreements(wanted, locked(lock), target("3.12", "linux")) == problem
