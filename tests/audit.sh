#!/bin/sh
# Dependencies against deny.toml: known vulnerabilities, yanked crates, licences, sources.
#
#   sh tests/audit.sh              fails too when the advisory database (RustSec, on GitHub) cannot be fetched
#   sh tests/audit.sh --unfetched  then says so and goes on with the copy that is there, or without one
#
# cargo-deny is built once, into target/tools.
set -eu
cd "$(dirname "$0")/.."
version=0.20.2
tools=$PWD/target/tools
if [ "$("$tools/bin/cargo-deny" --version 2>/dev/null)" != "cargo-deny $version" ]; then
    cargo install --quiet --locked --debug --root "$tools" --target-dir target/tools/build "cargo-deny@$version"
    rm -rf target/tools/build
fi
deny() { "$tools/bin/cargo-deny" --locked "$@"; }

deny check bans licenses sources
if timeout 120 "$tools/bin/cargo-deny" --locked fetch db; then
    deny check advisories
elif [ "${1:-}" != --unfetched ]; then
    echo "the advisory database could not be fetched: vulnerabilities were not looked for" >&2
    exit 1
elif ls "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/.git >/dev/null 2>&1; then
    echo "advisories: the newest could not be fetched, this is the copy that is there" >&2
    deny --offline check advisories
else
    echo "advisories: NOT CHECKED, the database could not be fetched" >&2
fi
