"""Names of SGLang's options in versions before the installed one, its router's options, and what
only slime's launcher of engines knows. A key that ends in * stands for every flag that begins so,
after those that are named."""

from __future__ import annotations

from collections.abc import Mapping

from configs.command_line.spellings.entries import Absent, Nothing, Ours, Spelling

_GROUPS = Absent(
    why="every engine has the same --sglang-* flags; groups of different ones, and engines that"
    " only prefill or decode, are not there. Drop it"
)

_LEASED = Nothing(why="the router asks the engine with the fewest requests, a session's its own")
_WATCHED = Nothing(why="engines are watched and started again always (--engine-restarts)")

SGLANG: Mapping[str, Spelling] = {
    "sglang-config": _GROUPS,
    "sglang-cuda-graph-bs": Ours(to="sglang-cuda-graph-bs-decode"),
    "sglang-cuda-graph-max-bs": Ours(to="sglang-cuda-graph-max-bs-decode"),
    "sglang-nsa-prefill-backend": Ours(to="sglang-dsa-prefill-backend"),
    "sglang-nsa-decode-backend": Ours(to="sglang-dsa-decode-backend"),
    "sglang-mamba-scheduler-strategy": Ours(to="sglang-mamba-radix-cache-strategy"),
    # the router
    "sglang-router-request-timeout-secs": Ours(to="generate-timeout-seconds"),
    "router-request-timeout-secs": Ours(to="generate-timeout-seconds"),
    "router-retry-max-retries": Ours(to="generate-max-retries"),
    "sglang-router-policy": Ours(to="router-policy"),
    "router-cache-threshold": _LEASED,
    "router-balance-*": _LEASED,
    "router-log-level": Nothing(why="what the router says is in run.log (--log-level)"),
    "router-disable-health-check": _WATCHED,
    "router-health-*": _WATCHED,
    "router-cb-*": _WATCHED,
    "router-*": Absent(
        why="the router is Slipstream's own, in front of the run's engines alone; it has an address"
        " (--sglang-router-ip, --sglang-router-port) and no such option. Drop it"
    ),
    # older names
    "sglang-enable-ep-moe": Absent(
        why="SGLang has no such option any more: --sglang-ep-size says how many share the experts"
    ),
    "sglang-enable-deepep-moe": Ours(to="sglang-moe-a2a-backend deepep"),
}
