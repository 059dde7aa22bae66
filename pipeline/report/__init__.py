"""What a run leaves to read: summary.json, reward.svg and report.html, all made from metrics.jsonl
and so at any time again."""

from pipeline.report.summary import History, load_history, summarise, write_summary
from pipeline.report.write import closing_lines, write_report

__all__ = ["History", "closing_lines", "load_history", "summarise", "write_report", "write_summary"]
