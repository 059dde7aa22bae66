"""Weights & Biases and TensorBoard: the numbers of every record, under `kind/name`, over the
rollout; a rollout's histograms, and its samples as one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import TrackingConfig
from pipeline.core.format import number
from pipeline.core.histogram import Histogram
from pipeline.run.metrics import KINDS

_X_AXIS = {
    "train": "rollout_id",
    "eval": "rollout_id",
    "push": "policy_version",
    "engine": "wall_seconds",
    "learner": "wall_seconds",
    "wait": "wall_seconds",
    "sample": "rollout_id",
}
_COLUMNS = ("rollout_id", "reward", "status", "token_versions", "prompt", "response", "label")
TABLE = "sample/table"


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


def histograms(record: Mapping[str, Any]) -> Iterator[tuple[str, Histogram]]:
    """(`kind/histogram/name`, histogram) of a train record."""
    for name, value in (record.get("histograms") or {}).items():
        yield f"{record['kind']}/histogram/{name}", Histogram.from_dict(value)


def cells(sample: Mapping[str, Any]) -> list[str]:
    """A row of the table: policy versions as `3 x 17, 4 x 5`, version and tokens."""
    versions = ", ".join(f"{version} x {num}" for version, num in sample["token_versions"])
    shown = {**sample, "reward": number(sample["reward"]), "token_versions": versions}
    return ["" if shown[name] is None else str(shown[name]) for name in _COLUMNS]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown whose cells cannot break it."""
    out = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    for row in rows:
        plain = [escape(cell).replace("|", "&#124;").replace("\n", "<br>") for cell in cells(row)]
        out.append(" | ".join(plain))
    return "\n".join(f"| {line} |" for line in out)


class WandbSink:
    """Writes to Weights & Biases. WANDB_MODE, WANDB_API_KEY and so on work as everywhere; `offline`
    needs no network.

    A resumed run goes on in the same curve, at the step after its last. W&B takes nothing back: a
    run that lost rollouts in a crash begins a new curve, with what still holds in it."""

    def __init__(
        self,
        directory: Path,
        tracking: TrackingConfig,
        *,
        name: str,
        config: Mapping[str, Any],
        earlier: Sequence[Mapping[str, Any]] = (),
        rolled_back: bool = False,
    ) -> None:
        """`earlier`: the records that hold of the run's life before; `rolled_back`: there were
        others, which do not."""
        import wandb

        own = {"api_key": tracking.wandb_key, "base_url": tracking.wandb_host}
        # console="off": wandb would otherwise wrap stdout, which the live view draws on
        settings = wandb.Settings(
            console="off", silent=True, **{k: v for k, v in own.items() if v is not None}
        )
        files = Path(tracking.wandb_dir or directory)
        files.mkdir(parents=True, exist_ok=True)  # wandb takes a temporary one otherwise
        self._run = wandb.init(
            dir=str(files),
            entity=tracking.wandb_team,
            project=tracking.wandb_project,
            group=tracking.wandb_group,
            mode=tracking.wandb_mode,
            name=name,
            id=tracking.wandb_run_id or _run_id(directory, new=rolled_back),
            resume="allow",
            config=dict(config),
            settings=settings,
        )
        for kind in KINDS:
            axis = f"{kind}/{_X_AXIS[kind]}"
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{kind}/*", step_metric=axis)
        self._samples: list[Mapping[str, Any]] = []  # of the last train record
        # one a record (but samples): offline, W&B does not know where an earlier life ended
        self._step = 0
        if rolled_back:
            for record in earlier:
                self.write(record)
        self._step = len(earlier)

    def write(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "sample":
            self._samples.append(record)
            return
        values = {**dict(numbers(record)), **self._pictures(record), **self._table()}
        axis = _X_AXIS[record["kind"]]
        if record.get(axis) is not None:
            values[f"{record['kind']}/{axis}"] = record[axis]
        if values:
            self._run.log(values, step=self._step)
        self._step += 1

    def _pictures(self, record: Mapping[str, Any]) -> dict[str, Any]:
        import wandb

        return {
            name: wandb.Histogram(np_histogram=(np.array(found.counts), np.array(found.edges)))
            for name, found in histograms(record)
        }

    def _table(self) -> dict[str, Any]:
        """Of the samples said since the last one: logged with what comes next, over a rollout of
        its own."""
        import wandb

        rows, self._samples = self._samples, []
        if not rows:
            return {}
        table = wandb.Table(columns=list(_COLUMNS), data=[cells(row) for row in rows])
        return {TABLE: table, "sample/rollout_id": rows[0]["rollout_id"]}

    def close(self) -> None:
        """Returns when the data are on disk and W&B's own process is gone: `finish` alone waits for
        neither."""
        import wandb

        if table := self._table():
            self._run.log(table, step=self._step)
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
    """Writes event files in RUN_DIR/tensorboard."""

    def __init__(
        self, directory: Path, *, earlier: Sequence[Mapping[str, Any]] = (), shared: bool = False
    ) -> None:
        """`earlier`: the records that hold of the run's life before. What the event files say
        beyond them is taken out, unless they are `shared` with other runs."""
        from pipeline.telemetry.event_files import EventFile, keep_only

        directory.mkdir(parents=True, exist_ok=True)
        if not shared:
            keep_only(directory, newest_steps(earlier))
        self._engine_step = sum(_X_AXIS[record["kind"]] == "wall_seconds" for record in earlier)
        self._file = EventFile(directory)
        self._samples: list[Mapping[str, Any]] = []  # of the last train record

    def write(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "sample":
            self._samples.append(record)
            return
        self._write_table()
        axis = _X_AXIS[record["kind"]]
        step = record.get(axis)
        if step is None or axis == "wall_seconds":
            step = self._engine_step = self._engine_step + 1
        for tag, value in numbers(record):
            self._file.scalar(tag, value, step, record.get("time"))
        for tag, found in histograms(record):
            self._file.histogram(tag, found, step, record.get("time"))
        self._file.flush()

    def _write_table(self) -> None:
        rows, self._samples = self._samples, []
        if rows:
            self._file.text(TABLE, markdown(rows), rows[0]["rollout_id"], rows[0].get("time"))

    def close(self) -> None:
        self._write_table()
        self._file.close()


def newest_steps(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The highest step of the records, by kind; -1 where there is none. Kinds over time are left
    out, because no time comes twice."""
    steps = dict.fromkeys((kind for kind in KINDS if _X_AXIS[kind] != "wall_seconds"), -1)
    for record in records:
        kind = record["kind"]
        if kind in steps and isinstance(step := record.get(_X_AXIS[kind]), int):
            steps[kind] = max(steps[kind], step)
    steps["sample"] = steps["train"]  # samples are in a file of their own
    return steps
