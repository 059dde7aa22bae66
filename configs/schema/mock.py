"""What --mock simulates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MockConfig:
    """What --mock simulates."""

    # a decode step of a simulated engine: each of its running requests gets a token
    mock_seconds_per_token: float = 0.0005
    mock_seconds_per_running_request: float = 0.0  # by which every running request prolongs a step
    # how many requests of a simulated engine decode at once; the others wait in its queue
    mock_max_running_requests: int | None = None
    # the mean number of tokens of a simulated response; lengths are lognormal
    mock_length_mean: float = 32.0
    mock_length_sigma: float = 0.7  # the standard deviation of the logarithm of that length
    mock_step_seconds: float = 0.05  # the simulated learner's time a rollout
    mock_push_seconds: float = 0.005  # how long a push pauses a simulated engine
    mock_failure_rate: float = 0.0  # the share of simulated requests that fail
