"""The buffer's benchmark: what it measures is there, and comes back as it went in.

No figure is judged.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import buffer, buffer_open
from benchmarks.buffer_contenders import MemoryCopy, Slipstream
from benchmarks.buffer_load import Load, Times, check_same, figures, make_groups, ratio

SMALL = Load(num_samples=8, group_size=4, response_tokens=16, num_singles=3)


def test_payload_bytes_are_those_of_the_arrays() -> None:
    (first, *_), *_ = make_groups(SMALL, single=False)
    arrays: list[Any] = [
        first.tokens,
        first.loss_mask,
        first.rollout_log_probs,
        np.array(first.weight_versions, np.int64),
    ]
    assert SMALL.sample_bytes == sum(a.nbytes for a in arrays)


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize(("single", "sizes"), [(False, [4, 4]), (True, [1, 1, 1])])
def test_groups_of_a_round(single: bool, sizes: list[int], lists: bool) -> None:
    groups = make_groups(SMALL, single=single, lists=lists)
    assert [len(g) for g in groups] == sizes
    assert {type(s.tokens) for g in groups for s in g} == {list if lists else np.ndarray}


@pytest.mark.parametrize("name", ["tokens", "loss_mask", "rollout_log_probs"])
def test_a_changed_number_is_noticed(name: str) -> None:
    (put,) = make_groups(dataclasses.replace(SMALL, num_samples=4), single=False)
    changed = getattr(put[2], name).copy()
    changed[5] += 1
    check_same(put, put)
    with pytest.raises(RuntimeError, match="not what was put"):
        check_same(put, [*put[:2], dataclasses.replace(put[2], **{name: changed}), put[3]])
    with pytest.raises(RuntimeError, match="4 samples put, 3 got"):
        check_same(put, put[:3])


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("durability", ["memory", "process", "fsync"])
async def test_the_buffer_gives_back_what_it_was_given_and_frees_it(
    tmp_path: Path, durability: Any, single: bool
) -> None:
    contender = Slipstream(
        tmp_path, durability, SMALL, single=single, lists=durability == "process"
    )
    for _ in range(3):
        times = await contender.round(check=True)
        assert times.put > 0 and times.get > 0
    statistics = contender._buffer.statistics()
    assert statistics.num_taken == 3 * (
        SMALL.num_singles if single else SMALL.num_samples // SMALL.group_size
    )
    assert statistics.num_bytes == 0 and statistics.num_segments <= 1
    contender.close()


async def test_the_copy_moves_as_many_bytes_as_a_round_has() -> None:
    for single, pieces in ((False, 1), (True, SMALL.num_singles)):
        copy = MemoryCopy(SMALL, single=single)
        await copy.round()
        assert all(
            np.array_equal(target, source)
            for target, source in zip(copy._targets, copy._sources, strict=True)
        )
        samples = SMALL.num_singles if single else SMALL.num_samples
        assert pieces * copy._targets[0].nbytes == samples * SMALL.sample_bytes


def test_rates_and_ratios() -> None:
    found = figures(
        [Times(put=1.0, get=4.0), Times(put=2.0, get=2.0), Times(put=4.0, get=8.0)],
        num_samples=8,
        sample_bytes=10**9,
    )
    assert found["put"] == {
        "samples_per_second": 4,
        "samples_per_second_best": 8,
        "gb_per_second": 4,
        "gb_per_second_best": 8,
    }
    assert found["get"] == {
        "samples_per_second": 2,
        "samples_per_second_best": 4,
        "gb_per_second": 2,
        "gb_per_second_best": 4,
    }
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == 3.0, (
        "the median of quotients, not the quotient of medians"
    )


def test_transfer_queue_is_held_to_fifty() -> None:
    rounds = {
        mode: {
            "memory copy": [Times(put=1.0, get=1.0)],
            **{f"slipstream {d}": [Times(put=2.0, get=3.0)] for d in buffer.DURABILITIES},
            buffer.TRANSFER_QUEUE: [Times(put=98.0, get=1.0)],
        }
        for mode in buffer.MODES
    }
    assert buffer.aims(rounds)["single put over TransferQueue's, process"] == {
        "aim": ">= 50",
        "found": 49.0,
        "met": False,
    }
    assert buffer.aims(rounds)["batched get over the memory copy"] == {
        "aim": ">= 0.5",
        "found": 1 / 3,
        "met": False,
    }


def test_quick_run_without_ray(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = buffer.main(["--quick", "--no-ray", "--open-samples", "80", "--directory", str(tmp_path)])
    names = [
        "memory copy",
        "slipstream memory",
        "slipstream process",
        "slipstream fsync",
        "slipstream process, from lists",
    ]
    assert [list(out[mode]) for mode in buffer.MODES] == [names, names]
    assert all(
        side["samples_per_second_best"] >= side["samples_per_second"] > 0
        for n in names
        for side in out["single"][n].values()
    )
    assert (
        out["transferqueue"].startswith("not installed") and "pip install" in out["transferqueue"]
    )
    assert not any("TransferQueue" in name for name in out["aims"]), "no figure without it"
    (row,) = out["open"]
    assert (row["samples"], row["entries"]) == (80, 1 + 2 * 80 // buffer_open.GROUP_SIZE)
    assert "kept in" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "nothing stays behind"


def test_transfer_queue_that_fails_says_so(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="no such module"):
        buffer.transfer_queue(str(python), SMALL, 1, 1)
