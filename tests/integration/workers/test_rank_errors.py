"""What a user's function raises on a learner's rank reaches the driver with flag, file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import LearnerError, UserFunctionError
from pipeline.workers.learner_group import LearnerGroup
from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.filterwarnings("ignore")]


async def test_what_a_users_function_raises_on_one_rank_is_named_and_ends_all(
    tmp_path: Path,
) -> None:
    """The other rank, which waits for this one, is not waited for.

    The ranks find what lies beside the function, too: a helper, and a package named as ours."""
    model = cases.make_model("qwen3", tmp_path / "model", tied=True)
    file = tmp_path / "mine.py"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sizes.py").write_text("NAME = 'rollout_batch_size'\n")
    (tmp_path / "helper.py").write_text(
        "def size_of(args):\n    from configs.sizes import NAME\n    return getattr(args, NAME)\n"
    )
    file.write_text(
        "import torch, helper\n"
        "def loss_function(args, batch, logits, sum_of_sample_mean):\n"
        "    if torch.distributed.get_rank() == 1:\n"
        "        raise KeyError(helper.size_of(args))\n"
        "    return sum_of_sample_mean(batch['current_log_probs']), {}\n"
    )
    own = cases.settings(
        model, ranks=2, loss_type="custom_loss", custom_loss_function_path=str(file)
    )
    batch = cases.make_batch(
        *(cases.make_step(part, ranks=2, micro_batches=2) for part in cases.halves())
    )
    group = LearnerGroup(own)
    try:
        await group.start()
        with pytest.raises(UserFunctionError) as caught:
            await group.step(batch)
        said = f"--custom-loss-function-path {file} raised KeyError: 8 ({file} line 4)"
        assert str(caught.value) == said
        rank, traceback = caught.value.__notes__
        assert rank == "on learner rank 1" and f'File "{file}", line 4' in traceback
        with pytest.raises(LearnerError, match="rank 1 failed earlier"):
            await group.save(tmp_path / "never", None)
    finally:
        await group.close()
