"""Does the model fit the flags? This is told from its config.json before anything starts, where the
file is there; after a download, before anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.schema import Config
from pipeline.core.errors import ConfigError


def check_model(config: Config, folder: Path) -> None:
    """Reports the first problem of the folder that --hf-checkpoint led to: everything that a
    learner's rank would find in its config.json. Raises ConfigError, CheckpointError."""
    shape = read_shape(str(folder))
    for problem in (*backend_problems(config, shape), *context_problems(config, shape)):
        raise ConfigError(problem)
    if _trains(config) and config.model.train_backend == "megatron":
        from stages.learn.megatron.hf_config import check_folder

        check_folder(folder, config.megatron)


def read_shape(spec: str | None) -> Mapping[str, Any]:
    """The contents of config.json, or of the file of `tiny:FILE`; empty for a model that is still
    to be made, downloaded or mended."""
    kind, colon, rest = (spec or "").partition(":")
    tiny = bool(colon) and kind == "tiny"
    file = Path(rest if tiny else Path(spec or "", "config.json")).expanduser()
    if not spec or not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        found = _from_yaml(text) if tiny else json.loads(text)
    except ValueError:
        return {}  # who reads it in earnest says what is wrong
    return found if isinstance(found, dict) else {}


def backend_problems(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """Complains of an architecture that the learner does not have."""
    from stages.learn.megatron.architectures import MODEL_TYPES, SAME_AS

    kind = shape.get("model_type")
    if not _trains(config) or kind is None or config.model.train_backend != "megatron":
        return
    if SAME_AS.get(kind, kind) not in MODEL_TYPES:
        yield (
            f"--hf-checkpoint {config.model.hf_checkpoint} is a {kind}, which --train-backend"
            f" megatron does not know (it knows {', '.join((*MODEL_TYPES, *SAME_AS))}). Add"
            " --train-backend fsdp: it trains what transformers has"
        )


def context_problems(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """Complains of lengths that no request can have."""
    text = {**shape, **(shape.get("text_config") or {})}
    own = text.get("max_position_embeddings")
    given = config.sglang.get("context_length")
    longest = own if given is None else int(given) if str(given).isdigit() else None
    if config.run.mock or not config.has_engines or not isinstance(longest, int):
        return
    rollout, said = config.rollout, "the model" if given is None else "--sglang-context-length"
    for flag, value in (
        ("--rollout-max-response-len", rollout.rollout_max_response_len),
        ("--eval-max-response-len", config.eval.eval_max_response_len),
        ("--rollout-max-prompt-len", rollout.rollout_max_prompt_len),
        ("--eval-max-prompt-len", config.eval.eval_max_prompt_len),
    ):
        if value and value >= longest:
            yield (
                f"{flag} {value}: {said} has a context of {longest} tokens, for prompt and response"
                f" together; expected fewer, e.g. {longest // 2}"
            )
    for flag, value in (
        ("--rollout-max-context-len", rollout.rollout_max_context_len),
        ("--eval-max-context-len", config.eval.eval_max_context_len),
    ):
        if value and value > longest:
            yield (
                f"{flag} {value}: {said} has a context of {longest} tokens; expected at most that"
            )


def _trains(config: Config) -> bool:
    return not (config.run.mock or config.run.debug_rollout_only)


def _from_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
