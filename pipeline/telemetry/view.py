"""What the terminal shows, as plain state: records go in, lines of text come out.

Pure, so that both views and the tests share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pipeline.core.eval_figures import last_pass, with_interval
from pipeline.core.format import counted, duration, number, percent

Record = Mapping[str, Any]
BLOCKS = "▁▂▃▄▅▆▇█"
DOWN = ("death", "lost", "no_room")  # events after which an engine does not serve
_PACE_WINDOW = 20  # rollouts that the ETA looks back on


@dataclass(slots=True, kw_only=True)
class RunView:
    """The newest of everything, and the history that the sparkline and the ETA need."""

    name: str
    num_rollout: int
    run_dir: str = ""
    supervised: bool = False  # trained on given answers: its rewards say nothing
    course: list[float] = field(default_factory=list)  # of what is followed, rollout by rollout
    train: Record | None = None
    push: Record | None = None
    evals: dict[str, Record] = field(default_factory=dict)  # by data set
    engines: dict[str, str] = field(default_factory=dict)  # engine -> start | restart | death
    pool: Record | None = None  # the last engine record with event "stats"
    num_deaths: int = 0
    _intervals: deque[float] = field(default_factory=lambda: deque(maxlen=_PACE_WINDOW))

    def add(self, record: Record) -> None:
        match record["kind"]:
            case "train":
                self.train = record
                if self.followed is not None:
                    self.course.append(self.followed)
                if record.get("interval_seconds"):
                    self._intervals.append(record["interval_seconds"])
            case "push":
                self.push = record
            case "eval":
                self.evals[str(record.get("name", "eval"))] = record
            case "engine":
                self._add_engine(record)

    def _add_engine(self, record: Record) -> None:
        event = record.get("event")
        if event == "stats":
            self.pool = record
            return
        self.num_deaths += event == "death"
        if event == "drained":
            self.engines.pop(str(record.get("engine", "?")), None)
            return
        self.engines[str(record.get("engine", "?"))] = str(event)

    @property
    def num_trained(self) -> int:
        """How many rollouts are done, those before a resume included."""
        return self.train["rollout_id"] + 1 if self.train else 0

    @property
    def followed(self) -> float | None:
        """The newest loss of a supervised run, the mean reward of any other."""
        return (self.train or {}).get("loss" if self.supervised else "reward_mean")

    def eta_seconds(self) -> float | None:
        """The time left at the mean pace of the last rollouts; None before the first."""
        if not self._intervals:
            return None
        return (self.num_rollout - self.num_trained) * sum(self._intervals) / len(self._intervals)

    def engines_up(self) -> tuple[int, int]:
        """(healthy, all)"""
        if self.pool and self.pool.get("num_engines") is not None:
            return self.pool.get("num_healthy", self.pool["num_engines"]), self.pool["num_engines"]
        return sum(event not in DOWN for event in self.engines.values()), len(self.engines)


def plain_line(view: RunView) -> str:
    """One rollout in one line, for logs and pipes."""
    r = view.train or {}
    push = f"push {duration(view.push.get('seconds'))}" if view.push else None
    parts = [
        f"rollout {view.num_trained}/{view.num_rollout}",
        None if view.supervised else f"reward {number(r.get('reward_mean'))}",
        f"loss {number(r.get('loss'))}",
        (
            f"staleness p50 {number(r.get('staleness_p50'))} p99 {number(r.get('staleness_p99'))}"
            f" max {staleness_bound(r)}"
        ),
        f"buffer {fraction(r, 'buffer_ready', 'buffer_capacity')}" if "buffer_ready" in r else None,
        f"{number(r.get('tokens_per_second'))} tokens/s",
        (
            f"idle gen {percent(r.get('generation_idle_fraction'))} train"
            f" {percent(r.get('trainer_idle_fraction'))}"
        ),
        push,
        f"eta {duration(view.eta_seconds())}" if view.num_trained < view.num_rollout else None,
    ]
    return " | ".join(p for p in parts if p)


def event_line(record: Record) -> str | None:
    """An evaluation or an engine's event in one line; None for what is not worth one."""
    match record["kind"], record.get("event"):
        case "eval", _:
            if record.get("error"):
                name = f" {record['name']}" if record.get("name") else ""
                after = record.get("rollout_id")
                return f"eval{name} after {after} rollouts failed: {record['error']}"
            return (
                f"eval {record.get('name')}: reward {with_interval(record, 'reward_mean')}"
                f" ({eval_detail(record)})"
            )
        case "engine", ("start" | "death" | "restart" | "no_room" | "drained") as event:
            rest = {
                k: v
                for k, v in record.items()
                if k not in ("kind", "time", "event", "engine", "wall_seconds") and v is not None
            }
            detail = ", ".join(f"{k} {v}" for k, v in rest.items())
            return f"engine {record.get('engine', '?')}: {event}" + (
                f" ({detail})" if detail else ""
            )
    return None


def eval_detail(record: Record) -> str:
    """Which weights an evaluation had, and how many samples."""
    low, high = record.get("policy_version_min"), record.get("policy_version_max")
    version = f"version {low}" if low == high else f"versions {low}-{high}"
    failed = f", {record['num_failed']} failed" if record.get("num_failed") else ""
    passed = last_pass(record)
    more = f", {passed}" if passed else ""
    return f"{version}, {record.get('num_samples')} samples{failed}{more}"


def sparkline(values: Sequence[float], width: int, *, shares: bool = True) -> str:
    """The whole history in at most `width` characters (means of equal stretches).

    The scale is 0..1 where all values fit it and may be `shares`.
    """
    if not values or width < 1:
        return ""
    n = min(width, len(values))
    cuts = [round(i * len(values) / n) for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(values), max(values)
    if shares and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    span = high - low or 1.0
    return "".join(BLOCKS[min(int((m - low) / span * len(BLOCKS)), len(BLOCKS) - 1)] for m in means)


def fraction(record: Record, part: str, whole: str) -> str:
    return f"{number(record.get(part))}/{number(record.get(whole))}"


def staleness_bound(record: Record) -> str:
    """The largest staleness, its bound, and who is excused for being beyond it."""
    recalled = record.get("num_groups_beyond_bound_recalled")
    excused = f", but for {counted(recalled, 'recalled group')}" if recalled else ""
    bound = number(record.get("staleness_bound"))
    return f"{number(record.get('staleness_max'))} (bound {bound}{excused})"


def breaks_bound(record: Record) -> bool:
    """Is any group beyond the bound that no crash excuses?"""
    worst, bound = record.get("staleness_max"), record.get("staleness_bound")
    if worst is None or bound is None or worst <= bound:
        return False
    recalled = record.get("num_groups_beyond_bound_recalled", 0)
    return not recalled or record.get("num_groups_beyond_bound", 0) > recalled
