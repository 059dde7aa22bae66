"""Run by Python at start-up in every engine process (compat.engine_environment put this folder on
PYTHONPATH)."""

import compat

compat.install_engine()
