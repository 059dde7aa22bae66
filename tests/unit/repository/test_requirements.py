"""The closed lists of requirements/ and what pyproject.toml asks for agree."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(*names: str) -> dict[str, str]:
    """Distribution -> version, of the lists by their names."""
    found = {}
    for name in names:
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            requirement = line.partition("#")[0].partition(";")[0].strip()
            if requirement:
                distribution, _, version = requirement.partition("==")
                found[canonicalize_name(distribution)] = version
    return found


def asked(extras: set[str]) -> list[Requirement]:
    """What the project and these extras of it ask for."""
    optional = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    requirements = [Requirement(text) for text in texts]
    return [r for r in requirements if canonicalize_name(r.name) != PROJECT["name"]]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_each_list_holds_every_extra_but_the_benchmarks(kind: str) -> None:
    versions = pinned("torch", kind)
    extras = PROJECT["optional-dependencies"].keys() - {"bench"}
    for requirement in asked(extras):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements/{kind}.txt"
        assert requirement.specifier.contains(version), f"{requirement} and =={version}"


def test_the_benchmarks_have_their_own_list() -> None:
    versions = pinned("bench")
    for requirement in (Requirement(t) for t in PROJECT["optional-dependencies"]["bench"]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
