"""The user's functions on a Megatron rank, in slime's signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from megatron.core.models.gpt.gpt_model import GPTModel

from configs.hooks import load_hook
from configs.schema import flat_args
from pipeline.core.errors import ConfigError
from stages.learn.settings import LearnerSettings

if TYPE_CHECKING:
    from stages.learn.megatron.assemble import RankParts

REFERENCE_PREFIX = "ref_"  # of what slime stores for the reference model


class MegatronHooks:
    """Raises ConfigError for one that cannot be loaded; each call raises UserFunctionError."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._args = flat_args(settings.config)
        self._provider_path = settings.model.custom_model_provider_path
        self._init = _load("custom_megatron_init_path", settings)
        self._model_provider = _load("custom_model_provider_path", settings)
        self._before_log_prob = _load("custom_megatron_before_log_prob_hook_path", settings)
        self._before_step = _load("custom_megatron_before_train_step_hook_path", settings)

    def initialised(self) -> None:
        """The process groups are there, and no model yet."""
        if self._init is not None:
            self._init(self._args)

    def chunk(self, build: Callable[..., GPTModel], **place: Any) -> GPTModel:
        """One part of the model, as `build` makes it where no function of the user's does.

        `place`: pre_process, post_process, vp_stage. Raises ConfigError for what is no GPTModel."""
        if self._model_provider is None:
            return build()
        taken = inspect.signature(self._model_provider).parameters
        everything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        given = {"build": build, **place}
        made = self._model_provider(**{n: v for n, v in given.items() if everything or n in taken})
        if not isinstance(made, GPTModel):
            raise ConfigError(
                f"--custom-model-provider-path {self._provider_path}: expected a Megatron-core"
                f" GPTModel, got {type(made).__name__}; begin with build()"
            )
        return made

    def before_log_probs(self, built: RankParts, store_prefix: str) -> None:
        if self._before_log_prob is not None:
            self._before_log_prob(self._args, built.ddp, store_prefix)

    def before_step(self, built: RankParts, rollout_id: int, step_id: int) -> None:
        if self._before_step is not None:
            self._before_step(
                self._args, rollout_id, step_id, built.ddp, built.optimizer, built.scheduler
            )


def _load(field: str, settings: LearnerSettings) -> Callable[..., Any] | None:
    spec = getattr(settings.model, field)
    return None if spec is None else load_hook(field, spec)
