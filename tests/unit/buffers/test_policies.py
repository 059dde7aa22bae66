"""What a rollout is made of, where the user has a say: replay, --buffer-filter-path,
--stale-policy, --min-size-to-sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from buffers.priority import reward_std, user_priority
from buffers.replay_buffer import ReplayBuffer
from buffers.userfilter import UserFilter
from configs.schema import AsyncConfig
from pipeline.core.errors import ReplayBufferError
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.rate_limiter import RateLimiter
from tests.unit.buffers.test_replay_buffer import (
    admit_all,
    indices,
    make_group,
    release,
    settled,
    turns,
)


def make(
    path: Path,
    *,
    fresh: int = 2,
    K: int = 1,
    S: int = 3,
    num_rollout: int = 10,
    minimum: int | None = None,
    **options: Any,
):
    user_filter, made_ahead = options.pop("user_filter", None), options.pop("made_ahead", False)
    config = AsyncConfig(async_buffer_size=K, max_staleness=S, **options)
    limiter = RateLimiter.rollouts(
        fresh=fresh,
        samples_per_insert=config.samples_of_a_group,
        buffer_size=K,
        min_size_to_sample=minimum,
    )
    clock = RolloutClock(
        rollout_batch_size=fresh,
        async_buffer_size=K,
        update_weights_interval=1,
        max_staleness=S,
        num_rollout=num_rollout,
        limiter=limiter,
    )
    return ReplayBuffer(path, config, clock, user_filter=user_filter, made_ahead=made_ahead), clock


async def rollouts(
    buffer: ReplayBuffer, clock: RolloutClock, count: int
) -> list[list[tuple[int, int]]]:
    """(group, times sampled) of each."""
    out = []
    for r in range(count):
        for admission in admit_all(buffer):
            await buffer.put(make_group(admission))
        out.append([(g.group_index, g.times_sampled) for g in await buffer.take(r)])
        release(clock, r)
    return out


# -- replay


async def test_every_group_is_trained_on_as_often_as_asked(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, max_times_sampled=2, buffer_selector="fifo")
    taken = await rollouts(buffer, clock, 8)
    assert taken[0] == [(0, 1), (1, 1)], "nothing to replay yet"
    assert taken[1] == [(2, 1), (3, 1), (0, 2), (1, 2)]
    times = Counter(g for groups in taken[:-1] for g, _ in groups)
    assert {times[g] for g in range(12)} == {2}
    assert buffer.statistics().num_taken == 16 and buffer.statistics().num_replayed == 14


async def test_a_replayed_group_is_within_the_staleness_bound(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, max_times_sampled=9, samples_per_insert=2.0, S=2, K=1)
    taken = await rollouts(buffer, clock, 9)
    assert max(times for groups in taken for _, times in groups) == 3, (
        "S = 2: versions v, v + 1 and v + 2 may train on it"
    )
    assert buffer.statistics().staleness_max == 2


async def test_the_ledger_tells_replays_from_duplicates(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, max_times_sampled=2)
    await rollouts(buffer, clock, 3)
    buffer.close()
    totals = Ledger(read_journal(tmp_path / FILE_NAME)[0]).totals()
    assert (totals["trained"], totals["replayed"], totals["lost"], totals["duplicated"]) == (
        6,
        4,
        0,
        0,
    )


async def test_segments_stay_as_long_as_a_group_may_be_replayed(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, fresh=1, K=0, S=9, max_times_sampled=3, keep_last_rollouts=0)
    buffer._stored.store._max_bytes = 1  # a segment a group
    for r in range(4):
        await buffer.put(make_group(admit_all(buffer)[0]))
        await buffer.take(r)
        release(clock, r)
        buffer.committed(r + 1, f"c{r}")
        assert buffer.statistics().num_segments == min(r + 1, 2), "the last two may be taken again"


# -- the first rollout waits for --min-size-to-sample


async def test_the_first_rollout_waits_for_the_min_size(tmp_path: Path) -> None:
    buffer, clock = make(tmp_path, fresh=1, K=2, minimum=3, buffer_max_bytes=1)
    first = admit_all(buffer)
    await buffer.put(make_group(first[0]))
    take = await settled(buffer.take(0))
    await buffer.put(make_group(first[1]))  # over the byte budget, but the learner waits for it
    await turns()
    assert not take.done()
    await buffer.put(make_group(first[2]))
    assert indices(await take) == [0]
    clock.trained(0)
    assert indices(await buffer.take(1)) == [1], "only two are left: min size is for the beginning"


# -- --buffer-filter-path


def filtered(function: Callable[..., Any]) -> UserFilter:
    return UserFilter("mine.py", function, SimpleNamespace(answer=42))


async def test_the_users_function_chooses_among_the_ready_groups(tmp_path: Path) -> None:
    seen: list[Any] = []

    def newest(
        args: Any, rollout_id: int, buffer: list[list[Any]], num_samples: int
    ) -> list[list[Any]]:
        seen.append(
            (args.answer, rollout_id, [group[0].group_index for group in buffer], num_samples)
        )
        return [buffer.pop() for _ in range(num_samples)]

    buffer, _ = make(tmp_path, fresh=2, K=1, S=3, user_filter=filtered(newest))
    for admission in admit_all(buffer):
        await buffer.put(make_group(admission))
    assert indices(await buffer.take(0)) == [3, 2]
    assert seen == [(42, 0, [0, 1, 2, 3], 2)]


async def test_what_is_due_is_trained_on_whatever_the_function_wants(tmp_path: Path) -> None:
    def newest(
        args: Any, rollout_id: int, buffer: list[list[Any]], num_samples: int
    ) -> list[list[Any]]:
        return buffer[-num_samples:][::-1]

    buffer, clock = make(tmp_path, fresh=1, K=1, S=1, user_filter=filtered(newest))
    taken = [groups[0][0] for groups in await rollouts(buffer, clock, 4)]
    assert taken == [1, 0, 2, 3], (
        "it may put off group 0 once; from then on the oldest is always due"
    )


async def test_what_the_function_takes_out_is_removed_counted_and_replaced(tmp_path: Path) -> None:
    def no_even(
        args: Any, rollout_id: int, buffer: list[list[Any]], num_samples: int
    ) -> list[list[Any]]:
        buffer[:] = [group for group in buffer if group[0].group_index % 2]
        return buffer[:num_samples]

    buffer, clock = make(tmp_path, fresh=2, K=0, S=0, user_filter=filtered(no_even))
    for admission in admit_all(buffer):
        await buffer.put(make_group(admission))
    take = await settled(buffer.take(0))
    for _ in range(2):
        assert not take.done()
        for admission in admit_all(buffer):
            await buffer.put(make_group(admission))
        await turns()
    assert sorted(indices(await take)) == [1, 3]
    assert clock.given_back == {"buffer_filter": 2}
    assert buffer.statistics().num_samples_filtered == 4
    buffer.close()
    fates = {g: a.fate for g, a in Ledger(read_journal(tmp_path / FILE_NAME)[0]).accounts.items()}
    assert fates == {0: "removed", 1: "trained", 2: "removed", 3: "trained"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda buffer, n: None, "gave NoneType, expected a list of at most num_samples = 1"),
        (lambda buffer, n: buffer, "gave 2 groups"),
        (lambda buffer, n: [list(buffer[0])], "not in `buffer`"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_refused(
    tmp_path: Path, answer: Callable[..., Any], message: str
) -> None:
    buffer, _ = make(
        tmp_path, fresh=1, K=1, user_filter=filtered(lambda args, r, b, n: answer(b, n))
    )
    for admission in admit_all(buffer):
        await buffer.put(make_group(admission))
    with pytest.raises(ReplayBufferError, match=message):
        await buffer.take(0)


# -- --stale-policy


async def late_group(tmp_path: Path, policy: str) -> tuple[ReplayBuffer, RolloutClock, Any]:
    """K = S = 1, one group a rollout: group 0 is still generating when its last rollout is
    taken."""
    buffer, clock = make(tmp_path, fresh=1, K=1, S=1, stale_policy=policy)
    slow, quick = admit_all(buffer)
    await buffer.put(make_group(quick))
    await buffer.take(0)
    release(clock, 0)
    (other,) = admit_all(buffer)
    await buffer.put(make_group(other))
    return buffer, clock, slow


async def test_drop_does_not_wait_and_counts_what_it_removes(tmp_path: Path) -> None:
    buffer, clock, slow = await late_group(tmp_path, "drop")
    assert indices(await buffer.take(1)) == [2]
    release(clock, 1)
    await buffer.put(make_group(slow, num_tokens=50))
    assert clock.given_back == {"stale: dropped": 1}
    statistics = buffer.statistics()
    assert statistics.removed_lengths == {50: 2} and statistics.trained_lengths == {10: 4}
    assert [a.prompt_index for a in admit_all(buffer)] == [3, 4], (
        "one for its slot, one for the rollout that was trained on"
    )


async def test_retry_gives_the_prompt_to_the_next_admission(tmp_path: Path) -> None:
    buffer, clock, slow = await late_group(tmp_path, "retry")
    await buffer.take(1)
    release(clock, 1)
    await buffer.put(make_group(slow))
    assert clock.given_back == {"stale: retried": 1}
    again, new = admit_all(buffer)
    assert (again.prompt_index, new.prompt_index) == (slow.prompt_index, 3)
    assert again.policy_version == 2 and again.deadline > slow.deadline


async def test_a_ready_group_that_no_rollout_can_take_any_more_is_removed_too(
    tmp_path: Path,
) -> None:
    buffer, clock = make(tmp_path, fresh=1, K=2, S=2, stale_policy="drop", buffer_selector="lifo")
    slow = admit_all(buffer)
    await buffer.put(make_group(slow[0]))
    for r in range(2):
        await buffer.put(make_group(admit_all(buffer)[-1] if r else slow[1]))
        await buffer.take(r)
        release(clock, r)
    await buffer.put(make_group(slow[2]))
    for admission in admit_all(buffer):
        await buffer.put(make_group(admission))
    before = clock.given_back
    await buffer.take(2)
    assert before == {} and set(clock.given_back) <= {"stale: dropped"}
    assert not buffer._decisions.late_groups()


async def test_wait_still_waits(tmp_path: Path) -> None:
    buffer, _, slow = await late_group(tmp_path, "wait")
    take = await settled(buffer.take(1))
    assert not take.done()
    await buffer.put(make_group(slow))
    assert indices(await take) == [0]


# -- priorities


async def test_priorities_are_kept_in_the_journal(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path, buffer_selector="prioritized")
    group = make_group(admit_all(buffer)[0])
    await buffer.put(group)
    assert reward_std(group) == 0.5  # rewards 0 and 1
    group.samples[0].reward = "good"
    assert reward_std(group) == 0.0  # of the one number
    buffer.close()
    assert Ledger(read_journal(tmp_path / FILE_NAME)[0]).accounts[0].priority == 0.5


def test_a_users_priority_must_be_a_number(tmp_path: Path) -> None:
    buffer, _ = make(tmp_path)
    group = make_group(admit_all(buffer)[0])
    assert user_priority("p.py", lambda args, samples: len(samples), None)(group) == 2.0
    with pytest.raises(
        ReplayBufferError, match=r"p.py gave nan for group 0: expected a number >= 0"
    ):
        user_priority("p.py", lambda args, samples: float("nan"), None)(group)
