"""`slipstream COMMAND`, or `python -m pipeline COMMAND`: training and the tools around runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import SlipstreamError
from pipeline.core.version import __version__


def _report(args: argparse.Namespace) -> None:
    from pipeline.report import (
        closing_lines,
        write_report,
        write_summary,
    )  # heavy only when asked for
    from pipeline.run.rundir import open_run_dir

    for name in args.run_dir:
        run = open_run_dir(name)
        summary = write_summary(run.path)
        write_report(run.path)
        print("\n".join(closing_lines(run.path, summary)))


def _buffer(args: argparse.Namespace) -> None:
    from pipeline.cli import inspection
    from pipeline.run.rundir import open_run_dir

    run = open_run_dir(args.run_dir)
    match args.action:
        case "ledger":
            lines = inspection.ledger_lines(run, args.json)
        case "show":
            lines = inspection.show_lines(run, args.group, args.sample)
        case "verify":
            lines = inspection.verify_lines(run)
        case "audit":
            from pipeline.cli.audit import audit_lines

            lines = audit_lines(run)
        case "export":
            from pipeline.cli.export import export_lines

            lines = export_lines(run, Path(args.file))
        case _:
            lines = inspection.list_lines(run, args.min_reward)
    for line in lines:
        print(line)


def parser(prog: str = "python -m pipeline") -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog=prog, description=__doc__)
    root.add_argument("--version", action="version", version=f"slipstream {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # for the listing only: `main` hands its flags, which are not argparse's, to train_async.py
    commands.add_parser("train", help=f"train a model: `{prog} train --help` lists the flags")
    commands.add_parser("eval", help=f"evaluate a checkpoint alone: `{prog} eval --help` says how")
    report = commands.add_parser(
        "report", help="write summary.json, reward.svg and report.html again, from metrics.jsonl"
    )
    report.add_argument(
        "run_dir", nargs="+", metavar="RUN_DIR", help="a folder under runs/, finished or not"
    )
    report.set_defaults(run=_report)
    buffer = commands.add_parser(
        "buffer", help="look into a run's replay buffer: list, ledger, show, verify, audit, export"
    )
    buffer.add_argument(
        "run_dir", metavar="RUN_DIR", help="a folder under runs/, running, finished or crashed"
    )
    actions = buffer.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="the groups that lie in the segments (default)")
    buffer.set_defaults(run=_buffer, min_reward=None)
    listing.add_argument(
        "--min-reward", type=float, help="only groups with at least this mean reward"
    )
    ledger = actions.add_parser("ledger", help="what became of every group")
    ledger.add_argument("--json", action="store_true", help="one JSON object")
    show = actions.add_parser("show", help="one sample, token by token, with each token's text")
    show.add_argument(
        "group", type=int, nargs="?", help="its number [the newest group that lies there]"
    )
    show.add_argument("sample", type=int, nargs="?", default=0, help="its place in the group")
    actions.add_parser("verify", help="check every checksum")
    actions.add_parser(
        "audit", help="make its decisions and batches again from the journal, and compare"
    )
    exporting = actions.add_parser(
        "export",
        help="write the samples to FILE.parquet or FILE.jsonl, with rollout and advantages",
    )
    exporting.add_argument("file", metavar="FILE")
    from pipeline.cli import chat, convert, doctor, pool, search_server

    pool.add_parser(commands)
    chat.add_parsers(commands)
    convert.add_parser(commands)
    doctor.add_parser(commands)
    search_server.add_parser(commands)
    return root


def main(argv: Sequence[str] | None = None, prog: str = "python -m pipeline") -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["train"]:
        import train_async  # the roof: whoever asks for another command does not pay for it

        train_async.main(words[1:], prog=f"{prog} train")
    if words[:1] == ["eval"]:
        from pipeline.cli.evaluation import run_eval

        return run_eval(words[1:], prog=f"{prog} eval")
    args = parser(prog).parse_args(words)
    try:
        args.run(args)
    except SlipstreamError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # what is still buffered has nowhere to go
    return 0


def console() -> int:
    """The installed command `slipstream`."""
    return main(prog="slipstream")
