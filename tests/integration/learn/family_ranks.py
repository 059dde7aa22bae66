"""One of two ranks: every family's weights in and out again under layouts that split them.

Run by test_families.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.integration.learn import learner_cases as cases

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
    "ep2": {"expert_model_parallel_size": 2},
    "tp2-ep2": {
        "tensor_model_parallel_size": 2,
        "expert_model_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
    },
    "etp2": {"tensor_model_parallel_size": 1, "expert_tensor_parallel_size": 2},
}


def layouts_of(folder: Path) -> list[str]:
    routed = "num_experts_per_tok" in json.loads((folder / "config.json").read_text())
    return list(LAYOUTS) if routed else ["tp2", "pp2"]


def main(rank: int, port: int, root: Path) -> None:
    from stages.learn.megatron import load

    start = load()
    from safetensors.torch import load_file

    from stages.learn.rendezvous import join_store

    store = join_store("127.0.0.1", port, 2)
    torch.set_num_threads(1)
    found: dict[str, list[str]] = {}
    number = 0
    for folder in sorted(p for p in root.iterdir() if (p / "config.json").is_file()):
        want = load_file(folder / "model.safetensors")
        for layout in layouts_of(folder):
            number += 1
            part = torch.distributed.PrefixStore(f"layout{number}", store)
            learner = start(
                cases.settings(folder, ranks=2, megatron=LAYOUTS[layout]),
                rank=rank,
                world_size=2,
                store=part,
            )
            got = cases.weights_of(learner)
            wrong = sorted(
                n
                for n in want.keys() | got.keys()
                if n not in want or n not in got or not torch.equal(want[n], got[n])
            )
            found[f"{folder.name} {layout}"] = wrong
            learner.close()
    (root / f"found.{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
