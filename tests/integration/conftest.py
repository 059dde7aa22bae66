"""Made once for all tests of a process."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def warm_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model after its warm-up, as a Hugging Face folder."""
    from benchmarks.off_policy import warm_model

    return warm_model(tmp_path_factory.mktemp("warm"))
