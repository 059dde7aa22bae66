"""--data-source-path: slime's data-source class behind our protocol."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.schema import DataConfig
from pipeline.core.errors import DataError
from stages.engine.mock import MockTokenizer
from stages.source import UserSource, build_source
from tests.conftest import read_metrics, run_entry

SOURCE = """
import json, pathlib
from pipeline.core.types import Sample

class RolloutDataSource:
    def __init__(self, args):
        self.n, self.at, self.folder = args.n_samples_per_prompt, 0, pathlib.Path(__file__).parent
        self.returned = []

    def _group(self):
        self.at += 1
        return [Sample(prompt=f"{self.at} + 0 =", label=str(self.at), metadata={"rm_type": "exact_match"}) for _ in range(self.n)]

    def get_samples(self, num_samples):
        return [self.returned.pop(0) if self.returned else self._group() for _ in range(num_samples)]

    def add_samples(self, groups):
        self.returned += groups

    def save(self, rollout_id):
        (self.folder / f"at-{rollout_id}.json").write_text(json.dumps(self.at))

    def load(self, rollout_id):
        self.at = json.loads((self.folder / f"at-{rollout_id}.json").read_text())

class Half(RolloutDataSource):
    def _group(self):
        return super()._group()[1:]

class NoSource:
    def __init__(self, args): ...
    def get_samples(self, n): ...
"""  # noqa: E501


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def args(n: int = 2) -> SimpleNamespace:
    return SimpleNamespace(n_samples_per_prompt=n)


def prompts(source: UserSource, count: int) -> list[str | list[dict[str, str]]]:
    return [group[0].prompt for group in source.get_samples(count)]


def test_it_goes_on_where_it_was_saved(file: Path) -> None:
    source = UserSource(str(file), args(), 2)
    assert prompts(source, 3) == ["1 + 0 =", "2 + 0 =", "3 + 0 ="]
    state = source.state_dict()
    given = source.get_samples(1)
    source.add_samples(given)
    assert source.get_samples(1) == given
    again = UserSource(str(file), args(), 2)
    again.load_state_dict(state)
    assert prompts(again, 1) == ["4 + 0 ="]
    assert again.state_dict()["save"] == 2, "an earlier save is not written over"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Half", "a list of 1 Sample; expected a list of --n-samples-per-prompt 2"),
        ("NoSource", "has no add_samples, save, load"),
    ],
)
def test_what_is_no_data_source_is_named(file: Path, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        UserSource(f"{file}:{name}", args(), 2).get_samples(1)


def test_a_position_in_other_prompts_is_refused(file: Path) -> None:
    with pytest.raises(DataError, match="--prompt-data"):
        UserSource(str(file), args(), 2).load_state_dict({"prompts": {}, "epoch": 0})


def test_a_whole_run_trains_on_it(file: Path, tmp_path: Path) -> None:
    done = run_entry(
        "--mock",
        "--data-source-path",
        str(file),
        "--num-rollout",
        "4",
        "--rollout-batch-size",
        "2",
        "--n-samples-per-prompt",
        "2",
        "--async-buffer-size",
        "1",
        "--mock-seconds-per-token",
        "0",
        "--mock-step-seconds",
        "0",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "r",
    )
    assert done.returncode == 0, done.stderr
    assert len(read_metrics(tmp_path / "r", "train")) == 4
    assert (tmp_path / "at-1.json").exists()
    wrong = run_entry("--mock", "--data-source-path", str(file) + ":Nothing", "--num-rollout", "1")
    assert wrong.returncode == 2 and "--data-source-path" in wrong.stderr


READER = """
import json
from pathlib import Path
from slipstream import Sample


class RolloutDataSource:
    def __init__(self, args):
        self.args, self.at = args, 0
        self.rows = [json.loads(line) for line in Path(args.prompt_data).read_text().splitlines()]

    def get_samples(self, num_samples):
        return [self._group() for _ in range(num_samples)]

    def _group(self):
        row, args = self.rows[self.at % len(self.rows)], self.args
        self.at += 1
        given = {"prompt": row[args.input_key], "label": row[args.label_key]}
        return [Sample(**given) for _ in range(args.n_samples_per_prompt)]

    def add_samples(self, samples): ...
    def save(self, rollout_id): ...
    def load(self, rollout_id=None): ...
"""


def test_a_source_may_read_the_prompt_data_itself(tmp_path: Path) -> None:
    """As slime's own does. The file is its affair then, whatever its form."""
    (tmp_path / "reader.py").write_text(READER)
    (tmp_path / "sums.txt").write_text('{"question": "1 + 2 =", "answer": "3"}\n')
    done = run_entry(
        *("--mock", "--data-source-path", str(tmp_path / "reader.py"), "--num-rollout", "1"),
        *("--prompt-data", str(tmp_path / "sums.txt"), "--input-key", "question"),
        *("--label-key", "answer", "--rm-type", "exact_match", "--rollout-batch-size", "2"),
        *("--runs-dir", str(tmp_path), "--name", "r"),
    )
    assert done.returncode == 0, done.stderr
    sample = json.loads((tmp_path / "r" / "samples.jsonl").read_text().splitlines()[0])
    assert (sample["prompt"], sample["label"]) == ("1 + 2 =", "3")


HINTED = """
from slipstream import RolloutDataSource


class Hinted(RolloutDataSource):
    def __init__(self, args):
        super().__init__(args)
        self.lead = args.tokenizer.decode(args.tokenizer.encode("Hint. "))

    def get_samples(self, num_samples):
        groups = super().get_samples(num_samples)
        for sample in (s for group in groups for s in group):
            sample.prompt, sample.tokens = self.lead + sample.prompt, []
        return groups
"""


@pytest.mark.parametrize("base", ["slipstream", "slime.rollout.data_source"])
def test_ours_may_be_inherited_from(tmp_path: Path, base: str) -> None:
    """Its rows are judged and shuffled as without it; a resumed run goes on in the same order."""
    (tmp_path / "hinted.py").write_text(HINTED.replace("from slipstream", f"from {base}"))
    rows = [{"prompt": f"{i} + 0 =", "label": str(i)} for i in range(8)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = [
        *("--mock", "--prompt-data", str(tmp_path / "sums.jsonl"), "--label-key", "label"),
        *("--rm-type", "exact_match", "--rollout-batch-size", "2", "--log-samples", "9"),
        *("--n-samples-per-prompt", "1", "--save-interval", "1", "--runs-dir", str(tmp_path)),
    ]
    own = ["--data-source-path", str(tmp_path / "hinted.py")]
    for words in (
        [*flags, "--num-rollout", "4", "--name", "plain"],
        [*flags, *own, "--num-rollout", "2", "--name", "own"],
        ["--load", str(tmp_path / "own"), "--num-rollout", "4"],
    ):
        done = run_entry(*words)
        assert done.returncode == 0, done.stderr

    def prompts_of(run: str) -> list[set[str]]:
        lines = (tmp_path / run / "samples.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        return [{s["prompt"] for s in samples if s["rollout_id"] == r} for r in range(4)]

    assert prompts_of("own") == [{f"Hint. {p}" for p in ps} for ps in prompts_of("plain")]
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write('\n{"prompt": "9 + 0 ="}')
    done = run_entry(*flags, *own, "--num-rollout", "1")
    assert done.returncode == 2 and "sums.jsonl line 9 has no 'label'" in done.stderr


BUFFERED = """
from slime.rollout.data_source import RolloutDataSourceWithBuffer


class Twice(RolloutDataSourceWithBuffer):
    def get_samples(self, num_samples):
        groups = super().get_samples(num_samples)
        if not any(group[0].metadata for group in groups):
            for sample in groups[0]:
                sample.metadata["again"] = True
            self.add_samples(groups[:1])
        return groups
"""


def test_groups_that_slimes_buffer_took_back_survive_a_restart(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(BUFFERED)
    (tmp_path / "sums.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{i} + 0 =", "label": str(i)}) for i in range(8))
    )
    made = UserSource(str(tmp_path / "twice.py") + ":Twice", _over(tmp_path / "sums.jsonl"), 1)
    (first,) = made.get_samples(1)
    state = json.loads(json.dumps(made.state_dict()))
    again = UserSource(str(tmp_path / "twice.py") + ":Twice", _over(tmp_path / "sums.jsonl"), 1)
    again.load_state_dict(state)
    groups = [again.get_samples(1)[0], again.get_samples(1)[0]]
    assert [g[0].prompt for g in groups] == [first[0].prompt, made.get_samples(2)[1][0].prompt]
    assert groups[0][0].metadata == {"again": True}


def _over(path: Path) -> SimpleNamespace:
    config = DataConfig(prompt_data=str(path), label_key="label")
    return SimpleNamespace(
        prompt_data=str(path),
        buffer_filter_path=None,
        open_prompt_data=lambda: build_source(str(path), config, 1, None, MockTokenizer()),
    )
