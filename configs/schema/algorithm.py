"""From rewards to the gradient: advantages, loss, off-policy correction and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Estimator = Literal[
    "grpo",
    "gspo",
    "cispo",
    "sapo",
    "vespo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "rloo",
    "dr_grpo",
    "max_rl",
    "opob",
    "ppo",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmConfig:
    """Advantages, loss and off-policy correction."""

    # chooses how rewards become advantages; gspo, cispo, sapo and vespo also choose the loss
    advantage_estimator: Estimator = "grpo"
    grpo_std_normalization: bool = True  # divides by the group's standard deviation
    # compares rewards within their group; without it advantages are made of raw rewards
    rewards_normalization: bool = True
    normalize_advantages: bool = False  # whitens advantages over all trained tokens of the rollout
    gamma: float = 1.0  # the discount of a trained token (reinforce_plus_plus, ppo)
    lambd: float = 1.0  # the lambda of generalised advantage estimation (ppo)
    # computes advantages with your own function: f(args, rollout_data) -> None, which sets
    # rollout_data["advantages"]
    custom_advantage_function_path: str | None = None
    # replaces the group normalisation: f(args, samples) -> (raw_rewards, rewards)
    custom_reward_post_process_path: str | None = None
    # decides what is trained on: f(args, samples) -> dict of lists
    custom_convert_samples_to_train_data_path: str | None = None
    # may change loss masks and advantages of a rollout, when both are there: f(args, rollout_id,
    # rollout_data) -> None
    rollout_data_postprocess_path: str | None = None
    # chooses the loss; sft_loss is the cross entropy of the data's own answers: whole chats in
    # --input-key, or labels (of what a function of --custom-generate-function-path makes, if given)
    loss_type: Literal["policy_loss", "sft_loss", "custom_loss"] = "policy_loss"
    # computes the loss: f(args, batch, logits, sum_of_sample_mean) -> (loss, metrics)
    custom_loss_function_path: str | None = None
    eps_clip: float = 0.2  # PPO's clip range downwards
    eps_clip_high: float | None = None  # PPO's clip range upwards; by default --eps-clip
    # bounds the loss of negative advantages at this ratio, above 1 (dual clip)
    eps_clip_c: float | None = None
    sapo_tau_pos: float = 1.0  # how fast sapo's gate fades where the advantage is positive
    sapo_tau_neg: float = 1.05  # and where it is not
    vespo_k_pos: float = 2.0  # the power of vespo's weight where the advantage is not negative
    vespo_lambda_pos: float = 3.0  # and its rate of decay there
    vespo_k_neg: float = 3.0  # the power of vespo's weight where the advantage is negative
    vespo_lambda_neg: float = 2.0  # and its rate of decay there
    staleness_clip_decay: float = 0.0  # divides a sample's clip range by 1 + this x its staleness
    use_kl_loss: bool = False  # adds the KL to the reference model to the loss
    kl_loss_coef: float = 0.0  # the weight of that KL in the loss
    # chooses the estimate of the KL, for --kl-coef too; in the loss k1 needs --use-unbiased-kl
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = "k1"
    use_unbiased_kl: bool = False  # weights the KL loss by the importance ratio of its token
    # takes the KL to the reference model off the tokens' advantages; with ppo off their rewards,
    # with reinforce_plus_plus off their returns
    kl_coef: float = 0.0
    # the reference model, a Hugging Face or torch_dist folder; by default the policy before the
    # first rollout
    ref_load: str | None = None
    # copies the policy into the reference after every so many rollouts
    ref_update_interval: int | None = None
    # names the correction for rollouts of older weights or other kernels
    off_policy_correction: Literal[
        "none",
        "tis",
        "seq-tis",
        "icepop",
        "mis",
        "seq-mis",
        "geo-rs",
        "geo-rs-tis",
        "k3-rs",
        "k3-rs-tis",
        "opsm",
        "decoupled-ppo",
        "m2po",
        "m2po-clip",
        "dppo",
        "dppo-kl",
        "two-sided",
    ] = "none"
    # replaces the lower bound of what the preset drops (of its weight, where it drops nothing)
    correction_low: float | None = None
    # replaces the upper bound of the same (m2po, m2po-clip: the threshold)
    correction_high: float | None = None
    # drops more: NAME:HIGH or, of k1, NAME:LOW:HIGH, NAME one of token, seq_sum, seq_mean and
    # seq_max followed by _k1, _k2 or _k3, e.g. seq_mean_k3:0.01 token_k1:0.5:2
    correction_reject: tuple[str, ...] = ()
    # adds this x (log new - log rollout)^2 of every token to the loss; by default the preset's
    correction_kl_tau: float | None = None
    # drops a sample that has a token with a ratio below it, e.g. 1e-4
    correction_veto_threshold: float | None = None
    # scales importance weights to a mean of 1 over an optimizer step
    correction_batch_normalize: bool = False
    use_tis: bool = False  # corrects by truncated importance sampling from rollout log-probs
    tis_clip: float = 2.0  # the upper bound of the weight (older name: --tis-threshold)
    tis_clip_low: float = 0.0  # the lower bound of the weight
    # takes the ratio of a token, of its sample, or the sample's geometric mean
    tis_level: Literal["token", "sequence", "geometric"] = "token"
    # bounds the weight from above, from both sides, or sets it to 0 outside the bounds
    tis_mode: Literal["truncate", "clip", "mask"] = "clip"
    # drops samples of negative advantage that have moved away from PPO's old log-probs (with
    # --use-rollout-logprobs the engine's), beside any correction
    use_opsm: bool = False
    opsm_delta: float = 1e-4  # how far, in nats a token; against the engine's 0.05 or more
    # over which tokens a mean goes where a correction drops some: all trained ones, dropped ones as
    # zeros, or the kept; by default the preset's way, and all with --custom-tis-function-path
    correction_mean_over: Literal["all", "kept"] | None = None
    # corrects with your own function instead of --use-tis's weights, in slime's keyword signature
    custom_tis_function_path: str | None = None
    # asks the function of --custom-tis-function-path without --use-tis; what it returns is taken
    get_mismatch_metrics: bool = False
    # adds up the policy loss your own way: f(total_lengths, response_lengths, loss_masks,
    # calculate_per_token_loss) -> a function of the policy loss
    custom_pg_loss_reducer_function_path: str | None = None
    # takes the proximal policy from a pass at consumption, or in between the rollout's and the new
    # one, by the staleness of the token (A-3PO)
    proximal: Literal["recompute", "loglinear"] = "recompute"
    # forms PPO's ratio against the rollout log-probs instead of recomputed ones
    use_rollout_logprobs: bool = False
    # refuses a step whose rollout log-probs differ from the learner's
    true_on_policy_mode: bool = False
    true_on_policy_tolerance: float = 1e-3  # the largest distance of that ratio from 1
    # multiplies the learning rate by the root of the effective sample size of trajectories (as a
    # share)
    ess_lr_scaling: bool = False
    calculate_per_token_loss: bool = False  # averages over all tokens instead of over samples
    entropy_coef: float = 0.0  # the weight of the entropy bonus
    global_batch_size: int | None = None  # how many trajectories make an optimizer step
    # how many optimizer steps a rollout makes (the other way to say --global-batch-size)
    num_steps_per_rollout: int | None = None
    max_tokens_per_gpu: int = 4096  # the token budget of a micro-batch
    # trains mixtures of experts through the experts that the engine chose, token by token (R3)
    use_rollout_routing_replay: bool = False
    # trains later optimizer steps through the experts that the policy chose at consumption (R2)
    use_routing_replay: bool = False
    # fills micro-batches up to the token budget; the default, unless --micro-batch-size is given
    use_dynamic_batch_size: bool | None = None
    # how many samples make a micro-batch, whatever their lengths; --use-dynamic-batch-size wins
    micro_batch_size: int | None = None
    # the token budget of passes without gradients; by default --max-tokens-per-gpu
    log_probs_max_tokens_per_gpu: int | None = None
    # how many rows of logits go through the softmax at once; -1 takes all of a micro-batch
    log_probs_chunk_size: int = 512
    # gives data-parallel ranks equal work, by operations; without it samples are dealt out in turn
    balance_data: bool = True

    @property
    def is_supervised(self) -> bool:
        """Trained on given answers: its loss says how it goes, not its rewards."""
        return self.loss_type == "sft_loss"

    @property
    def pays_kl_ahead(self) -> bool:
        """With --kl-coef: is the KL part of the rewards or returns that advantages are made of,
        ahead of their whitening? Else it is taken off the advantages."""
        name, own = self.advantage_estimator, self.custom_advantage_function_path
        return self.kl_coef > 0 and (
            name == "ppo" or (name.startswith("reinforce_plus_plus") and own is None)
        )

    @property
    def needs_reference(self) -> bool:
        """Is a KL to the reference model part of loss or advantages?"""
        return bool(self.use_kl_loss or self.kl_coef)

    @property
    def samples_of_a_micro_batch(self) -> int | None:
        """None: as many as the token budget takes."""
        if self.use_dynamic_batch_size:
            return None
        return self.micro_batch_size or (1 if self.use_dynamic_batch_size is False else None)
