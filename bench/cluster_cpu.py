"""CPU of the servers per small request: one standalone node, then three nodes of a cluster, one executor each, profile 4+2 on
six device files. python bench/cluster_cpu.py [SECONDS]; needs a release build, etcd and the packages of tests/requirements.txt."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from cluster import KEYS, Cluster, ctl  # noqa: E402
from harness import BINARIES, Node, eventually  # noqa: E402

CLIENTS = 16


def loadgen(command, node, processes, size, seconds, *words):
    """Result of a run against one node; the CPU is that of all `processes`."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEYS["QUARRY_ACCESS_KEY"],
                   "AWS_SECRET_ACCESS_KEY": KEYS["QUARRY_SECRET_KEY"]}
    pids = [word for process in processes for word in ("--server-pid", process.process.pid)]
    done = subprocess.run([str(word) for word in (
        BINARIES / "quarry-loadgen", command, "--endpoint", node.endpoint, "--bucket", f"cpu-{size.lower()}", "--size", size,
        "--objects", 2000, "-c", CLIENTS, "--duration", f"{seconds}s", "--json", *pids, *words,
    )], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def measure(name, node, processes, seconds):
    for size in ("4KiB", "64"):
        for command in ("put", "get"):
            words = ["--no-prepare"] if command == "get" else []
            report = loadgen(command, node, processes, size, seconds, *words)
            if os.environ.get("QUARRY_SHOW_JSON"):
                print(json.dumps(report))
            server, rate = report["server"], report["operations_per_second"]
            cpu_us = 1e6 * server["cpu_seconds"] / report["operations"]
            print(f"| {name} | {command.upper()} {size} | {cpu_us:.0f} | {1e6 / cpu_us:.0f} | {rate:.0f} |", flush=True)


def main(seconds):
    root = pathlib.Path(os.environ.get("QUARRY_E2E_DIR", ROOT / "target" / "e2e"))
    root.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=root))
    print("| servers | operation | CPU us per operation | operations per CPU second | rate, /s |\n|---|---|---|---|---|")
    try:
        alone = Node(scratch / "alone", "--cores", 1, device_size="512MiB", environment=KEYS).start()
        measure("1 node", alone, [alone], seconds)
        alone.stop()
        cluster = Cluster(scratch / "cluster", nodes=3, profile="4+2", partitions=256, device_size="512MiB").start()
        try:
            eventually("all serve", 60, lambda: set(ctl(cluster.nodes[0], "status")["partitions"]) == {"serving"})
            measure("3 nodes", cluster.nodes[0], cluster.nodes, seconds)
        finally:
            cluster.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
