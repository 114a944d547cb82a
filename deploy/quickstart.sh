#!/bin/sh
# Builds Quarry and starts one node with the embedded control plane on six file-backed devices, profile 4+2.
# Everything it keeps is in ./quarry-data; a second start finds it again. Stop it with Ctrl-C.
#
#   sh deploy/quickstart.sh [more flags of quarryd]      for example --listen 0.0.0.0:9000
set -eu
cd "$(dirname "$0")/.."
sh deploy/packages.sh build
echo "Building (a few minutes the first time) ..."
cargo build --release --locked -p quarryd -p quarryctl -p quarry-loadgen
exec target/release/quarryd --standalone --data ./quarry-data "$@"
