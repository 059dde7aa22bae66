"""The control endpoints of one SGLang server, each with a deadline.

Every failure is a WeightSyncError that names the engine.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.core.errors import WeightSyncError
from stages.publish.buckets import TensorMeta

logger = logging.getLogger(__name__)

JSON = {"Content-Type": "application/json"}
CONTROL_SECONDS = 30.0  # of a call that moves no weights
TRANSFER_SECONDS = 180.0  # of a call that moves or loads one bucket, or a checkpoint


class AnsweredError(WeightSyncError):
    """The engine itself refused: it is not stuck."""


class EngineControl:
    """One engine, as whoever publishes weights sees it."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        self._session, self.endpoint = session, endpoint

    async def version(self) -> int:
        """The policy version under which the server labels what it generates now."""
        info = await self._call("GET", "model_info", None, CONTROL_SECONDS)
        try:
            return int(info["weight_version"])
        except (KeyError, TypeError, ValueError):
            raise WeightSyncError(
                f"{self.endpoint} has no integer weight_version but {info.get('weight_version')!r}"
            ) from None

    async def pause(self, mode: str) -> None:
        """`in_place` freezes requests with their KV; `retract` puts them back into the queue, their
        KV to be computed again."""
        await self._post("pause_generation", {"mode": mode})

    async def resume(self) -> None:
        await self._post("continue_generation", {"torch_empty_cache": False})

    async def flush_cache(self) -> None:
        """Drops all cached KV. It is refused while requests run; while the engine is paused by
        `retract` none does."""
        await self._call("POST", "flush_cache", {}, CONTROL_SECONDS)

    async def init_group(
        self, name: str, address: str, port: int, *, rank_offset: int, world_size: int, backend: str
    ) -> None:
        """The engine's ranks enter the group as `rank_offset` and those that follow; returns when
        the group stands."""
        where = {
            "master_address": address,
            "master_port": port,
            "rank_offset": rank_offset,
            "world_size": world_size,
        }
        await self._post(
            "init_weights_update_group",
            {**where, "group_name": name, "backend": backend},
            TRANSFER_SECONDS,
        )

    async def leave_group(self, name: str) -> None:
        """The engine's ranks leave the group, also when the others are gone."""
        await self._post("destroy_weights_update_group", {"group_name": name})

    async def begin_update(self) -> None:
        await self._post("begin_weight_update", {})

    async def end_update(self) -> None:
        await self._post("end_weight_update", {}, TRANSFER_SECONDS)

    async def receive(self, bucket: bytes) -> None:
        """Takes part in one broadcast and loads it; `bucket` is what `bucket_body` made."""
        await self._call("POST", "update_weights_from_distributed", bucket, TRANSFER_SECONDS)

    async def borrow(self, handles: bytes) -> None:
        """Loads one bucket out of memory that the learner lends it; `handles` is what `tensor_body`
        made."""
        await self._call("POST", "update_weights_from_tensor", handles, TRANSFER_SECONDS)

    async def load(self, folder: Path, version: int) -> None:
        """Loads a Hugging Face folder. A bad one is refused, and the old weights stay."""
        body = {"model_path": str(folder), "weight_version": str(version), "flush_cache": False}
        await self._post("update_weights_from_disk", body, TRANSFER_SECONDS)

    async def checksums(self) -> dict[str, str]:
        """Of every tensor as it lies in the engine: "name, rank N" -> checksum."""
        answer = await self._call(
            "POST", "weights_checker", {"action": "checksum"}, TRANSFER_SECONDS
        )
        try:
            return {
                f"{name}, rank {i}": str(value)
                for i, rank in enumerate(answer["ranks"])
                for name, value in rank["checksums"].items()
            }
        except (KeyError, TypeError, AttributeError):
            raise WeightSyncError(
                f"{self.endpoint}/weights_checker gave no checksums but {str(answer)[:200]}"
            ) from None

    async def wipe_weights(self) -> None:
        """Overwrites all weights with others."""
        await self._post("weights_checker", {"action": "reset_tensors"}, TRANSFER_SECONDS)

    async def _post(
        self, path: str, body: Mapping[str, Any], seconds: float = CONTROL_SECONDS
    ) -> None:
        await self._call("POST", path, body, seconds)

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | bytes | None, seconds: float
    ) -> dict[str, Any]:
        data = json.dumps(body).encode() if isinstance(body, Mapping) else body
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self._session.request(
                method,
                f"{self.endpoint}/{path}",
                data=data,
                headers=JSON if data is not None else None,
                timeout=timeout,
            ) as response:
                answer = (
                    await response.json()
                    if response.content_type == "application/json"
                    else {"message": await response.text()}
                )
                status = response.status
        except TimeoutError:
            raise WeightSyncError(
                f"{self.endpoint}/{path} gave no answer in {seconds:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise WeightSyncError(
                f"{self.endpoint}/{path} failed: {type(error).__name__}: {error}"
            ) from error
        if status != 200 or not isinstance(answer, dict) or answer.get("success") is False:
            said = answer.get("message", answer) if isinstance(answer, dict) else answer
            raise AnsweredError(f"{self.endpoint}/{path} answered {status}: {str(said)[:500]}")
        return answer


def bucket_body(group: str, metas: Sequence[TensorMeta], version: int | None) -> bytes:
    """What all engines of a wave are told of one bucket. With `version`, that is an engine's
    version from here on. `flush_cache` stays off: under in_place it is refused (and KV is kept
    apart by version), else it was done before."""
    names, dtypes, shapes = zip(*metas, strict=True)
    body: dict[str, Any] = {"names": names, "dtypes": dtypes, "shapes": shapes, "group_name": group}
    body |= {"load_format": "flattened_bucket", "flush_cache": False}
    if version is not None:
        body["weight_version"] = str(version)
    return json.dumps(body).encode()


async def settle(calls: Mapping[str, Awaitable[None]]) -> dict[str, WeightSyncError]:
    """Makes all calls at once and waits for all; returns the failures, by endpoint."""
    tasks = {endpoint: asyncio.ensure_future(call) for endpoint, call in calls.items()}
    try:
        if tasks:
            await asyncio.wait(tasks.values())
        failures = {}
        for endpoint, task in tasks.items():
            if (error := task.exception()) is None:
                continue
            if not isinstance(error, WeightSyncError):
                raise error
            failures[endpoint] = error
        return failures
    finally:
        if under_way := [task for task in tasks.values() if not task.done()]:
            for task in under_way:
                task.cancel()
            await asyncio.wait(under_way)
