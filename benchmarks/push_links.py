"""What a weight push costs where links are what limits it: real SGLang servers on machines of their
own, behind links of a given rate. Needs root (network namespaces, `tc`).

    python -m benchmarks.push_links --engines 1 2 4 --rate 100mbit
    python -m benchmarks.push_links --model 135m --engines 1 2 --rate 1gbit --repeats 4
    python -m benchmarks.push_links --engines 1 2 4 --rate none

The learner's side (the sender, and the transport that a run uses) is on a machine of its own; every
machine may send `rate` bits a second, the learner's too, so its link is what all copies that leave
it share. All servers start once; pushes to the first 1, 2, 4 of them take turns, in waves of half
the pool and all at once. The first round forms groups and is left out. Kept are medians, least and
most, over the other rounds; of pushes to servers that generate nothing, so that links are what
limits them and not this machine's cores:

push_seconds    from the beginning of staging to the last confirmation
copies          push_seconds over what one copy of the weights takes on such a link
over_one        push_seconds over that to one engine, all at once, in the same round
over_memcpy     gigabytes a second that reach an engine over those of a copy in memory

and of pushes to at most `--busy` servers which decode CLIENTS requests each:

stall_seconds   the longest pause of an engine; copy_seconds: of it, receiving and loading
step_seconds    between two tokens of a request at this engine, mean, without the pauses
stall_steps     (stall_seconds - copy_seconds) / step_seconds: decode steps lost beyond the copy
token_gap_steps the longest wait for a token, as its client sees it, without copying"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, keep, middle, spread, table
from benchmarks.push_links_ends import CLIENTS
from tests.integration.nodes.namespaces import Machine, network

SHAPES = {
    "1m": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 278},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
}
FIGURES = (
    *("push_seconds", "copies", "over_one", "over_memcpy", "busy_push_seconds", "stall_seconds"),
    *("copy_seconds", "step_seconds", "stall_steps", "token_gap_steps"),
)


def make_model(shape: str, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)


def start(machine: Machine, *words: str) -> subprocess.Popen[str]:
    command = machine.command(sys.executable, "-m", "benchmarks.push_links_ends", *words)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not (said := process.stdout.readline().strip()):
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    return said


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape = (
        ()
        if options.rate == "none"
        else ("tbf", "rate", options.rate, "burst", "256kb", "latency", "50ms")
    )
    with network(1 + max(options.engines), *shape) as net, ExitStack() as stack:
        first, *others = net.machines
        hosts = []
        for i, machine in enumerate(others):
            words = ("host", "--address", machine.address, "--index", str(i))
            hosts.append(start(machine, *words, "--folder", str(folder)))
        for process in hosts:
            assert process.stdin is not None
            stack.callback(process.wait, 60)
            stack.callback(process.stdin.close)
        endpoints = [line(process) for process in hosts]
        process = start(
            first,
            *("learner", "--address", first.address, "--folder", str(folder)),
            *("--bits", str(bits(options.rate)), "--repeats", str(options.repeats)),
            *("--busy", str(options.busy)),
            *("--engines", *map(str, options.engines), "--endpoints", *endpoints),
        )
        stack.callback(process.wait, 60)
        told: dict[str, Any] = json.loads(line(process))
        return told


def summary(pushes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    alone = {p["round"]: p["push_seconds"] for p in pushes if p["engines"] == 1}
    for push in pushes:
        push["over_one"] = push["push_seconds"] / alone.get(push["round"], float("nan"))
    rows = []
    for case in dict.fromkeys((p["engines"], p["fraction"]) for p in pushes):
        mine = [p for p in pushes if (p["engines"], p["fraction"]) == case]
        row = {"engines": case[0], "push_wave_fraction": case[1], "pushes": len(mine)}
        names = [name for name in FIGURES if name in mine[0]]
        rows.append(row | {name: spread([p[name] for p in mine]) for name in names})
    return rows


def bits(rate: str) -> float:
    """Of "100mbit", a second."""
    if rate == "none":
        return float("inf")
    for unit, factor in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate.endswith(unit):
            return float(rate.removesuffix(unit)) * factor
    raise SystemExit(f"--rate {rate}: expected a number and gbit, mbit or kbit, or none")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(SHAPES), default="1m")
    parser.add_argument("--engines", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rate", default="100mbit", help="of every link, as tc says it, or none")
    parser.add_argument("--repeats", type=int, default=8, help="pushes of every kind")
    parser.add_argument("--busy", type=int, default=2, help="servers that decode, at most")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the machines go first
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        make_model(options.model, Path(folder) / "model")
        told = measure(options, Path(folder))
    rows = summary(told["pushes"])
    shown = ["engines", "push_wave_fraction", *FIGURES]
    table(shown, [[middle(row.get(name, "")) for name in shown] for row in rows])
    memcpy = told["memcpy_gigabytes_per_second"]
    size = told["pushes"][0]["num_bytes"]
    found = {"model": options.model, "num_bytes": size, "rate": options.rate}
    keep(
        f"push_links_{options.model}_{options.rate}",
        found | {"memcpy_gigabytes_per_second": memcpy, "clients": CLIENTS, "rows": rows},
    )


if __name__ == "__main__":
    main()
