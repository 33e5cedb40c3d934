#!/usr/bin/env bash
# Install what is missing: Debian packages (as root), the environment .venv, the compiled kernels. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(python3 python3-venv python3-dev gcc g++ openmpi-bin libopenmpi-dev)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing+=("$package")
done
have() { command -v "$1" >/dev/null; }
if have mpiexec && have gcc && have python3 && python3 -c 'import sys, venv, sysconfig, os
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' 2>/dev/null; then
    missing=()  # the same tools from another source (modules of a cluster, pyenv) serve as well
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "zsds_hpc: system packages are missing; run: sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
        exit 2
    fi
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "zsds_hpc: Python 3.11 or newer is needed" >&2; exit 2; }
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip -q
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install -q uv
echo "installing Python packages"
.venv/bin/uv pip install -q -p .venv/bin/python -c constraints.txt "setuptools>=77" wheel "cython>=3.1" "numpy>=2.0"
.venv/bin/uv pip install -q -p .venv/bin/python -c constraints.txt --no-build-isolation -e ".[test]"
touch .venv/installed
