"""Agents are exact to the token: whatever the chat, what is trained is what the engine sampled, in
the context in which it sampled it, with its own log-probs and versions."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.core.types import Completion, Sample, Status, VersionSpan
from stages.generate.check import check_sample
from stages.generate.tools.agent import Agent, open_agent
from tests.property.tokenizers_for_agents import CONTROL, TAGS, byte_level, sentencepiece, smollm2
from tests.unit.stages.generate.tools.chatml import agent_args

TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "byte-level BPE": byte_level,
    "SentencePiece": sentencepiece,
    "SmolLM2": smollm2,
}
END = "<|im_end|>"
# what tools and users say, and models write: unicode, spaces, and control tokens as words
words = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(["the", " the", "\n", "\n\n", "  ", "🙂", "é", *CONTROL, *TAGS]),
    ),
    max_size=6,
).map("".join)


class Sampled(NamedTuple):
    """A turn of the model's: `text` in pieces that no tokenizer would make of it, then `noise`."""

    text: str
    noise: Sequence[int]
    ends: bool  # with the token that ends a turn; else a stop string ends it
    cuts: Sequence[int]  # where a push comes, in tokens


class Given(NamedTuple):
    """A request to the engine and what it answered."""

    context: list[int]
    answer: Completion


def call_of(text: str) -> str:
    return f"<tool_call>{json.dumps({'name': 'look', 'arguments': {'text': text}})}</tool_call>"


turns = st.builds(
    Sampled,
    st.builds(
        lambda thought, said, calls, garbled: (
            (f"<think>\n{thought}\n</think>\n\n" if thought is not None else "")
            + said
            + "".join(map(call_of, calls))
            + ("<tool_call>{'" if garbled else "")
        ),
        st.none() | st.just("hm") | words,
        st.just("Well.") | words,
        st.lists(words, max_size=2),
        st.sampled_from([False, False, True]),
    ),
    st.lists(st.integers(0, 250), max_size=4),
    st.sampled_from([True, True, False]),
    st.lists(st.integers(1, 20), max_size=2),
)


class Engine:
    """Samples the turns it is given, and keeps what it was asked and what it answered."""

    def __init__(self, tokenizer: Any, script: Sequence[Sampled]) -> None:
        self._tokenizer, self._script = tokenizer, list(script)
        self._version = 0
        self.given: list[Given] = []

    async def generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], *, session_id: str
    ) -> Completion:
        turn = self._script.pop(0) if self._script else Sampled("Done.", (), True, ())
        ids = (
            [
                token
                for character in turn.text  # one by one: to encode it again would merge them
                for token in self._tokenizer.encode(END + character, add_special_tokens=False)[1:]
            ]
            + list(turn.noise)
        )
        ids = [token for token in ids if token != self._tokenizer.eos_token_id] or [40]
        ids += [self._tokenizer.eos_token_id] if turn.ends else []
        room = sampling_params["max_new_tokens"]
        cut = len(ids) > room
        ids = ids[:room]
        ended = turn.ends and not cut
        at = len(self.given) * 1000
        answer = Completion(
            token_ids=tuple(ids),
            log_probs=tuple(-(at + i + 1) / 1e6 for i in range(len(ids))),
            spans=self._spans(len(ids), turn.cuts),
            finish_reason="length" if cut else "stop",
            matched=None if cut else (ids[-1] if ended else "."),
        )
        self.given.append(Given(list(input_ids), answer))
        return answer

    def _spans(self, length: int, cuts: Sequence[int]) -> tuple[VersionSpan, ...]:
        places = [0, *sorted({c for c in cuts if c < length}), length]
        spans = []
        for start, end in itertools.pairwise(places):
            spans.append(VersionSpan(self._version, start, end))
            self._version += 1
        return tuple(spans)


async def talk(
    tokenizer: Any,
    engine: Engine,
    said: Sequence[str],
    *,
    max_new_tokens: int,
    forgets: bool,
    keeps_turns: bool,
) -> Agent:
    """The chat in which tools and users say these things in turn."""
    left = list(said)

    async def look(text: str) -> str:
        return left.pop(0) if left else text

    args = agent_args(
        engine,  # type: ignore[arg-type]
        tokenizer,
        max_turns=5,
        tool_call_parser="hermes",
        apply_chat_template_kwargs={"forgets": forgets},
    )
    sample = Sample(prompt="the first question", index=0, group_index=0)
    params = {"max_new_tokens": max_new_tokens}
    async with open_agent(args, sample, params, tools=[look], keeps_turns=keeps_turns) as agent:
        while not agent.done:
            turn = await agent.generate()
            goes_on = (
                await agent.answer(turn.calls)
                if turn.calls
                else agent.say({"role": "user", "content": left.pop(0) if left else "And?"})
            )
            if not goes_on:
                break
    return agent


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(
    script=st.lists(turns, max_size=5),
    said=st.lists(words, max_size=6),
    max_new_tokens=st.integers(1, 30) | st.integers(30, 3000),
    forgets=st.booleans(),
    keeps_turns=st.booleans(),
)
def test_trained_is_what_was_sampled_where_it_was_sampled(
    kind: str,
    script: list[Sampled],
    said: list[str],
    max_new_tokens: int,
    forgets: bool,
    keeps_turns: bool,
) -> None:
    tokenizer = TOKENIZERS[kind]()
    engine = Engine(tokenizer, script)
    agent = asyncio.run(
        talk(
            tokenizer,
            engine,
            said,
            max_new_tokens=max_new_tokens,
            forgets=forgets,
            keeps_turns=keeps_turns,
        )
    )
    if keeps_turns or not forgets:
        assert len(agent.samples) == 1
    left = list(engine.given)
    for part in agent.samples:
        check_sample(part, fallback_version=None)
        assert part.response_length <= max_new_tokens
        assert len(part.tokens) - part.response_length == part.prompt_length
        left = check_part(part, left)
    assert not left, "an answer is trained in no part"
    assert all(
        part.tokens[: part.prompt_length] == agent.samples[0].tokens[: part.prompt_length]
        for part in agent.samples
    )
    if engine.given[-1].answer.finish_reason == "length":
        assert agent.samples[-1].status is Status.TRUNCATED


def check_part(part: Sample, given: Sequence[Given]) -> list[Given]:
    """Takes the answers that the part trains, in order, from those that are left."""
    assert part.loss_mask is not None and part.rollout_log_probs is not None
    start, left = part.prompt_length, list(given)
    covered = [False] * part.response_length
    versions = [-1] * part.response_length
    for span in part.weight_versions:
        versions[span.start : span.end] = [span.version] * (span.end - span.start)
    while left and part.tokens[: len(left[0].context)] == left[0].context:
        context, answer = left[0]
        at, end = len(context) - start, len(context) - start + len(answer.token_ids)
        if not part.loss_mask[at:end] or not all(part.loss_mask[at:end]):
            break  # a later part trains it
        assert part.tokens[start + at : start + end] == list(answer.token_ids)
        assert part.rollout_log_probs[at:end] == list(answer.log_probs)
        assert versions[at:end] == [
            span.version for span in answer.spans for _ in range(span.start, span.end)
        ]
        covered[at:end] = [True] * (end - at)
        left.pop(0)
    assert part.loss_mask == [int(trained) for trained in covered], "something else is trained"
    assert all(
        lp == 0.0 and v == -1
        for lp, v, trained in zip(part.rollout_log_probs, versions, covered, strict=True)
        if not trained
    )
    return left


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(text=words)
def test_what_a_tool_says_is_words_and_nothing_else(kind: str, text: str) -> None:
    """No control token comes from a tool's words, and none of them is lost."""
    tokenizer = TOKENIZERS[kind]()
    # SmolLM2 has no tokens for some bytes, and says <|endoftext|> for them
    assume(all(tokenizer.unk_token_id not in tokenizer.encode(c) for c in text))
    engine = Engine(tokenizer, [Sampled(call_of("x"), (), True, ())])
    agent = asyncio.run(
        talk(tokenizer, engine, [text], max_new_tokens=5000, forgets=False, keeps_turns=False)
    )
    assert len(agent.samples) == 1
    first, second = engine.given[:2]
    between = second.context[len(first.context) + len(first.answer.token_ids) :]
    controls = {tokenizer.convert_tokens_to_ids(token) for token in (*CONTROL, *TAGS)}
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in CONTROL[:2])
    assert [token for token in between if token in controls] == [start, end, start]
    assert tokenizer.decode(second.context, skip_special_tokens=False) == (
        tokenizer.decode([*first.context, *first.answer.token_ids], skip_special_tokens=False)
        + f"\n<|im_start|>tool\n{text}{END}\n<|im_start|>assistant\n"
    )
