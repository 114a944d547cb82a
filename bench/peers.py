"""Measures Quarry and its peers in turns with the same workloads; see peers.sh. Needs botocore for the listing only.

Every server of a round is measured while the others are stopped by SIGSTOP. CPU is user and system time of the server's
process over the measured time. All are set to flush before they answer, as far as they can; what each of them makes
durable, and how many copies, is said in the report.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import peers_report as report
from first_numbers import ROOT, Server, commit, free_port, machine, parse_size, say

PEERS = ROOT / "target" / "peers" / "bin"
DEVICES = 6
KEYS = {"AWS_ACCESS_KEY_ID": "GK" + secrets.token_hex(12), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(32)}
SLACK_BYTES = 4 << 30
START_SECONDS_MAX = 60

# (name, operation, object size, objects)
WORKLOADS = [
    ("64 MiB PUT", "put", 64 << 20, 24),
    ("64 MiB GET", "get", 64 << 20, 24),
    ("1 MiB PUT", "put", 1 << 20, 500),
    ("1 MiB GET", "get", 1 << 20, 500),
    ("4 KiB PUT", "put", 4 << 10, 2000),
    ("4 KiB GET", "get", 4 << 10, 2000),
]
LISTING = "listing"


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    os.environ.update(KEYS)
    if args.data.exists():
        sys.exit(f"{args.data} exists; remove it or give another --data")
    args.data.mkdir(parents=True)
    try:
        if shutil.disk_usage(args.data).free < DEVICES * parse_size(args.device_size) + SLACK_BYTES:
            sys.exit(f"{args.data} has not room for {DEVICES} devices of {args.device_size} and what the peers write")
        measured = measure(args)
    finally:
        shutil.rmtree(args.data, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"{datetime.date.today().isoformat()}-peers"
    stem.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    stem.with_suffix(".svg").write_text(report.plot(measured))
    text = report.markdown(measured, stem.name)
    stem.with_suffix(".md").write_text(text)
    print(text)
    say(f"written to {stem}.md, .json and .svg")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="peers.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each measurement")
    parser.add_argument("--streams", type=int, default=16, help="connections, each with one request in flight")
    parser.add_argument("--keys", type=int, default=50_000, help="of the bucket that is listed; 0: no listing")
    parser.add_argument("--device-size", default="2GiB", help="of each of Quarry's six device files")
    parser.add_argument("--payload", choices=["unsigned", "signed"], default="unsigned")
    parser.add_argument("--only", action="append", help="workloads whose name has this word")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=BINARY", help="garage or minio")
    parser.add_argument("--external", action="append", default=[], metavar="NAME=URL,ACCESS,SECRET")
    parser.add_argument("--no-install", action="store_true", help="neither installs peers nor builds Quarry")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "target" / "peers-data",
                        help="a new directory on the disk to measure; removed at the end")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    args.peers = dict(word.split("=", 1) for word in args.peer)
    if not args.no_install:
        for name in STARTERS:
            if name != "quarry" and (PEERS / name).exists():
                args.peers.setdefault(name, str(PEERS / name))
    unknown = args.peers.keys() - STARTERS.keys()
    if unknown:
        parser.error(f"{', '.join(unknown)}: not known; start it yourself and use --external")
    return args


def binary(name):
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return pathlib.Path(os.environ.get("QUARRY_BINARIES", target / "release")) / name


class Peer(Server):
    """A server with what the report says of it."""

    def __init__(self, name, version, durability, command, directory, environment):
        directory.mkdir(parents=True, exist_ok=True)
        self.version, self.durability, self.keys = version, durability, dict(KEYS)
        port = free_port()
        words = [str(word).replace("{port}", str(port)) for word in command]
        super().__init__(name, (port, None, words), directory, environment)
        self.endpoint = f"http://127.0.0.1:{port}"
        self.pids = [self.process.pid]


class External:
    """A server that somebody else has started; who listens on its port is its process, if on this machine."""

    def __init__(self, name, url, access, secret):
        self.name, self.version, self.durability = name, "?", "as its owner has set it"
        self.endpoint, self.pids = url, []
        self.keys = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}

    def __enter__(self):
        import listing
        self.pids = listing.listeners(self.endpoint)
        return self

    def __exit__(self, *_):
        pass

    @contextlib.contextmanager
    def alone(self, servers):
        with contextlib.ExitStack() as stack:
            for server in servers:
                if server is not self and isinstance(server, Peer):
                    server.process.send_signal(signal.SIGSTOP)
                    stack.callback(server.process.send_signal, signal.SIGCONT)
            yield

    def wait_ready(self):
        pass


def version_of(path, *words):
    done = subprocess.run([path, *words], capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().splitlines()[0]


def start_quarry(path, args):
    environment = {"QUARRY_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"], "QUARRY_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
    command = [path, "--standalone", "--data", args.data / "quarry", "--device-size", args.device_size,
               "--profile", "4+2", "--listen", "127.0.0.1:{port}", "--admin", f"127.0.0.1:{free_port()}"]
    durability = ("fdatasync of all shards (4+2 over six device files) and of three copies of the metadata; "
                  "any two devices may be lost")
    return Peer("quarry", version_of(path, "--version"), durability, command, args.data / "quarry-log", environment)


def start_garage(path, args):
    directory = args.data / "garage"
    directory.mkdir()
    config = directory / "garage.toml"
    rpc, admin = free_port(), free_port()
    token = secrets.token_hex(16)
    text = f'''metadata_dir = "{directory}/meta"
data_dir = "{directory}/data"
db_engine = "lmdb"
metadata_fsync = true
data_fsync = true
compression_level = "none"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "{secrets.token_hex(32)}"
[s3_api]
s3_region = "us-east-1"
api_bind_addr = "127.0.0.1:PORT"
root_domain = ".s3.garage"
[admin]
api_bind_addr = "127.0.0.1:{admin}"
admin_token = "{token}"
'''
    # The port is chosen by Peer: a shell puts it in.
    script = f'sed "s/PORT/$1/" "{config}.in" > "{config}" && exec "{path}" -c "{config}" server'
    pathlib.Path(f"{config}.in").write_text(text)
    durability = "metadata_fsync and data_fsync on; one copy, no checksummed spare: no device may be lost"
    peer = Peer("garage", version_of(path, "--version"), durability, ["sh", "-c", script, "sh", "{port}"], directory,
                {"RUST_LOG": "warn"})

    def garage(*words):
        done = subprocess.run([path, "-c", str(config), *words], capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(f"garage {' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout

    def prepare():
        node = garage("node", "id", "-q").split("@")[0]
        garage("layout", "assign", "-z", "here", "-c", "100G", node)
        garage("layout", "apply", "--version", "1")
        garage("key", "import", "--yes", "-n", "bench", KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
        garage("key", "allow", "--create-bucket", KEYS["AWS_ACCESS_KEY_ID"])

    repeat_until_done(prepare)
    return peer


def start_minio(path, args):
    directory = args.data / "minio"
    drives = [directory / f"drive-{number}" for number in range(1, DEVICES + 1)]
    for drive in drives:
        drive.mkdir(parents=True)
    environment = {
        "MINIO_ROOT_USER": KEYS["AWS_ACCESS_KEY_ID"], "MINIO_ROOT_PASSWORD": KEYS["AWS_SECRET_ACCESS_KEY"],
        "MINIO_STORAGE_CLASS_STANDARD": "EC:2", "MINIO_FS_OSYNC": "on", "MINIO_BROWSER": "off",
        # Drives on one file system, which it refuses otherwise.
        "MINIO_CI_CD": "1",
    }
    command = [path, "server", "--quiet", "--address", "127.0.0.1:{port}", *drives]
    durability = "MINIO_FS_OSYNC on; 4+2 over six directories of one file system; any two may be lost"
    return Peer("minio", version_of(path, "--version"), durability, command, args.data / "minio-log", environment)


STARTERS = {"quarry": start_quarry, "garage": start_garage, "minio": start_minio}


def repeat_until_done(act):
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            return act()
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(str(error))
            time.sleep(0.2)


def wait_for_answer(server):
    """Any answer of HTTP will do: also a refusal of the signature that is not there."""
    def ask():
        try:
            urllib.request.urlopen(f"{server.endpoint}/", timeout=5).close()
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise OSError(f"{server.name}: {error}") from error
    repeat_until_done(ask)


def measure(args):
    measured = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(args.data), "commit": commit(),
        "parameters": {"rounds": args.rounds, "seconds": args.seconds, "streams": args.streams, "keys": args.keys,
                       "payload": args.payload},
        "servers": {}, "runs": [], "listings": [],
    }
    workloads = [entry for entry in WORKLOADS if not args.only or any(word in entry[0] for word in args.only)]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(start_quarry(binary("quarryd"), args))]
        for name, path in args.peers.items():
            servers.append(stack.enter_context(STARTERS[name](path, args)))
        for word in args.external:
            name, rest = word.split("=", 1)
            servers.append(stack.enter_context(External(name, *rest.split(","))))
        for server in servers:
            wait_for_answer(server)
            measured["servers"][server.name] = {"version": server.version, "durability": server.durability}
        for number in range(1, args.rounds + 1):
            for workload in workloads:
                for server in servers:
                    with server.alone(servers):
                        measured["runs"].append({"round": number, "server": server.name,
                                                 **load(args, server, workload)})
        if args.keys and (not args.only or LISTING in args.only):
            measured["listings"] = listings(args, servers)
    return measured


def load(args, server, workload):
    name, operation, size, objects = workload
    say(f"{name} on {server.name}")
    command = [
        binary("quarry-loadgen"), operation, "--endpoint", server.endpoint, "--bucket", f"bench-{size}",
        "--size", str(size), "--objects", str(objects), "--concurrency", str(args.streams),
        "--duration", f"{args.seconds}s", "--payload", args.payload, "--verify", "none", "--json",
    ]
    command += [word for pid in server.pids for word in ("--server-pid", str(pid))]
    if operation == "get":
        command.append("--no-prepare")
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          env={**os.environ, **server.keys})
    if not done.stdout:
        sys.exit(f"quarry-loadgen failed on {server.name} ({done.returncode}): {done.stderr[-3000:]}")
    return {"workload": name, "exit_code": done.returncode, "loadgen": json.loads(done.stdout)}


def listings(args, servers):
    """Fills a bucket of each server, then lists all of it and its directories, in turns."""
    import listing
    results = []
    prepared = []
    for server in servers:
        options = argparse.Namespace(
            endpoint=server.endpoint, access_key=server.keys["AWS_ACCESS_KEY_ID"],
            secret_key=server.keys["AWS_SECRET_ACCESS_KEY"], region="us-east-1", bucket=LISTING, keys=args.keys,
            directories=max(1, args.keys // 1000), delimiter_pages=100, loadgen=binary("quarry-loadgen"))
        with server.alone(servers):
            say(f"{args.keys} keys into {server.name}")
            listing.fill(options, listing.Server(server.pids))
        prepared.append((server, options, listing.Client(options), listing.Server(server.pids)))
    for number in range(1, args.rounds + 1):
        for server, options, client, process in prepared:
            with server.alone(servers):
                for name, run in [("all keys, 1,000 a page", listing.flat),
                                  ("directories by delimiter, 100 a page", listing.root),
                                  ("one directory of 1,000 keys", listing.directories)]:
                    say(f"{name} on {server.name}")
                    counted = run(options, client, process, name) if run is listing.flat else run(options, client, process)
                    results.append({
                        "round": number, "server": server.name, "workload": name, "entries": counted.entries,
                        "pages": len(counted.latencies), "seconds": counted.seconds, "cpu_seconds": counted.cpu,
                        "p50_ms": counted.percentile(0.5), "p99_ms": counted.percentile(0.99)})
    return results


if __name__ == "__main__":
    main()
