"""What follows from the loss of a learner: whether it is restored, and under which policy version
its weights go on. Pure.

Versions never go back. The restored weights get a number above every one that engines were ever
given, though they are older weights: let the checkpoint's version be c, the highest in use u, the
restored one v = u + 1. The numbers c+1 .. u belong to weights of a branch that is given up.

What that means for staleness, which is a difference of numbers. A group that is admitted after the
restore has tokens of v and later only: all is as ever, and the bound S is asserted. A group that
was complete or under way has tokens of versions t <= u, some perhaps of the branch that was given
up. It is admitted again at the place in the order that it had, so at version w >= v it is at most S
pushes from t in the numbers that the checkpoint would have gone on with: (w - v + c) - t <= S.

- Its staleness w - t is then at most S + (v - c): the versions that were lost count, as after a
  restart of the whole run. Such groups are trained all the same, and counted (`recalled`).
- By pushes between the weights, back to where the branches part and forward again, a token of the
  lost branch (t > c) is (t - c) + (w - v) <= S + 2 (u - c) away; one of an older version (t <= c)
  is (c - t) + (w - v) <= S away, less than its number says.

Its behaviour log-probs are the engine's own, of whatever branch, so the correction for being
off-policy is exact."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """One restore."""

    number: int  # the first is 1
    num_trained: int  # rollouts in the weights that are restored
    num_lost: int  # rollouts that were trained since, and are trained again
    policy_version: int  # of the restored weights


class RestoreLimit:
    """A learner may be lost and restored so many times."""

    def __init__(self, most: int) -> None:
        self.most, self.num_restores = most, 0

    def after_loss(
        self, *, num_trained: int, num_saved: int, highest_version: int
    ) -> Restore | None:
        """None: no more. `num_saved`: rollouts that the last checkpoint covers; `highest_version`:
        that any engine was ever given, or was about to be."""
        assert 0 <= num_saved <= num_trained, (num_saved, num_trained)
        if self.num_restores >= self.most:
            return None
        self.num_restores += 1
        return Restore(
            number=self.num_restores,
            num_trained=num_saved,
            num_lost=num_trained - num_saved,
            policy_version=highest_version + 1,
        )
