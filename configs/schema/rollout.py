"""How samples are generated."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema.marks import REPEATS

REQUEST_SECONDS, SECONDS_PER_TOKEN = 600.0, 0.2  # of a request's deadline, where none is given


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Generation."""

    rollout_batch_size: int = 8  # how many groups (prompts) make a rollout
    n_samples_per_prompt: int = 8  # how many samples make a group
    rollout_temperature: float = 1.0  # the sampling temperature
    # samples from the likeliest tokens that make up this probability; below 1 importance weights
    # are not exact, for log-probs are those of the whole softmax
    rollout_top_p: float = 1.0
    rollout_top_k: int = -1  # samples from so many of the likeliest tokens, as above; -1: from all
    rollout_max_response_len: int = 128  # limits the tokens of a response, all turns together
    rollout_max_prompt_len: int | None = None  # skips longer prompts, counts and names them
    # limits prompt and response together; by default the model's or the engine's limit
    rollout_max_context_len: int | None = None
    rollout_stop: tuple[str, ...] = ()  # ends a response at any of these strings
    rollout_stop_token_ids: tuple[int, ...] = ()  # ends a response at any of these token ids
    # leaves special tokens out of sample.response (tokens always keep them)
    rollout_skip_special_tokens: bool = True
    # generates with your own function, file.py[:name] or module.name: [async] f(args, sample,
    # sampling_params)
    custom_generate_function_path: str | None = None
    # makes every sample an episode of your own text environment, file.py[:Class] with reset(sample)
    # -> observation and step(action) -> (observation, reward, done); a row's
    # metadata.environment names another class of the file
    environment_path: str | None = None
    environment_timeout_seconds: float = 60.0  # the deadline of one call of an environment
    # makes whole rollouts with your own function instead of all that: f(args, rollout_id,
    # data_buffer, evaluation=False) -> groups
    rollout_function_path: str | None = None
    # shown every generated sample before it is scored, may be given several times: f(args, sample)
    # -> sample or None
    rollout_sample_hook_path: tuple[str, ...] = field(default=(), metadata=REPEATS)
    max_turns: int = 8  # limits the turns of a multi-turn custom generate function
    # how the model writes tool calls: one of stages/generate/tools/formats.py or of SGLang's
    # parsers; auto: as its chat template has it
    tool_call_parser: str = "auto"
    # the deadline of one call of a tool, where the tool has none of its own; the model is told of
    # one that is late
    tool_timeout_seconds: float = 60.0
    tool_max_output_tokens: int = 2048  # cuts what a tool says to so many tokens
    # repeats one request so often, with back-off, before its rollout has failed
    generate_max_retries: int = 3
    # the deadline of one request to an engine; by default 600, or more for responses above 3000
    # tokens (0.2 a token)
    generate_timeout_seconds: float | None = None
    # the deadline of an episode: of generating one sample with all its turns (a group, where the
    # custom function takes a list), and again of scoring its group; what is late FAILS and is tried
    # again
    episode_timeout_seconds: float | None = None
    # generates a group with a failed sample again so often before it is given up
    group_max_retries: int = 1
    # keeps or drops each scored group: f(args, samples) -> keep?; "zero_std" drops groups whose
    # rewards are all equal
    dynamic_sampling_filter_path: str | None = None
    # slime's flag, of no effect here: every group that a filter drops is replaced at once, and no
    # surplus is thrown away
    over_sampling_batch_size: int | None = None
    # may set sample.remove_sample when a rollout is taken: f(args, groups) -> None
    rollout_sample_filter_path: str | None = None
    # shown all groups, also those that a filter dropped: f(args, all_groups, data_source)
    rollout_all_samples_process_path: str | None = None
    # gives no loss to tokens that are older than the newest version of their sample
    mask_offpolicy_in_partial_rollout: bool = False

    @property
    def request_seconds(self) -> float:
        """The deadline of one request. A busy engine decodes a few hundred requests at some ten
        tokens a second each."""
        if self.generate_timeout_seconds is not None:
            return self.generate_timeout_seconds
        return max(REQUEST_SECONDS, self.rollout_max_response_len * SECONDS_PER_TOKEN)

    @property
    def episode_deadline(self) -> tuple[float | None, str]:
        """Seconds, and the flag that says so."""
        return self.episode_timeout_seconds, "--episode-timeout-seconds"
