"""The version of Slipstream: the only place that says it. pyproject.toml and `--version` read it
here."""

__version__ = "0.2.0"
