"""Names of SGLang's options in versions before the installed one, and what only slime's launcher
of engines knows."""

from __future__ import annotations

from collections.abc import Mapping

from configs.command_line.spellings.entries import Absent, Ours, Spelling

_GROUPS = Absent(
    why="every engine has the same --sglang-* flags; groups of different ones, and engines that"
    " only prefill or decode, are not there. Drop it"
)

SGLANG: Mapping[str, Spelling] = {
    "sglang-config": _GROUPS,
    "sglang-cuda-graph-bs": Ours(to="sglang-cuda-graph-bs-decode"),
    "sglang-cuda-graph-max-bs": Ours(to="sglang-cuda-graph-max-bs-decode"),
    "sglang-nsa-prefill-backend": Ours(to="sglang-dsa-prefill-backend"),
    "sglang-nsa-decode-backend": Ours(to="sglang-dsa-decode-backend"),
    "sglang-mamba-scheduler-strategy": Ours(to="sglang-mamba-radix-cache-strategy"),
    "sglang-enable-ep-moe": Absent(
        why="SGLang has no such option any more: --sglang-ep-size says how many share the experts"
    ),
    "sglang-enable-deepep-moe": Ours(to="sglang-moe-a2a-backend deepep"),
}
