"""A few samples of every rollout, as people read them."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.types import Group, Sample, Status, VersionSpan
from pipeline.run.record_file import line_of
from pipeline.run.samples import MAX_CHARACTERS, last_samples, losses_in_words, sample_records


def group(index: int, *rewards: float | None, **fields: object) -> Group:
    samples = tuple(
        Sample(
            index=index * 10 + place,
            reward=reward,
            status=Status.FAILED if reward is None else Status.COMPLETED,
            response_length=5,
            weight_versions=[VersionSpan(2, 0, 3), VersionSpan(3, 3, 5)],
            **fields,  # type: ignore[arg-type]
        )
        for place, reward in enumerate(rewards)
    )
    return Group(group_index=index, deadline=0, admitted_version=0, samples=samples)


def chosen(groups: list[Group], limit: int) -> list[tuple[float, int, int]]:
    records = sample_records(groups, rollout_id=1, policy_version=3, reward_key=None, limit=limit)
    return [(r["reward"], r["group"], r["place"]) for r in records]


def test_from_the_lowest_reward_to_the_highest() -> None:
    groups = [group(0, 0.5, None, 0.1), group(1, 0.9, 0.7, 0.3)]
    assert chosen(groups, 3) == [(0.1, 0, 2), (0.5, 0, 0), (0.9, 1, 0)]
    assert chosen(groups, 2) == [(0.1, 0, 2), (0.9, 1, 0)]
    assert chosen(groups, 99) == [(0.1, 0, 2), (0.3, 1, 2), (0.5, 0, 0), (0.7, 1, 1), (0.9, 1, 0)]
    assert chosen(groups, 0) == chosen([group(0, None)], 4) == chosen([], 4) == []


def test_texts_are_whole_or_cut_in_the_middle_and_versions_are_counted() -> None:
    long = "a" * MAX_CHARACTERS + "b" * MAX_CHARACTERS
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]},
    ]
    (record,) = sample_records(
        [group(4, 1.0, prompt=chat, response=long, label=["7"])],
        rollout_id=1,
        policy_version=3,
        reward_key=None,
        limit=4,
    )
    assert record["prompt"] == "system: Be brief.\n\nuser: [image]Which?"
    assert record["label"] == "['7']"
    assert record["token_versions"] == [[2, 3], [3, 2]]
    assert len(record["response"]) < MAX_CHARACTERS + 50
    assert record["response"].startswith("aaa") and record["response"].endswith("bbb")
    assert f"[... {MAX_CHARACTERS:,} characters ...]" in record["response"]


def test_the_last_rollouts_are_read_back_newest_first(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert last_samples(path, 2) == []
    rows = [{"kind": "sample", "rollout_id": r, "place": p} for r in range(5) for p in range(2)]
    path.write_text("".join(map(line_of, rows)) + '{"kind": "sam')
    assert [[r["rollout_id"] for r in rows] for rows in last_samples(path, 2)] == [[4, 4], [3, 3]]


def test_what_takes_the_loss_from_samples_is_told_by_kind() -> None:
    groups = [
        group(0, 1.0, None, 0.5),
        group(1, 1.0, None, remove_sample=True),
        group(2, 0.0, loss_mask=[0, 0, 0, 0, 0]),
    ]
    assert losses_in_words(groups) == (
        "of 6 samples 2 with a loss, 2 with remove_sample (--rollout-sample-filter-path sets it),"
        " 1 failed, 1 with no token of loss mask 1"
    )


def test_rewards_without_a_number_come_first() -> None:
    groups = [group(0, 0.5, {"right": 1.0}, "good", 0.1)]  # type: ignore[arg-type]
    assert chosen(groups, 9) == [(None, 0, 1), (None, 0, 2), (0.1, 0, 3), (0.5, 0, 0)]
