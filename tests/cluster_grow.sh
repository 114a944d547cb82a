#!/bin/sh
# Nodes and devices of a cluster of real processes die for good, come, are slow, drained, restarted, cut off and filled while
# clients record what they see; prints what each cost: sh tests/cluster_grow.sh [SEED] [FAULT...]
# Needs root, iproute2, etcd and a release build. FAULT is part of the name of a method of tests/e2e/growing.py: only those (and
# what follows from them). SHAPE=NODESxPROFILE (6x4+2) is another cluster, of two devices a node.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${QUARRY_BINARIES:-}" ]; then
    cargo build --release --locked -p quarryd -p quarry-loadgen -p quarryctl -p quarry-controller -p quarry-linearizable
fi
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python
seed=${1:-1}
[ $# -lt 1 ] || shift
exec "${PYTHON:-$python}" tests/e2e/cluster_grow.py "${SHAPE:-6x4+2}" "$seed" "$@"
