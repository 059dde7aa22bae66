"""The only place that names concrete classes: a configuration in, a Runner out.

Heavy imports wait until they are needed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from configs.schema import Config
from pipeline.run.outcome import run_to_end
from pipeline.wiring.foreign_flags import FAMILIES
from pipeline.wiring.greeting import greeting

if TYPE_CHECKING:
    from pipeline.run.runner import Runner

__all__ = ["FAMILIES", "build", "run_to_end"]
_PROCESS_STARTED = time.monotonic()


def build(config: Config) -> Runner:
    """Everything that fails on bad input fails here, before any process is started; entering the
    Runner starts the rest.

    Call it on the event loop that will run the Runner. Raises ConfigError, DataError or
    CheckpointError, and NothingToDo where all is trained already."""
    print(greeting(config), flush=True)  # the imports and files below take seconds
    from pipeline.telemetry.logs import EarlyLines

    with EarlyLines():
        from pipeline.wiring.assemble import assemble

        return assemble(config, started_at=_PROCESS_STARTED)
