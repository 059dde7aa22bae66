"""The user's own functions: the flag that names each, its default name, and how it is called.

Everything else that speaks of them (checks at load, the places that call them,
docs/custom-functions.md) reads it here."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from configs.schema import Config
from pipeline.core.function_source import signature_of
from pipeline.core.user_errors import name_errors
from pipeline.core.userfn import load_function

BUILT_IN_FILTER = "zero_std"  # of --dynamic-sampling-filter-path


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One flag for a user's function."""

    section: str  # of Config
    field: str
    default_name: str  # where the flag names a file only
    forms: tuple[str, ...]  # as one writes it: `f(args, samples)`; the first is how it is called
    called: str  # when, in words
    style: Literal["plain", "async", "either", "class"] = "plain"
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of a class
    # what args has beside the flags
    extra_args: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return f"--{self.field.replace('_', '-')}"

    @property
    def expected(self) -> str:
        """The forms in words."""
        words = {"async": "async ", "either": "[async] "}.get(self.style, "")
        return " or ".join(words + form for form in self.forms)

    def path(self, config: Config) -> str | None:
        """What the flag names; None for none, and for what is built in."""
        given: str | None = getattr(getattr(config, self.section), self.field)
        is_built_in = self.field == "dynamic_sampling_filter_path" and given == BUILT_IN_FILTER
        return None if is_built_in else given


_ALL = (
    Hook(
        section="data",
        field="data_source_path",
        default_name="RolloutDataSource",
        forms=("f(args)",),
        called="for every group",
        style="class",
        methods={
            "get_samples": "f(num_samples)",
            "add_samples": "f(samples)",
            "save": "f(rollout_id)",
            "load": "f(rollout_id)",
        },
    ),
    Hook(
        section="rollout",
        field="custom_generate_function_path",
        default_name="generate",
        forms=(
            "f(args, sample, sampling_params)",
            "f(args, sample, sampling_params, evaluation)",
            "f(args, samples, evaluation=False)",
        ),
        called="for every sample",
        style="async",
        extra_args=("engine_client", "tokenizer", "context_length", "time", "vision"),
    ),
    Hook(
        section="reward",
        field="custom_rm_path",
        default_name="reward_func",
        forms=("f(args, sample)", "f(args, samples)"),
        called="for every sample, or group",
        style="either",
    ),
    Hook(
        section="rollout",
        field="dynamic_sampling_filter_path",
        default_name="keep",
        forms=("f(args, samples)",),
        called="for every scored group",
    ),
    Hook(
        section="async_",
        field="buffer_priority_path",
        default_name="priority",
        forms=("f(args, samples)",),
        called="for every group that comes into the buffer",
    ),
    Hook(
        section="async_",
        field="buffer_filter_path",
        default_name="buffer_filter",
        forms=("f(args, rollout_id, buffer, num_samples)",),
        called="when the learner takes a rollout",
    ),
    Hook(
        section="rollout",
        field="rollout_sample_filter_path",
        default_name="filter_samples",
        forms=("f(args, groups)",),
        called="on the groups taken",
    ),
    Hook(
        section="rollout",
        field="rollout_all_samples_process_path",
        default_name="process_all_samples",
        forms=("f(args, all_groups, data_source)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="custom_reward_post_process_path",
        default_name="post_process_rewards",
        forms=("f(args, samples)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="custom_convert_samples_to_train_data_path",
        default_name="convert_samples_to_train_data",
        forms=("f(args, samples)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="custom_advantage_function_path",
        default_name="compute_advantages",
        forms=("f(args, rollout_data)",),
        called="then",
    ),
    Hook(
        section="algorithm",
        field="custom_loss_function_path",
        default_name="loss_function",
        forms=("f(args, batch, logits, sum_of_sample_mean)",),
        called="for every micro-batch",
    ),
    Hook(
        section="algorithm",
        field="custom_tis_function_path",
        default_name="tis_function",
        forms=(
            "f(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths,"
            " response_lengths)",
        ),
        called="for every micro-batch",
    ),
)
HOOKS: Mapping[str, Hook] = {hook.field: hook for hook in _ALL}


def load_hook(field: str, spec: str) -> Callable[..., Any]:
    """The function that `spec` names for the hook `field`. Raises ConfigError.

    What one that is called without await raises comes as UserFunctionError.
    """
    hook = HOOKS[field]
    function = load_function(spec, hook.default_name)
    return name_errors(function, hook.flag, spec) if hook.style in ("plain", "class") else function


def can_be_called(signature: inspect.Signature, form: str) -> bool:
    """Does a call in this form fit? What is before the star is given by place, the rest by name."""
    parameters = signature_of(_parsed(form)).parameters.values()
    by_place = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        signature.bind(*by_place, **by_name)
    except TypeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class GenerateForm:
    """Which of a generate function's forms a signature has."""

    takes_list: bool
    takes_evaluation: bool


def generate_form(signature: inspect.Signature) -> GenerateForm | None:
    """None for no known form.

    The list form is the one whose second parameter is called `samples`, or whose third is
    `evaluation`."""
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = [p.name for p in parameters]
    takes_list = len(names) >= 2 and (names[1] == "samples" or names[2:3] == ["evaluation"])
    wanted = 2 if takes_list else 3
    required = [p.name for p in parameters if p.default is p.empty]
    if len(names) < wanted or set(required) - {*names[:wanted], "evaluation"}:
        return None
    return GenerateForm(takes_list, "evaluation" in names)


def _parsed(form: str) -> ast.FunctionDef:
    (node,) = ast.parse(f"def {form}: ...").body
    assert isinstance(node, ast.FunctionDef)
    return node
