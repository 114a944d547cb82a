#!/bin/sh
# Quarry beside its peers on this machine, in one run: server CPU, rates and latencies of the same workloads, in turns.
#
#   sh bench/peers.sh                              installs Garage (cargo) and MinIO (go, if there is one), then 3 rounds
#   sh bench/peers.sh --peer minio=/usr/bin/minio  takes this binary; --no-install: none but those given
#   sh bench/peers.sh --external rustfs=http://127.0.0.1:9000,ACCESS,SECRET   any server that runs already
#   sh bench/peers.sh --help
#
# Peers are compiled from what their package registries offer, into target/peers: some 20 minutes the first time. Needs
# 20 GB of disk and a machine with nothing else to do. Writes bench/results/DATE-peers.md, .json and .svg.
set -eu
cd "$(dirname "$0")/.."
peers=$(pwd)/target/peers
GARAGE_VERSION=2.5.0
MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c

install=yes
for word in "$@"; do
    case "$word" in --no-install | --help) install=no ;; esac
done
if [ "$install" = yes ]; then
    mkdir -p "$peers/bin"
    [ -x "$peers/bin/garage" ] || CARGO_TARGET_DIR="$peers/build" cargo install garage --version "$GARAGE_VERSION" \
        --locked --root "$peers" --no-default-features --features bundled-libs,lmdb,metrics
    if command -v go >/dev/null && [ ! -x "$peers/bin/minio" ]; then
        GOBIN="$peers/bin" go install "github.com/minio/minio@$MINIO_VERSION"
    fi
    cargo build --release --locked --workspace --bins
fi
exec python3 bench/peers.py "$@"
