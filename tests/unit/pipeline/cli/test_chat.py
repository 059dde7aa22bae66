"""`python -m pipeline chat` and `generate`: the trained model, tried in the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.cli.chat import find_model
from pipeline.models.resolve import resolve_checkpoint

ROOT = Path(__file__).parents[4]
CONFIG = "- --hf-checkpoint x\n- --rollout-max-response-len 9\n- --rollout-temperature 0.5\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ROOT / "configs/models/tiny-qwen3.yaml"
    return resolve_checkpoint(f"tiny:{shape}", tmp_path_factory.mktemp("models"))


def run_of(tmp_path: Path, model: Path, config: str = CONFIG) -> Path:
    """A run directory as training leaves it, its latest checkpoint behind a link."""
    run = tmp_path / "r"
    (run / "checkpoints" / "rollout-3").mkdir(parents=True)
    (run / "checkpoints" / "rollout-3" / "hf").symlink_to(model)
    (run / "checkpoints" / "latest").symlink_to("rollout-3")
    (run / "config.yaml").write_text(config)
    return run


def likeliest(model: Path, asked: str | Sequence[dict[str, str]], num: int) -> str:
    """Token by token, by the definition of greedy decoding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    text = (
        asked
        if isinstance(asked, str)
        else tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    )
    prompt = tokenizer.encode(text, add_special_tokens=False)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(num):
            tokens.append(int(policy(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
    return str(tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True))


@pytest.mark.slow
def test_lines_piped_into_a_chat_are_turns_of_one_conversation(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, model, CONFIG + "- --apply-chat-template\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nand you?\n/new\nhello\n"))
    assert main(["chat", str(run), "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    first_turn = [{"role": "user", "content": "hello"}]
    first = likeliest(model, first_turn, 9)
    second_turn = [
        *first_turn,
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and you?"},
    ]
    second = likeliest(model, second_turn, 9)
    assert out == f"{first}\n{second}\n{first}\n"
    assert "as a chat" in err
    assert "on cpu" in err or "on cuda" in err


@pytest.mark.slow
def test_generate_asks_as_the_run_did(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plain = run_of(tmp_path, model), ["--prompt", "1 + 1 =", "--temperature", "0"]
    assert main(["generate", str(run), *plain]) == 0
    out, err = capsys.readouterr()
    assert out == likeliest(model, "1 + 1 =", 9) + "\n"
    assert "as plain text" in err
    sampled = ["generate", str(run), "--prompt", "a", "--num-samples", "2", "--seed", "3"]
    assert main(sampled) == 0
    once = capsys.readouterr().out
    assert main(sampled) == 0
    assert capsys.readouterr().out == once
    assert "--- prompt 1, answer 2\n" in once


def test_a_run_without_a_checkpoint_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("- --mock\n")
    for command in (["chat"], ["generate", "--prompt", "a"]):
        assert main([*command, str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert f"{tmp_path}/checkpoints/latest/hf" in err
        assert "--save-interval" in err
    assert main(["chat", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_model_is_found_from_the_run_its_save_folder_or_itself(tmp_path: Path) -> None:
    model = tmp_path / "elsewhere" / "latest" / "hf"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    run = tmp_path / "r"
    run.mkdir()
    (run / "config.yaml").write_text(f"{CONFIG}- --save {tmp_path / 'elsewhere'}\n")
    for given in (run, tmp_path / "elsewhere", tmp_path / "elsewhere" / "latest", model):
        folder, manner = find_model(given)
        assert folder == model
        assert manner.temperature == (0.5 if given == run else 1.0)


@pytest.mark.parametrize(
    "flags", [["--temperature", "-1"], ["--top-p", "0"], ["--max-new-tokens", "0"]]
)
def test_settings_out_of_range_are_refused_before_anything_is_loaded(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["chat", str(tmp_path), *flags]) == 2
    assert f"{flags[0]} {flags[1]}" in capsys.readouterr().err.replace(".0", "")
