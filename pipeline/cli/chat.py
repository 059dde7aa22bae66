"""`chat` and `generate`: try the trained model in the terminal, as Hugging Face's transformers
loads it, with the run's own sampling settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.command_line.loader import parse_config
from pipeline.core.devices import why_no_gpu
from pipeline.core.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from pipeline.cli.speaker import Speaker

NEW = "/new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How the model is asked: what the run's configuration says, or these where there is none."""

    # None: where the tokenizer has a template
    chat_template: bool | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


def add_parsers(commands: Any) -> None:
    chat = commands.add_parser(
        "chat",
        help="talk to a run's trained model in the terminal",
        description=f"Talk to a run's latest checkpoint. {NEW} begins another conversation, Ctrl-C"
        " cuts an answer short, Ctrl-D ends. Lines may be piped in as well.",
    )
    chat.set_defaults(run=run_chat)
    generate = commands.add_parser(
        "generate",
        help="answers of a run's trained model to given prompts",
        description="Answers of a run's latest checkpoint to each prompt, in order.",
    )
    generate.add_argument(
        "--prompt", action="append", metavar="TEXT", help="may be repeated [every line of stdin]"
    )
    generate.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="answers to each prompt [1]"
    )
    generate.set_defaults(run=run_generate)
    for each in (chat, generate):
        each.add_argument(
            "run_dir",
            metavar="RUN_DIR",
            help="a folder under runs/, a checkpoint in it, or any Hugging Face folder",
        )
        each.add_argument(
            "--chat-template",
            action=argparse.BooleanOptionalAction,
            help="render prompts with the tokenizer's chat template [as the run did]",
        )
        each.add_argument("--system-prompt", metavar="TEXT", help="ahead of a chat [the run's]")
        each.add_argument(
            "--temperature", type=float, metavar="T", help="0: the likeliest token [the run's]"
        )
        each.add_argument("--top-p", type=float, metavar="P", help="nucleus [the run's]")
        each.add_argument(
            "--max-new-tokens", type=int, metavar="N", help="tokens of an answer [the run's]"
        )
        each.add_argument("--seed", type=int, help="the same answers every time [none]")
        each.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run_chat(args: argparse.Namespace) -> None:
    """Every line of stdin is a turn of one chat; without a chat template it is a prompt of its
    own."""
    speaker = _speaker(args)
    messages: list[dict[str, str]] = []
    for line in _lines():
        if line == NEW:
            messages = []
            continue
        asked = [*messages, {"role": "user", "content": line}] if speaker.converses else line
        try:
            answer = speaker.answer(asked)
        except KeyboardInterrupt:  # cut short: as if it had not been asked
            print()
            continue
        if isinstance(asked, list):
            messages = [*asked, {"role": "assistant", "content": answer}]


def run_generate(args: argparse.Namespace) -> None:
    """Prints the answers, each under a line that names its prompt where there are several."""
    if args.num_samples < 1:
        raise ConfigError(f"--num-samples {args.num_samples}: expected at least 1")
    speaker = _speaker(args)
    prompts = args.prompt or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise DataError("no prompt: give --prompt TEXT, or lines on stdin")
    for number, prompt in enumerate(prompts, start=1):
        for sample in range(1, args.num_samples + 1):
            if len(prompts) * args.num_samples > 1:
                print(f"--- prompt {number}, answer {sample}", flush=True)
            speaker.answer([{"role": "user", "content": prompt}] if speaker.converses else prompt)


def find_model(path: Path) -> tuple[Path, Manner]:
    """(the Hugging Face folder that `path` leads to, how the model is asked).

    Raises CheckpointError where there is none, and says where it was looked for."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder (working folder: {Path.cwd()})")
    manner, tried = Manner(), [path, path / "hf", path / "latest" / "hf"]
    if (path / "config.yaml").is_file():
        manner, saved_to = _manner_of(path / "config.yaml")
        tried = [(saved_to or path / "checkpoints") / "latest" / "hf"]
    for folder in tried:
        if (folder / "config.json").is_file():
            return folder.resolve(), manner
    raise CheckpointError(
        f"{path} holds no model to load: no config.json in"
        f" {' or '.join(str(folder) for folder in tried)}. A run saves one every --save-interval"
        " rollouts and at its end (not with --mock, which has no model, nor with --save-hf none);"
        " `convert torch-dist-to-hf` makes one of a torch_dist checkpoint"
    )


def _manner_of(config_file: Path) -> tuple[Manner, Path | None]:
    """Also the run's --save."""
    from pipeline.wiring.foreign_flags import FAMILIES

    try:
        config, _ = parse_config(["--config", str(config_file)], families=FAMILIES)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. The run is of another version, it seems: give its Hugging Face folder"
            f" instead, {config_file.parent}/checkpoints/latest/hf"
        ) from error
    rollout = config.rollout
    manner = Manner(
        chat_template=config.data.apply_chat_template,
        template_arguments=config.data.template_arguments,
        system_prompt=config.data.system_prompt,
        temperature=rollout.rollout_temperature,
        top_p=rollout.rollout_top_p,
        top_k=rollout.rollout_top_k,
        max_new_tokens=rollout.rollout_max_response_len,
        stop=rollout.rollout_stop,
        stop_token_ids=rollout.rollout_stop_token_ids,
    )
    return manner, Path(config.run.save) if config.run.save else None


def _speaker(args: argparse.Namespace) -> Speaker:
    """The loaded model. What is simply wrong is reported before anything heavy is imported."""
    folder, manner = find_model(Path(args.run_dir))
    given = ("chat_template", "system_prompt", "temperature", "top_p", "max_new_tokens")
    manner = replace(
        manner, **{name: getattr(args, name) for name in given if getattr(args, name) is not None}
    )
    _check(manner)
    why = why_no_gpu()
    if args.device == "cuda" and why:
        raise ConfigError(f"--device cuda: {why}; leave it out to use the CPU")
    device = "cpu" if why or args.device == "cpu" else "cuda"
    from pipeline.cli.speaker import Speaker

    speaker = Speaker(folder, manner, device=device, seed=args.seed)
    asked = "as a chat" if speaker.converses else "as plain text (--chat-template: as a chat)"
    print(f"{folder}, on {device}; prompts go in {asked}", file=sys.stderr, flush=True)
    return speaker


def _check(manner: Manner) -> None:
    for flag, value, right, expected in (
        ("--temperature", manner.temperature, manner.temperature >= 0, "0 or more"),
        ("--top-p", manner.top_p, 0 < manner.top_p <= 1, "above 0 and up to 1"),
        ("--max-new-tokens", manner.max_new_tokens, manner.max_new_tokens >= 1, "1 or more"),
    ):
        if not right:
            raise ConfigError(f"{flag} {value}: expected {expected}")


def _lines() -> Iterator[str]:
    """What the user types, or what is piped in; empty lines are skipped."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401  (input() edits lines with it)

    print(f"{NEW} begins another conversation, Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip():
            yield line
