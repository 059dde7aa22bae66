#!/usr/bin/env bash
# Builds TransformerEngine into an environment that `make setup-gpu` made.
# usage: requirements/transformer_engine.sh VENV
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
command -v "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" >/dev/null || {
    echo "TransformerEngine is compiled, and there is no nvcc: install the CUDA 13 toolkit and cuDNN's headers, or say CUDA_HOME=/usr/local/cuda" >&2
    exit 2
}
pip="$venv/bin/python -m pip --disable-pip-version-check"
# Against the torch that is there, hence without isolation; and without dependencies, which would change pins.
$pip install --no-deps --no-build-isolation -r "$here/transformer_engine.txt"
"$venv/bin/python" -c 'import importlib.metadata as m, transformer_engine.pytorch; print("      TransformerEngine", m.version("transformer-engine"))'
