"""--agent-function-path: an agent of the user's in this process, `[async] agent(task, base_url,
api_key)`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from configs.hooks import HOOKS
from pipeline.core.threads import in_thread
from pipeline.core.user_errors import told
from stages.gateway.agents.task import Outcome
from stages.gateway.server import Access

HOOK = HOOKS["agent_function_path"]


class FunctionAgent:
    """An async one runs on the event loop, a plain one in a thread, where it may block."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(inspect.unwrap(function))

    async def __call__(self, task: dict[str, Any], access: Access, label: Any) -> Outcome:
        """What it returns is the reward; None: it is posted, or scored afterwards. It is told the
        label: nothing that the model does can read it."""
        given = ({**copy.deepcopy(task), "label": label}, access.base_url, access.token)
        with told(self._function, HOOK.flag):
            if self._is_async:
                return Outcome(reward=await self._function(*given))
            answer = await in_thread(lambda: self._function(*given))
            return Outcome(reward=await answer if isinstance(answer, Awaitable) else answer)
