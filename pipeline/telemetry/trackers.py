"""Weights & Biases and TensorBoard: the numbers of every record, under `kind/name`, over the
rollout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.run.metrics import KINDS

_X_AXIS = {
    "train": "rollout_id",
    "eval": "rollout_id",
    "push": "policy_version",
    "engine": "wall_seconds",
    "wait": "wall_seconds",
}


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(`kind/name`, value) of every number; an eval's names carry the data set's, an engine's its
    engine's."""
    prefix = record["kind"]
    label = record.get({"eval": "name", "engine": "engine"}.get(prefix, ""))
    if label is not None:
        prefix = f"{prefix}/{label}"
    for name, value in record.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "time":
            yield f"{prefix}/{name}", value


class WandbSink:
    """WANDB_MODE, WANDB_API_KEY and so on work as everywhere; `offline` needs no network.

    A resumed run goes on in the same curve, at the step after its last. W&B takes nothing back: a
    run that lost rollouts in a crash begins a new curve, with what still holds in it."""

    def __init__(
        self,
        directory: Path,
        *,
        project: str,
        group: str | None,
        name: str,
        config: Mapping[str, Any],
        earlier: Sequence[Mapping[str, Any]] = (),
        rolled_back: bool = False,
    ) -> None:
        """`earlier`: the records that hold of the run's life before; `rolled_back`: there were
        others, which do not."""
        import wandb

        # console="off": wandb would otherwise wrap stdout, which the live view draws on
        settings = wandb.Settings(console="off", silent=True)
        self._run = wandb.init(
            dir=str(directory),
            project=project,
            group=group,
            name=name,
            id=_run_id(directory, new=rolled_back),
            resume="allow",
            config=dict(config),
            settings=settings,
        )
        for kind in KINDS:
            axis = f"{kind}/{_X_AXIS[kind]}"
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{kind}/*", step_metric=axis)
        self._step = 0  # one a record: offline, W&B does not know where an earlier life ended
        if rolled_back:
            for record in earlier:
                self.write(record)
        self._step = len(earlier)

    def write(self, record: Mapping[str, Any]) -> None:
        values = dict(numbers(record))
        axis = _X_AXIS[record["kind"]]
        if record.get(axis) is not None:
            values[f"{record['kind']}/{axis}"] = record[axis]
        if values:
            self._run.log(values, step=self._step)
        self._step += 1

    def close(self) -> None:
        """Returns when the data are on disk and W&B's own process is gone: `finish` alone waits for
        neither."""
        import wandb

        self._run.finish()
        wandb.teardown()


def _run_id(directory: Path, *, new: bool) -> str:
    """One W&B run per run directory, told apart from runs of the same name elsewhere."""
    file = directory / "wandb-id"
    if new or not file.exists():
        import uuid

        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()


class TensorBoardSink:
    """Event files, by TensorBoard's own writer: needs neither torch nor TensorFlow."""

    def __init__(self, directory: Path, *, earlier: Sequence[Mapping[str, Any]] = ()) -> None:
        """`earlier`: the records that hold of the run's life before. What the event files say
        beyond them is taken out."""
        from tensorboard.summary import Writer

        from pipeline.telemetry.event_files import keep_only

        directory.mkdir(parents=True, exist_ok=True)
        keep_only(directory, newest_steps(earlier))
        self._engine_step = sum(record["kind"] == "engine" for record in earlier)
        self._writer = Writer(str(directory))

    def write(self, record: Mapping[str, Any]) -> None:
        axis = _X_AXIS[record["kind"]]
        step = record.get(axis)
        if step is None or axis == "wall_seconds":
            step = self._engine_step = self._engine_step + 1
        for tag, value in numbers(record):
            self._writer.add_scalar(tag, value, step, wall_time=record.get("time"))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def newest_steps(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """By kind, the highest step of the records; -1 of a kind whose steps none of them has."""
    steps = dict.fromkeys((kind for kind in KINDS if kind != "engine"), -1)
    for record in records:
        kind = record["kind"]
        if kind in steps and isinstance(step := record.get(_X_AXIS[kind]), int):
            steps[kind] = max(steps[kind], step)
    return steps
