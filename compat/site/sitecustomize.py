"""Python runs this at start-up in every engine process (compat.engine_environment puts this folder
on PYTHONPATH)."""

import compat

compat.install_engine()
