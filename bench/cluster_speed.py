"""What redundancy and distance cost: 64 MiB objects at 4+2 on one node, on a node that has lost two devices, and on three nodes,
in turns; then how fast a lost device is made anew. python bench/cluster_speed.py [ROUNDS]; needs a release build, etcd and the
packages of tests/requirements.txt. CPU is that of all quarryd processes of the shape, one executor each."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from cluster import KEYS, Cluster, ctl  # noqa: E402
from harness import BINARIES, Node, eventually  # noqa: E402

CLIENTS, SECONDS, OBJECTS = 8, 6, 16
DEVICE_SIZE = "2GiB"


def loadgen(command, node, processes, *words):
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEYS["QUARRY_ACCESS_KEY"],
                   "AWS_SECRET_ACCESS_KEY": KEYS["QUARRY_SECRET_KEY"]}
    pids = [word for process in processes for word in ("--server-pid", process.process.pid)]
    done = subprocess.run([str(word) for word in (
        BINARIES / "quarry-loadgen", command, "--endpoint", node.endpoint, "--bucket", "speed", "--size", "64MiB",
        "--objects", OBJECTS, "-c", CLIENTS, "--duration", f"{SECONDS}s", "--verify", "none", "--json", *pids, *words,
    )], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    gibibytes = report["operations"] * 64 / 1024
    return report["server"]["cpu_seconds"] / gibibytes, report["operations_per_second"] * 64


def load_average():
    return os.getloadavg()[0]


def in_turns(rounds, shapes):
    print("| load average | operation | " + " | ".join(f"{name}: CPU s/GiB (MiB/s)" for name, _, _ in shapes) + " |")
    print("|---|---|" + "---|" * len(shapes))
    for number in range(rounds):
        for command in ("put", "get"):
            row = {}
            for name, node, processes in shapes[number % len(shapes):] + shapes[:number % len(shapes)]:
                if command == "put" and name == DEGRADED:
                    continue
                cpu, rate = loadgen(command, node, processes, *(["--no-prepare"] if command == "get" else []))
                row[name] = f"{cpu:.2f} ({rate:.0f})"
            cells = " | ".join(row.get(name, "") for name, _, _ in shapes)
            print(f"| {load_average():.1f} | {command.upper()} | {cells} |", flush=True)


ALONE, DEGRADED, THREE = "1 node", "1 node without 2 of 6 devices", "3 nodes"


def rebuild(node, scratch):
    """Replaces a device; the budget is far above what the machine can do."""
    path = list(node.device_paths().values())[1]
    node.stop()
    path.unlink()
    config = scratch / "budget.toml"
    config.write_text('repair-per-second = "64GiB"\n')
    node.start("--config", config, "--replace-device", path)
    began, cpu = time.monotonic(), cpu_seconds(node)
    eventually("every group is whole", 600, lambda: "moving" not in states(node))
    seconds, cpu = time.monotonic() - began, cpu_seconds(node) - cpu
    written = node.metric("quarry_repair_bytes_total") / (1 << 20)
    print(f"\nrebuilt {written:.0f} MiB of one device in {seconds:.1f} s: {written / seconds:.0f} MiB/s made, "
          f"{cpu / (written / 1024):.2f} CPU s per GiB made")


def states(node):
    return {group["state"] for group in node.map()["placement_groups"].values()}


def cpu_seconds(node):
    fields = pathlib.Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(rounds):
    root = pathlib.Path(os.environ.get("QUARRY_E2E_DIR", ROOT / "target" / "e2e"))
    root.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=root))
    try:
        alone, degraded = (
            Node(scratch / name, "--cores", 1, device_size=DEVICE_SIZE, environment=KEYS).start()
            for name in ("alone", "degraded"))
        cluster = Cluster(scratch / "cluster", nodes=3, profile="4+2", partitions=256, device_size=DEVICE_SIZE).start()
        try:
            eventually("all serve", 60, lambda: set(ctl(cluster.nodes[0], "status")["partitions"]) == {"serving"})
            loadgen("put", degraded, [degraded])
            for device in list(degraded.device_paths())[:2]:
                degraded.inject(device, "all")
            eventually("two are out", 60, lambda: len(degraded.devices_in()) == 4)
            in_turns(rounds, [(ALONE, alone, [alone]), (DEGRADED, degraded, [degraded]),
                              (THREE, cluster.nodes[0], cluster.nodes)])
        finally:
            cluster.close()
        degraded.stop()
        rebuild(alone, scratch)
        alone.stop()
        subprocess.run([BINARIES / "quarry-loadgen", "limits", "--dir", scratch], check=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
