"""Run by test_sent_weights in four processes: every layout in turn, what each rank sends as
safetensors, what it took and what it holds of the model as JSON.

Cases of two ranks run on two pairs of processes side by side. usage: sent_ranks.py RANK PORT MODELS
OUT [CASE...]"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.integration.learn.layouts import CASES, WORLD

NAMES = (
    *("tp2-pp2", "pp2-ep2", "pp2", "pp2-vpp2", "dp2", "cp2"),
    *("ep2", "tp2-sp-ep2", "tp2-sp-etp1", "etp2", "cp2-ep2"),
)
MAX_BYTES = 128 << 10  # of a bucket; no weight of the models has more than half of it


class Alive(TorchDispatchMode):
    """Counts the memory that operations make and somebody still holds, by no means of the product's
    own: a view holds what it is a view of."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._holders: Counter[int] = Counter()  # of each storage, by address

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._see(tensor, is_new=_address(tensor) not in given)
        return out

    def _see(self, tensor: torch.Tensor, *, is_new: bool) -> None:
        address, size = _address(tensor), tensor.untyped_storage().nbytes()
        if not size or not (is_new or self._holders[address]):
            return
        if not self._holders[address]:
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)
        self._holders[address] += 1
        weakref.finalize(tensor, self._let_go, address, size)

    def _let_go(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            self.bytes -= size


def _address(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def main(process: int, port: int, models: Path, out: Path, names: list[str]) -> None:
    from stages.learn.megatron import load

    load()
    torch.set_num_threads(1)
    from stages.learn.rendezvous import join_store

    two = 0
    for name in names or NAMES:
        case = CASES[name]
        if case.ranks == 2:
            two += 1
            if process // 2 != two % 2:
                continue
        store = torch.distributed.PrefixStore(name, join_store("127.0.0.1", port, WORLD))
        rank = process % case.ranks
        faulthandler.dump_traceback_later(200, exit=True)  # a collective that not all ranks reached
        try:
            result = run(name, rank, store, models, out / f"{name}.{rank}.safetensors")
        except Exception:  # of this case only; its other ranks see their peer leave
            result = {"error": traceback.format_exc()}
        (out / f"{name}.{rank}.json").write_text(json.dumps(result))


def run(name: str, rank: int, store: Any, models: Path, file: Path) -> dict[str, Any]:

    from stages.learn.megatron.learner import MegatronRank
    from stages.publish.sender import BroadcastSender
    from tests.integration.learn import learner_cases as cases

    case = CASES[name]
    settings = cases.settings(
        models / case.model, ranks=case.ranks, megatron=dict(case.flags), **cases_optim(case)
    )
    learner = MegatronRank(settings, rank=rank, world_size=case.ranks, store=store)
    try:
        sender = BroadcastSender(
            learner.sent_weights, learner.export_hf, learner.device, learner.describe_sent
        )
        metas = sender.describe()
        result: dict[str, Any] = {"held": held(learner)}
        for copy in (True, False):
            result |= gathered(sender, metas, file if copy else None, copy=copy)
        learner.publish_hf(file.with_name(name))
        return result
    finally:
        learner.close()


def cases_optim(case: Any) -> dict[str, Any]:
    from configs.schema import OptimConfig

    return {"optim": OptimConfig(**case.optim)}


def held(learner: Any) -> list[str]:
    """Hugging Face names of the weights that this rank has a part of."""
    bridge = learner._built.bridge
    return [
        n
        for model in learner._built.models
        for agreed in bridge.names(model).values()
        for n in bridge.hf_names(agreed)
    ]


def gathered(sender: Any, metas: list[Any], file: Path | None, *, copy: bool) -> dict[str, Any]:
    """Gathers into buckets, as a push does; without a copy another thread takes them meanwhile."""
    import threading

    from safetensors.torch import save_file

    from stages.publish.buckets import split
    from tests.unit.stages.publish.unflatten import unflatten

    buckets = split(metas, MAX_BYTES if copy else MAX_BYTES // 2)
    sender.begin(buckets, copy=copy)
    weights: dict[str, torch.Tensor] = {}

    def take() -> None:
        for i, bucket in enumerate(buckets):
            weights.update(unflatten(bucket, sender._gathered.take(i, 60.0)))
            sender._gathered.done(i)

    taker = threading.Thread(target=take)
    if not copy:
        taker.start()
    with Alive() as alive:
        sender.gather()
    if copy:
        take()
        assert file is not None
        save_file(weights, file)
    else:
        taker.join()
    kind = "copied" if copy else "streamed"
    return {
        f"{kind}_alive": alive.peak_bytes,
        f"{kind}_counted": sender.peak_bytes,
        f"{kind}_sum": sum(float(w.double().square().sum()) for w in weights.values()),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
