"""The simulated tokenizer, called as a Hugging Face one."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from stages.engine.mock import MockTokenizer

TOKENIZER = MockTokenizer(["yes"])


def test_a_text_or_a_list_of_them() -> None:
    one = TOKENIZER("ab", add_special_tokens=False)
    assert one["input_ids"] == one.input_ids == [97, 98] and one.attention_mask == [1, 1]
    assert TOKENIZER(["ab", "c"]).input_ids == [[97, 98], [99]]


def test_padding_truncation_and_arrays() -> None:
    made = TOKENIZER(["abc", "d"], padding=True, truncation=True, max_length=2)
    assert made.input_ids == [[97, 98], [100, TOKENIZER.pad_token_id]]
    assert made.attention_mask == [[1, 1], [1, 0]]
    assert np.array_equal(TOKENIZER("ab", return_tensors="np").input_ids, [[97, 98]])
    with pytest.raises(ValueError, match="return_tensors='pt': the tokenizer of --mock"):
        TOKENIZER("ab", return_tensors="pt")


def test_ids_and_tokens() -> None:
    ids = [97, TOKENIZER.eos_token_id, *TOKENIZER.encode("yes"), 200]
    tokens = TOKENIZER.convert_ids_to_tokens(ids)
    assert tokens == ["a", "<eos>", "yes", "<0xC8>"]
    assert TOKENIZER.convert_tokens_to_ids(tokens) == ids
    assert TOKENIZER.convert_tokens_to_ids("<eos>") == TOKENIZER.eos_token_id
    assert len(TOKENIZER.get_vocab()) == len(TOKENIZER) == TOKENIZER.vocab_size
    assert TOKENIZER.tokenize("ayes") == ["a", "yes"]


def test_decoding_of_one_and_many() -> None:
    assert TOKENIZER.decode(97) == "a" and TOKENIZER.batch_decode([[97], [98]]) == ["a", "b"]
    assert TOKENIZER.decode([97, TOKENIZER.EOS], skip_special_tokens=False) == "a<eos>"


def test_a_chat_is_encoded_as_transformers_does() -> None:
    chat = [{"role": "user", "content": "hi"}]
    text = TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "user: hi\nassistant: "
    ids = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == TOKENIZER.encode(text)
    assert TOKENIZER.apply_chat_template(chat, add_generation_prompt=True).input_ids == ids


def test_an_encoding_can_be_copied_and_has_no_other_attributes() -> None:
    made = copy.deepcopy(TOKENIZER("a"))
    assert made.input_ids == [97] and not hasattr(made, "token_type_ids")
