#!/usr/bin/env bash
# Installs the Debian packages that setup and the tests need and the machine lacks. Needs root.
set -euo pipefail

packages=(
    make git python3-venv
    g++ python3-dev                  # the CPU kernels are compiled on first use
    openmpi-bin libopenmpi-dev       # runs started by mpirun
    slurm-wlm slurmctld slurmd slurm-client munge iproute2 openssh-server   # tests/cluster
    shellcheck                       # what is submitted to SLURM
)

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
    exit 0
fi

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# dpkg's account of every file is of use only when it fails.
log=$(mktemp)
if ! apt-get install -qq --yes --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    exit 1
fi
rm -f "$log"
