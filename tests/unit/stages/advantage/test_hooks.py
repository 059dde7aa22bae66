"""What a user's function may answer, and what is said when it answers something else; masking of
partial rollouts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError, DataError
from pipeline.core.types import Sample, Status, VersionSpan
from stages.advantage import AdvantageHooks, compute_advantages, mask_offpolicy_tokens
from stages.filter import build_all_samples_process, build_sample_filter
from tests.unit.stages.advantage.test_advantage import make_group, make_sample


def group() -> Any:
    return make_group(*(make_sample(float(i), n=2 + i, index=i) for i in range(3)))


def rows(**hooks: Callable[[Any], Any]) -> Any:
    return compute_advantages([group()], policy_version=3, hooks=AdvantageHooks(**hooks))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "returned NoneType None; expected .raw_rewards, rewards."),
        (([1.0] * 3, [1.0] * 2), r"rewards has shape \(2,\) for 3 samples"),
        (([1.0] * 3, ["a"] * 3), "expected numbers"),
        (([1.0] * 3, [1.0, float("nan"), 0.0]), "not finite"),
    ],
)
def test_reward_post_process_refused(answer: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"--custom-reward-post-process-path: .*{says}"):
        rows(post_process_rewards=lambda samples: answer)


def test_reward_post_process_never_sees_a_failed_sample() -> None:
    failed = make_group(make_sample(None, status=Status.FAILED, error="boom"))
    with pytest.raises(DataError, match="boom"):
        compute_advantages(
            [failed],
            policy_version=3,
            hooks=AdvantageHooks(post_process_rewards=lambda s: ([0.0], [0.0])),
        )


def set_to(value: Any) -> Callable[[Any], None]:
    return lambda data: data.update(advantages=value)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda data: None, "set no rollout_data"),
        (set_to([[1.0, 1.0]]), "1 advantages for 3 samples"),
        (
            set_to([[1.0] * 2, [1.0] * 3, [1.0] * 5]),
            r"advantages\[2\] has shape \(5,\), its response 4 tokens",
        ),
        (
            set_to([[1.0] * 2, [float("inf")] * 3, [1.0] * 4]),
            r"advantages\[1\] holds numbers that are not finite",
        ),
    ],
)
def test_custom_advantages_refused(function: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"--custom-advantage-function-path: .*{says}"):
        rows(compute_advantages=function)


def data(**changes: Any) -> dict[str, Any]:
    whole = {
        "tokens": [[1, 2, 3]] * 3,
        "response_lengths": [2] * 3,
        "rewards": [0.0, 1.0, 2.0],
        "loss_masks": [[1, 1]] * 3,
        "rollout_log_probs": [[-1.0, -1.0]] * 3,
    }
    return {k: v for k, v in {**whole, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([], r"returned list \[\]; expected a dict with tokens"),
        (data(loss_masks=None), "returned no loss_masks"),
        (data(rewards=[1.0]), "rewards has 1 entries, tokens has 3"),
        (
            data(loss_masks=[[1, 1], [1], [1, 1]]),
            "row 1 has response_lengths 2, but {'loss_masks': 1}",
        ),
        (data(tokens=[[1, 2]] * 3), "row 0 has 2 tokens for a response of 2"),
        (data(sample_indices=[0, 1, 9]), "sample_indices names 9"),
        (data(rollout_log_probs=[[-1.0, float("nan")]] * 3), "row 0: rollout_log_probs"),
        ({k: v[:2] for k, v in data().items()}, "2 rows of 3 samples"),
    ],
)
def test_converted_samples_refused(answer: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"--custom-convert-samples-to-train-data-path: .*{says}"):
        rows(convert_samples=lambda samples: answer)


def test_converted_rows_of_one_sample_share_its_weight_and_a_removed_one_has_no_loss() -> None:
    given_group = group()
    given_group.samples[2].remove_sample = True
    hooks = AdvantageHooks(convert_samples=lambda samples: data(sample_indices=[0, 0, 2]))
    out = compute_advantages([given_group], policy_version=4, hooks=hooks)
    assert [(r.index, r.weight, r.staleness, bool(r.loss_mask.any())) for r in out] == [
        (0, 0.5, 1, True),
        (0, 0.5, 1, True),
        (2, 1.0, 0, False),
    ]
    assert [r.advantages.tolist() for r in out] == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("second", [0, 1])
def test_rows_of_one_rollout_id_share_its_weight(second: int) -> None:
    """As slime's own conversion says it: fanned-out samples have one rollout_id, and mostly one
    index."""
    given = group()
    for sample, index in zip(given.samples[:2], (0, second), strict=True):
        sample.index, sample.rollout_id = index, 7
    ours = compute_advantages([given], policy_version=4)
    hooks = AdvantageHooks(
        convert_samples=lambda samples: data(
            tokens=[s.tokens for s in samples],
            response_lengths=[s.response_length for s in samples],
            loss_masks=[s.loss_mask for s in samples],
            rollout_log_probs=[s.rollout_log_probs for s in samples],
            sample_indices=[s.index for s in samples],
            rollout_ids=[7, 7, 0],
        )
    )
    theirs = compute_advantages([given], policy_version=4, hooks=hooks)
    for out in (ours, theirs):
        assert [(r.index, r.weight) for r in out] == [(0, 2 / 5), (second, 3 / 5), (2, 1.0)]
        assert [r.response_length for r in out] == [2, 3, 4]


def test_a_rollout_filter_that_answers_is_refused(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "def filter_samples(args, groups): return groups\ndef look(args, groups, source):"
        " source.append(groups)\n"
    )
    apply = build_sample_filter(str(tmp_path / "mine.py"), SimpleNamespace())
    assert apply is not None
    with pytest.raises(ConfigError, match=r"expected None; set sample\.remove_sample"):
        apply([[Sample()]])
    seen: list[Any] = []
    process = build_all_samples_process(
        f"{tmp_path / 'mine.py'}:look", SimpleNamespace(), SimpleNamespace(user=seen)
    )
    assert process is not None
    process([[]])
    assert seen == [[[]]]  # the user's own source, not our wrapper of it


@settings(max_examples=200)
@given(
    tokens=st.lists(
        st.tuples(st.one_of(st.none(), st.integers(0, 3)), st.booleans()), min_size=1, max_size=12
    )
)
def test_only_the_newest_version_keeps_its_loss(tokens: list[tuple[int | None, bool]]) -> None:
    """(version, trained) a token; None: what a tool said. Against a loop over tokens."""
    spans = [VersionSpan(v, i, i + 1) for i, (v, _) in enumerate(tokens) if v is not None]
    mask = [int(trained and v is not None) for v, trained in tokens]
    sample = make_sample(n=len(tokens), loss_mask=list(mask), weight_versions=spans)
    newest = max(
        (v for (v, _), m in zip(tokens, mask, strict=True) if m and v is not None), default=None
    )
    want = [int(m and v == newest) for (v, _), m in zip(tokens, mask, strict=True)]
    assert mask_offpolicy_tokens(sample) == sum(mask) - sum(want)
    assert list(sample.loss_mask or []) == want
    assert mask_offpolicy_tokens(sample) == 0  # doing it twice does nothing more


@pytest.mark.parametrize("reward", [{"right": 1.0}, ["good", 1], "good"])
def test_reward_post_process_reads_what_has_no_number(reward: Any) -> None:
    seen: list[Any] = []

    def numbers(samples: list[Sample]) -> tuple[list[float], list[float]]:
        seen.extend(s.reward for s in samples)
        return [2.0, 4.0], [-1.0, 1.0]

    given = make_group(make_sample(reward, index=0), make_sample(reward, index=1))
    with pytest.raises(DataError, match=r"--reward-key, or --custom-reward-post-process-path"):
        compute_advantages([given], policy_version=3)
    hooks = AdvantageHooks(post_process_rewards=numbers)
    made = compute_advantages([given], policy_version=3, hooks=hooks)
    assert seen == [reward, reward]
    assert [(r.reward, r.advantages[0]) for r in made] == [(2.0, -1.0), (4.0, 1.0)]


def test_converted_samples_may_have_rewards_without_a_number() -> None:
    given = make_group(make_sample({"right": 1.0}), make_sample("good", index=1))

    def convert(samples: list[Sample]) -> dict[str, Any]:
        return {
            "tokens": [s.tokens for s in samples],
            "response_lengths": [s.response_length for s in samples],
            "loss_masks": [s.loss_mask for s in samples],
            "rewards": [0.25, 0.75],
        }

    hooks = AdvantageHooks(convert_samples=convert)
    made = compute_advantages([given], policy_version=3, hooks=hooks)
    assert [r.reward for r in made] == [0.25, 0.75]
