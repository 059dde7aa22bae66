"""How samples are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

RmType = Literal[
    "math",
    "boxed_math",
    "deepscaler",
    "dapo",
    "exact_match",
    "boxed_exact_match",
    "f1",
    "boxed_f1",
    "gpqa",
    "boxed_gpqa",
    "ifbench",
    "code",
    "ifeval",
    "reasoning_gym",
    "remote_rm",
    "judge",
    "random",
]
RM_TYPES: tuple[str, ...] = get_args(RmType)
# those that compare a response with its label, and can do nothing without one
COMPARING = tuple(
    name
    for name in RM_TYPES
    if name.removeprefix("boxed_") in ("math", "deepscaler", "dapo", "exact_match", "f1")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Rewards."""

    # chooses a built-in reward; by default reasoning_gym for its own prompts
    rm_type: RmType | None = None
    rm_url: str | None = None  # the server that --rm-type remote_rm asks for every score
    # the judge of --rm-type judge: the base URL of a server with OpenAI's chat completions, e.g.
    # http://127.0.0.1:30000/v1
    judge_url: str | None = None
    judge_model: str | None = None  # the judge's name, as its server knows it
    # what the judge is asked: a text file with {prompt}, {response} or {answer} (the response after
    # its thoughts), {label}, {metadata.NAME}; by default it is asked for a score from 0 to 1
    judge_prompt_path: str | None = None
    # a regular expression whose first group is the score in the judge's reply; by default the
    # reply's last JSON object is the reward
    judge_score_pattern: str | None = None
    # what the judge's server is asked for beside the question, as JSON
    judge_sampling_params: str = '{"temperature": 0, "max_tokens": 1024}'
    judge_api_key_env: str | None = None  # the environment variable that holds the judge's API key
    # how many questions a process has the judge answer at once
    judge_concurrency: int = 16
    # how many judgements are remembered, also in the run's folder; 0 remembers none
    judge_cache_size: int = 100_000
    # rewards with your own function, file.py[:name]: f(args, sample) -> float or dict
    custom_rm_path: str | None = None
    group_rm: bool = False  # gives the reward function the whole group as a list
    reward_key: str | None = None  # names the entry that is trained on, where rewards are dicts
    # the deadline of one scoring; an answer that gets no score in time is a wrong one: 0, and
    # counted
    reward_timeout_seconds: float = 30.0
    reward_num_workers: int | None = None  # how many processes score what is bound by the CPU
    # of one program in the sandbox (a test of --rm-type code, a call of the Python tool)
    sandbox_seconds: float = 10.0
    # what all processes of such a program may hold, and the address space of each
    sandbox_memory_bytes: int = 1 << 30
    # counts a reward below it as 0 (reasoning-gym gives partial credit)
    reward_threshold: float = 0.0
