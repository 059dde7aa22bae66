"""Pairs of prompt and answer for the supervised warm-up, from the same prompt sets."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.core.errors import DataError
from pipeline.core.labels import accepted_answers
from pipeline.core.protocols import Source, Tokenizer


def sft_pairs(source: Source, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    """Yields (prompt ids, answer ids + eos) without end. The answer is the label; of a list of
    accepted answers it is the first.

    Raises DataError for a prompt without an answer, and for a tokenizer without an eos token."""
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        raise DataError(
            "the tokenizer has no eos token, so the warm-up cannot teach the model to stop; set"
            " eos_token in its config"
        )
    while True:
        sample = source.get_samples(1)[0][0]
        try:
            answer = accepted_answers(sample.label)[0]
        except ValueError as error:
            raise DataError(
                f"the warm-up needs an answer with every prompt, but of {sample.prompt!r:.80}"
                f" {error}"
            ) from error
        if not sample.tokens:
            raise DataError(
                "the warm-up needs token ids, but the prompt is a chat: add --apply-chat-template"
                f" ({sample.prompt!r:.80})"
            )
        yield sample.tokens, [*tokenizer.encode(answer, add_special_tokens=False), eos]
