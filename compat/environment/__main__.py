"""`python -m compat.environment`: give the running Python's environment the pieces for a machine
without a GPU. Run it again after an update."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

NAME = "slipstream_environment"


def main() -> None:
    site = Path(sysconfig.get_path("purelib"))
    shutil.rmtree(site / NAME, ignore_errors=True)
    here = Path(__file__).parent
    shutil.copytree(here, site / NAME, ignore=shutil.ignore_patterns("__pycache__", "__main__.py"))
    (site / f"{NAME}.pth").write_text(f"import {NAME}; {NAME}.install()\n")


if __name__ == "__main__":
    main()
