"""Every error Slipstream raises on purpose: one base class, leaves named after the boundary where
they arise.

A message says what was given, what was expected and what to do. All are shown to the user as one
message without a traceback; the exit code is 2 for a mistake in the input and 1 for a fault while
running."""

from collections.abc import Mapping


class SlipstreamError(Exception):
    """Base class: anything else that escapes is a bug."""

    exit_code = 1


class ConfigError(SlipstreamError):
    """A flag, preset or combination of flags is wrong. Shown before anything starts."""

    exit_code = 2


class DataError(SlipstreamError):
    """A prompt file, row or task is malformed. Names file and line."""

    exit_code = 2


class CheckpointError(SlipstreamError):
    """A checkpoint folder is missing, incomplete or of another shape."""

    exit_code = 2


class ClusterError(SlipstreamError):
    """Ray did not start, or did not give what it had."""


class EngineError(SlipstreamError):
    """An inference engine did not start, died, or refused a request for good."""


class NoRoomError(EngineError):
    """No node has devices for an engine now; one that comes back, or is added, may."""


class ForgottenWeightsError(EngineError):
    """An engine answered under weights older than those it had confirmed, or under weights of no
    version: whoever runs it has started it anew."""


class RefusedRequestError(EngineError):
    """An engine refused a request as it is: to ask again is of no use."""


class GenerateError(SlipstreamError):
    """A rollout could not be generated (custom functions included).

    It is kept on the sample and not fatal.
    """


class ToolServerError(GenerateError):
    """A server that gives an agent its tools did not start, went away, or says that a call has
    failed."""


class RolloutWorkerError(SlipstreamError):
    """Rollout workers did not start, or none is left."""


class RewardError(SlipstreamError):
    """A reward function raised, timed out or returned something that is not a number."""


class UserFunctionError(SlipstreamError):
    """A user's own function raised. Names its flag, file and line."""

    exit_code = 2


class ReplayBufferError(SlipstreamError):
    """The replay buffer could not keep its promise (disk full, say)."""


class UnstorableSamplesError(ReplayBufferError):
    """Samples hold what neither Arrow nor JSON can express. The custom function that set it is at
    fault, and only these samples are affected."""

    def __init__(self, group_index: int, reasons: Mapping[int, str]) -> None:
        """`reasons`: why a sample cannot be stored, by its place in the group."""
        self.reasons = dict(reasons)
        place, reason = next(iter(self.reasons.items()))
        super().__init__(f"group {group_index}, its sample {place}: {reason}")


class RewoundError(ReplayBufferError):
    """The run went back to a checkpoint while this group waited to be stored: nothing of it was
    written, and it is stored when it is admitted again."""


class BufferCorruption(ReplayBufferError):  # noqa: N818
    """A segment does not hold what its checksum or schema says. Names file and offset."""


class WeightSyncError(SlipstreamError):
    """A weight push failed; the engine it names still serves its old version."""


class StaleWeightsError(WeightSyncError):
    """The weights of the last push are no more: they were not copied, and the learner has gone
    on."""


class LearnerError(SlipstreamError):
    """The learner refused or failed a step (NaN loss, a dead rank, ...)."""


class LearnerLostError(LearnerError):
    """A learner rank died or broke, and the weights are gone with it: what is left is the last
    checkpoint."""


class DiskFullError(SlipstreamError):
    """Nothing more can be written where the run writes. It is reported once, whoever noticed it
    first."""
