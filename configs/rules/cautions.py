"""What is allowed, but not what one may take it for. The run says so once, when it starts."""

from __future__ import annotations

from collections.abc import Iterator

from configs.corrections import correction_of
from configs.schema import Config


def cautions(config: Config) -> Iterator[str]:
    yield from _deterministic(config)
    yield from _truncated_sampling(config)
    yield from _opsm(config)
    yield from _micro_batches(config)
    yield from _over_sampling(config)
    yield from _unused(config)
    yield from _own_rewards(config)
    yield from _router_policy(config)
    yield from _restores_from_the_beginning(config)


def _deterministic(config: Config) -> Iterator[str]:
    if config.deterministic and config.async_.async_buffer_size:
        yield (
            f"--deterministic-mode with --async-buffer-size {config.async_.async_buffer_size}:"
            " kernels and seeds are fixed, but which weights sample a token is a matter of time."
            " Only --async-buffer-size 0 repeats itself"
        )


def _truncated_sampling(config: Config) -> Iterator[str]:
    """Engines sample from a renormalised part of the softmax, and report log-probs of the whole."""
    rollout, a = config.rollout, config.algorithm
    cut = [
        *([f"--rollout-top-p {rollout.rollout_top_p:g}"] if rollout.rollout_top_p < 1 else []),
        *([f"--rollout-top-k {rollout.rollout_top_k}"] if rollout.rollout_top_k > 0 else []),
    ]
    correction = correction_of(a)
    weighted = (
        correction.active or correction.ratio == "bypass" or a.custom_tis_function_path is not None
    )
    if not cut or not weighted or config.run.debug_rollout_only:
        return
    bound = (
        f"at least {rollout.rollout_top_p:g} a token"
        if rollout.rollout_top_k <= 0
        else "which no engine tells"
    )
    yield (
        f"{' and '.join(cut)} with an importance correction: engines and learner both give"
        " log-probs of the whole softmax, so a token's ratio is exact. As a weight it is not:"
        " tokens come from the part that was kept, so each weight should be multiplied by the kept"
        f" share of the probability ({bound}), and what was cut off is never seen. For exact"
        " weights train at --rollout-top-p 1 --rollout-top-k -1"
    )


def _opsm(config: Config) -> Iterator[str]:
    a = config.algorithm
    if a.use_opsm and correction_of(a).ratio == "bypass" and a.opsm_delta < 0.01:
        yield (
            f"--use-opsm --opsm-delta {a.opsm_delta:g} against the engines' log-probs: the noise of"
            " two kernels alone is more than that, and would drop up to half of all samples of"
            " negative advantage. Use e.g. --opsm-delta 0.05"
        )


def _micro_batches(config: Config) -> Iterator[str]:
    a = config.algorithm
    if a.micro_batch_size and a.use_dynamic_batch_size:
        yield (
            f"--micro-batch-size {a.micro_batch_size} with --use-dynamic-batch-size: the latter"
            f" wins, micro-batches are cut by tokens (--max-tokens-per-gpu {a.max_tokens_per_gpu})"
        )


def _over_sampling(config: Config) -> Iterator[str]:
    rollout, ahead = config.rollout, config.async_.async_buffer_size
    size, groups = rollout.over_sampling_batch_size, rollout.rollout_batch_size
    if size is not None and size > groups:
        yield (
            f"--over-sampling-batch-size {size}: nothing is sampled in batches here. A group that"
            " a filter drops is replaced at once, and no surplus is thrown away: what a rollout"
            f" does not take waits for the next. {(ahead + 1) * groups} groups are under way at"
            f" most (--async-buffer-size {ahead}); {(-(-size // groups)) * groups} would be with"
            f" --async-buffer-size {-(-size // groups) - 1}"
        )


def _unused(config: Config) -> Iterator[str]:
    """What launch scripts name whether or not it is needed."""
    a, data, file = config.algorithm, config.eval.eval_prompt_data, config.eval.eval_config
    if a.ref_load and not a.needs_reference:
        yield (
            f"--ref-load {a.ref_load}: nothing uses a reference model (--use-kl-loss or --kl-coef"
            " does), it is not read. Training begins with --hf-checkpoint"
        )
    if (data or file) and config.eval.eval_interval is None:
        said = f"--eval-config {file}" if file else f"--eval-prompt-data {' '.join(data)}"
        yield (
            f"{said} without --eval-interval: nothing is evaluated. --eval-interval 10, say,"
            " evaluates after every ten rollouts"
        )


def _own_rewards(config: Config) -> Iterator[str]:
    generate = config.rollout.custom_generate_function_path
    if generate and not (config.has_scorer or config.distill.use_opd or config.answers_are_given):
        yield (
            f"--custom-generate-function-path {generate} without --rm-type or --custom-rm-path: it"
            " must set sample.reward itself, a sample without one has failed"
        )


def _restores_from_the_beginning(config: Config) -> Iterator[str]:
    if config.cluster.use_fault_tolerance and not config.run.save_interval:
        yield (
            "--use-fault-tolerance without --save-interval: nothing is saved before the end, so a"
            " learner that dies begins again at the first rollout. --save-interval 20, say, loses"
            " 20 rollouts at most"
        )


def _router_policy(config: Config) -> Iterator[str]:
    policy = config.cluster.router_policy
    if config.cluster.use_sglang_router and config.run.mock:
        yield "--use-sglang-router does nothing under --mock: simulated engines have no addresses"
    elif config.cluster.use_sglang_router and policy == "cache_aware":
        yield (
            "--router-policy cache_aware: SGLang's router compares texts, and requests are token"
            " ids here: it sends all to one engine until that has ten more than another"
        )
    elif not config.cluster.use_sglang_router and policy != "consistent_hashing":
        yield (
            f"--router-policy {policy} without --use-sglang-router: requests go straight to the"
            " engine with the fewest, a session's to its own"
        )
