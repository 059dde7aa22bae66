"""A model that sees, through the FSDP learner: packed samples with and without images against
transformers, one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import OptimConfig
from pipeline.core.errors import LearnerError
from pipeline.core.types import TrainSample
from tests.integration.learn import learner_cases as cases
from tests.integration.learn import vision_cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_cases.make_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[TrainSample]:
    return vision_cases.make_samples(folder)


@pytest.fixture
def rank(folder: Path) -> Iterator[Any]:
    from stages.learn.fsdp import start_rank

    settings = cases.settings(folder, optim=OptimConfig(), use_tis=True, train_backend="fsdp")
    learner = start_rank(settings)
    yield learner
    learner.close()


def log_probs_of(model: Any, sample: TrainSample) -> torch.Tensor:
    """[R], by transformers alone: its own positions, its own attention."""
    ids = torch.from_numpy(sample.tokens)[None]
    seen = {k: torch.from_numpy(np.array(v)) for k, v in (sample.multimodal or {}).items()}
    kinds = {"mm_token_type_ids": (ids == model.config.image_token_id).int()} if seen else {}
    with torch.no_grad():
        table = model(input_ids=ids, **kinds, **seen).logits[0].log_softmax(-1)
    first = sample.num_tokens - sample.response_length
    return torch.stack([table[t - 1, ids[0, t]] for t in range(first, sample.num_tokens)])


def test_packed_log_probs_equal_transformers(
    folder: Path, samples: list[TrainSample], rank: Any
) -> None:
    from transformers import AutoModelForImageTextToText

    from stages.learn.log_prob_pass import Prepared

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    step = cases.make_step(samples, micro_batches=2)
    packed = rank._pack(cases.share(step))
    found = rank.log_probs_now([Prepared(mb) for mb in packed])
    for mb, values in zip(packed, found, strict=True):
        parts = values.split(mb.token_counts.tolist())
        for index, got in zip(mb.sample_indices.tolist(), parts, strict=True):
            if index >= 0:
                torch.testing.assert_close(
                    got, log_probs_of(model, samples[index]), atol=2e-5, rtol=2e-5
                )


def test_a_blank_image_joins_text_where_others_see_and_changes_nothing(
    samples: list[TrainSample], rank: Any
) -> None:
    """Every rank's vision tower must run in every micro-batch of such a step, or the ranks would
    wait for one another."""
    text, seen = samples[3], samples[0]
    alone = rank._pack(cases.share(cases.make_step([text])))
    mixed = rank._pack(cases.share(cases.make_step([seen, text], micro_batches=2)))
    assert not alone[0].media and all("pixel_values" in mb.media for mb in mixed)
    assert mixed[1].token_counts.tolist() == [len(mixed[1].targets), 0]
    weights = cases.weights_of(rank)
    grads = []
    for batch in (alone, mixed[1:]):
        rank._zero_grad()
        from stages.learn.log_prob_pass import Prepared

        rank._run([Prepared(mb) for mb in batch], lambda _logits, now, _p: _outcome(now))
        grads.append(
            {
                n: p.grad.to_local().clone()
                for n, p in rank._model.named_parameters()
                if p.grad is not None
            }
        )
    # float32's rounding, which other processors' kernels do otherwise, beside each weight's largest
    assert all((grads[1][n] - g).abs().max() <= 1e-5 * g.abs().max() for n, g in grads[0].items())
    towers = [g for n, g in grads[1].items() if "visual" in n]
    assert towers and not any(g.any() for g in towers)  # they are there, and zero
    assert all(torch.equal(weights[n], t) for n, t in rank.hf_weights())


def _outcome(now: Any) -> Any:
    from stages.learn.objective import sft_objective

    return sft_objective(now, 1.0)


def test_both_towers_learn_and_what_does_not_fit_is_refused(
    samples: list[TrainSample], rank: Any
) -> None:
    before = cases.weights_of(rank)
    metrics = cases.step(rank, cases.make_batch(cases.make_step(samples, micro_batches=2)))
    assert metrics["grad_norm"] > 0
    after = cases.weights_of(rank)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("visual.patch_embed" in n for n in moved) and any(
        "language_model.layers.0" in n for n in moved
    )
    cut = dataclasses.replace(samples[0], tokens=samples[0].tokens[samples[0].tokens != 262])
    with pytest.raises(LearnerError, match="0 image placeholder tokens for 4 image tokens"):
        cases.step(rank, cases.make_batch(cases.make_step([cut])))
