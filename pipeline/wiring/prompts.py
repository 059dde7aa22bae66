"""Where a run's prompts come from."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

from pipeline.core.protocols import Source
from pipeline.wiring.backend import Backend
from pipeline.wiring.context import RunContext
from pipeline.wiring.supervised import make_supervision
from stages.source import Judge, PromptSource, UserSource, build_source, scored_by, taught_by


def make_source(site: RunContext, backend: Backend) -> Source:
    """--prompt-data, or the user's own source. A --mock run with neither gets sums, written into
    the run's folder so that they can be looked at."""
    if site.config.data.data_source_path is not None:
        args = SimpleNamespace(
            **vars(site.args),
            tokenizer=backend.tokenizer,
            open_prompt_data=lambda: _prompt_data(site, backend),
        )
        return UserSource(
            site.config.data.data_source_path, args, site.config.rollout.n_samples_per_prompt
        )
    if site.config.data.prompt_data is not None:
        return _prompt_data(site, backend)
    path = site.run_dir.path / "prompts.jsonl"
    rows = [
        {"prompt": f"{a} + {b} =", "label": str(a + b), "metadata": {"rm_type": "exact_match"}}
        for a in range(20)
        for b in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return build_source(
        str(path),
        replace(site.config.data, label_key="label"),
        site.config.rollout.n_samples_per_prompt,
        None,
        backend.tokenizer,
    )


def _prompt_data(site: RunContext, backend: Backend) -> PromptSource:
    return build_source(
        site.config.data.prompt_data,
        site.config.data,
        site.config.rollout.n_samples_per_prompt,
        backend.max_prompt_len,
        backend.tokenizer,
        judge=_judge(site, backend),
    )


def _judge(site: RunContext, backend: Backend) -> Judge:
    """What judges the rows of a file: can they be scored, or taught?"""
    supervision = make_supervision(site, backend)
    if supervision is None:
        return scored_by(site.config.reward)
    return taught_by(supervision, rendered=site.config.data.apply_chat_template)
