"""A run whose learner dies at a chosen moment: it is restored, the buffer goes back with it, and
everything that was generated is trained on exactly once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from configs.command_line.loader import load_config
from pipeline.core.errors import LearnerError, LearnerLostError
from pipeline.core.types import Admission
from pipeline.run.record_file import current_records, read_records
from pipeline.run.runner import Runner, leaves
from pipeline.wiring import FAMILIES, build
from train_async import train

ROLLOUTS, GROUPS = 9, 2


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.write_report", lambda *_args, **_kwargs: None)


class Mortal:
    """The learner, its transport and its restore, which die at the moments that `deaths` names:
    "step 3", "save 4", "stage 2", "deliver 5", "load 4"; of a moment that is named twice, twice."""

    def __init__(self, run: Runner, deaths: tuple[str, ...]) -> None:
        self.inner, self.transport = run._p.learner, run._p.transport
        self.revive = run._p.restore_learner
        self.deaths, self.dead = list(deaths), ""
        self.restored: list[str | None] = []  # from which checkpoints
        self.clock = run._p.clock
        self.lives_until: asyncio.Event | None = None  # whatever the moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def at(self, moment: str) -> None:
        if moment in self.deaths:
            self.deaths.remove(moment)
            self.dead = moment
        if self.dead:
            raise LearnerLostError(f"learner rank 0 (pid 7) died at {self.dead}")

    async def step(self, batch: Any) -> Any:
        result = await self.inner.step(batch)
        if self.lives_until is not None and f"step {batch.rollout_id}" in self.deaths:
            await self.lives_until.wait()
        self.at(f"step {batch.rollout_id}")
        return result

    async def save(self, path: Path, hf: Path | None) -> None:
        self.at(f"save {int(path.name.split('_')[1])}")
        await self.inner.save(path, hf)

    async def stage(self, policy_version: int) -> None:
        self.at(f"stage {policy_version}")
        await self.transport.stage(policy_version)
        self.staged = policy_version

    async def deliver(self) -> Any:
        self.at(f"deliver {self.staged}")
        return await self.transport.deliver()

    async def restore(self, snapshot: Path | None) -> None:
        self.dead = ""
        self.restored.append(None if snapshot is None else snapshot.name)
        await self.revive(snapshot)
        self.at(f"load {self.inner.num_steps}")


def mortal_run(
    tmp_path: Path, *deaths: str, more: str = "", on: bool = True, buffer_size: int = 2
) -> tuple[Runner, Mortal]:
    words = (
        f"--mock --num-rollout {ROLLOUTS} --rollout-batch-size {GROUPS} --n-samples-per-prompt 2"
        " --mock-step-seconds 0.001 --mock-seconds-per-token 0.0002"
        f" --async-buffer-size {buffer_size} --rollout-num-gpus 2"
        f" {'--use-fault-tolerance' if on else ''} {more}"
    )
    config = load_config(
        [*words.split(), "--runs-dir", str(tmp_path), "--name", "m"], families=FAMILIES
    )
    run = build(config)
    mortal: Any = Mortal(run, deaths)
    parts = dataclasses.replace(
        run._p, learner=mortal, transport=mortal, restore_learner=mortal.restore
    )
    return Runner(parts), mortal


def check(tmp_path: Path, *, restores: int, most_puts: int = 1) -> list[dict[str, Any]]:
    """What holds after every run that came to its end. Returns its records."""
    entries, torn = read_journal(tmp_path / "m" / "buffer" / FILE_NAME)
    ledger = Ledger(entries)
    totals = ledger.totals()
    assert torn == 0 and ledger.num_restores == restores
    assert (totals["lost"], totals["duplicated"]) == (0, 0)
    assert totals["trained"] == ROLLOUTS * GROUPS
    prompts = [a.prompt_index for a in ledger.accounts.values() if a.consumed]
    assert len(set(prompts)) == len(prompts) == ROLLOUTS * GROUPS
    assert max(a.times_put for a in ledger.accounts.values()) <= most_puts, "generated twice"
    assert all(a.committed_by for a in ledger.accounts.values() if a.consumed)
    versions = [e["v"] for e in entries if e["t"] == "push"]
    assert versions == sorted(set(versions)), "a version number was used twice, or went back"
    rows = current_records(read_records(tmp_path / "m" / "metrics.jsonl"))
    train = [r for r in rows if r["kind"] == "train"]
    assert [r["rollout_id"] for r in train] == list(range(ROLLOUTS))
    used = [r["policy_version"] for r in train]
    assert used == sorted(used)
    for r in train:
        assert r["num_groups_beyond_bound"] == r["num_groups_beyond_bound_recalled"]
        assert r["staleness_max"] <= r["staleness_bound"] or r["num_groups_beyond_bound"]
    return rows


@pytest.mark.parametrize(
    ("death", "origin"),
    [
        ("step 0", None),
        ("step 2", None),
        ("save 4", None),
        ("step 4", "rollout_000004"),
        ("step 7", "rollout_000004"),
        ("step 8", "rollout_000008"),
        ("stage 3", None),
        ("stage 6", "rollout_000004"),
        ("deliver 2", None),
        ("deliver 7", "rollout_000004"),
        ("save 9", "rollout_000008"),
    ],
)
@pytest.mark.parametrize("overlap", ["", "--no-overlap-push"])
async def test_it_is_restored_and_everything_is_trained_once(
    tmp_path: Path, death: str, origin: str | None, overlap: str
) -> None:
    run, mortal = mortal_run(tmp_path, death, more=f"--save-interval 4 {overlap}")
    await train(run)
    assert mortal.restored == [origin] and mortal.deaths == []
    rows = check(tmp_path, restores=1)
    steps = sum(r["num_optimizer_steps"] for r in rows if r["kind"] == "train")
    assert mortal.inner.num_steps == steps, "the weights are not those of the rollouts trained"
    (restore,) = [r for r in rows if r["kind"] == "learner"]
    assert restore["event"] == "restore" and death in restore["reason"]
    train_rows = [r for r in rows if r["kind"] == "train"]
    first = int((origin or "0").split("_")[-1])
    version = restore["policy_version"]
    if first < ROLLOUTS:
        assert train_rows[first]["policy_version"] == version
    for row in train_rows[first:]:  # the checkpoint's version is `first`: a push a rollout
        assert row["staleness_max"] <= row["staleness_bound"] + version - first


async def test_groups_under_way_are_kept_over_the_loss(tmp_path: Path) -> None:
    """Group 10 was admitted before the checkpoint and 17 after it. Both are sampled, and not yet
    complete, when the learner is lost: none is begun twice, and one may be beyond the bound."""
    run, mortal = mortal_run(
        tmp_path, "step 4", more="--save-interval 3 --max-staleness 4", buffer_size=4
    )
    producer: Any = run._p.producer
    made, make, rewind = Counter[int](), producer._make, producer.rewind
    begun, over = asyncio.Event(), asyncio.Event()
    mortal.lives_until = begun

    async def slow(admission: Admission, prompts: Any) -> Any:
        index = admission.group_index
        made[index] += 1
        group = await make(admission, prompts)
        if index == 17:
            begun.set()
        if index in (10, 17):
            await over.wait()
        return group

    def noted(state: Any) -> None:
        assert producer._under_way >= {10, 17} and 17 not in mortal.clock.outstanding
        rewind(state)
        over.set()

    producer._make, producer.rewind = slow, noted
    await train(run)
    rows = check(tmp_path, restores=1)
    assert mortal.restored == ["rollout_000003"]
    assert made == dict.fromkeys(range(ROLLOUTS * GROUPS), 1), "a group was begun twice"
    train_rows = [r for r in rows if r["kind"] == "train"]
    assert sum(r["num_groups_beyond_bound_recalled"] for r in train_rows) > 0


@pytest.mark.parametrize("durability", ["memory", "fsync"])
async def test_what_is_generated_again_is_what_the_buffer_did_not_keep(
    tmp_path: Path, durability: str
) -> None:
    run, _ = mortal_run(
        tmp_path, "step 5", more=f"--save-interval 4 --buffer-durability {durability}"
    )
    await train(run)
    check(tmp_path, restores=1, most_puts=2 if durability == "memory" else 1)


async def test_a_rollout_function_is_asked_again(tmp_path: Path) -> None:
    function = tmp_path / "mine.py"
    function.write_text(
        "from slipstream import Sample\n"
        "async def generate_rollout(args, rollout_id, data_source, evaluation=False):\n"
        "    groups = data_source.get_samples(args.rollout_batch_size)\n"
        "    for group in groups:\n"
        "        for sample in group:\n"
        "            sample.tokens, sample.response_length = [1, 2, 3], 2\n"
        "            sample.response, sample.reward = 'x', 1.0\n"
        "            sample.rollout_log_probs = [-0.5, -0.5]\n"
        "            sample.status = Sample.Status.COMPLETED\n"
        "    return groups\n"
    )
    run, mortal = mortal_run(
        tmp_path,
        "step 5",
        more=f"--save-interval 4 --rollout-function-path {function}:generate_rollout",
    )
    await train(run)
    check(tmp_path, restores=1)
    assert mortal.restored == ["rollout_000004"]


async def test_one_that_dies_while_it_is_restored_is_restored_again(tmp_path: Path) -> None:
    run, mortal = mortal_run(tmp_path, "step 5", "load 4", "stage 7", more="--save-interval 4")
    await train(run)
    check(tmp_path, restores=2)  # of the second learner nothing was given to anybody
    assert mortal.restored == ["rollout_000004"] * 3


async def test_engines_versions_never_go_back(tmp_path: Path) -> None:
    run, mortal = mortal_run(tmp_path, "deliver 3", "step 7", more="--save-interval 4")
    pool, seen = mortal.transport._pool, []
    end_push = pool.end_push

    def noted(endpoint: str, version: int | None) -> None:
        end_push(endpoint, version)
        seen.append((endpoint, pool.version_of(endpoint)))

    pool.end_push = noted
    await train(run)
    check(tmp_path, restores=2)
    for endpoint in pool.endpoints:
        versions = [v for e, v in seen if e == endpoint]
        assert versions == sorted(versions) and len(versions) > ROLLOUTS


async def test_when_its_restores_are_used_up_the_run_ends_and_says_so(tmp_path: Path) -> None:
    run, mortal = mortal_run(
        tmp_path, *["step 5"] * 3, more="--save-interval 2 --learner-restarts 2"
    )
    with pytest.raises(BaseException) as caught:
        await train(run)
    (error,) = [e for e in leaves(caught.value) if isinstance(e, LearnerError)]
    assert "restored 2 times before (--learner-restarts 2)" in str(error)
    assert "died at step 5" in str(error) and f"--load {tmp_path / 'm'}" in str(error)
    assert mortal.restored == ["rollout_000004"] * 2


async def test_without_the_flag_the_run_ends_as_ever(tmp_path: Path) -> None:
    run, mortal = mortal_run(tmp_path, "step 5", more="--save-interval 2", on=False)
    with pytest.raises(BaseException) as caught:
        await train(run)
    (error,) = [e for e in leaves(caught.value) if isinstance(e, LearnerError)]
    assert "died at step 5" in str(error) and "The batch is kept in" in str(error)
    assert mortal.restored == []


async def test_a_refused_step_is_no_loss(tmp_path: Path) -> None:
    run, mortal = mortal_run(tmp_path, more="--save-interval 2")
    step = mortal.inner.step

    async def refuses(batch: Any) -> Any:
        if batch.rollout_id == 3:
            raise LearnerError("loss is not finite")
        return await step(batch)

    mortal.inner.step = refuses
    with pytest.raises(BaseException) as caught:
        await train(run)
    assert any("not finite" in str(e) for e in leaves(caught.value)) and mortal.restored == []
