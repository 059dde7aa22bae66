"""What `python -m pipeline buffer RUN_DIR ...` shows of a run's buffer: its accounts, its groups,
single samples, and checksums."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from buffers.decoding import from_batch
from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from buffers.segments import scan
from pipeline.cli.token_texts import TextOf, text_of_tokens
from pipeline.core.errors import BufferCorruption, DataError
from pipeline.core.format import number
from pipeline.core.types import Group, Sample
from pipeline.run.rundir import RunDir


def ledger_of(run: RunDir) -> tuple[Ledger, int]:
    """(the ledger, number of bytes of a torn last line)."""
    entries, torn = read_journal(run.buffer / FILE_NAME)
    return Ledger(entries), torn


def groups_of(run: RunDir) -> Iterator[tuple[Path, int, Group]]:
    """(file, offset, group) of everything that lies in the segments, verified."""
    for path in segments_of(run):
        for offset, batch in scan(path):
            yield path, offset, from_batch(batch)


def segments_of(run: RunDir) -> list[Path]:
    return sorted(run.buffer.glob("segment-*.arrow"))


def ledger_lines(run: RunDir, as_json: bool) -> Iterator[str]:
    ledger, torn = ledger_of(run)
    totals = {**ledger.totals(), "restores": ledger.num_restores, "torn_bytes": torn}
    if as_json:
        yield json.dumps({"totals": totals, "groups": ledger.rows()})
        return
    yield "  ".join(f"{name} {count}" for name, count in totals.items())
    for row in ledger.rows():
        consumed = (
            ", ".join(
                f"rollout {c['rollout']} at version {c['policy_version']}" for c in row["consumed"]
            )
            or "-"
        )
        void = f", {row['consumptions_void']} void" if row["consumptions_void"] else ""
        reason = f" ({row['reason']})" if row["reason"] else ""
        yield (
            f"group {row['group']:>6}  {row['fate']}{reason}  consumed {consumed}{void}  checkpoint"
            f" {row['committed_by'] or '-'}"
        )


def list_lines(run: RunDir, min_reward: float | None) -> Iterator[str]:
    """One line for every group that lies in the segments.

    `min_reward`: only groups whose mean reward is at least that."""
    fates = {g: a.fate for g, a in ledger_of(run)[0].accounts.items()}
    for path, offset, group in groups_of(run):
        rewards = [s.reward_value() for s in group.samples if isinstance(s.reward, float | int)]
        mean = sum(rewards) / len(rewards) if rewards else None
        if min_reward is not None and (mean is None or mean < min_reward):
            continue
        tokens, fate = (
            sum(s.response_length for s in group.samples),
            fates.get(group.group_index, "?"),
        )
        yield (
            f"group {group.group_index:>6}  {fate:<10} {len(group.samples)} samples  {tokens}"
            f" response tokens  reward {number(mean)}  {path.name}@{offset}"
        )


def show_lines(run: RunDir, group_index: int | None, place: int) -> Iterator[str]:
    """One sample, token by token: id, text, loss mask, rollout log-prob, policy version.

    `group_index`: default, the newest group that lies there.
    """
    group = None
    for _, _, each in groups_of(run):
        if group_index is None or each.group_index == group_index:
            group = each
    if group is None:
        what = "a group" if group_index is None else f"group {group_index}"
        raise DataError(
            f"{what} does not lie in {run.buffer}: it never came, or its segment is gone (see"
            " --keep-last-rollouts, --keep-trajectories)"
        )
    if not 0 <= place < len(group.samples):
        raise DataError(
            f"group {group.group_index} has samples 0..{len(group.samples) - 1}, not {place}"
        )
    sample = group.samples[place]
    yield (
        f"sample {sample.index} of group {group.group_index}: {sample.status}, reward"
        f" {sample.reward}, label {sample.label!r}"
    )
    yield f"prompt: {sample.prompt!r}"
    yield f"response: {sample.response!r}"
    text_of, source = text_of_tokens(run)
    yield f"tokens: {source}"
    yield from _token_lines(sample, text_of)


def _token_lines(sample: Sample, text_of: TextOf | None) -> Iterator[str]:
    length = sample.response_length
    versions: list[Any] = ["-"] * length
    for version, start, end in sample.weight_versions:
        versions[start:end] = [version] * (end - start)
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * length
    log_probs = (
        sample.rollout_log_probs if sample.rollout_log_probs is not None else [math.nan] * length
    )
    tokens = [int(token) for token in sample.tokens[len(sample.tokens) - length :]]
    texts = ["" if text_of is None else repr(text_of(token)) for token in tokens]
    width = max((len(text) for text in texts), default=0)
    yield f"{'token':>8} {'text' if width else '':<{width}} mask  log-prob version"
    for token, text, m, log_prob, version in zip(
        tokens, texts, mask, log_probs, versions, strict=True
    ):
        yield f"{token:>8} {text:<{width}} {int(m):>4} {float(log_prob):>9.4f} {version:>7}"


def verify_lines(run: RunDir) -> Iterator[str]:
    """Checks the checksums of all segments and of the journal.

    Raises BufferCorruption naming the first damage, after all were looked at."""
    damage: list[str] = []
    ledger, torn = ledger_of(run)
    yield f"{FILE_NAME}: {len(ledger.accounts)} groups" + (
        f", {torn} bytes of a torn last line" if torn else ""
    )
    for path in segments_of(run):
        count = 0
        try:
            for _ in scan(path):
                count += 1
            yield f"{path.name}: {count} groups, all checksums right"
        except BufferCorruption as e:
            yield f"{path.name}: {count} groups, then damage"
            damage.append(str(e))
    if damage:
        raise BufferCorruption("; ".join(damage))
