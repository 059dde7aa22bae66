"""An engine client at the protocol seam: scripted completions, no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from pipeline.core.types import Completion, Sample, VersionSpan
from stages.engine.mock import MockTokenizer
from tests.manual_time import ManualTime

PARAMS = {"temperature": 1.0, "max_new_tokens": 64}


def completion(text: str, *, version: int = 0, finish: str = "stop") -> Completion:
    ids = tuple(text.encode())
    return Completion(
        token_ids=ids,
        log_probs=tuple(-0.01 * (i + 1) for i in range(len(ids))),
        spans=(VersionSpan(version, 0, len(ids)),),
        finish_reason=finish,
        text=text,
    )


class FakeEngineClient:
    """Gives its scripted answers in order (an exception is raised); writes down what it was
    asked."""

    def __init__(
        self,
        *script: Completion | Exception | str,
        time: ManualTime | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.script = list(script)
        self.asked: list[tuple[list[int], dict[str, Any], str | None]] = []
        self.on_request: Callable[[], None] = lambda: None
        self._time, self._seconds = time, seconds

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        *,
        session_id: str | None = None,
    ) -> Completion:
        self.asked.append((list(input_ids), dict(sampling_params), session_id))
        if self._time is not None:
            self._time.advance(self._seconds)
        self.on_request()
        step = self.script[0] if len(self.script) == 1 else self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return completion(step) if isinstance(step, str) else step


def sample(prompt: str = "Q: ", **more: Any) -> Sample:
    return Sample(
        **{"prompt": prompt, "tokens": list(prompt.encode()), "index": 0, "group_index": 0, **more}
    )


def session_args(
    client: FakeEngineClient,
    *,
    max_turns: int = 8,
    context_length: int | None = None,
    time: Any = None,
) -> SimpleNamespace:
    return SimpleNamespace(
        engine_client=client,
        tokenizer=MockTokenizer(),
        max_turns=max_turns,
        context_length=context_length,
        time=time or ManualTime(),
    )
