"""What a run says while it runs: one stream of records, any number of sinks (jsonl, terminal,
wandb, TensorBoard), and the log."""

from pipeline.telemetry.hub import JsonlSink, Telemetry
from pipeline.telemetry.start import open_telemetry

__all__ = ["JsonlSink", "Telemetry", "open_telemetry"]
