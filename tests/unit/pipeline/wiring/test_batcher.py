"""From groups to batches: what the hooks of a rollout are given."""

from __future__ import annotations

from pathlib import Path

from buffers.encoded import encode_group
from configs.command_line.loader import load_config
from configs.schema import flat_args
from pipeline.core.types import Group, Sample
from pipeline.wiring import FAMILIES
from pipeline.wiring.batcher import MOST_DROPPED, Batcher

HOOK = "def process_all_samples(args, all_groups, data_source):\n"
HOOK += "    data_source.append([group[0].index for group in all_groups])\n"


def test_of_dropped_groups_the_newest_are_kept(tmp_path: Path) -> None:
    """A filter that drops everything does not fill the memory."""
    hook = tmp_path / "mine.py"
    hook.write_text(HOOK)
    config = load_config(
        [
            *("--mock", "--rollout-batch-size", "2"),
            *("--rollout-all-samples-process-path", str(hook)),
        ],
        families=FAMILIES,
    )
    seen: list[list[int]] = []  # what the hook takes for the data source
    batcher = Batcher(config, flat_args(config), seen)
    for index in range(2 * MOST_DROPPED + 3):
        group = Group(
            group_index=index, deadline=0, admitted_version=0, samples=(Sample(index=index),)
        )
        batcher.dropped(encode_group(group))
    batcher.rows(0, 0, [])
    batcher.rows(1, 0, [])
    assert seen == [[*range(3, 2 * MOST_DROPPED + 3)], []]
