"""Does a server that somebody else runs fit this run? What it says of itself, against what the run
would have told an engine of its own.

Pure, but for reading config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.engine.server_args import server_arg

SHAPE = ("hidden_size", "vocab_size", "num_hidden_layers")  # keys of config.json
# options of the server that are its owner's business
OWNERS = {"api_key", "admin_api_key", "host", "port", "log_level", "log_level_http"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalFit:
    """What the server must be."""

    model_path: Path  # the run's Hugging Face folder
    num_devices: int  # of one engine: its tensor x pipeline ranks
    overlap: bool  # does it sample ahead of its version label (SGLang's overlap scheduling)?
    returns_experts: bool = False
    user: Mapping[str, Any] = field(default_factory=dict)  # --sglang-*, as given

    def problems(self, says: Mapping[str, Any]) -> list[str]:
        """`says`: /server_info and /model_info together."""
        return [*self._model(says), *self._layout(says), *self._options(says)]

    def _model(self, says: Mapping[str, Any]) -> Iterator[str]:
        ours, path = _config(self.model_path), says.get("model_path")
        kind, its_kind = ours.get("model_type"), says.get("model_type")
        if kind and its_kind and kind != its_kind:
            yield f"it serves a {its_kind} ({path}), --hf-checkpoint {self.model_path} is a {kind}"
            return
        # Its shape is told by its own folder alone, which may be on another machine: then the first
        # push finds out.
        its = _config(Path(str(path)))
        for name in SHAPE:
            if name in ours and name in its and ours[name] != its[name]:
                yield (
                    f"its model {path} has {name} {its[name]}, --hf-checkpoint {self.model_path}"
                    f" has {ours[name]}"
                )

    def _layout(self, says: Mapping[str, Any]) -> Iterator[str]:
        if says.get("disaggregation_mode") in ("prefill", "decode"):
            yield f"it only does one half ({says['disaggregation_mode']}) of a request"
        devices = int(says.get("tp_size") or 1) * int(says.get("pp_size") or 1)
        if devices != self.num_devices:
            yield (
                f"it has {devices} devices (tp_size x pp_size), --rollout-num-gpus-per-engine says"
                f" {self.num_devices}: say --rollout-num-gpus-per-engine {devices}"
            )

    def _options(self, says: Mapping[str, Any]) -> Iterator[str]:
        if self.returns_experts and not says.get("enable_return_routed_experts"):
            yield (
                "--use-rollout-routing-replay needs a server that was started with"
                " --enable-return-routed-experts"
            )
        for name, value in self.user.items():
            option = server_arg(name).field
            if option in OWNERS or option not in says or option == "disable_overlap_schedule":
                continue
            if str(says[option]) != str(value):
                yield (
                    f"it runs with {option} {says[option]}, --sglang-{name.replace('_', '-')} says"
                    f" {value}"
                )
        if bool(says.get("disable_overlap_schedule")) == self.overlap:
            yield (
                "it runs with --disable-overlap-schedule: add --sglang-disable-overlap-schedule"
                if self.overlap
                else "its version labels are one token late under overlap scheduling: start it with"
                " --disable-overlap-schedule"
            )


def _config(folder: Path) -> Mapping[str, Any]:
    """The contents of config.json; empty where there is none to be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    return {**config, **(config.get("text_config") or {})}
