"""`python -m pipeline pool`: the engines of a running job, which may come and go."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from pipeline.core.errors import EngineError


def add_parser(commands: Any) -> None:
    pool = commands.add_parser(
        "pool", help="the engines of a running job: list, add, drain", description=__doc__
    )
    pool.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a job that runs")
    pool.set_defaults(run=_run, action="list")
    actions = pool.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="every engine, its policy version and its load (default)")
    add = actions.add_parser("add", help="start one more engine like the others")
    add.add_argument(
        "address",
        nargs="?",
        metavar="HOST:PORT",
        help="take an SGLang server that somebody else runs instead",
    )
    drain = actions.add_parser(
        "drain", help="take an engine out: no new requests, and when it is empty it is stopped"
    )
    drain.add_argument("engine", metavar="ENGINE", help="its address, as `list` says it")
    drain.add_argument(
        "--now",
        action="store_true",
        help="do not wait for requests in flight: they are asked again elsewhere",
    )


def _run(args: argparse.Namespace) -> None:
    from pipeline.run.rundir import open_run_dir

    for line in pool_lines(args, open_run_dir(args.run_dir).path):
        print(line, flush=True)


def pool_lines(args: argparse.Namespace, run_dir: Any) -> Iterator[str]:
    from pipeline.run.pool_channel import ask

    request = {"do": args.action or "list"}
    request |= {
        name: getattr(args, name) for name in ("address", "engine", "now") if hasattr(args, name)
    }
    answer: dict[str, Any] = {}
    for answer in ask(run_dir, request):
        if "says" in answer:
            yield f"{answer['says']} ..."
    if "error" in answer:
        error = EngineError(answer["error"])
        error.exit_code = int(answer.get("exit_code", 1))
        raise error
    if "engines" in answer:
        yield from _table(answer["engines"])
    elif "added" in answer:
        yield f"{answer['added']} takes requests"
    elif "drained" in answer:
        yield f"{answer['drained']} has left"
    else:
        raise EngineError("the job ended before it answered")


def _table(engines: list[dict[str, Any]]) -> Iterator[str]:
    head = ("engine", "state", "version", "in flight", "restarts")
    rows = [
        tuple(
            "-" if row[name] is None else str(row[name])
            for name in ("engine", "state", "version", "in_flight", "restarts")
        )
        for row in engines
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
