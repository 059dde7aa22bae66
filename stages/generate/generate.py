"""The generate stage: one task per sample, a group under one TaskGroup.

A failed rollout is data, never an exception.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from configs.hooks import load_hook
from configs.schema import Args, EvalConfig, RolloutConfig
from pipeline.core.deadline import Deadline
from pipeline.core.errors import GenerateError, SlipstreamError
from pipeline.core.protocols import EngineClient, Tokenizer
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import Completion, Sample, Status
from pipeline.core.user_errors import in_words
from stages.generate.check import check_sample
from stages.generate.environments.episode import Episodes
from stages.generate.image_prompts import Vision, engine_request, has_images
from stages.generate.sample_hook import SampleHook
from stages.generate.user_function import CustomGenerate, MakesSamples, wrap

# what append_response_tokens extends
_APPENDED = ("tokens", "loss_mask", "rollout_log_probs", "weight_versions")


class GenerateStage:
    """Implements `Generate`. The samples it is given stay as they are: it returns filled copies, so
    that a group that failed can be generated again from the same prompts.

    Custom functions find in `args` every flag, and beside them `engine_client`, `tokenizer`,
    `context_length`, `time`, `vision` (None, or the model's image processor)."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        rollout: RolloutConfig,
        args: Any = None,
        *,
        evaluation: EvalConfig | None = None,
        context_length: int | None = None,
        current_version: Callable[[], int] | None = None,
        time: TimeSource | None = None,
        sampling_seed: int | None = None,
        vision: Vision | None = None,
        log_probs_for: str | None = "the off-policy correction",
        maker: MakesSamples | None = None,
    ) -> None:
        """`args`: `configs.schema.flat_args(config)`. `context_length`: tokens of prompt + response
        that the engines take. `sampling_seed`: give every sample's requests a `sampling_seed` made
        of this and its index: the same answers in any order and batch. `current_version`: the
        oldest policy version any engine serves; stamps samples of custom functions without spans.
        `log_probs_for`: who needs log-probs of a custom function's samples; None: nobody.
        `maker`: makes samples that no custom function does (agents), in the place of a single turn.
        Raises ConfigError when the custom function cannot be loaded or has no known signature."""
        self._client = client
        self._tokenizer = tokenizer
        self._current_version, self._sampling_seed = current_version, sampling_seed
        extra = {
            "engine_client": client,
            "tokenizer": tokenizer,
            "time": time or MonotonicTime(),
            "vision": vision,
        }
        self._vision = vision
        given = {**(vars(args) if args is not None else {}), **extra}
        self._training = _manner(rollout, context_length, given)
        self._evaluating = (
            replace(self._training, evaluation=True)
            if evaluation is None
            else _eval_manner(evaluation, rollout, context_length, given)
        )
        self._template_arguments = dict(getattr(args, "apply_chat_template_kwargs", None) or {})
        self._needs_experts = bool(getattr(args, "use_rollout_routing_replay", False))
        self._log_probs_for = log_probs_for
        self._sample_hooks = [SampleHook(spec) for spec in rollout.rollout_sample_hook_path]
        self._functions: dict[str, CustomGenerate] = {}
        path = rollout.custom_generate_function_path
        self._custom = self._load(path) if path else None
        environment = rollout.environment_path
        self._maker = Episodes(environment) if environment and maker is None else maker

    async def __call__(
        self,
        samples: Sequence[Sample],
        *,
        evaluation: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ) -> list[Sample]:
        """See `Generate`.

        Samples that a custom function fans out to take the place of the one they come from.
        """
        manner = self._evaluating if evaluation else self._training
        if sampling:
            manner = replace(manner, params={**manner.params, **sampling})
        made = await self._generated(samples, manner)
        if not self._sample_hooks:
            return made
        return [s if s.status is Status.FAILED else await self._hooked(s, manner) for s in made]

    async def _hooked(self, sample: Sample, manner: _Manner) -> Sample:
        """As the functions of --rollout-sample-hook-path leave it."""
        try:
            made = sample
            for hook in self._sample_hooks:
                made = await hook(manner.args, made, manner.evaluation)
        except Exception as error:  # of user code: of this sample alone
            return _failed(sample, error)
        return self._checked(made, sample, None, manner.evaluation)

    async def _generated(self, samples: Sequence[Sample], manner: _Manner) -> list[Sample]:
        if (
            self._custom is not None
            and self._custom.takes_list
            and not any(s.generate_function_path for s in samples)
        ):
            return await self._whole_group(
                self._custom, [_fresh(s, deep=True) for s in samples], manner
            )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(sample, manner)) for sample in samples]
        return [sample for task in tasks for sample in task.result()]

    async def _one(self, template: Sample, manner: _Manner) -> list[Sample]:
        sample = _fresh(
            template,
            deep=self._custom is not None
            or self._maker is not None
            or template.generate_function_path is not None
            or bool(self._sample_hooks),
        )
        try:
            params = self._prepare(sample, manner)
            custom: MakesSamples | None = (
                self._load(sample.generate_function_path)
                if sample.generate_function_path
                else self._custom or self._maker
            )
            if custom is None:
                return [await manner.deadline.within(self._single_turn(sample, params))]
            version = self._current_version() if self._current_version else None
            made = await manner.deadline.within(
                custom.one(manner.args, sample, params, manner.evaluation)
            )
        except Exception as error:  # CancelledError is not an Exception: it passes
            return [_failed(sample, error)]
        checked = [self._checked(s, sample, version, manner.evaluation) for s in made]
        return _of_one_rollout(checked) if len(checked) > 1 else checked

    async def _single_turn(self, sample: Sample, params: dict[str, Any]) -> Sample:
        ids, images = engine_request(sample, self._vision)
        answer = await self._client.generate(ids, params, session_id=sample.session_id, **images)
        if self._vision is not None:
            self._vision.check_answer(answer.token_ids)
        return fill(sample, answer, self._tokenizer)

    async def _whole_group(
        self, custom: CustomGenerate, samples: list[Sample], manner: _Manner
    ) -> list[Sample]:
        version = self._current_version() if self._current_version else None
        try:
            for sample in samples:
                self._prepare(sample, manner)
            made = await manner.deadline.within(
                custom.group(manner.args, list(samples), manner.evaluation)
            )
        except Exception as error:
            return [_failed(sample, error) for sample in samples]
        origins = samples if len(made) == len(samples) else [samples[0]] * len(made)
        return [
            self._checked(s, origin, version, manner.evaluation)
            for s, origin in zip(made, origins, strict=True)
        ]

    def _checked(
        self, sample: Sample, origin: Sample, fallback_version: int | None, evaluation: bool
    ) -> Sample:
        """`sample` as a custom function made it of `origin`: numbered like it where the function
        made a new one, and valid or FAILED."""
        sample.group_index = (
            origin.group_index if sample.group_index is None else sample.group_index
        )
        sample.index = origin.index if sample.index is None else sample.index
        try:
            check_sample(
                sample,
                fallback_version=fallback_version,
                needs_experts=self._needs_experts and not evaluation,
                log_probs_for=None if evaluation else self._log_probs_for,
            )
        except GenerateError as error:
            return _failed(sample, error)
        return sample

    def _prepare(self, sample: Sample, manner: _Manner) -> dict[str, Any]:
        """Encodes the prompt where the source has not, and gives this sample the response budget
        that its prompt leaves."""
        if has_images(sample) and self._vision is not None:
            if sample.multimodal_train_inputs is None:
                self._vision.prepare(sample)
        elif not sample.tokens:
            sample.tokens = self._encode(sample.prompt)
        params = dict(manner.params)
        if self._sampling_seed is not None:
            params["sampling_seed"] = seed_of(
                self._sampling_seed, sample.index or 0, manner.evaluation
            )
        if manner.context_length is None:
            return params
        room = manner.context_length - len(sample.tokens)
        if room < 1:
            kind = "eval" if manner.evaluation else "rollout"
            raise GenerateError(
                f"the prompt of {len(sample.tokens)} tokens leaves no room for a response in a"
                f" context of {manner.context_length}; set --{kind}-max-prompt-len to skip such"
                " prompts"
            )
        return params if room >= params["max_new_tokens"] else {**params, "max_new_tokens": room}

    def _encode(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(prompt, str):
            return list(self._tokenizer.encode(prompt, add_special_tokens=False))
        return list(
            self._tokenizer.apply_chat_template(
                prompt,
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
                **self._template_arguments,
            )
        )

    def _load(self, path: str) -> CustomGenerate:
        if path not in self._functions:
            self._functions[path] = wrap(load_hook("custom_generate_function_path", path), path)
        return self._functions[path]


def seed_of(seed: int, index: int, evaluation: bool) -> int:
    """A seed of 63 bits for one sample.

    SGLang draws a token's noise from this and the token's place, so the turns of a session differ
    by themselves."""
    text = f"{seed}/{'eval' if evaluation else 'train'}/{index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def default_sampling_params(rollout: RolloutConfig) -> dict[str, Any]:
    """SGLang's sampling parameters for training rollouts.

    Stop strings stay in the text, as they stay in the tokens.
    """
    params: dict[str, Any] = {
        "temperature": rollout.rollout_temperature,
        "top_p": rollout.rollout_top_p,
        "top_k": rollout.rollout_top_k,
        "max_new_tokens": rollout.rollout_max_response_len,
        "skip_special_tokens": rollout.rollout_skip_special_tokens,
        "spaces_between_special_tokens": False,
        "no_stop_trim": True,
    }
    if rollout.rollout_stop:
        params["stop"] = list(rollout.rollout_stop)
    if rollout.rollout_stop_token_ids:
        params["stop_token_ids"] = list(rollout.rollout_stop_token_ids)
    return params


def fill(sample: Sample, completion: Completion, tokenizer: Tokenizer) -> Sample:
    """Puts a single-turn answer into its sample."""
    sample.append_response_tokens(
        completion.token_ids, log_probs=completion.log_probs, spans=completion.spans
    )
    if completion.routed_experts is not None:
        sample.add_routed_experts(completion.routed_experts, completion.experts_start)
    sample.response = completion.text or tokenizer.decode(
        completion.token_ids, skip_special_tokens=True
    )
    sample.status = Status.TRUNCATED if completion.finish_reason == "length" else Status.COMPLETED
    return sample


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manner:
    """How training's rollouts, or evaluations, are generated."""

    evaluation: bool
    params: Mapping[str, Any]  # SGLang's sampling parameters
    deadline: Deadline  # of an episode
    context_length: int | None  # tokens of prompt + response
    args: Args  # what custom functions are given


def _manner(rollout: RolloutConfig, context_length: int | None, args: dict[str, Any]) -> _Manner:
    longest = min((n for n in (rollout.rollout_max_context_len, context_length) if n), default=None)
    return _Manner(
        evaluation=False,
        params=default_sampling_params(rollout),
        deadline=Deadline(*rollout.episode_deadline),
        context_length=longest,
        args=Args(**args, context_length=longest),
    )


def _eval_manner(
    evaluation: EvalConfig, rollout: RolloutConfig, context_length: int | None, args: dict[str, Any]
) -> _Manner:
    manner = _manner(evaluation.as_rollout(rollout), context_length, args)
    shortest = evaluation.eval_min_new_tokens
    return replace(
        manner,
        evaluation=True,
        params={**manner.params, **({} if shortest is None else {"min_new_tokens": shortest})},
        deadline=Deadline(*evaluation.episode_deadline(rollout)),
    )


def _fresh(sample: Sample, *, deep: bool) -> Sample:
    """A copy to work on.

    User functions may write anywhere; the built-in path writes into no container in place."""
    if deep:
        return copy.deepcopy(sample)
    # a tenth of the time of dataclasses.replace, which calls __init__ with every field by name
    out = Sample.__new__(Sample)
    vars(out).update(vars(sample))
    for name in _APPENDED:
        if (have := getattr(sample, name)) is not None:
            setattr(out, name, list(have))
    return out


def _of_one_rollout(samples: list[Sample]) -> list[Sample]:
    """Fanned-out samples say by `rollout_id` which belong together, as slime's hooks expect."""
    for sample in samples:
        sample.rollout_id = sample.index if sample.rollout_id is None else sample.rollout_id
    return samples


def _failed(sample: Sample, error: Exception) -> Sample:
    sample.status = Status.FAILED
    sample.error = str(error) if isinstance(error, SlipstreamError) else in_words(error)
    return sample
