#!/bin/sh
# Installs what is missing of the packages named on the command line (Debian, Ubuntu). Says what and why first, and
# asks before it uses sudo, unless it runs as root or ASSUME_YES=1 is set.
#
#   sh deploy/packages.sh build          what a build needs
#   sh deploy/packages.sh build test     and what the tests need
set -eu

# command or file:package:reason
build_needs="
cc:gcc:links Rust programs and compiles C
make:make:builds ISA-L (erasure coding, SIMD)
autoreconf:autoconf:builds ISA-L
automake:automake:builds ISA-L
libtoolize:libtool:builds ISA-L
nasm:nasm:assembles ISA-L's SIMD kernels
protoc:protobuf-compiler:generates the etcd client
/usr/include/google/protobuf/descriptor.proto:libprotobuf-dev:definitions that the etcd client includes
"
test_needs="
chromium:chromium:shows pages and sends forms in a test
etcd:etcd-server:the metastore of a cluster
ip:iproute2:puts the nodes of a cluster into networks that tests can cut
openssl:openssl:makes certificates for the tests of TLS
prometheus:prometheus:scrapes nodes in tests of metrics, alerts and dashboards
python3:python3:runs the end-to-end tests
python3-venv:python3-venv:keeps the tests' Python packages apart
rclone:rclone:a client in tests
s3cmd:s3cmd:a client in tests
s3fs:s3fs:a client in tests
"

missing=""
explain=""
look() {
    echo "$1" | while IFS=: read -r command package reason; do
        [ -n "$command" ] || continue
        if [ "$command" = python3-venv ]; then
            python3 -c 'import ensurepip, venv' >/dev/null 2>&1 && continue
        elif [ -e "$command" ] || command -v "$command" >/dev/null 2>&1; then
            continue
        fi
        echo "$package:$reason"
    done
}
for group in "$@"; do
    case "$group" in
        build) found=$(look "$build_needs") ;;
        test) found=$(look "$test_needs") ;;
        *) echo "unknown group of packages: $group" >&2; exit 2 ;;
    esac
    [ -n "$found" ] || continue
    explain="$explain$found
"
    missing="$missing $(echo "$found" | cut -d: -f1 | tr '\n' ' ')"
done

if [ -n "$missing" ]; then
    command -v apt-get >/dev/null 2>&1 || { echo "please install:$missing" >&2; exit 1; }
    echo "Missing packages:"
    echo "$explain" | sed -n 's/^\([^:]*\):\(.*\)$/  \1 (\2)/p'
    sudo=""
    if [ "$(id -u)" -ne 0 ]; then
        sudo="sudo"
        if [ "${ASSUME_YES:-}" != 1 ]; then
            printf 'Install them with sudo apt-get? [y/N] '
            read -r answer
            case "$answer" in y|Y|yes) ;; *) echo "stopped; nothing was installed" >&2; exit 1 ;; esac
        fi
    fi
    # shellcheck disable=SC2086 # the lists are words on purpose
    $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    # Debian starts an etcd of its own; the tests start theirs on free ports.
    case "$missing" in *prometheus*) $sudo systemctl disable --now prometheus >/dev/null 2>&1 || true ;; esac
    case "$missing" in *etcd-server*) $sudo systemctl disable --now etcd >/dev/null 2>&1 || true ;; esac
fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "Rust is missing. Install it from https://rustup.rs (Debian's own rustc is too old), then run this again." >&2
    exit 1
fi
