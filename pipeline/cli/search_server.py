"""`python -m pipeline search-server CORPUS`: what agents search."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "search-server",
        help="serve the passages of a folder, by BM25, as Search-R1's retriever does",
        description="Serves POST /retrieve until it is interrupted.",
    )
    command.add_argument(
        "corpus", metavar="CORPUS", help="a folder of .jsonl, .txt and .md files", type=Path
    )
    command.add_argument("--host", default="127.0.0.1", help="where to listen [127.0.0.1]")
    command.add_argument("--port", type=int, default=8000, help="0: any free one [8000]")
    command.add_argument(
        "--index-dir",
        type=Path,
        metavar="DIR",
        help="where indexes are saved, and found again for the same corpus [CORPUS/.search-index]",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from stages.generate.search.corpus import Corpus
    from stages.generate.search.index import SearchIndex

    corpus = Corpus(args.corpus)
    index = SearchIndex(corpus, args.index_dir or args.corpus / ".search-index")
    how = "read from" if index.was_saved else "saved in"
    print(f"{len(corpus.passages)} passages of {args.corpus}; the index is {how} {index.path}")
    if args.host not in LOOPBACK:
        print(f"whoever reaches {args.host} can read them: there is no password")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(index, args.host, args.port))


async def _serve(index: Any, host: str, port: int) -> None:
    from stages.generate.search.server import serve

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with serve(index, host, port) as url:
        print(url, flush=True)
        await stopped.wait()
