"""--tool-call-parser: which names there are."""

from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError
from pipeline.wiring.tool_calls import call_parser


def test_names() -> None:
    assert call_parser("auto") == "auto" and call_parser("glm45") == "glm45"
    with pytest.raises(ConfigError, match=r"--tool-call-parser nonsense: expected auto, .*kimi_k2"):
        call_parser("nonsense")
