"""Which folders are installed; everything else is in pyproject.toml.

examples/ becomes slipstream/examples, so that presets that name an example work from any folder."""

from setuptools import find_namespace_packages, setup

FOLDERS = ("slipstream", "pipeline", "stages", "buffers", "configs", "compat", "sandbox")
EXAMPLES = ["", *(f".{name}" for name in find_namespace_packages("examples"))]

setup(
    packages=[
        *find_namespace_packages(include=[*FOLDERS, *(f"{name}.*" for name in FOLDERS)]),
        *(f"slipstream.examples{name}" for name in EXAMPLES),
    ],
    package_dir={"slipstream.examples": "examples"},
)
