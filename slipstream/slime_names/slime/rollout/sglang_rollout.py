"""What generate functions share."""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from pipeline.core.slime_names import refuse

from ..utils.processing_utils import load_processor, tokenizer_of

__getattr__ = refuse("slime.rollout.sglang_rollout")


class _OneALoop(type):
    """Made once for a running event loop, whose semaphores it holds."""

    def __call__(cls, args: Any) -> Any:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return super().__call__(args)
        return _MADE.get(loop) or _MADE.setdefault(loop, super().__call__(args))


_MADE: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()


class GenerateState(metaclass=_OneALoop):
    """`tokenizer`, `processor` (None for a model of text), `semaphore` over the engines' slots,
    `sampling_params` as the flags say."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.tokenizer = tokenizer_of(args)
        self.semaphore = asyncio.Semaphore(
            args.sglang_server_concurrency * max(1, args.rollout_num_engines)
        )
        self.sampling_params: dict[str, Any] = {
            "temperature": args.rollout_temperature,
            "top_p": args.rollout_top_p,
            "top_k": args.rollout_top_k,
            "max_new_tokens": args.rollout_max_response_len,
            "stop": args.rollout_stop,
            "stop_token_ids": args.rollout_stop_token_ids,
            "skip_special_tokens": args.rollout_skip_special_tokens,
            "no_stop_trim": True,
            "spaces_between_special_tokens": False,
        }
        self.reset()

    @cached_property
    def processor(self) -> Any:
        return (
            None if getattr(self.args, "mock", False) else load_processor(self.args.hf_checkpoint)
        )

    def reset(self) -> None:
        self.remaining_batch_size, self.aborted = 0, False
        self.pendings: set[asyncio.Task[Any]] = set()


def get_model_url(args: Any, model_name: str, endpoint: str = "/generate") -> str:
    """There is one router, in front of the policy's engines."""
    return f"http://{args.sglang_router_ip}:{args.sglang_router_port}{endpoint}"
