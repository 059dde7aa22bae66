"""The tokenizer of simulated engines: bytes are ids. Called as a Hugging Face one is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class Encoding(dict[str, Any]):
    """`encoding["input_ids"]` is `encoding.input_ids` too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class MockTokenizer:
    """Bytes as ids, and `words` as one id each, as in the tokenizer of a `tiny:` model.

    `THINK` is a special token, so responses of any length can decode to just their answer. Nothing
    is put before or after a text, with `add_special_tokens` either.
    """

    THINK, EOS, PAD = 256, 257, 258
    eos_token_id, pad_token_id, bos_token_id = EOS, PAD, None
    eos_token, pad_token, bos_token = "<eos>", "<pad>", None
    all_special_ids = (THINK, EOS, PAD)
    name_or_path = "mock"
    # what `apply_chat_template` does, in the words of a template
    chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    _special = ("<think>", eos_token, pad_token)

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._words = tuple(words)
        self._first_word = 256 + len(self._special)
        self.vocab_size = self._first_word + len(self._words)
        self._ids = {word: self._first_word + i for i, word in enumerate(self._words)}
        longest_first = sorted(self._words, key=len, reverse=True)
        self._word = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if words else None

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        padding: bool | str = False,
        return_tensors: str | None = None,
    ) -> Encoding:
        """`input_ids` and `attention_mask`, of one text or of a list of them. `return_tensors`:
        None or "np"; there is no torch in a simulated run."""
        if return_tensors not in (None, "np"):
            raise ValueError(
                f"return_tensors={return_tensors!r}: the tokenizer of --mock makes lists, or"
                ' arrays with "np"'
            )
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(one)[: max_length if truncation else None] for one in texts]
        masks = [[1] * len(row) for row in rows]
        if padding:
            longest = max(map(len, rows), default=0)
            width = max_length if padding == "max_length" and max_length else longest
            rows = [row + [self.PAD] * (width - len(row)) for row in rows]
            masks = [mask + [0] * (width - len(mask)) for mask in masks]
        if return_tensors == "np":
            return Encoding(input_ids=np.array(rows), attention_mask=np.array(masks))
        if isinstance(text, str):
            return Encoding(input_ids=rows[0], attention_mask=masks[0])
        return Encoding(input_ids=rows, attention_mask=masks)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        if self._word is None:
            return list(text.encode())
        ids: list[int] = []
        for piece in self._word.split(text):
            word = self._ids.get(piece)
            ids += piece.encode() if word is None else [word]
        return ids

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = True) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        if skip_special_tokens:
            ids = [i for i in ids if i < 256 or i >= self._first_word]
        return b"".join(map(self._bytes_of, ids)).decode(errors="replace")

    def batch_decode(
        self, sequences: Iterable[Sequence[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def tokenize(self, text: str) -> list[str]:
        return [self._name_of(token) for token in self.encode(text)]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        return self._name_of(ids) if isinstance(ids, int) else [self._name_of(i) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        vocabulary = self.get_vocab()
        if isinstance(tokens, str):
            return vocabulary.get(tokens)
        return [vocabulary.get(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        return {self._name_of(token): token for token in range(self.vocab_size)}

    def apply_chat_template(
        self,
        messages: Any,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        text = "".join(f"{m['role']}: {_text_of(m['content'])}\n" for m in messages)
        text += "assistant: " if add_generation_prompt else ""
        if not tokenize:
            return text
        return self(text) if return_dict else self.encode(text)

    def _name_of(self, token: int) -> str:
        if token < 128:
            return chr(token)
        return f"<0x{token:02X}>" if token < 256 else self._bytes_of(token).decode()

    def _bytes_of(self, token: int) -> bytes:
        if token < 256:
            return bytes((token,))
        if token < self._first_word:
            return self._special[token - 256].encode()
        return self._words[token - self._first_word].encode()


def _text_of(content: Any) -> str:
    """Of a message; an image in it is a mark."""
    if isinstance(content, str):
        return content
    return "".join(p["text"] if p.get("type") == "text" else "<image>" for p in content or ())
