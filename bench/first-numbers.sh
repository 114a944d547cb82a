#!/bin/sh
# The first numbers: CPU of the server for 64 MiB and 4 KiB PUT and GET, beside a bare hyper server on glommio and
# beside fio on the node's own device files. Needs cargo, python3 and fio, 20 GB of disk, and a machine with nothing
# else to do. Writes bench/results/DATE-first-numbers.md and .json; removes its data.
#
#   sh bench/first-numbers.sh                       3 rounds of 10 s each, about 8 minutes
#   sh bench/first-numbers.sh --rounds 1 --seconds 2 --no-build --out /tmp/try
#   sh bench/first-numbers.sh --help
set -eu
exec python3 "$(dirname "$0")/first_numbers.py" "$@"
