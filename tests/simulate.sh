#!/bin/sh
# Simulates partition replication with many seeds: sh tests/simulate.sh [SEEDS] [FROM]
# A failure prints its seed; sh tests/simulate.sh 1 SEED replays it.
set -eu
cd "$(dirname "$0")/.."
export QUARRY_SIM_SEEDS="${1:-10000}" QUARRY_SIM_FROM="${2:-0}"
exec cargo test --quiet --locked --profile fuzz -p quarry-partition --lib -- sim::tests::seeds_hold --nocapture
