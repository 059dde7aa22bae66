"""Do engines hold what the learner sent, bit for bit? (--check-weight-update-equal)

By checksums that SGLang makes of every tensor as it lies in the engine (/weights_checker). Before
the first push, engines that have loaded the learner's own checkpoint have it wiped out of their
memory: the push must bring the same bits again, through conversion, transport and loading. After
every push, all engines must hold the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from pipeline.core.errors import WeightSyncError
from stages.publish.control import EngineControl

NAMED = 3  # tensors that a message names

Checksums = Mapping[str, str]  # "tensor, rank N" -> checksum


class EqualityCheck:
    """Raises WeightSyncError with the engine and the first tensors that differ."""

    def __init__(self, control: Callable[[str], EngineControl]) -> None:
        self._control = control
        self._loaded: Checksums | None = None

    async def wipe(self, endpoints: Sequence[str]) -> None:
        """Remembers what the engines have loaded, and overwrites it. Nothing may be generated
        before the next push."""
        found = await self._ask(endpoints)
        self._compare(found, "after loading the checkpoint")
        self._loaded = next(iter(found.values()))
        await asyncio.gather(*(self._control(endpoint).wipe_weights() for endpoint in endpoints))

    async def check(self, endpoints: Sequence[str], version: int) -> None:
        """After a push. Engines that are being started again meanwhile are left out."""
        versions = await asyncio.gather(*(self._control(e).version() for e in endpoints))
        found = await self._ask(
            [e for e, its in zip(endpoints, versions, strict=True) if its == version]
        )
        self._compare(found, f"after the push of policy version {version}")
        loaded, self._loaded = self._loaded, None
        if loaded is not None and found:
            self._compare(
                {"the checkpoint": loaded, **found},
                f"after the push of policy version {version}, which was to bring the checkpoint's"
                " weights again",
            )

    async def _ask(self, endpoints: Sequence[str]) -> dict[str, Checksums]:
        answers = await asyncio.gather(*(self._control(e).checksums() for e in endpoints))
        return dict(zip(endpoints, answers, strict=True))

    def _compare(self, found: Mapping[str, Checksums], when: str) -> None:
        if not found:
            return
        (first, expected), *others = found.items()
        for endpoint, got in others:
            differ = sorted(k for k in {*expected, *got} if expected.get(k) != got.get(k))
            if differ:
                raise WeightSyncError(
                    f"--check-weight-update-equal: {when} {len(differ)} of"
                    f" {len(expected)} tensors of {endpoint} are not those of {first}:"
                    f" {', '.join(differ[:NAMED])}{', ...' if len(differ) > NAMED else ''}"
                )
