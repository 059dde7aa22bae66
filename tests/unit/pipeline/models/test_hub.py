"""A model by its name on the Hugging Face Hub: a folder, or a message that says how to get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.rules.inputs import check_checkpoint
from pipeline.core.errors import CheckpointError
from pipeline.core.find_checkpoint import is_hub_name
from pipeline.models.hub import fetch_model
from pipeline.models.resolve import resolve_checkpoint


class Hub:
    """One model; or why there is none."""

    def __init__(self, folder: Path, problem: OSError | None = None) -> None:
        self.folder, self.problem, self.asked = folder, problem, list[str]()

    def __call__(self, name: str) -> str:
        self.asked.append(name)
        if self.problem is not None:
            raise self.problem
        return str(self.folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("spec", "is_one"),
    [
        ("Qwen/Qwen3-0.6B", True),
        ("HuggingFaceTB/SmolLM2-135M_x", True),
        ("Qwen3-0.6B", False),
        ("a/b/c", False),
        ("/models/qwen", False),
        ("./qwen", False),
        ("../models/qwen", False),
        ("tiny:configs/models/tiny-qwen3.yaml", False),
        ("here/qwen", False),
    ],
)
def test_what_is_a_name(spec: str, is_one: bool, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert is_hub_name(spec) is is_one


def test_a_name_passes_the_check_at_load_and_a_missing_folder_does_not() -> None:
    assert list(check_checkpoint("Qwen/Qwen3-0.6B")) == []
    (problem,) = check_checkpoint("qwen")
    assert "no such folder" in problem and "OWNER/NAME on the Hub" in problem


def test_the_hub_is_asked_for_the_name(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "cached")
    assert fetch_model("Qwen/Qwen3-0.6B", hub) == tmp_path / "cached"
    assert hub.asked == ["Qwen/Qwen3-0.6B"]


@pytest.mark.parametrize("problem", [ConnectionError("no\n route."), FileNotFoundError("404")])
def test_where_the_hub_has_no_answer_the_message_says_how(
    problem: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(CheckpointError) as caught:
        fetch_model("Qwen/Qwen3-0.6B", Hub(tmp_path, problem))
    message = str(caught.value)
    assert ("no route" if isinstance(problem, ConnectionError) else "404") in message
    assert "hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B" in message
    assert "no such folder" in message and "\n" not in message


def test_offline_the_message_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real client: HF_HUB_OFFLINE=1 is set for all tests."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE forbids.*hf download nobody/none"):
        resolve_checkpoint("nobody/none")


def test_offline_a_model_that_is_in_the_cache_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real client, in the layout of its cache."""
    place = tmp_path / "hub" / "models--owner--name"
    snapshot = place / "snapshots" / "abc123"
    for folder in (snapshot, place / "refs", place / "blobs"):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text("abc123")
    (snapshot / "config.json").write_text('{"model_type": "qwen3"}')
    for name in ("model.safetensors", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert resolve_checkpoint("owner/name") == snapshot
