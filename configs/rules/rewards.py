"""Rules about who scores, and what the scorer needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from configs.rules.judge import why_no_judge
from configs.rules.user_source import source_text
from configs.schema import Config
from configs.schema.data import is_procedural
from configs.schema.reward import COMPARING, RM_TYPES
from sandbox.reasons import why_unavailable


def why_missing(scorer: str) -> str | None:
    """What to do for a built-in scorer that needs what is not there: rules that come with no
    package of ours, or a kernel that lets a sandbox be built. None where nothing is missing."""
    if scorer == "code":
        return why_unavailable()
    if not scorer.endswith("ifbench") or importlib.util.find_spec("evaluation_lib") is not None:
        return None
    return (
        "the rules of IFBench (its module evaluation_lib) are not there: git clone"
        " https://github.com/allenai/IFBench, pip install -r IFBench/requirements.txt, and put the"
        " folder on PYTHONPATH"
    )


# instructions of IFEval that a detector of languages judges
_OF_LANGUAGE = (
    "language:response_language",
    "change_case:english_capital",
    "change_case:english_lowercase",
)


def why_unchecked(instructions: object) -> str | None:
    """What to install for the instructions of a row that is scored by ifeval."""
    names = instructions if isinstance(instructions, list | tuple) else ()
    asked = next((name for name in names if name in _OF_LANGUAGE), None)
    if asked is None or importlib.util.find_spec("langdetect") is not None:
        return None
    return f"{asked} needs langdetect, which is not installed: pip install langdetect"


def rewards(config: Config) -> Iterator[str]:
    reward, data = config.reward, config.data
    procedural = is_procedural(data.prompt_data)
    if reward.group_rm and not reward.custom_rm_path:
        yield (
            "--group-rm without --custom-rm-path: the built-in scorers take one sample. Name your"
            " function, or drop --group-rm"
        )
    if reward.rm_type and reward.custom_rm_path:
        yield (
            f"--rm-type {reward.rm_type} with --custom-rm-path {reward.custom_rm_path}: only one"
            " can score. Drop one (--rm-type none takes back what a preset says)"
        )
    if reward.rm_url and not reward.rm_url.startswith(("http://", "https://")):
        yield f"--rm-url {reward.rm_url}: expected http://HOST:PORT/PATH"
    if reward.custom_rm_path or (config.run.mock and data.prompt_data is None):
        return
    if config.answers_are_given:  # what is scored is evaluations, whose rules see to it
        return
    if (
        reward.rm_type is None
        and not procedural
        and not config.distill.use_opd
        and not config.agent.has_agent  # which reward themselves, if nobody else does
        and config.rollout.environment_path is None  # likewise
        and not may_reward(config.rollout.custom_generate_function_path)
        and not may_reward(config.rollout.rollout_function_path)
    ):
        source = f"--data-source-path {data.data_source_path}"
        yield (
            f"{source if data.data_source_path else f'--prompt-data {data.prompt_data}'} says"
            " nothing of rewards: set --rm-type"
            f" ({', '.join(RM_TYPES)}) or --custom-rm-path"
        )
    tasks = (data.prompt_data or "").startswith("reasoning_gym:")
    if reward.rm_type == "reasoning_gym" and not tasks:
        yield (
            f"--rm-type reasoning_gym with --prompt-data {data.prompt_data}: its scorers know only"
            " prompts of reasoning_gym:TASK"
        )
    if reward.rm_type == "remote_rm" and reward.rm_url is None:
        yield "--rm-type remote_rm without --rm-url: expected the server's, http://HOST:PORT/PATH"
    if reward.rm_type == "judge" and (missing := why_no_judge(reward)):
        yield f"--rm-type judge: {missing}"
    if reward.rm_type is not None and (missing := why_missing(reward.rm_type)):
        yield f"--rm-type {reward.rm_type}: {missing}"
    if reward.rm_type in COMPARING and not procedural and data.label_key is None:
        yield (
            f"--rm-type {reward.rm_type} without --label-key: it compares with a label. Name the"
            " column that holds it"
        )


def may_reward(generate: str | None) -> bool:
    """May the function that generates set sample.reward itself? Its file would speak of it."""
    return generate is not None and "reward" in source_text(generate)
