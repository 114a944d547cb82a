#!/bin/sh
# Hostile bytes for every decoder: sh tests/fuzz.sh [SEED] [SECONDS per decoder] [DECODER]
# A failure prints what replays it: sh tests/fuzz.sh --replay DECODER SEED:NUMBER
set -eu
cd "$(dirname "$0")/.."
fuzz() { exec cargo run --quiet --locked --profile fuzz -p quarry-fuzz -- "$@"; }
[ "${1:-}" = --replay ] && fuzz "$@"
fuzz --seed "${1:-$(date +%s)}" --seconds "${2:-20}" ${3:+--target "$3"}
