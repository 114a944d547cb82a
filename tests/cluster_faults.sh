#!/bin/sh
# Breaks a cluster of real processes (3 etcd, 2 controllers, 6 nodes, each in a network namespace) in every way while clients
# record what they see, and checks their history for linearizability: sh tests/cluster_faults.sh [SEED] [SECONDS] [FAULT...]
# Needs root, iproute2, etcd and a release build. SECONDS is at least how long (1800); etcd is gone for ten minutes of it. FAULT is
# part of the name of a method of tests/e2e/faults.py: only those.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${QUARRY_BINARIES:-}" ]; then
    cargo build --release --locked -p quarryd -p quarry-loadgen -p quarryctl -p quarry-controller -p quarry-linearizable
fi
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python
seed=${1:-1} seconds=${2:-1800}
[ $# -lt 2 ] || shift
[ $# -lt 1 ] || shift
exec "${PYTHON:-$python}" tests/e2e/cluster_faults.py "$seed" "$seconds" "$@"
