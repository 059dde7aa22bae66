"""The user's own functions between rewards and advantages, in slime's signatures, and the checks of
what they return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.hooks import load_hook
from configs.schema import AlgorithmConfig
from pipeline.core.errors import DataError
from pipeline.core.types import Sample, TrainSample, narrow_experts
from stages.advantage.rewards import refuse_failed
from stages.advantage.shares import number

_REQUIRED = ("tokens", "response_lengths", "rewards", "loss_masks")
_OPTIONAL = ("rollout_log_probs", "raw_reward", "sample_indices", "rollout_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageHooks:
    """User functions with `args` already given. None stands for the built-in way."""

    # --custom-reward-post-process-path
    post_process_rewards: Callable[[list[Sample]], Any] | None = None
    # --custom-convert-samples-to-train-data-path
    convert_samples: Callable[[list[Sample]], Any] | None = None
    # --custom-advantage-function-path
    compute_advantages: Callable[[dict[str, Any]], Any] | None = None


def load_hooks(config: AlgorithmConfig, args: Any) -> AdvantageHooks:
    """Raises ConfigError when one cannot be loaded."""

    def load(field: str) -> Callable[[Any], Any] | None:
        path = getattr(config, field)
        if path is None:
            return None
        function = load_hook(field, path)
        return lambda given: function(args, given)

    return AdvantageHooks(
        post_process_rewards=load("custom_reward_post_process_path"),
        convert_samples=load("custom_convert_samples_to_train_data_path"),
        compute_advantages=load("custom_advantage_function_path"),
    )


def users_rewards(
    function: Callable[[list[Sample]], Any], samples: list[Sample]
) -> tuple[np.ndarray, np.ndarray]:
    """(raw rewards [S], rewards [S]) as the user's function returns them.

    Raises DataError for any other answer."""
    flag = "--custom-reward-post-process-path"
    refuse_failed(samples)
    answer = function(samples)
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise DataError(
            f"{flag}: the function returned {_short(answer)}; expected (raw_rewards, rewards)"
        )
    raw, rewards = (
        _numbers(flag, name, part)
        for name, part in zip(("raw_rewards", "rewards"), answer, strict=True)
    )
    for name, part in (("raw_rewards", raw), ("rewards", rewards)):
        if part.shape != (len(samples),):
            raise DataError(
                f"{flag}: {name} has shape {part.shape} for {len(samples)} samples; expected one"
                " number a sample"
            )
    return raw, rewards


def users_rows(
    function: Callable[[list[Sample]], Any], samples: list[Sample], like: Sequence[TrainSample]
) -> tuple[list[TrainSample], np.ndarray]:
    """Rows and their rewards [rows] as the user's dict says. `like`: what we would have made of the
    samples, for what the dict leaves out.

    A row belongs to the sample that `sample_indices` names (default: row i to sample i, where there
    are as many): group, staleness and trajectory come from there (where the dict has `rollout_ids`,
    rows of the same are parts of one trajectory); rows of a sample with `remove_sample` have no
    loss. Raises DataError for what is missing or contradicts itself."""
    flag = "--custom-convert-samples-to-train-data-path"
    data = function(samples)
    if not isinstance(data, Mapping) or (missing := [k for k in _REQUIRED if k not in data]):
        what = _short(data) if not isinstance(data, Mapping) else f"no {', '.join(missing)}"
        raise DataError(
            f"{flag}: the function returned {what}; expected a dict with {', '.join(_REQUIRED)}"
        )
    num = len(data["tokens"])
    if wrong := [k for k in (*_REQUIRED, *_OPTIONAL) if k in data and len(data[k]) != num]:
        raise DataError(
            f"{flag}: {wrong[0]} has {len(data[wrong[0]])} entries, tokens has {num}: one a row is"
            " expected"
        )
    origins = _origins(flag, data, num, like)
    rewards = _numbers(flag, "rewards", data["rewards"])
    raw = _numbers(flag, "raw_reward", data.get("raw_reward", data["rewards"]))
    trajectories = _trajectories(data, origins, like)
    rows = []
    for i, origin in enumerate(origins):
        row = _row(flag, data, i, like[origin], float(raw[i]), trajectories[i])
        rows.append(
            dataclasses.replace(row, loss_mask=np.zeros_like(row.loss_mask))
            if samples[origin].remove_sample
            else row
        )
    return rows, rewards


def _origins(
    flag: str, data: Mapping[str, Any], num: int, like: Sequence[TrainSample]
) -> list[int]:
    """The index in `like` that each row comes from."""
    if "sample_indices" not in data:
        if num != len(like):
            raise DataError(
                f"{flag}: {num} rows of {len(like)} samples; say in sample_indices which sample"
                " each comes from"
            )
        return list(range(num))
    if list(data["sample_indices"]) == [row.index for row in like]:
        return list(range(num))  # fanned-out samples share an index, and are told by their order
    places: dict[int, int] = {}
    for place, row in enumerate(like):
        places.setdefault(row.index, place)
    try:
        return [places[int(index)] for index in data["sample_indices"]]
    except KeyError as error:
        raise DataError(
            f"{flag}: sample_indices names {error}, which none of the {len(like)} samples has as"
            " its index"
        ) from None


def _trajectories(
    data: Mapping[str, Any], origins: Sequence[int], like: Sequence[TrainSample]
) -> list[int]:
    """Of which trajectory each row is part."""
    names = data.get("rollout_ids")
    if not names:
        return [like[o].trajectory for o in origins]
    return number([(like[o].group_index, n) for o, n in zip(origins, names, strict=True)])


def _row(
    flag: str, data: Mapping[str, Any], i: int, origin: TrainSample, raw: float, trajectory: int
) -> TrainSample:
    n = int(data["response_lengths"][i])
    mask = np.asarray(data["loss_masks"][i], np.uint8)
    tokens = np.asarray(data["tokens"][i], np.int64)
    log_probs = _log_probs(flag, data, i, origin, tokens)
    if wrong := {
        k: len(a)
        for k, a in (("loss_masks", mask), ("rollout_log_probs", log_probs))
        if len(a) != n
    }:
        raise DataError(
            f"{flag}: row {i} has response_lengths {n}, but {wrong} entries: one a response token"
            " is expected"
        )
    if len(tokens) <= n:
        raise DataError(
            f"{flag}: row {i} has {len(tokens)} tokens for a response of {n}: prompt and response"
            " are expected"
        )
    known = not np.isnan(origin.rollout_log_probs).all()
    if known and not np.isfinite(log_probs[mask.astype(bool)]).all():
        raise DataError(f"{flag}: row {i}: rollout_log_probs of trained tokens are not all finite")
    return TrainSample(
        index=origin.index,
        group_index=origin.group_index,
        tokens=tokens,
        multimodal=(
            data["multimodal_train_inputs"][i]
            if "multimodal_train_inputs" in data
            else origin.multimodal
        ),
        response_length=n,
        loss_mask=mask,
        rollout_log_probs=log_probs,
        advantages=np.zeros(n, np.float32),
        reward=raw,
        staleness=origin.staleness,
        token_staleness=origin.token_staleness if n == origin.response_length else None,
        trajectory=trajectory,
        routed_experts=_experts(flag, data, i, origin, tokens),
    )


def _log_probs(
    flag: str, data: Mapping[str, Any], i: int, origin: TrainSample, tokens: np.ndarray
) -> np.ndarray:
    """The dict's, else those of the row's sample where it has the same tokens."""
    if "rollout_log_probs" in data:
        return np.asarray(data["rollout_log_probs"][i], np.float32)
    if not np.array_equal(tokens, origin.tokens):
        raise DataError(
            f"{flag}: row {i} has other tokens than its sample, and no rollout_log_probs: add the"
            " key"
        )
    return origin.rollout_log_probs


def _experts(
    flag: str, data: Mapping[str, Any], i: int, origin: TrainSample, tokens: np.ndarray
) -> np.ndarray | None:
    """The dict's experts, as in slime, else those of the row's sample where it has the same
    tokens."""
    if origin.routed_experts is None:
        return None
    if "rollout_routed_experts" in data:
        experts = np.asarray(data["rollout_routed_experts"][i])
        if experts.ndim != 3 or len(experts) >= len(tokens):
            raise DataError(
                f"{flag}: row {i}: rollout_routed_experts {experts.shape} for {len(tokens)} tokens:"
                " one a token but the last"
            )
        return narrow_experts(experts)
    if not np.array_equal(tokens, origin.tokens):
        raise DataError(
            f"{flag}: row {i} has other tokens than its sample, and no rollout_routed_experts to"
            " replay for them: add the key"
        )
    return origin.routed_experts


def rollout_data_of(rows: Sequence[TrainSample]) -> dict[str, Any]:
    """A rollout as user functions are shown it: lists with one entry a row."""
    return {
        "tokens": [r.tokens for r in rows],
        "response_lengths": [r.response_length for r in rows],
        "total_lengths": [r.num_tokens for r in rows],
        "loss_masks": [r.loss_mask for r in rows],
        "raw_reward": [r.reward for r in rows],
        "rollout_log_probs": [r.rollout_log_probs for r in rows],
        "sample_indices": [r.index for r in rows],
        "group_indices": [r.group_index for r in rows],
        "staleness": [r.staleness for r in rows],
    }


def users_advantages(
    function: Callable[[dict[str, Any]], Any], rows: Sequence[TrainSample], rewards: np.ndarray
) -> list[np.ndarray]:
    """[R] advantages a row, which the user's function leaves in `rollout_data["advantages"]`.

    Raises DataError where they do not fit.
    """
    flag = "--custom-advantage-function-path"
    data = {**rollout_data_of(rows), "rewards": rewards.tolist()}
    function(data)
    if "advantages" not in data:
        raise DataError(
            f"{flag}: the function set no rollout_data['advantages']; expected a list,"
            " [response_length] numbers a sample"
        )
    found = data["advantages"]
    if len(found) != len(rows):
        raise DataError(
            f"{flag}: {len(found)} advantages for {len(rows)} samples; expected [response_length]"
            " numbers for each"
        )
    out = [_numbers(flag, f"advantages[{i}]", a) for i, a in enumerate(found)]
    for i, (a, row) in enumerate(zip(out, rows, strict=True)):
        if a.shape != (row.response_length,):
            raise DataError(
                f"{flag}: advantages[{i}] has shape {a.shape}, its response {row.response_length}"
                " tokens: one each is expected"
            )
    return out


def _numbers(flag: str, name: str, values: Any) -> np.ndarray:
    try:
        out = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{flag}: {name} is {_short(values)}: expected numbers ({error})"
        ) from error
    if not np.isfinite(out).all():
        raise DataError(f"{flag}: {name} holds numbers that are not finite")
    return out


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'...' if len(text) > 80 else ''}"
