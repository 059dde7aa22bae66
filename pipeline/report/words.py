"""What came out of a run, in sentences: its closing line, and the head of its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.format import counted, duration, number
from pipeline.report.learned import what_was_learned
from pipeline.report.summary import History


def sentences(history: History, summary: Mapping[str, Any]) -> str:
    """What came out, in words."""
    if not summary["num_rollouts"]:
        why = "No rollout was trained: run.log says why."
        return f"{why} {_discarded(summary)}" if summary["samples_discarded"] else why
    of = f" of {history.num_rollout}" if history.num_rollout else ""
    trained, here = num_trained(history), summary["num_rollouts"]
    out = [
        f"{trained}{of} rollouts"
        + (f" ({here} of them in this run, the others before it)" if here < trained else "")
        + f" in {duration(summary['wall_seconds'])}."
    ]
    out += what_was_learned(history, summary)
    if summary["staleness_max"] is not None:
        out.append(_staleness(summary))
    if empty := summary.get("num_empty_steps"):
        steps = counted(empty, "optimizer step")
        out.append(f"{steps} had no sample with a loss and changed nothing.")
    if removed := summary.get("samples_removed_stale"):
        out.append(
            f"Removed for a missed deadline: {counted(removed, 'sample')}, of"
            f" {number(summary['length_removed_p50'])} response tokens in the median; those trained"
            f" on had {number(summary.get('length_trained_p50'))}."
        )
    if summary["samples_discarded"]:
        out.append(_discarded(summary))
    return " ".join(out)


def _staleness(summary: Mapping[str, Any]) -> str:
    """Only groups that were recalled after a crash may be beyond the bound."""
    worst, bound = summary["staleness_max"], summary["staleness_bound"]
    said = f"The stalest trained token was {counted(worst, 'policy version')} old,"
    if worst <= bound:
        return f"{said} within the bound of {bound}."
    recalled = summary.get("groups_beyond_bound_recalled", 0)
    others = summary.get("groups_beyond_bound", 0) - recalled
    if recalled and not others:
        return (
            f"{said} beyond the bound of {bound}, in {counted(recalled, 'group')} recalled after a"
            " crash: versions whose weights were lost in it count. No other is beyond it."
        )
    also = f", beside {recalled} recalled after a crash" if recalled else ""
    who = f" (in {counted(others, 'group')}{also})" if others else ""
    return f"{said} BEYOND the bound of {bound}{who}."


def _discarded(summary: Mapping[str, Any]) -> str:
    causes = {
        "of groups filtered or given up": summary["samples_discarded_before_buffer"],
        "taken out by --buffer-filter-path": summary.get("samples_discarded_by_buffer_filter", 0),
        "removed for their age": summary["samples_discarded_stale"],
        "without loss in their rollout": summary["samples_discarded_untrained"],
    }
    named = ", ".join(f"{count} {cause}" for cause, count in causes.items() if count)
    samples = counted(summary["samples_discarded"], "sample")
    return f"Generated and never trained on: {samples} ({named})."


def is_complete(history: History) -> bool:
    return bool(history.num_rollout) and num_trained(history) >= (history.num_rollout or 0)


def num_trained(history: History) -> int:
    """Those of the checkpoint that the run began from are among them."""
    return int(history.train[-1]["rollout_id"]) + 1 if history.train else 0
