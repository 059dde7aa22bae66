"""The run's logical clock: who may start generating, until when it must be consumed, and which
policy version belongs to which rollout.

It is a pure state machine without tasks, time or I/O: the runner and the tests drive the same
object.

Words: P = rollout_batch_size (with replay: the share of it that is fresh), K = async_buffer_size, N
= update_weights_interval, S = max_staleness (policy versions), D = S*N (the same bound in
rollouts), rho = `released`.

Why no trained token is staler than S. A group admitted at rho gets deadline rho + D. rho counts
rollouts that are trained and, where a push was due, pushed; so at admission every engine serves a
version >= rho // N, and every token of the group has one. The scheduler consumes it in a rollout r
<= rho + S*N, which the learner trains at version r // N. Hence staleness <= (rho + S*N) // N - rho
// N = S.

Why K <= D suffices for the deadlines to be kept: groups with deadline <= d were admitted at rho <=
d - D, when at most (d - D + K + 1)*P groups were admitted altogether, and (d - D + K + 1)*P <= (d +
1)*P is what rollouts 0..d consume."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.core.types import Admission
from pipeline.schedule.rate_limiter import RateLimiter


class RolloutClock:
    """Counts admissions, rollouts and pushes; derives from them what is released and who may be
    admitted."""

    def __init__(
        self,
        *,
        rollout_batch_size: int,
        async_buffer_size: int,
        update_weights_interval: int,
        num_rollout: int,
        max_staleness: int | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        """`max_staleness`: by default 2 ceil(K/N). `limiter`: by default it allows K + 1 rollouts.

        Raises ConfigError where a knob is out of range, or K > D."""
        self.batch_size, self.buffer_size, self.interval = (
            rollout_batch_size,
            async_buffer_size,
            update_weights_interval,
        )
        self.num_rollout = num_rollout
        _require("rollout-batch-size", rollout_batch_size, 1)
        _require("async-buffer-size", async_buffer_size, 0)
        _require("update-weights-interval", update_weights_interval, 1)
        _require("num-rollout", num_rollout, 1)
        least = math.ceil(async_buffer_size / update_weights_interval)
        self.max_staleness = 2 * least if max_staleness is None else max_staleness
        if self.max_staleness < least:
            raise ConfigError(
                f"--max-staleness {self.max_staleness} with --update-weights-interval"
                f" {self.interval} bounds reordering to {self.max_deadline_distance} rollouts,"
                f" fewer than --async-buffer-size {self.buffer_size}: set --max-staleness to at"
                f" least {least}, or --async-buffer-size to at most"
                f" {max(self.max_deadline_distance, 0)}"
            )
        self.limiter = limiter or RateLimiter.rollouts(
            fresh=rollout_batch_size, buffer_size=async_buffer_size
        )
        self._admitted = 0  # ever, given back or not: the next group index
        self._given_back: Counter[str] = Counter()  # by reason
        self._num_prompts = 0  # ever taken from the source
        self._retries: deque[int] = deque()  # prompts given back to be tried again, in that order
        self._outstanding: dict[int, Admission] = {}
        # rollout -> its groups, from consumption to `trained`
        self._in_training: dict[int, tuple[Admission, ...]] = {}
        self._consumed = 0  # rollouts handed to the learner
        self._trained = 0  # rollouts trained on
        self._pushes = 0  # completed
        # versions whose weights were lost in crashes: their numbers are not used again
        self._version_offset = 0
        self._listeners: list[Callable[[], None]] = []

    # -- what is so --------------------------------------------------------------------------------

    @property
    def max_deadline_distance(self) -> int:
        """D: the staleness bound in rollouts."""
        return self.max_staleness * self.interval

    @property
    def policy_version(self) -> int:
        """The version that every engine has confirmed: +1 with every completed push, and never a
        number again that was in use."""
        return self._pushes + self._version_offset

    @property
    def num_trained(self) -> int:
        """Rollouts trained on; also the id of the rollout to train next."""
        return self._trained

    @property
    def num_consumed(self) -> int:
        """Rollouts handed to the learner; also the id of the rollout to consume next."""
        return self._consumed

    @property
    def num_admitted(self) -> int:
        """Groups ever admitted."""
        return self._admitted

    @property
    def given_back(self) -> Mapping[str, int]:
        """How many groups were given back, by reason."""
        return dict(self._given_back)

    @property
    def prompts_wanted(self) -> set[int]:
        """The prompts that are not trained on yet: those of outstanding groups, of groups in
        training, and those to be tried again."""
        in_training = (a for rollout in self._in_training.values() for a in rollout)
        return {a.prompt_index for a in (*self._outstanding.values(), *in_training)}.union(
            self._retries
        )

    @property
    def outstanding(self) -> Mapping[int, Admission]:
        """Admitted groups that are neither consumed nor given back, in admission order.

        A live view: copy before mutating.
        """
        return self._outstanding

    @property
    def released(self) -> int:
        """Rollouts that are trained on and, where a push was due after them, pushed to every
        engine.

        Derived, so it cannot drift: with `p` pushes done the first rollout whose push is missing is
        (p+1)*N - 1."""
        return min(self._trained, (self._pushes + 1) * self.interval - 1)

    @property
    def push_pending(self) -> bool:
        """Is a push due after what is trained, and not complete?"""
        return self._pushes < self._trained // self.interval

    @property
    def finished(self) -> bool:
        return self._trained >= self.num_rollout

    def push_due(self, rollout_id: int) -> bool:
        """Is there a push after this rollout?"""
        return (rollout_id + 1) % self.interval == 0

    def version_at(self, rollout_id: int) -> int:
        """The learner's policy version when it consumes this rollout: the number of pushes due
        before it, and of versions lost in crashes."""
        return rollout_id // self.interval + self._version_offset

    def staleness(self, token_version: int, rollout_id: int | None = None) -> int:
        """Policy versions between a token and the learner that consumes it in `rollout_id`
        (default: the newest consumed)."""
        return (
            self.version_at(max(self._consumed - 1, 0) if rollout_id is None else rollout_id)
            - token_version
        )

    # -- admission ---------------------------------------------------------------------------------

    def may_admit(self) -> bool:
        """Is there room within the window of K + 1 rollouts, and does the rest of the run need more
        groups?"""
        held = self._admitted - self._given_back.total()
        in_window = self.limiter.can_insert(
            inserts=held, samples=self.released * self.limiter.batch
        )
        return in_window and held < self.num_rollout * self.batch_size

    def admit(self, prompt_index: int | None = None) -> Admission:
        """`prompt_index`: the prompt that this group answered before a restart. None takes a prompt
        that is to be tried again, else the source's next."""
        assert self.may_admit(), "admit() outside the admission window: ask may_admit() first"
        admission = Admission(
            group_index=self._admitted,
            deadline=self.released + self.max_deadline_distance,
            policy_version=self.policy_version,
            prompt_index=self._next_prompt(prompt_index),
        )
        self._admitted += 1
        self._outstanding[admission.group_index] = admission
        return admission

    def _next_prompt(self, known: int | None) -> int:
        if known is None and self._retries:
            return self._retries.popleft()
        if known is not None and known in self._retries:
            self._retries.remove(known)
            return known
        assert known is None or known == self._num_prompts, (
            f"prompt {known} was answered before, the source is at {self._num_prompts}"
        )
        self._num_prompts += 1
        return self._num_prompts - 1

    def give_back(self, group_index: int, reason: str, *, retry: bool = False) -> None:
        """A group failed for good or was filtered: its slot is free. The group that replaces it
        gets an admission of its own (with `retry`: for the same prompt)."""
        assert group_index in self._outstanding, (
            f"group {group_index} is not outstanding: it cannot be given back ({reason})"
        )
        admission = self._outstanding.pop(group_index)
        if retry:
            self._retries.append(admission.prompt_index)
        self._given_back[reason] += 1
        self._notify()

    # -- progress ----------------------------------------------------------------------------------

    def consume(self, rollout_id: int, group_indices: Iterable[int]) -> None:
        """The learner takes exactly these P groups as rollout `rollout_id`; rollouts go in
        order."""
        indices = list(group_indices)
        assert rollout_id == self._consumed < self.num_rollout, (
            f"rollout {rollout_id} consumed out of order, expected {self._consumed}"
        )
        assert len(set(indices)) == len(indices) == self.batch_size, (
            f"rollout {rollout_id} needs {self.batch_size} distinct groups"
        )
        late = [
            i
            for i in indices
            if i not in self._outstanding or self._outstanding[i].deadline < rollout_id
        ]
        assert not late, (
            f"groups {late} are not outstanding or past their deadline at rollout {rollout_id}"
        )
        self._in_training[rollout_id] = tuple(self._outstanding.pop(i) for i in indices)
        self._consumed += 1

    def trained(self, rollout_id: int) -> None:
        """The learner finished this rollout; where no push is due after it, that releases it."""
        assert rollout_id == self._trained < self._consumed, (
            f"rollout {rollout_id} trained out of order, expected {self._trained}"
        )
        del self._in_training[rollout_id]
        self._trained += 1
        self._notify()

    def pushed(self) -> int:
        """Every engine confirmed the next version. Returns it."""
        assert self.push_pending, (
            f"no push is due: {self._trained} rollouts trained, {self._pushes} pushes done, one"
            f" every {self.interval}"
        )
        self._pushes += 1
        self._notify()
        return self.policy_version

    def subscribe(self, listener: Callable[[], None]) -> None:
        """`listener` is called, synchronously, after every change that may open the admission
        window."""
        self._listeners.append(listener)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()

    # -- resume ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The clock's state, JSON-able. Groups of rollouts that are consumed but not trained count
        as outstanding, because they must still be trained."""
        untrained = [a for rollout in self._in_training.values() for a in rollout]
        pending = sorted([*untrained, *self._outstanding.values()], key=lambda a: a.group_index)
        return {
            "knobs": self._knobs(),
            "admitted": self._admitted,
            "given_back": dict(self._given_back),
            "trained": self._trained,
            "pushes": self._pushes,
            "version_offset": self._version_offset,
            "num_prompts": self._num_prompts,
            "retries": list(self._retries),
            "outstanding": [
                [a.group_index, a.deadline, a.policy_version, a.prompt_index] for a in pending
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. The outstanding groups stay admitted under their own deadlines
        (whoever resumes generates them again), so a restart opens no burst of admissions. Raises
        ConfigError when a knob differs from the saved run's."""
        changed = [
            f"--{k.replace('_', '-')} {v} (saved: {state['knobs'][k]})"
            for k, v in self._knobs().items()
            if v != state["knobs"][k]
        ]
        if changed:
            raise ConfigError(
                f"cannot resume with {', '.join(changed)}: deadlines of groups under way depend on"
                " it; give the saved value"
            )
        self._admitted, self._trained, self._pushes = (
            state["admitted"],
            state["trained"],
            state["pushes"],
        )
        self._version_offset = state.get("version_offset", 0)
        self._consumed = self._trained
        self._given_back = Counter(state["given_back"])
        self._in_training = {}
        self._num_prompts, self._retries = state["num_prompts"], deque(state["retries"])
        pending = [
            Admission(group_index=g, deadline=d, policy_version=v, prompt_index=p)
            for g, d, v, p in state["outstanding"]
        ]
        self._outstanding = {a.group_index: a for a in pending}
        self._notify()

    def skip_versions_until(self, used: int) -> None:
        """Version numbers up to `used` were given to weights that a crash lost: the restored
        weights get the next one. Without such (`used` is not ahead) nothing changes."""
        if used > self.policy_version:
            self._version_offset += used + 1 - self.policy_version

    def renumber(self, rollout_id: int, version: int) -> None:
        """The learner is at this version at this rollout, as the run that kept the rollout says;
        never at a lower one than it is by now."""
        self._version_offset += max(0, version - self.version_at(rollout_id))

    def _knobs(self) -> dict[str, int]:
        return {
            "rollout_batch_size": self.batch_size,
            "async_buffer_size": self.buffer_size,
            "update_weights_interval": self.interval,
            "max_staleness": self.max_staleness,
        }


def _require(flag: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--{flag} {value}: must be at least {least}")
