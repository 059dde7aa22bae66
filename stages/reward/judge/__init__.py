"""`--rm-type judge`: a language model scores, behind any server that speaks OpenAI's chat
completions."""

from stages.reward.judge.client import Judge, build_judge

__all__ = ["Judge", "build_judge"]
