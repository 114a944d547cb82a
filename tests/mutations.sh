#!/bin/sh
# Leaves out one flush, one wait for a flush, or one rule of the S3 gateway at a time, in a copy of the source, and runs the
# tests that must notice:
#   sh tests/mutations.sh            every place
#   sh tests/mutations.sh WORD...    places whose name holds a word
#   sh tests/mutations.sh --list     the places
# Fails if nothing notices one of them. Takes a minute for most flushes, some seconds for a rule.
set -eu
cd "$(dirname "$0")/.."
exec python3 tests/mutations.py "$@"
