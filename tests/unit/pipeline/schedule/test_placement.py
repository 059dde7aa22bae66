"""Who goes where: neighbours share a node, engines are on as few nodes as possible, and what does
not fit is refused with what there is."""

from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError
from pipeline.schedule.placement import Node, Place, Plan, Wanted, plan, plan_engine, plan_learner


def nodes(*free: int, total: int = 8) -> list[Node]:
    """The first is the driver's."""
    return [
        Node(id=f"n{i}", address=f"10.0.0.{i + 1}", devices=total, free=f, is_driver=i == 0)
        for i, f in enumerate(free)
    ]


def wanted(num_nodes: int, each: int, *engines: int, **more: object) -> Wanted:
    return Wanted(
        actor_num_nodes=num_nodes,
        actor_num_gpus_per_node=each,
        engines=engines,
        **more,  # type: ignore[arg-type]
    )


def where(places: tuple[Place, ...]) -> list[tuple[str, int]]:
    return [(place.node.id, place.devices) for place in places]


def engines(made: Plan) -> list[list[tuple[str, int]]]:
    return [where(places) for places in made.engines]


def test_learner_and_engines_on_one_node() -> None:
    made = plan(nodes(8), wanted(1, 4, 2, 2))
    assert where(made.learner) == [("n0", 4)]
    assert engines(made) == [[("n0", 2)], [("n0", 2)]]
    assert [place.first for places in made.engines for place in places] == [4, 6]
    assert not made.spans_nodes


def test_the_learner_is_beside_the_driver_and_engines_elsewhere() -> None:
    made = plan(nodes(8, 8), wanted(1, 8, 4, 4))
    assert where(made.learner) == [("n0", 8)]
    assert engines(made) == [[("n1", 4)], [("n1", 4)]]
    assert made.spans_nodes


def test_a_learner_over_two_nodes_has_as_many_ranks_on_each() -> None:
    made = plan(nodes(8, 8, 8), wanted(2, 8, 8))
    assert where(made.learner) == [("n0", 8), ("n1", 8)]
    assert engines(made) == [[("n2", 8)]]


def test_the_learner_gives_way_where_an_engine_then_fits_on_one_node() -> None:
    made = plan(nodes(8, 4), wanted(1, 4, 8))
    assert (where(made.learner), engines(made)) == ([("n1", 4)], [[("n0", 8)]])


def test_an_engine_takes_the_tightest_node_so_that_wider_ones_fit() -> None:
    made = plan(nodes(8, 3, 8), wanted(1, 8, 2, 8))
    assert engines(made) == [[("n1", 2)], [("n2", 8)]]


def test_an_engine_wider_than_a_node_has_equal_shares_of_the_fewest() -> None:
    made = plan(nodes(8, 8, 8, 8), wanted(1, 8, 16))
    assert engines(made) == [[("n1", 8), ("n2", 8)]]
    assert where(plan_engine(nodes(2, 3, 2), 4) or ()) == [("n0", 2), ("n2", 2)]


def test_addresses_are_sorted_as_numbers() -> None:
    made = plan(
        [
            Node(id="a", address="10.0.0.10", devices=1, free=1),
            Node(id="b", address="10.0.0.9", devices=1, free=1),
        ],
        wanted(2, 1),
    )
    assert where(made.learner) == [("b", 1), ("a", 1)]


def test_colocated_engines_take_the_learners_devices_in_order() -> None:
    made = plan(nodes(8, 8), wanted(2, 4, 2, 2, 4, colocate=True))
    assert engines(made) == [[("n0", 2)], [("n0", 2)], [("n1", 4)]]
    assert [[p.rank for p in places] for places in made.engines] == [[0], [2], [4]]
    assert made.shared
    wide = plan(nodes(4, 4, total=4), wanted(2, 4, 8, colocate=True))
    assert engines(wide) == [[("n0", 4), ("n1", 4)]]


def test_devices_of_a_node_can_be_capped() -> None:
    made = plan(nodes(8, 8), wanted(1, 4, 4, num_gpus_per_node=4))
    assert engines(made) == [[("n1", 4)]]


def test_what_does_not_fit_is_refused_with_a_table() -> None:
    with pytest.raises(ConfigError) as refused:
        plan(nodes(8), wanted(1, 8, *[1] * 8))
    assert str(refused.value).splitlines() == [
        "the run does not fit: 16 devices were asked for: 1 x 8 for the learner (--actor-num-nodes"
        " x --actor-num-gpus-per-node) and 8 x 1 for the engines (--rollout-num-gpus,"
        " --rollout-num-gpus-per-engine); 8 are free:",
        "  node                 devices  free",
        "  10.0.0.1 (this one)        8     8",
        "Choose one: add nodes (`ray start --address ...`); share devices with --colocate",
    ]


def test_enough_that_is_not_side_by_side_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="enough are free, but not side by side"):
        plan(nodes(2, 2, 2), wanted(1, 4, 1))
    with pytest.raises(ConfigError, match="lower --rollout-num-gpus to 4 or less"):
        plan(nodes(4, 4), wanted(1, 4, 3, 3))


def test_no_room_for_a_replacement() -> None:
    assert plan_engine(nodes(1, 1), 4) is None
    assert plan_engine([], 1) is None


def test_a_learner_finds_room_anew_among_what_is_free() -> None:
    asked = wanted(2, 4, 2)
    assert where(plan_learner(nodes(2, 4, 8), asked) or ()) == [("n1", 4), ("n2", 4)]
    assert plan_learner(nodes(2, 4, 3), asked) is None
    few = wanted(2, 4, 2, num_gpus_per_node=3)
    assert plan_learner(nodes(8, 8), few) is None
