#!/usr/bin/env bash
# Prints the first of the given Pythons that runs, and nothing where none does.
# usage: requirements/find_python.sh 3.12 3.11
# A name on the PATH is not enough: pyenv puts one there for every version, whether it is chosen or not. So its folder is looked in too.
for version in "$@"; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/"python$version"; do
        if "$python" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
            echo "$python"
            exit
        fi
    done
done
