"""From one reward a sample to one advantage a response token. Pure numpy; lists hold one array [R]
a sample.

Time counts in trained tokens (loss mask 1): they are the policy's actions. What a tool said is no
step, and is not discounted over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WHITEN_EPSILON = 1e-8


def get_grpo_returns(rewards: np.ndarray, response_lengths: Sequence[int]) -> list[np.ndarray]:
    """Every token of a sample has its sample's (post-processed) reward. rewards: [S].

    Source: GRPO, arXiv:2402.03300, section 4.1.2.
    """
    return [np.full(n, reward) for reward, n in zip(rewards, response_lengths, strict=True)]


def get_token_rewards(rewards: np.ndarray, loss_masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The whole reward at the sample's last trained token, 0 elsewhere: what PPO's critic makes
    advantages of. rewards: [S]."""
    out = []
    for reward, mask in zip(rewards, loss_masks, strict=True):
        tokens, trained = np.zeros(len(mask)), np.flatnonzero(mask)
        if len(trained):
            tokens[trained[-1]] = reward
        out.append(tokens)
    return out


def get_reinforce_plus_plus_returns(
    rewards: np.ndarray, loss_masks: Sequence[np.ndarray], *, gamma: float = 1.0
) -> list[np.ndarray]:
    """Discounted return from every trained token on: gamma^(trained tokens after it) * reward; 0
    where the mask is 0. rewards: [S].

    G_t = sum_{k >= t} gamma^(k - t) r_k, with the reward at the last trained token. The penalty for
    leaving the reference model is the learner's, where its log-probs are
    (stages.learn.objective.penalised_returns). Source: REINFORCE++, Hu
    2025, arXiv:2501.03262, section 3.1; whiten them (--normalize-advantages)."""
    out = []
    for reward, mask in zip(rewards, loss_masks, strict=True):
        trained = np.asarray(mask, dtype=bool)
        after = trained.sum() - np.cumsum(trained)
        out.append(np.where(trained, reward * np.power(gamma, after), 0.0))
    return out


def whiten(values: Sequence[np.ndarray], loss_masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(x - mean) / sqrt(var + 1e-8) with mean and (unbiased) variance over all trained tokens of
    the whole rollout.

    The rollout is whole here, on the driver, so this is over all data-parallel ranks, exactly.
    Tokens without loss come out 0; equal values come out 0. Source: advantage normalisation of
    PPO's implementations (arXiv:2005.12729, section 3); REINFORCE++, arXiv:2501.03262, eq. 9."""
    masks = [np.asarray(mask, dtype=bool) for mask in loss_masks]
    trained = (
        np.concatenate([v[m] for v, m in zip(values, masks, strict=True)]) if masks else np.zeros(0)
    )
    if not len(trained) or np.ptp(trained) == 0:
        return [np.zeros(len(v)) for v in values]
    mean, std = trained.mean(), np.sqrt(trained.var(ddof=1) + WHITEN_EPSILON)
    return [np.where(m, (v - mean) / std, 0.0) for v, m in zip(values, masks, strict=True)]
