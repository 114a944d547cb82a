"""Measures the node, the bare hyper floor and fio in turns; see first-numbers.sh. Standard library only.

Rounds are interleaved (node, floor, node, floor, ...), so that a slow minute of the machine hits both. The servers stay
up for all rounds, each on its own port; while one is measured the other is stopped by SIGSTOP, for even an idle server
costs CPU. CPU seconds are user and system time of the whole server process over the measured time, as quarry-loadgen
reads them from /proc. fio comes last, on the very device files of the node, when the node has ended.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import first_numbers_report as report

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEYS = {"AWS_ACCESS_KEY_ID": "first-numbers", "AWS_SECRET_ACCESS_KEY": "only-for-this-run"}
DEVICES = 6
PROFILE = (4, 2)
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60
IDLE_SECONDS = 3
# A server that uses less than this part of a core has settled.
SETTLED_CORES = 0.15
SETTLE_SECONDS_MAX = 10
# Free space demanded beyond the device files.
SLACK_BYTES = 2 << 30

# (name, operation, object size, objects). The working sets fit the devices several times over, since overwritten
# objects are freed in the background.
WORKLOADS = [
    ("64 MiB PUT", "put", 64 << 20, 32),
    ("64 MiB GET", "get", 64 << 20, 32),
    ("4 KiB PUT", "put", 4 << 10, 2000),
    ("4 KiB GET", "get", 4 << 10, 2000),
]
# fio uses this much of every device file, all together as much as the shards of the 64 MiB objects: hosts of virtual
# machines cache disks, and a larger set would be read more slowly.
FIO_BYTES_PER_FILE = (64 << 20) * 32 // PROFILE[0]
DEVICE_BYTES_MIN = 2 << 30


def main():
    args = parse_arguments()
    # Also then servers are stopped and data is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    if not args.no_build:
        build()
    binaries = find_binaries()
    prepare_directory(args)
    try:
        measured = measure(args, binaries)
    finally:
        shutil.rmtree(args.data, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"{datetime.date.today().isoformat()}-first-numbers"
    stem.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    text = report.markdown(measured)
    stem.with_suffix(".md").write_text(text)
    print(text)
    say(f"written to {stem}.md and {stem}.json")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="first-numbers.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--streams", type=int, default=16, help="connections, each with one request in flight")
    parser.add_argument("--device-size", default="3GiB", help="of each of the six device files")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "target" / "first-numbers",
                        help="a new directory on the disk to measure; removed at the end")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results")
    parser.add_argument("--no-build", action="store_true",
                        help="take the binaries of QUARRY_BINARIES or target/release as they are")
    args = parser.parse_args()
    if args.rounds < 1 or args.seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    if parse_size(args.device_size) < DEVICE_BYTES_MIN:
        parser.error("--device-size must be at least 2GiB")
    if not shutil.which("fio"):
        parser.error("fio is not installed")
    return args


def build():
    packages = [word for name in ("quarryd", "quarry-loadgen", "quarry-bench") for word in ("-p", name)]
    subprocess.run(["cargo", "build", "--release", "--locked", *packages, "--bins"], cwd=ROOT, check=True)


def find_binaries():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    directory = pathlib.Path(os.environ.get("QUARRY_BINARIES", target / "release"))
    binaries = {name: directory / name for name in ("quarryd", "quarry-loadgen", "hyper_floor")}
    missing = [str(path) for path in binaries.values() if not path.exists()]
    if missing:
        sys.exit(f"not built: {', '.join(missing)}")
    return binaries


def prepare_directory(args):
    """A new directory: what is there is not ours to remove."""
    if args.data.exists():
        sys.exit(f"{args.data} exists; remove it or give another --data")
    args.data.mkdir(parents=True)
    needed = DEVICES * parse_size(args.device_size) + SLACK_BYTES
    free = shutil.disk_usage(args.data).free
    if free < needed:
        args.data.rmdir()
        sys.exit(f"{args.data} has {free >> 30} GiB free, {needed >> 30} GiB are needed")


def parse_size(text):
    units = {"GiB": 30, "MiB": 20}
    for unit, shift in units.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) << shift
    sys.exit(f"{text!r} is not a size; write for example 3GiB")


def measure(args, binaries):
    measured = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(args.data),
        "commit": commit(),
        "parameters": {
            "rounds": args.rounds, "seconds": args.seconds, "streams": args.streams,
            "device_size": args.device_size, "devices": DEVICES, "profile": PROFILE, "payload": "unsigned",
        },
        "runs": [],
        "idle_cpu_percent": {},
        "md5_cpu_seconds_per_gib": [],
        "fio": [],
    }
    with contextlib.ExitStack() as stack:
        floor = stack.enter_context(Server("floor", floor_command(binaries), args.data))
        node = stack.enter_context(Server("quarry", node_command(binaries, args), args.data))
        servers = [node, floor]
        for server in servers:
            server.wait_ready()
            with server.alone(servers):
                measured["idle_cpu_percent"][server.name] = server.idle_cpu_percent()
        for round_number in range(1, args.rounds + 1):
            with servers[0].alone(servers):
                measured["md5_cpu_seconds_per_gib"].append(md5_cpu_seconds_per_gib())
            for workload in WORKLOADS:
                for server in servers:
                    with server.alone(servers):
                        run = load(binaries, args, server, workload)
                    measured["runs"].append({"round": round_number, "server": server.name, **run})
        node.stop()
    measured["fio"] = fio_rounds(args)
    return measured


def machine(data):
    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    memory_kib = int(pathlib.Path("/proc/meminfo").read_text().split()[1])
    mount = subprocess.run(["df", "--output=source,fstype", str(data)], capture_output=True, text=True, check=True)
    source, filesystem = mount.stdout.splitlines()[1].split()
    return {
        "cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": platform.release(), "disk": f"{source} ({filesystem})", "load_before": os.getloadavg()[0],
    }


def commit():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return git("rev-parse", "--short=12", "HEAD") + (" and changes" if git("status", "--porcelain", "-uno") else "")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def floor_command(binaries):
    port = free_port()
    return port, None, [binaries["hyper_floor"], "--listen", f"127.0.0.1:{port}"]


def node_command(binaries, args):
    port, admin = free_port(), free_port()
    return port, admin, [
        binaries["quarryd"], "--standalone", "--data", args.data / "quarry", "--device-size", args.device_size,
        "--profile", "{}+{}".format(*PROFILE), "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}",
    ]


class Server:
    """A server process; killed at the end of the `with` block if it still runs."""

    def __init__(self, name, ports_and_command, directory, environment=None):
        self.name = name
        self.port, self.admin, command = ports_and_command
        self.log = directory / f"{name}.log"
        self.command = [str(word) for word in command]
        environment = environment or {"QUARRY_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"],
                                      "QUARRY_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env={**os.environ, **environment})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            # Also ends a stopped process.
            self.process.kill()
            self.process.wait()

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if self.is_ready():
                return
            time.sleep(0.05)
        sys.exit(f"{self.name} does not start:\n{self.tail()}")

    def tail(self):
        return self.log.read_text(errors="replace")[-3000:]

    def is_ready(self):
        try:
            if self.admin is None:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return True
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/health/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    @contextlib.contextmanager
    def alone(self, servers):
        """Stops the others meanwhile, and begins when this one has finished its work in the background."""
        others = [server for server in servers if server is not self]
        for other in others:
            other.process.send_signal(signal.SIGSTOP)
        try:
            self.settle()
            yield
        finally:
            for other in others:
                other.process.send_signal(signal.SIGCONT)

    def settle(self):
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(0.5)
            if self.cpu_seconds() - before < 0.5 * SETTLED_CORES:
                return

    def idle_cpu_percent(self):
        before = self.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        return round(100 * (self.cpu_seconds() - before) / IDLE_SECONDS, 2)

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def counters(self):
        """Bytes that the process had written to disks, and the node's own counters, summed over its devices."""
        io = dict(line.split(": ") for line in pathlib.Path(f"/proc/{self.process.pid}/io").read_text().splitlines())
        counters = {"disk_write_bytes": int(io["write_bytes"]), "disk_read_bytes": int(io["read_bytes"])}
        if self.admin is None:
            return counters
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                name = line.split("{")[0].removeprefix("quarry_device_").removesuffix("_total")
                name = {"journal_flushes": "flushes", "journal_batches": "batches", "journal_records": "records"}.get(name, name)
                if name in ("flushes", "batches", "records", "journal_bytes", "checkpoints", "checkpoint_bytes"):
                    counters[name] = counters.get(name, 0) + int(float(line.rsplit(" ", 1)[1]))
        return counters

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=STOP_SECONDS_MAX) != 0:
            sys.exit(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")


def load(binaries, args, server, workload):
    """One run of quarry-loadgen: what it reports, and what the counters of the server grew by."""
    name, operation, size, objects = workload
    say(f"{name} on {server.name}")
    command = [
        binaries["quarry-loadgen"], operation, "--endpoint", f"http://127.0.0.1:{server.port}",
        "--bucket", f"bench-{size}", "--size", str(size), "--objects", str(objects),
        "--concurrency", str(args.streams), "--duration", f"{args.seconds}s", "--payload", "unsigned",
        "--verify", "none", "--server-pid", str(server.process.pid), "--json",
    ]
    # The node has the objects of the PUT before; the floor keeps nothing, so its objects are sent to it again.
    if operation == "get" and server.admin is not None:
        command.append("--no-prepare")
    before = server.counters()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env={**os.environ, **KEYS})
    if not done.stdout:
        sys.exit(f"quarry-loadgen failed ({done.returncode}): {done.stderr[-3000:]}\n{server.tail()}")
    if done.returncode != 0:
        say(f"quarry-loadgen ended with {done.returncode}: {done.stderr[-3000:]}\n{server.tail()}")
    after = server.counters()
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    return {"workload": name, "exit_code": done.returncode, "counters": grown, "loadgen": json.loads(done.stdout)}


def md5_cpu_seconds_per_gib():
    """Of one stream, by OpenSSL: the ETag of a PUT is an MD5 of its body."""
    block, blocks = bytes(1 << 20), 256
    digest = hashlib.md5(usedforsecurity=False)
    before = time.process_time()
    for _ in range(blocks):
        digest.update(block)
    return (time.process_time() - before) * 1024 / blocks


def fio_rounds(args):
    files = sorted((args.data / "quarry").rglob("device-*"))
    if len(files) != DEVICES:
        sys.exit(f"expected {DEVICES} device files, found {files}")
    size = DEVICES * FIO_BYTES_PER_FILE
    common = [
        "fio", "--name=fio", f"--filename={':'.join(map(str, files))}", f"--size={size}", "--direct=1", "--thread",
        "--ioengine=io_uring", "--registerfiles=1", "--fixedbufs=1", "--output-format=json",
    ]
    timed = ["--time_based", f"--runtime={args.seconds}"]
    large = ["--bs=128k", f"--iodepth={args.streams}"]
    small = ["--bs=4k"]
    jobs = [
        ("128 KiB sequential write", "write", ["--rw=write", *large, *timed]),
        ("128 KiB sequential read", "read", ["--rw=read", *large, *timed]),
        ("4 KiB write and fdatasync, one at a time", "write", ["--rw=randwrite", "--fdatasync=1", *small, *timed]),
        ("4 KiB random read", "read", ["--rw=randread", f"--iodepth={args.streams}", *small, *timed]),
    ]
    say("fio: fill")
    fio([*common, "--rw=write", *large])
    results = []
    for round_number in range(1, args.rounds + 1):
        for name, direction, flags in jobs:
            say(f"fio: {name}")
            job = fio([*common, *flags])
            results.append({"round": round_number, "job": name, **fio_numbers(job, direction)})
    return results


def fio(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"fio failed: {done.stderr[-2000:]}")
    # Notices may stand before the report.
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]


def fio_numbers(job, direction):
    part = job[direction]
    cpu_seconds = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return {
        "bytes": part["io_bytes"], "operations": part["total_ios"], "seconds": part["runtime"] / 1000,
        "cpu_seconds": cpu_seconds, "mean_latency_us": part["lat_ns"]["mean"] / 1000,
        "mean_flush_us": job.get("sync", {}).get("lat_ns", {}).get("mean", 0) / 1000,
    }


def say(text):
    print(f"-- {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
