"""Tokens in, tokens out: whatever an agent says, edits, forgets or asks side by side, what is
trained is what the engine sampled, behind the very tokens that the engine was given."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.types import Completion, VersionSpan
from stages.gateway.chat import read_chat
from stages.gateway.errors import NoRoomError
from stages.gateway.session import Session
from tests.unit.fake_engine import FakeEngineClient
from tests.unit.stages.gateway.gateway_world import make_session
from tests.unit.stages.generate.tools.chatml import ChatML

Log = list[tuple[list[int], Completion]]
texts = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("\n <>|")), max_size=12
) | st.sampled_from(["<|im_end|>", "a<|im_start|>user\nb", "<tool_call>", "é", "🤗"])


class Engine(FakeEngineClient):
    """Samples what a script says, token by token under versions that it says; writes down what it
    was asked with and what it answered."""

    def __init__(self, tokenizer: ChatML, script: Sequence[tuple[str, int, bool]]) -> None:
        super().__init__()
        self._tokenizer, self._script = tokenizer, itertools.cycle(script)
        self.log: Log = []
        self._num_sampled = 0

    async def generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], **more: Any
    ) -> Completion:
        text, version, ends = next(self._script)
        eos = self._tokenizer.eos_token_id
        # models sample tokens that no encoder would choose, and think what a template forgets
        words = self._tokenizer.encode(text) if version % 2 else list(text.encode())
        ids = [*words, *([eos] if ends else [])] or [120]
        ids = ids[: sampling_params["max_new_tokens"]]
        push = len(ids) // 2  # a push falls into the answer
        spans = [VersionSpan(version, 0, push), VersionSpan(version + 1, push, len(ids))]
        log_probs = [-0.001 * (self._num_sampled + i + 1) for i in range(len(ids))]
        self._num_sampled += len(ids)
        ended = ids[-1] == eos
        made = Completion(
            token_ids=tuple(ids),
            log_probs=tuple(log_probs),  # no two are the same
            spans=tuple(s for s in spans if s.start < s.end),
            finish_reason="stop" if ended else "length",
            matched=eos if ended else None,
        )
        self.log.append((list(input_ids), made))
        return made


# what an agent does with a history: (which one it takes up, how many messages of it are kept, which
# of them is rewritten, what is said then, how many answers are asked for)
deeds = st.lists(
    st.tuples(
        st.integers(0, 7), st.integers(0, 9), st.none() | texts, texts, st.sampled_from([1, 1, 2])
    ),
    min_size=1,
    max_size=8,
)
thoughts = texts.map(lambda text: f"<think>\n{text}\n</think>\n\n<tool_call>")
scripts = st.lists(
    st.tuples(texts | thoughts, st.integers(0, 5), st.booleans()), min_size=1, max_size=6
)


async def play(session: Session, script: list[Any]) -> None:
    histories: list[list[dict[str, Any]]] = [[]]
    for which, kept, rewritten, words, n in script:
        history = histories[which % len(histories)]
        chat = [*history[: kept if kept < 8 else None]]
        if rewritten is not None and chat:
            chat[-1] = {**chat[-1], "content": rewritten}
        role = "tool" if chat and len(words) % 3 == 0 else "user"
        chat.append({"role": role, "content": words})
        try:
            exchange = await session.chat(read_chat({"messages": chat, "n": n}))
        except NoRoomError:
            continue
        for choice in exchange.answer["choices"]:
            histories.append([*chat, choice["message"]])


def sampled_of(log: Log) -> list[Any]:
    return sorted(
        (tuple(asked + list(said.token_ids[: i + 1])), said.log_probs[i], version)
        for asked, said in log
        for version, start, end in said.spans
        for i in range(start, end)
    )


def trained_of(session: Session) -> list[Any]:
    return sorted(
        (tuple(b.tokens[: b.num_prompt + i + 1]), b.log_probs[i], version)
        for b in session.tree.branches()
        for version, start, end in b.spans
        for i in range(start, end)
        if b.loss_mask[i]
    )


@settings(max_examples=60, deadline=None)
@given(deeds, scripts, st.booleans(), st.sampled_from([30, 300]))
def test_what_is_trained_is_what_was_sampled_where_it_was_sampled(
    script: list[Any], answers: list[tuple[str, int, bool]], forgets: bool, budget: int
) -> None:
    tokenizer = ChatML(forgets=forgets)
    engine = Engine(tokenizer, answers)
    session = make_session(engine, tokenizer=tokenizer, params={"max_new_tokens": budget})
    asyncio.run(play(session, script))
    assert trained_of(session) == sampled_of(engine.log)
    for branch in session.tree.branches():
        assert len(branch.tokens) - branch.num_prompt <= budget
        masked = [i for i, mask in enumerate(branch.loss_mask) if mask]
        assert masked  # every branch trains something of its own


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), scripts)
def test_a_chat_that_only_grows_is_one_branch_of_what_the_engine_saw_last(
    words: list[str], answers: list[tuple[str, int, bool]]
) -> None:
    tokenizer = ChatML(forgets=True)
    engine = Engine(tokenizer, answers)
    session = make_session(engine, tokenizer=tokenizer, params={"max_new_tokens": 10_000})

    async def chat() -> None:
        messages: list[dict[str, Any]] = []
        for said in words:
            messages.append({"role": "user", "content": said})
            exchange = await session.chat(read_chat({"messages": messages}))
            messages.append(exchange.answer["choices"][0]["message"])

    asyncio.run(chat())
    (branch,) = session.tree.branches()
    asked, last = engine.log[-1]
    assert branch.tokens == asked + list(last.token_ids)
    for before, after in itertools.pairwise(engine.log):  # the KV of one is the next one's prefix
        whole = before[0] + list(before[1].token_ids)
        assert after[0][: len(whole)] == whole
