"""What multi-turn episodes cost in the process that makes them: through sessions, through the
gateway, and in a plain asyncio loop as one writes it by hand, with aiohttp and with httpx.

    python -m benchmarks.agents [--episodes 50,2000] [--turns 8] [--seconds 2] [--rounds 3]

All episodes run at once against one simulated engine in a process of its own (its answers are fixed
and take --seconds); every way has a process of its own, and they take turns, --rounds times. CPU is
of that process alone: of the gateway without its agents, which are in another. Ratios are within a
round, to the plain loops with as many episodes; httpx, whose pool looks at all connections for
every request, is left out above 200 episodes. Prints medians of CPU a turn, the event loop's lag
and memory an episode, and writes results/agents.json. Exits with 1 where a way has lost turns."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import psutil

from benchmarks.common import keep, middle, spread, table
from configs.schema import RolloutConfig
from pipeline.core.chat_template import ChatTemplate
from pipeline.core.time import MonotonicTime
from pipeline.core.types import Sample
from pipeline.run.loop_lag import LoopLag
from stages.engine.mock import MockTokenizer
from stages.engine.remote_pool import RemotePool
from stages.engine.view import EngineView, PoolView
from stages.gateway.server import Gateway
from stages.gateway.session import Model, Session
from stages.generate.client import SGLangClient
from stages.generate.session import open_session
from stages.generate.tools.template import AgentTemplate

WAYS = "plain", "plain_aiohttp", "sessions", "gateway"
PARAMS = {"temperature": 1.0, "max_new_tokens": 1 << 14, "skip_special_tokens": True}
ASKED, SEEN = "What comes next? " * 12, "\nThe tool says: forty-two, and there is more to do.\n"
TOKENS = 64  # of every turn
MOST_HTTPX = 200  # episodes
FIGURES = (
    *("cpu_ms_a_turn", "over_httpx", "over_aiohttp", "loop_lag_p99_ms", "kib_an_episode"),
    "seconds",
)
Post = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


async def plain(url: str, episodes: int, turns: int) -> int:
    """As slime's examples, with httpx."""
    import httpx

    limits = httpx.Limits(max_connections=episodes, max_keepalive_connections=episodes)
    async with httpx.AsyncClient(limits=limits, timeout=None, verify=False) as client:

        async def post(asked: dict[str, Any]) -> dict[str, Any]:
            answer = await client.post(f"{url}/generate", json=asked)
            return dict(answer.raise_for_status().json())

        return await _by_hand(post, episodes, turns)


async def plain_aiohttp(url: str, episodes: int, turns: int) -> int:
    """The same loop with a client whose pool does not look at every connection for every
    request."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def post(asked: dict[str, Any]) -> dict[str, Any]:
            async with client.post(f"{url}/generate", json=asked) as answer:
                answer.raise_for_status()
                return dict(await answer.json())

        return await _by_hand(post, episodes, turns)


async def _by_hand(post: Post, episodes: int, turns: int) -> int:
    """Post, take the tokens out of meta_info, append what the tool says."""
    tokenizer = MockTokenizer()

    async def episode() -> int:
        tokens = list(tokenizer.encode(ASKED, add_special_tokens=False))
        mask: list[int] = []
        log_probs: list[float] = []
        for _ in range(turns):
            asked = {"input_ids": tokens, "sampling_params": PARAMS, "return_logprob": True}
            pairs = (await post(asked))["meta_info"]["output_token_logprobs"]
            new = [pair[1] for pair in pairs]
            seen = tokenizer.encode(SEEN, add_special_tokens=False)
            tokens += [*new, *seen]
            mask += [1] * len(new) + [0] * len(seen)
            log_probs += [pair[0] for pair in pairs] + [0.0] * len(seen)
        return sum(mask)

    return sum(await asyncio.gather(*(episode() for _ in range(episodes))))


async def sessions(url: str, episodes: int, turns: int) -> int:
    tokenizer = MockTokenizer()

    async def episode(args: Any) -> int:
        sample = Sample(prompt=ASKED, tokens=list(tokenizer.encode(ASKED)))
        async with open_session(args, sample, PARAMS) as session:
            while not session.done:
                await session.generate()
                session.append_tool(SEEN)
        return sum(sample.loss_mask or [])

    async with _client(url, episodes) as client:
        args = SimpleNamespace(
            engine_client=client,
            tokenizer=tokenizer,
            max_turns=turns,
            context_length=None,
            time=MonotonicTime(),
        )
        return sum(await asyncio.gather(*(episode(args) for _ in range(episodes))))


async def gateway(url: str, episodes: int, turns: int) -> int:
    tokenizer, server = MockTokenizer(), Gateway()
    template = ChatTemplate(
        partial(AgentTemplate, tokenizer),
        lambda token: tokenizer.decode([token], skip_special_tokens=False),
    )
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(url, episodes))
        stack.push_async_callback(server.close)
        model = Model(client=client, tokenizer=tokenizer, template=template)
        opened = [Session(model, PARAMS, f"r{i}", MonotonicTime()) for i in range(episodes)]
        access = [await server.open(session) for session in opened]
        agents = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.agents", "--agents", "--turns", str(turns)),
            stdin=asyncio.subprocess.PIPE,
        )
        given = json.dumps([[a.base_url, a.token] for a in access]).encode()
        await agents.communicate(given)
        return sum(sum(b.loss_mask) for s in opened for b in s.tree.branches())


async def _agents(access: list[list[str]], turns: int) -> None:
    """What agents do in their own process: they ask with messages."""
    import aiohttp

    async def episode(client: aiohttp.ClientSession, url: str, token: str) -> None:
        messages = [{"role": "user", "content": ASKED}]
        for _ in range(turns):
            async with client.post(
                f"{url}/chat/completions",
                json={"model": "policy", "messages": messages},
                headers={"Authorization": f"Bearer {token}"},
            ) as answer:
                answer.raise_for_status()
                messages.append((await answer.json())["choices"][0]["message"])
            messages.append({"role": "user", "content": SEEN})

    patient = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=patient) as client:
        await asyncio.gather(*(episode(client, url, token) for url, token in access))


def _client(url: str, episodes: int) -> SGLangClient:
    pool = RemotePool(concurrency=episodes)
    pool.follow(
        PoolView(number=1, engines=(EngineView(endpoint=url, version=0, is_open=True, lost=None),))
    )
    return SGLangClient(pool, RolloutConfig(generate_timeout_seconds=3600.0))


def measured(way: str, url: str, episodes: int, turns: int) -> dict[str, Any]:
    """Of this process: CPU without what it took to start."""
    make: Callable[..., Awaitable[int]] = {
        "plain": plain,
        "plain_aiohttp": plain_aiohttp,
        "sessions": sessions,
        "gateway": gateway,
    }[way]
    lag = LoopLag()

    async def run() -> int:
        lag.start()
        return await make(url, episodes, turns)

    importlib.import_module("httpx" if way == "plain" else "aiohttp.web")
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    cpu = time.process_time()
    import uvloop

    trained = uvloop.run(run())
    cpu = time.process_time() - cpu
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    laps = lag.lap()
    return {
        "way": way,
        "turns": episodes * turns,
        "trained_tokens": trained,
        "cpu_ms_a_turn": 1000 * cpu / (episodes * turns),
        "loop_lag_p99_ms": 1000 * (laps["p99"] or 0.0),
        "kib_an_episode": max(0, most - before) / episodes / 1024,
        "seconds": time.monotonic() - started,
    }


def compare(loads: list[int], turns: int, seconds: float, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "stages.engine.mock_server", "--port", "0"]
    command += ["--response-tokens", str(TOKENS), "--latency-seconds", str(seconds)]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert engine.stdout is not None
        url = f"http://127.0.0.1:{engine.stdout.readline().split()[1]}"
        rows = [
            row
            for episodes in loads
            for number in range(rounds)
            for row in _round(number, url, episodes, turns)
        ]
    finally:
        engine.kill()
        engine.wait()
    return {"turns": turns, "engine_seconds": seconds, "rounds": rounds, "ways": summary(rows)}


def _round(number: int, url: str, episodes: int, turns: int) -> list[dict[str, Any]]:
    """Every way once, with its CPU over that of the plain loops."""
    ways = WAYS if episodes <= MOST_HTTPX else WAYS[1:]
    rows = [_in_process(way, url, episodes, turns) for way in ways]
    plain = {row["way"]: row["cpu_ms_a_turn"] for row in rows}
    for row in rows:
        row |= {"round": number, "episodes": episodes}
        row["over_aiohttp"] = row["cpu_ms_a_turn"] / plain["plain_aiohttp"]
        if "plain" in plain:
            row["over_httpx"] = row["cpu_ms_a_turn"] / plain["plain"]
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for every load and way: over its rounds."""
    out = []
    for episodes, way in dict.fromkeys((r["episodes"], r["way"]) for r in rows):
        mine = [r for r in rows if (r["episodes"], r["way"]) == (episodes, way)]
        figures = [name for name in FIGURES if name in mine[0]]
        lost = sum(r["turns"] * TOKENS - r["trained_tokens"] for r in mine)
        out.append(
            {"episodes": episodes, "way": way, "lost_tokens": lost}
            | {name: spread([r[name] for r in mine]) for name in figures}
        )
    return out


def _in_process(way: str, url: str, episodes: int, turns: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.agents", "--way", way, "--url", url]
    command += ["--episodes", str(episodes), "--turns", str(turns)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--episodes", type=_numbers, default=[50, 2000])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--agents", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket an episode and more
    if args.agents:
        asyncio.run(_agents(json.load(sys.stdin), args.turns))
        return
    if args.way:
        print(json.dumps(measured(args.way, args.url, args.episodes[0], args.turns)))
        return
    found = compare(args.episodes, args.turns, args.seconds, args.rounds)
    shown = ["episodes", "way", *FIGURES]
    table(shown, [[middle(row.get(name, "")) for name in shown] for row in found["ways"]])
    keep("agents", found)
    lost = [f"{w['way']} ({w['episodes']} episodes)" for w in found["ways"] if w["lost_tokens"]]
    if lost:
        sys.exit(f"turns are lost: {', '.join(lost)}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
