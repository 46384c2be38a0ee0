#!/usr/bin/env bash
# Install the lowest declared version of each dependency into build/minimum, and run the tests that start no process.
#
#   scripts/check_minimum.sh [ARGUMENTS OF pytest]      PYTHON=python3.11 chooses the Python
#
# The versions are those of pyproject.toml: its dependencies and its extra `train`, resolved to the lowest that satisfy all
# bounds; what these require in turn is the newest. Old releases of torch for Linux come with CUDA, about 6 GB on disk, and have
# no wheels for the newest Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
uv=build/uv/bin/uv
environment=build/minimum
requirements=build/minimum.txt

"$python" -m venv build/uv
build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
"$uv" pip compile --quiet --resolution lowest-direct --python-version "$version" --extra train --annotation-style line \
    --output-file "$requirements" pyproject.toml
grep 'bellwether (pyproject.toml)' "$requirements"

"$python" -m venv --clear "$environment"
install=("$uv" pip install --quiet --python "$environment/bin/python")
grep -v '^deepspeed==' "$requirements" > "$requirements.first"
"${install[@]}" --no-deps --requirements "$requirements.first"
"${install[@]}" pytest pytest-xdist setuptools wheel
# DeepSpeed is built from source and imports torch meanwhile. Built without a GPU in sight, it asks for the same packages everywhere.
DS_ACCELERATOR=cpu "${install[@]}" --no-deps --no-build-isolation "$(grep -o '^deepspeed==[^ ]*' "$requirements")"

# bellwether's own metadata has the bounds that doctor checks.
"${install[@]}" --no-deps --no-build-isolation --editable .

# The C++ op that DeepSpeed compiles at run time depends on the version of torch. Older releases of torch start a pool of
# compile workers, which the tests of this tier may not do.
TORCH_EXTENSIONS_DIR="$PWD/build/minimum-extensions" TORCHINDUCTOR_COMPILE_THREADS=1 PYTHONPATH="$PWD" \
    "$environment/bin/python" -m pytest --tier=check "$@"
