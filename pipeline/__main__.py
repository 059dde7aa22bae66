"""`python -m pipeline COMMAND`: tools around runs. Training itself is train_async.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.errors import SlipstreamError


def _report(args: argparse.Namespace) -> None:
    from pipeline.report import closing_lines, write_report, write_summary  # heavy only when asked for
    from pipeline.rundir import open_run_dir

    for name in args.run_dir:
        run = open_run_dir(name)
        summary = write_summary(run.path)
        write_report(run.path)
        print("\n".join(closing_lines(run.path, summary)))


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="write summary.json, reward.png and report.html again, from metrics.jsonl")
    report.add_argument("run_dir", nargs="+", metavar="RUN_DIR", help="a folder under runs/, finished or not")
    report.set_defaults(run=_report)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except SlipstreamError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
