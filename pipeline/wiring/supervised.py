"""Given answers in the place of sampled ones (--loss-type sft_loss)."""

from __future__ import annotations

from dataclasses import replace

from pipeline.core.supervision import Supervision
from pipeline.wiring.backend import Backend
from pipeline.wiring.context import RunContext
from stages.generate.supervised import SupervisedGenerate


def make_supervision(site: RunContext, backend: Backend) -> Supervision | None:
    """How given answers become sequences; None where answers are sampled, or made by a user's
    function."""
    if not site.config.answers_are_given:
        return None
    assert backend.tokenizer is not None
    return Supervision(
        tokenizer=backend.tokenizer,
        loss_mask_type=site.config.data.loss_mask_type,
        max_tokens=site.config.rollout.rollout_max_context_len,
        template=site.config.data.template_arguments,
    )


def supervised(site: RunContext, backend: Backend) -> Backend:
    """The backend, whose engines (if any) generate for evaluations only where answers are given."""
    supervision = make_supervision(site, backend)
    if supervision is None:
        return backend
    generate = SupervisedGenerate(supervision, backend.generate, lambda: site.clock.policy_version)
    return replace(backend, generate=generate)
