"""Breaks a cluster of real processes in every way while clients record what they see, and judges what they saw.

`Run` makes the cluster (each program in a network namespace of its own), the recorder and the faults; each fault has a window,
from its begin until the cluster is whole again. `tests/cluster_faults.sh` is the long run, `test_cluster_faults.py` the short one.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request

from cluster import KEYS, Cluster, ctl, fsck, stop_all
from harness import BINARIES, eventually
from netns import Network

LOADGEN = BINARIES / "quarry-loadgen"
JUDGE = BINARIES / "quarry-linearizable"
BUCKET = "faults"
WHOLE_SECONDS_MAX = 180
READ_BACK_SECONDS_MAX = 600
WRITES = {"put", "create", "replace", "delete"}


class Run:
    """A cluster of 6 nodes x 2 devices with 3 etcd and 2 controllers, and clients that record."""

    def __init__(self, root, seed, rate=120, clients=48, hot_keys=24, partitions=64):
        self.root, self.random = pathlib.Path(root), random.Random(seed)
        self.windows, self.recorder = [], None
        # A node that was cut off joins nothing for a minute: the long run waits until every partition has all replicas.
        self.waits_for_places = False
        self.memory = pathlib.Path(tempfile.mkdtemp(prefix="quarry-etcd-", dir="/dev/shm"))
        self.network = Network()
        self.cluster, self.partitions = None, partitions
        self.options = ["--rate", rate, "--clients", clients, "--hot-keys", hot_keys, "--seed", seed]
        self.history = self.root / "history.jsonl"

    def make_cluster(self):
        return Cluster(
            self.root, nodes=6, devices=2, profile="4+2", partitions=self.partitions, controllers=2, etcds=3,
            etcd_root=self.memory, network=self.network)

    def before_clients(self):
        """What is to be there before anything is recorded."""

    def start(self):
        self.cluster = self.make_cluster()
        self.cluster.start()
        self.wait_whole("after the start")
        self.before_clients()
        nodes = [word for node in self.cluster.nodes for word in ("--node", node.endpoint)]
        command = [LOADGEN, "history", *nodes, "--bucket", BUCKET, "--out", self.history, *self.options]
        environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEYS["QUARRY_ACCESS_KEY"],
                       "AWS_SECRET_ACCESS_KEY": KEYS["QUARRY_SECRET_KEY"]}
        with open(self.root / "recorder.log", "ab") as log:
            self.recorder = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        eventually("clients record", 60, lambda: self.recording())
        return self

    def recording(self):
        assert self.recorder.poll() is None, (self.root / "recorder.log").read_text()
        return self.history.exists() and self.history.stat().st_size > 0

    # What the cluster is like.

    def status(self):
        """From the first node that answers."""
        for node in self.cluster.nodes:
            if node.process is not None:
                try:
                    return ctl(node, "status")
                except (AssertionError, subprocess.TimeoutExpired):
                    continue
        return None

    def is_whole(self):
        status = self.status()
        return (status is not None and status["nodes_not_alive"] == [] and status["devices_out"] == 0
                and status["partitions_with_joiner"] == 0 and status["partitions"] == {"serving": self.partitions}
                and (status["partitions_short"] == 0 or not self.waits_for_places)
                and status["leader"] is not None)

    def wait_whole(self, when):
        try:
            eventually(f"the cluster is whole {when}", WHOLE_SECONDS_MAX, lambda: self.is_whole() or time.sleep(0.3))
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.status()}") from None

    def controller_leader(self):
        return self.cluster.controllers[int(self.status()["leader"].rsplit("-", 1)[1])]

    def etcd_leader(self):
        for etcd, url in zip(self.cluster.etcds, self.cluster.etcd_urls):
            with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
                if b"\netcd_server_is_leader 1" in answer.read():
                    return etcd
        raise AssertionError("no etcd leads")

    def a_node(self):
        """One with primaries; most have some."""
        nodes = ctl(self.cluster.nodes[0], "node", "list")
        chosen = self.random.choice(sorted(node["name"] for node in nodes if node["primaries"] > 0))
        return next(node for node in self.cluster.nodes if node.name == chosen)

    # Faults: what comes before `yield` begins one, what comes after ends it.

    def nothing(self):
        yield "none"

    def kill_node(self):
        node = self.a_node()
        node.kill()
        yield "kill -9 of a node with primaries"
        node.start()

    def kill_two_nodes(self):
        nodes = self.random.sample(self.cluster.nodes, 2)
        for node in nodes:
            node.kill()
        yield "kill -9 of two nodes at once"
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            node.wait_ready()

    def kill_controller(self):
        leader = self.controller_leader()
        leader.kill()
        yield "kill -9 of the controller leader"
        leader.start()

    def kill_etcd_leader(self):
        leader = self.etcd_leader()
        leader.kill()
        yield "kill -9 of the etcd leader"
        leader.start()

    def stop_node(self):
        node = self.a_node()
        node.process.send_signal(signal.SIGSTOP)
        yield "SIGSTOP of a node with primaries"
        node.process.send_signal(signal.SIGCONT)

    def no_controllers(self):
        for controller in self.cluster.controllers:
            controller.kill()
        yield "all controllers gone"
        for controller in self.cluster.controllers:
            controller.start()

    def no_etcd(self):
        for etcd in self.cluster.etcds:
            etcd.kill()
        yield "all etcd gone"
        for etcd in self.cluster.etcds:
            etcd.start()

    def cut(self, whom, outward, inward, silent):
        """Cuts a node's links to the other nodes or to etcd."""
        node = self.a_node()
        others = [name for name in self.network.addresses if name.startswith(whom) and name != node.name]
        for other in others:
            if outward:
                self.network.cut(node.name, other, silent)
            if inward:
                self.network.cut(other, node.name, silent)
        ways = "both ways" if outward and inward else "outward only" if outward else "inward only"
        peers = "its peers" if whom == "node-" else "etcd"
        yield f"a node cut from {peers}, {ways}"
        self.network.heal()

    def cut_from_peers(self, outward, inward, silent):
        """Etcd still hears the node, so its lease does not end."""
        yield from self.cut("node-", outward, inward, silent)

    def isolated(self):
        """From peers and etcd, but not from clients: it must not answer from what it has."""
        node = self.a_node()
        for other in self.network.addresses:
            if other != node.name:
                self.network.cut(node.name, other, False)
                self.network.cut(other, node.name, False)
        yield "a node cut from peers, etcd and controllers"
        self.network.heal()

    def rolling_restart(self):
        for node in self.cluster.nodes:
            node.stop()
            time.sleep(1)
            node.start()
            self.wait_whole(f"after the restart of {node.name}")
        yield "rolling restart of all nodes"

    def apply(self, fault, hold_s):
        """One fault, from a whole cluster to a whole cluster."""
        self.wait_whole("before a fault")
        assert self.recorder.poll() is None, (self.root / "recorder.log").read_text()
        begin = time.time()
        name = next(fault)
        print(f"{time.strftime('%H:%M:%S')} {name}, {hold_s} s", flush=True)
        time.sleep(hold_s)
        healed = time.time()
        next(fault, None)
        self.wait_whole(f"after: {name}")
        window = {"fault": name, "begin": begin, "healed": healed, "whole": time.time()}
        print(f"    whole {window['whole'] - healed:.1f} s after the end of the fault", flush=True)
        # A little longer: what hung in a client's request ends.
        time.sleep(2)
        self.windows.append(window)
        (self.root / "windows.json").write_text(json.dumps(self.windows))

    # The end.

    def finish(self):
        """Ends the recording (all keys are read back), stops the nodes cleanly, and returns the judge's verdict."""
        self.recorder.stdin.close()
        code = self.recorder.wait(timeout=READ_BACK_SECONDS_MAX)
        assert code == 0, f"the recorder ended with {code}: {(self.root / 'recorder.log').read_text()}"
        self.wait_whole("at the end")
        verdict = self.judge()
        stop_all(self.cluster)
        code, report = fsck(self.cluster.nodes, "--verify-data")
        assert code == 0 and report["clean"], f"fsck (exit code {code}) found: {report}"
        return verdict

    def judge(self):
        done = subprocess.run([str(JUDGE), str(self.history)], capture_output=True, text=True)
        assert done.returncode == 0, f"not linearizable:\n{done.stdout[:2000]}\n{done.stderr[:20000]}"
        return json.loads(done.stdout)

    def logs(self):
        processes = [*self.cluster.controllers, *self.cluster.etcds, *self.cluster.nodes] if self.cluster else []
        return {process.log_path.name: process.log() for process in processes}

    def close(self):
        try:
            if self.recorder is not None and self.recorder.poll() is None:
                self.recorder.kill()
                self.recorder.wait()
            if self.cluster is not None:
                for node in self.cluster.nodes:
                    if node.process is not None:
                        node.process.send_signal(signal.SIGCONT)
                self.cluster.close()
        finally:
            self.network.close()
            shutil.rmtree(self.memory, ignore_errors=True)

    # What clients saw of each fault.

    def report(self):
        """One row per window."""
        with open(self.history) as lines:
            header = json.loads(next(lines))
            attempts = [json.loads(line) for line in lines if line.endswith("\n")]
        origin = header["origin_unix_us"] / 1e6
        calls = collections.defaultdict(list)
        for attempt in attempts:
            tries = calls[attempt["client"], attempt["call"]]
            if not tries or tries[-1]["attempt"] != attempt["attempt"]:
                tries.append(attempt)
        return [
            {**window, **seen_in(window["begin"] - origin, window["whole"] - origin, calls.values())}
            for window in self.windows
        ]


def seen_in(begin, end, calls):
    """Errors and gaps among the calls that overlap with this time (seconds since the origin)."""
    row = collections.Counter()
    took, acknowledged = collections.defaultdict(list), collections.defaultdict(lambda: collections.defaultdict(list))
    for tries in calls:
        first, last = tries[0], tries[-1]
        if last["end"] / 1e6 < begin or first["start"] / 1e6 > end:
            continue
        kind = "write" if first["kind"] in WRITES else "read"
        who = "patient" if first["client"] % 2 else "standard"
        done = last["outcome"] in ("ok", "refused")
        row[f"{who}_calls"] += 1
        row[f"{who}_errors"] += not done
        row["attempts"] += len(tries)
        row["attempts_failed"] += sum(attempt["outcome"] in ("failed", "unknown") for attempt in tries)
        row["unknown_writes"] += sum(attempt["outcome"] == "unknown" for attempt in tries if kind == "write")
        if done:
            # From the first try of the call to its acknowledgement.
            took[kind].append((last["end"] - first["start"]) / 1e6)
            acknowledged[kind][first["key"]].append(last["end"] / 1e6)
    for kind in ("write", "read"):
        row[f"slowest_{kind}_s"] = round(max(took[kind], default=0), 2)
        row[f"p99_{kind}_s"] = round(percentile(took[kind], 99), 3)
        row[f"gap_{kind}_s"] = round(gap(begin, end, sum(acknowledged[kind].values(), [])), 2)
        hot = [times for key, times in acknowledged[kind].items() if key.startswith("hot/")]
        row[f"gap_{kind}_one_key_s"] = round(max((gap(begin, end, times) for times in hot), default=end - begin), 2)
    return dict(row)


def percentile(values, percent):
    """The smallest value that so many percent of them do not exceed; 0 if there is none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0


def gap(begin, end, times):
    """The longest time within a window without any of these."""
    edges = [begin, *sorted(min(max(time, begin), end) for time in times), end]
    return max(later - earlier for earlier, later in zip(edges, edges[1:]))


COLUMNS = [
    ("fault", "fault"), ("lasted_s", "fault s"), ("recovery_s", "whole again after s"), ("calls", "calls"),
    ("attempts_failed", "failed attempts"), ("unknown_writes", "writes of unknown outcome"),
    ("standard_errors", "errors, 3 attempts"), ("patient_errors", "errors, patient"),
    ("gap_write_s", "gap, writes"), ("gap_read_s", "gap, reads"),
    ("gap_write_one_key_s", "gap, writes of one key"), ("gap_read_one_key_s", "gap, reads of one key"),
    ("p99_write_s", "p99, writes"), ("p99_read_s", "p99, reads"),
    ("slowest_write_s", "slowest write"), ("slowest_read_s", "slowest read"),
]


def table(rows):
    """As Markdown."""
    lines = ["| " + " | ".join(title for _, title in COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        row = {**row, "lasted_s": round(row["healed"] - row["begin"]), "calls": row["standard_calls"] + row["patient_calls"],
               "recovery_s": round(row["whole"] - row["healed"], 1)}
        lines.append("| " + " | ".join(str(row.get(name, 0)) for name, _ in COLUMNS) + " |")
    return "\n".join(lines)


def cuts(run):
    """Every cut, silent and not."""
    return [
        (run.cut_from_peers(True, True, False), 25), (run.cut_from_peers(True, False, True), 25),
        (run.cut_from_peers(False, True, True), 25), (run.cut("etcd-", True, True, False), 25),
        (run.cut("etcd-", True, False, True), 25), (run.cut("etcd-", False, True, True), 25), (run.isolated(), 25),
    ]


def every_fault(run, etcd_gone_s, words=()):
    """The long plan: (fault, how long it lasts), or what of it is named by these words."""
    plan = [
        (run.nothing(), 20), (run.kill_node(), 25), (run.kill_two_nodes(), 25), (run.kill_controller(), 20),
        (run.kill_etcd_leader(), 20), (run.stop_node(), 30), *cuts(run), (run.no_controllers(), 60),
        (run.rolling_restart(), 0), (run.no_etcd(), etcd_gone_s),
    ]
    named = [entry for entry in plan if not words or any(word in entry[0].gi_code.co_name for word in words)]
    assert named, f"no fault is called {words}"
    return named
