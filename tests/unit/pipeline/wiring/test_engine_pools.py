"""What a run asks of its cluster, and the key that its engines are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema import Config
from pipeline.core.engine_auth import engine_headers
from pipeline.schedule.placement import Wanted
from pipeline.wiring import engines
from pipeline.wiring.context import RunContext


def site(config: Config) -> RunContext:
    return RunContext(
        config=config,
        args=SimpleNamespace(),
        run_dir=SimpleNamespace(path=Path("runs/x")),  # type: ignore[arg-type]
        resumed=SimpleNamespace(home=None),  # type: ignore[arg-type]
        state=None,
        clock=SimpleNamespace(),  # type: ignore[arg-type]
        time=SimpleNamespace(),  # type: ignore[arg-type]
    )


def with_cluster(**flags: Any) -> Config:
    return replace(Config(), cluster=replace(Config().cluster, **flags))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What pools are made of."""
    out: list[Wanted] = []

    def pools(wanted: Wanted, **_: Any) -> None:
        out.append(wanted)

    monkeypatch.setattr(engines, "Pools", pools)
    return out


def test_a_run_asks_for_its_ranks_and_engines(asked: list[Wanted]) -> None:
    config = with_cluster(
        actor_num_nodes=2,
        actor_num_gpus_per_node=8,
        rollout_num_gpus=16,
        rollout_num_gpus_per_engine=4,
        num_gpus_per_node=8,
    )
    engines.make_pools(site(config), "cuda")
    assert asked == [
        Wanted(
            actor_num_nodes=2, actor_num_gpus_per_node=8, engines=(4, 4, 4, 4), num_gpus_per_node=8
        )
    ]


def test_a_teacher_is_one_more_engine_and_somebody_elses_are_none(asked: list[Wanted]) -> None:
    config = with_cluster(rollout_num_gpus=2)
    taught = replace(config, distill=replace(config.distill, use_opd=True, opd_teacher_load="t"))
    engines.make_pools(site(taught), "cpu")
    outside = with_cluster(rollout_external_engine_addrs=("10.0.0.7:30000",))
    engines.make_pools(site(outside), "cpu")
    only = replace(config, run=replace(config.run, debug_rollout_only=True))
    engines.make_pools(site(only), "cpu")
    assert [wanted.engines for wanted in asked] == [(1, 1, 1), (), (1, 1)]
    assert [wanted.actor_num_nodes for wanted in asked] == [1, 1, 0]


def test_engines_that_others_could_reach_are_given_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    alone = site(Config())
    assert engines.with_engine_key(alone) is alone
    joined = site(with_cluster(ray_address="10.0.0.1:6379"))
    first, second = engines.with_engine_key(joined), engines.with_engine_key(joined)
    keys = [engine_headers(made.config.sglang)["Authorization"] for made in (first, second)]
    assert keys[0] != keys[1] and all(len(key) > 40 for key in keys)
    assert keys[0].removeprefix("Bearer ") not in joined.config_text
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as a submitted job has it
    assert engine_headers(engines.with_engine_key(alone).config.sglang)


def test_a_key_of_the_users_own_is_kept() -> None:
    config = replace(with_cluster(ray_address="10.0.0.1:6379"), sglang={"api_key": "mine"})
    assert engines.with_engine_key(site(config)).config.sglang == {"api_key": "mine"}
