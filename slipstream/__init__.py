"""What your own functions import: `from slipstream import Sample, open_agent`.

These names stay where they are; the modules behind them may move. Importing this loads numpy and
none of torch, ray, sglang or megatron."""

from pipeline.core.errors import ConfigError, DataError, GenerateError, RewardError, SlipstreamError
from pipeline.core.images import to_data_url
from pipeline.core.supervision import Supervision
from pipeline.core.types import Completion, Sample, Status, VersionSpan
from pipeline.core.version import __version__
from stages.filter import DynamicFilterOutput, filter_zero_std_groups
from stages.generate.mcp.tools import mcp_tools
from stages.generate.search.tool import search_tool
from stages.generate.session import Session, open_session
from stages.generate.tools.agent import Agent, open_agent
from stages.generate.tools.python_tool import python_tool
from stages.generate.tools.tool import Tool, tool_from_function
from stages.source.bases import DataSource, RolloutDataSource

__all__ = [
    "Agent",
    "Completion",
    "ConfigError",
    "DataError",
    "DataSource",
    "DynamicFilterOutput",
    "GenerateError",
    "RewardError",
    "RolloutDataSource",
    "Sample",
    "Session",
    "SlipstreamError",
    "Status",
    "Supervision",
    "Tool",
    "VersionSpan",
    "__version__",
    "filter_zero_std_groups",
    "mcp_tools",
    "open_agent",
    "open_session",
    "python_tool",
    "search_tool",
    "to_data_url",
    "tool_from_function",
]
