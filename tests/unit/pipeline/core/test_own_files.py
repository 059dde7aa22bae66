"""Files that come with Slipstream, named from folders that are not the clone."""

from pathlib import Path

import pytest

from pipeline.core import own_files
from pipeline.core.own_files import locate, locate_preset, places_tried

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "word",
    [
        "configs/models/tiny-qwen3.yaml",
        "configs/presets/quickstart-warmup.jsonl@[0:10]",
        "tiny:configs/models/tiny-qwen3.yaml",
        "examples/sft.py",
        "examples/sft.py:reward",
    ],
)
def test_a_file_of_ours_is_found_wherever_it_is_named_from(word: str) -> None:
    scheme, _, path = word.rpartition("tiny:")
    assert locate(word) == (f"tiny:{ROOT}/{path}" if word.startswith("tiny:") else f"{ROOT}/{word}")
    assert scheme == ""


@pytest.mark.parametrize(
    "word",
    [
        "",
        "none",
        "data.jsonl",
        "configs/models/none.yaml",
        "configs/../README.md",
        "configs",
        "mine/configs/models/tiny-qwen3.yaml",
        "/configs/models/tiny-qwen3.yaml",
        "reasoning_gym:spell_backward?min_word_len=3",
        "other:configs/models/tiny-qwen3.yaml",
        "a stop\nconfigs/models/tiny-qwen3.yaml",
    ],
)
def test_any_other_word_is_left_as_it_is(word: str) -> None:
    assert locate(word) == word


def test_the_working_folders_own_file_comes_first(elsewhere: Path) -> None:
    for name in ("configs/models/tiny-qwen3.yaml", "configs/presets/quickstart.yaml", "quickstart"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text("")
        assert locate(name) == name
        assert locate_preset(name) == Path(name)


def test_a_preset_by_its_name_or_its_place(elsewhere: Path) -> None:
    (elsewhere / "quickstart").mkdir()  # a run's, say
    preset = ROOT / "configs" / "presets" / "quickstart.yaml"
    assert locate_preset("quickstart") == preset
    assert locate_preset("configs/presets/quickstart.yaml") == preset
    assert locate_preset("quickstart.yaml") == Path("quickstart.yaml")
    assert locate_preset("other") == Path("other")


def test_installed_examples_lie_in_the_package(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside another project's `examples`, too, which many install by mistake."""
    home = elsewhere / "site-packages"
    for name in ("examples/theirs.py", "slipstream/examples/sft.py", "configs/models/a.yaml"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("")
    monkeypatch.setattr(own_files, "HOME", home)
    assert locate("examples/sft.py") == str(home / "slipstream" / "examples" / "sft.py")
    assert locate("configs/models/a.yaml") == str(home / "configs" / "models" / "a.yaml")


def test_both_places_are_named(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Path("configs/models/none.yaml")
    assert str(elsewhere) in places_tried(missing)
    assert str(ROOT / missing) in places_tried(missing)
    assert str(ROOT) not in places_tried(Path("data.jsonl"))
    monkeypatch.chdir(ROOT)
    assert places_tried(missing).count(str(ROOT)) == 1  # there the two are one
