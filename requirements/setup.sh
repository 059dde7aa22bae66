#!/usr/bin/env bash
# Sets up the virtual environment: torch first by plain pip, then a closed list without dependency resolution.
# usage: requirements/setup.sh cpu|gpu PYTHON VENV
set -euo pipefail
kind=$1 python=$2 venv=$3
here=$(cd "$(dirname "$0")" && pwd)

found=$("${python:-none}" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo none)
case $found in
    3.11) ;;
    3.12 | 3.13) echo "Python $found: every pinned package exists for it, but not every test has run on it; all have on 3.11" ;;
    *)
        what="neither Python 3.11 nor 3.12 was found"
        [ -z "$python" ] || { what="'$python' is Python $found"; [ "$found" != none ] || what="'$python' does not run"; }
        echo "Slipstream needs Python 3.11 (or 3.12, 3.13), but $what: install it (Debian: apt-get install python3.11-venv), or say make PYTHON=/path/to/python3.11" >&2
        exit 2 ;;
esac
command -v cc >/dev/null || { echo "Slipstream needs a C compiler (Debian: apt-get install gcc)" >&2; exit 2; }

torch=$(grep -E '^torch==' "$here/torch.txt")
steps=3
say() { printf '[%s/%s] %s\n' "$1" "$steps" "$2"; }

say 1 "virtual environment in $venv ($python, Python $found)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"

say 2 "$torch with its dependencies (the largest download: 0.2 GB for a CPU build, about 3 GB for a CUDA build)"
$pip install --quiet --progress-bar on "$torch"

total=$(grep -cE '^[A-Za-z0-9]' "$here/$kind.txt")
say 3 "$total pinned packages from requirements/$kind.txt"
# One line a package as it is fetched, so that a slow connection is seen to move.
$pip install --no-deps -r "$here/$kind.txt" | awk -v total="$total" '
    /^(Collecting|Requirement already satisfied: )/ { n++; name=$0; sub(/^Requirement already satisfied: /, "", name); sub(/^Collecting /, "", name); sub(/ .*/, "", name);
                    if (n % 10 == 0 || n == total) { printf "      %d/%d %s\n", n, total, name; fflush() } }
    /^Installing collected/ { print "      installing (about a minute)"; fflush() }
    /^ERROR/ { print; fflush() }'

# The command `slipstream`, from this very folder.
$pip install --quiet --no-deps --no-build-isolation --editable "$here/.."
# What a machine without a GPU lacks, for every process of the environment.
[ "$kind" = gpu ] || PYTHONPATH="$here/.." "$venv/bin/python" -m compat.environment

"$venv/bin/python" -c 'import torch, pyarrow, ray, importlib.metadata as m; print("      torch", torch.__version__, "| sglang", m.version("sglang"), "| megatron-core", m.version("megatron-core"), "| ray", ray.__version__)'
"$venv/bin/python" "$here/check_pins.py" "$kind" || echo "      (a pin that does not fit; please report it)" >&2
[ "$kind" != gpu ] || "$venv/bin/python" - <<'END'
import torch
if torch.cuda.is_available():
    print("      GPUs:", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
else:
    print("      torch finds no GPU (built for CUDA", str(torch.version.cuda) + "): does nvidia-smi run, and is the driver new enough?")
END
# One list at a time: the other's packages are gone.
rm -f "$venv"/.installed-*
touch "$venv/.installed-$kind"
echo "Done: .venv is ready."
