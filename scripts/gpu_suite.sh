#!/usr/bin/env bash
# All that a GPU has to prove, in one command of at most 9 minutes on one GPU, without network.
#
#   scripts/gpu_suite.sh                        # results in build/gpu-suite/results.md and results.json
#   scripts/gpu_suite.sh --only bert,resume     # these parts alone; --list names them
#   scripts/gpu_suite.sh --dry                  # the same on the CPU with gloo and tiny models
#
# On a machine that has torch for CUDA but not DeepSpeed and others, `make gpu-bundle` made build/gpu-bundle/ before, where there
# is a network; the wheels that are missing here are unpacked from it. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
site="$("$PYTHON" scripts/gpu_suite/unpack.py build/gpu-bundle build/gpu-site)"
export PYTHONPATH="$PWD${site:+:$site}${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m scripts.gpu_suite "$@"
