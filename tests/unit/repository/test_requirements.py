"""The closed lists of requirements/ and what pyproject.toml asks for agree."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def holds(requirement: Requirement, python: str) -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({"python_version": python})


def pinned(*names: str, python: str = "3.11") -> dict[str, str]:
    """Distribution -> version, of the lists by their names."""
    found = {}
    for name in names:
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            if text := line.partition("#")[0].strip():
                requirement = Requirement(text)
                if holds(requirement, python):
                    (pin,) = requirement.specifier
                    found[canonicalize_name(requirement.name)] = pin.version
    return found


def asked(extras: set[str]) -> list[Requirement]:
    """What the project and these extras of it ask for."""
    optional = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    requirements = [Requirement(text) for text in texts]
    return [r for r in requirements if canonicalize_name(r.name) != PROJECT["name"]]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_each_list_holds_every_extra_but_the_benchmarks(kind: str, python: str) -> None:
    versions = pinned("torch", kind, python=python)
    extras = PROJECT["optional-dependencies"].keys() - {"bench"}
    for requirement in (r for r in asked(extras) if holds(r, python)):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements/{kind}.txt"
        assert requirement.specifier.contains(version), f"{requirement} and =={version}"


def test_the_benchmarks_have_their_own_list() -> None:
    versions = pinned("bench")
    for requirement in (Requirement(t) for t in PROJECT["optional-dependencies"]["bench"]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
