#!/usr/bin/env bash
# Install what is missing: Debian packages (as root), the environment .venv, the compiled kernels. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { echo "zsds_hpc: $*" >&2; }

# What is needed, and the Debian package that has it. The same tools from modules of a cluster or pyenv serve as well.
missing=()
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
python3 -c 'import os, sysconfig
os.stat(sysconfig.get_paths()["include"] + "/Python.h")' 2>/dev/null || missing+=(python3-dev)
echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || missing+=(gcc libc6-dev)
command -v mpiexec >/dev/null || missing+=(openmpi-bin)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        say "system packages are missing; run: sudo apt-get install -y --no-install-recommends ${missing[*]}"
        exit 2
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "Python 3.11 or newer is needed"; exit 2; }

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
say "installing Python packages into .venv"
.venv/bin/python -m pip install -q uv
install=(.venv/bin/uv pip install -q -p .venv/bin/python -c constraints.txt)
"${install[@]}" "setuptools>=77" wheel "cython>=3.1" "numpy>=2.0"
say "compiling the kernels"
"${install[@]}" --no-build-isolation -e ".[test]"
touch .venv/installed
