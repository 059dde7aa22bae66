"""Images from a data file to the engine's request, the buffer and the learner's batch: nothing
lost, nothing pickled."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from buffers.decoding import from_batch
from buffers.encoding import to_batch
from configs.rules.backend import media
from configs.schema import Config, DataConfig, ModelConfig, RolloutConfig
from pipeline.core.errors import DataError, GenerateError, ReplayBufferError
from pipeline.core.images import to_data_url
from pipeline.core.types import Completion, Group, Sample, Status, VersionSpan
from stages.advantage.train_samples import to_train_sample
from stages.generate.generate import GenerateStage
from stages.generate.image_prompts import Vision, open_image
from stages.source import build_source

PAD = 7


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(out, "PNG")
    return out.getvalue()


class Processor:
    """Two placeholders an image, one pixel of it."""

    image_token_id = PAD

    def __call__(
        self, *, text: str, images: list[Any], return_tensors: str
    ) -> dict[str, np.ndarray]:
        ids = [t for word in text.split() for t in ([PAD, PAD] if word == "I" else [len(word)])]
        pixels = np.array([image.getpixel((0, 0)) for image in images], np.float32)
        return {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, len(ids))),
            "pixel_values": pixels,
        }


class Tokenizer:
    chat_template = "yes"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [len(word) for word in text.split()]

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        parts = [
            p
            for m in messages
            for p in (
                [{"type": "text", "text": m["content"]}]
                if isinstance(m["content"], str)
                else m["content"]
            )
        ]
        return " ".join("I" if p["type"] == "image" else p["text"].strip() for p in parts)


def test_an_image_in_any_form_is_the_same_data_url(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    forms: list[Any] = [
        png(),
        {"bytes": png(), "path": None},
        {"bytes": None, "path": "a.png"},
        "a.png",
        Image.open(io.BytesIO(png())),
    ]
    urls = {to_data_url(form, tmp_path) for form in forms}
    assert len(urls) == 1 and to_data_url(next(iter(urls))) in urls
    assert open_image(urls.pop()).getpixel((0, 0)) == (255, 0, 0)
    for bad in (b"text", "https://example.org/a.png", "b.png", 3):
        with pytest.raises(ValueError):
            to_data_url(bad, tmp_path)


def rows(tmp_path: Path, *values: dict[str, Any]) -> Any:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    config = DataConfig(
        multimodal_keys='{"image": "pictures"}', apply_chat_template=True, rollout_shuffle=False
    )
    return build_source(str(tmp_path / "data.jsonl"), config, tokenizer=Tokenizer())  # type: ignore[arg-type]


def test_rows_with_images(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image"}]}]
    source = rows(
        tmp_path,
        {"prompt": "one <image> two", "pictures": "a.png"},
        {"prompt": "no mark", "pictures": ["a.png", "a.png"]},
        {"prompt": chat, "pictures": ["a.png"]},
        {"prompt": "plain"},
    )
    samples = [group[0] for group in source.get_samples(4)]
    assert [s.prompt for s in samples] == ["one I two", "I I no mark", "see I", "plain"]
    assert [len((s.multimodal_inputs or {"images": []})["images"]) for s in samples] == [1, 2, 1, 0]
    assert not samples[0].tokens and samples[3].tokens == [
        5
    ]  # the processor will say how many tokens an image is
    with pytest.raises(DataError, match=r"line 1: 2 places for images .* but 1 images"):
        rows(tmp_path, {"prompt": "<image><image>", "pictures": "a.png"})
    with pytest.raises(DataError, match=r"line 1.*no such image file"):
        rows(tmp_path, {"prompt": "<image>", "pictures": "b.png"})


class Client:
    def __init__(self, *token_ids: int) -> None:
        self.token_ids, self.asked = token_ids, SimpleNamespace()

    async def generate(
        self, input_ids: Any, params: Any, *, session_id: str | None = None, images: Any = ()
    ) -> Completion:
        self.asked = SimpleNamespace(ids=list(input_ids), images=list(images))
        n = len(self.token_ids)
        return Completion(
            token_ids=self.token_ids,
            log_probs=(-1.0,) * n,
            spans=(VersionSpan(0, 0, n),),
            finish_reason="stop",
        )


async def generated(client: Client, sample: Sample, vision: Vision | None) -> Sample:
    stage = GenerateStage(client, Tokenizer(), RolloutConfig(), vision=vision)  # type: ignore[arg-type]
    return (await stage([sample]))[0]


def picture(**more: Any) -> Sample:
    return Sample(
        index=0,
        prompt="one I two",
        multimodal_inputs={"images": [Image.new("RGB", (4, 4), "blue")]},
        **more,
    )


async def test_the_engine_gets_one_placeholder_an_image_the_learner_all() -> None:
    client = Client(4, 5)
    sample = await generated(client, picture(), Vision(Processor()))
    assert sample.status is Status.COMPLETED, sample.error
    assert client.asked.ids == [3, PAD, 3] and client.asked.images == [
        to_data_url(Image.new("RGB", (4, 4), "blue"))
    ]
    assert sample.tokens == [3, PAD, PAD, 3, 4, 5] and sample.response_length == 2
    row = to_train_sample(sample, reward=1.0, trajectory=0, policy_version=0)
    assert row.multimodal is not None and row.multimodal["pixel_values"].tolist() == [[0, 0, 255]]


async def test_what_cannot_be_trained_on_fails() -> None:
    for client, sample, vision, why in (
        (Client(4, PAD), picture(), Vision(Processor()), "sampled the image placeholder"),
        (Client(4), picture(tokens=[3]), None, "no image processor"),
        (
            Client(4),
            Sample(prompt="I", multimodal_inputs={"images": ["x"]}),
            Vision(Processor()),
            "no such image file",
        ),
        (
            Client(4),
            Sample(prompt="I", multimodal_inputs={"videos": [1], "images": ["x"]}),
            Vision(Processor()),
            "only images",
        ),
    ):
        out = await generated(client, sample, vision)
        assert out.status is Status.FAILED and why in str(out.error), out.error
    with pytest.raises(GenerateError):
        Vision(Processor()).check_answer([PAD])


def test_the_buffer_keeps_arrays_as_they_are() -> None:
    arrays = {
        "pixel_values": np.arange(6, dtype=np.float16).reshape(2, 3),
        "image_grid_thw": np.array([[1, 2, 2]], np.int64),
        "none": np.zeros((0, 4), np.float32),
        "big-endian": np.array([1.5, -2.5], ">f4"),
        "fps": 2.0,
    }
    samples = (
        picture(multimodal_train_inputs=arrays),
        Sample(
            index=1,
            multimodal_train_inputs={"odd": np.frombuffer(b"abc", np.uint8), "even": np.ones(3)},
        ),
        Sample(index=2),
    )
    back = from_batch(
        to_batch(Group(group_index=0, deadline=0, admitted_version=0, samples=samples))
    ).samples
    for given, got in zip(samples, back, strict=True):
        assert (got.multimodal_train_inputs is None) == (given.multimodal_train_inputs is None)
        for name, value in (given.multimodal_train_inputs or {}).items():
            found = (got.multimodal_train_inputs or {})[name]
            assert np.array_equal(found, value)
            if isinstance(value, np.ndarray):
                assert (
                    found.dtype == value.dtype
                    and found.shape == value.shape
                    and found.flags.aligned
                )
    assert back[0].multimodal_inputs == {"images": [to_data_url(Image.new("RGB", (4, 4), "blue"))]}
    objects = Sample(index=0, multimodal_train_inputs={"x": np.array([object()])})
    with pytest.raises(ReplayBufferError, match="multimodal"):
        to_batch(Group(group_index=0, deadline=0, admitted_version=0, samples=(objects,)))


@pytest.mark.parametrize(
    ("data", "backend", "said"),
    [
        ({"multimodal_keys": "image"}, "fsdp", "expected JSON"),
        ({"multimodal_keys": '{"video": "v"}'}, "fsdp", "no video"),
        ({"multimodal_keys": '{"image": "v"}'}, "fsdp", "--apply-chat-template"),
        (
            {"multimodal_keys": '{"image": "v"}', "apply_chat_template": True},
            "megatron",
            "--train-backend fsdp",
        ),
        ({"multimodal_keys": '{"image": "v"}', "apply_chat_template": True}, "fsdp", None),
    ],
)
def test_flags(data: dict[str, Any], backend: Any, said: str | None) -> None:
    found = list(media(Config(data=DataConfig(**data), model=ModelConfig(train_backend=backend))))
    assert (not found) if said is None else said in found[0]
