#!/bin/sh
# All tests, on a fresh Debian or Ubuntu: installs missing packages (deploy/packages.sh says which and why), keeps its
# Python packages in .venv, builds, then runs the quick checks and the long ones.
#
#   sh tests/run.sh           everything
#   sh tests/run.sh quick     formatting, lints, documentation, unit and property tests, short simulations
#   sh tests/run.sh e2e       release build and end to end with real clients
set -eu
cd "$(dirname "$0")/.."
which=${1:-all}
groups="build"
[ "$which" = quick ] || groups="build test"
# shellcheck disable=SC2086 # two words on purpose
ASSUME_YES=${ASSUME_YES:-${CI:+1}} sh deploy/packages.sh $groups

step() { printf '\n== %s\n' "$*"; }

quick() {
    step "formatting"
    cargo fmt --all --check
    step "lints"
    cargo clippy --workspace --all-targets --locked -- -D warnings
    step "dependencies: licences, sources, advisories"
    sh tests/audit.sh --unfetched
    step "unit and property tests, short simulations"
    cargo test --workspace --locked
    step "documentation"
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
}

end_to_end() {
    step "release build"
    cargo build --release --locked -p quarryd -p quarry-loadgen -p quarryctl -p quarry-controller -p quarry-linearizable
    step "Python packages"
    if ! cmp -s tests/requirements.txt .venv/requirements.txt; then
        rm -rf .venv
        python3 -m venv .venv
        .venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
        cp tests/requirements.txt .venv/requirements.txt
    fi
    step "end to end"
    .venv/bin/python -m pytest -q -x --no-header tests/e2e
}

case "$which" in
    quick) quick ;;
    e2e) end_to_end ;;
    all) quick; end_to_end ;;
    *) echo "usage: sh tests/run.sh [quick|e2e]" >&2; exit 2 ;;
esac
