"""Nodes and devices die for good, come, are slow, drained, restarted and cut off under a load that is recorded: what clients
saw, when redundancy was full again, and how many bytes moved for it.

`GrowRun` is a `faults.Run` whose members change; a dead node is followed by a new one at the same addresses. Each step is a
method that does its work and returns what its row is called, and the least that had to move. `tests/cluster_grow.sh` is the
long run, `test_cluster_grow.py` the short one.
"""

import json
import time

from botocore.exceptions import BotoCoreError, ClientError
from cluster import LEASE_TTL_S, Cluster, ClusterNode, ctl
from faults import COLUMNS, Run
from harness import MIB, eventually
from objects import content, list_all

BUCKET = "kept"
REBUILD_AFTER_S = 12
FULL_SECONDS_MAX = 420
SLOW_FOR_S = 20
# On three racks of two nodes a rack holds two shards of a group: as many as may be lost.
RACKS = 3
KEPT = [(f"kept/{index}", MIB + index) for index in range(24)]


class GrowRun(Run):
    """Nodes x 2 devices; objects of 1 MiB lie there from the start and are read back after every step."""

    def __init__(self, root, seed, nodes=6, profile="4+2", device_size="256MiB", racks=RACKS, **options):
        super().__init__(root, seed, **options)
        self.shape = {"nodes": nodes, "profile": profile, "device_size": device_size, "racks": racks}
        self.made, self.empty_bytes, self.moved_of = nodes, {}, {}
        self.dead, self.gone_bytes = [], 0

    def make_cluster(self):
        return Cluster(
            self.root, devices=2, partitions=self.partitions, controllers=2, etcds=3, etcd_root=self.memory,
            network=self.network, rebuild_after_s=REBUILD_AFTER_S, **self.shape)

    def before_clients(self):
        self.empty_bytes = self.used_bytes()
        client = self.alive()[0].client(retries=5)
        client.create_bucket(Bucket=BUCKET)
        for key, size in KEPT:
            client.put_object(Bucket=BUCKET, Key=key, Body=content(key, 1, size))

    # What the cluster is like.

    def alive(self):
        return [node for node in self.cluster.nodes if node.process is not None]

    def used_bytes(self):
        """Of each device of a node that runs: by node and path."""
        return {(node.name, device): node.metric("quarry_device_used_bytes", device=device)
                for node in self.alive() for device in self.devices_of(node)}

    def devices_of(self, node):
        text = node.admin_get("/metrics")[1]
        lines = [line for line in text.splitlines() if line.startswith("quarry_device_used_bytes{")]
        return [line.split('device="')[1].split('"')[0] for line in lines]

    def held_bytes(self, nodes=None):
        """What devices hold beyond what an empty one does."""
        names = {node.name for node in nodes} if nodes is not None else None
        return sum(max(0, used - self.empty_bytes.get(device, min(self.empty_bytes.values())))
                   for device, used in self.used_bytes().items() if names is None or device[0] in names)

    def moved_bytes(self):
        """Bytes of shards made anew or copied so far, by all processes that were ever seen."""
        for node in self.alive():
            self.moved_of[node.name, node.process.pid] = node.metric("quarry_repair_bytes_total")
        return sum(self.moved_of.values())

    def is_full(self):
        """Redundancy is full, nothing moves or waits, and every partition serves."""
        status = self.status()
        if status is None or status["leader"] is None:
            return None
        still = status["groups_moving"] == status["partitions_with_joiner"] == status["devices_out"] == 0
        serving = status["partitions"] == {"serving": self.partitions}
        if not (still and serving and status["redundancy"] == "full" and status["nodes_not_alive"] == []):
            return None
        idle = all(job["state"] in ("idle", "paused") for job in ctl(self.alive()[0], "job", "list"))
        return status if idle else None

    is_whole = is_full

    def wait_full(self, when, seconds=FULL_SECONDS_MAX):
        try:
            return eventually(f"redundancy is full {when}", seconds, lambda: self.is_full() or time.sleep(0.3))
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.status()}") from None

    def check_kept(self, when):
        client = self.random.choice(self.alive()).client(retries=5)
        for key, size in KEPT:
            try:
                body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            except (BotoCoreError, ClientError) as error:
                raise AssertionError(f"{when}: {key}: {error}") from None
            assert body == content(key, 1, size), f"{when}: {key} reads wrong"

    def operate(self, *words):
        return ctl(self.alive()[0], *words, "--yes", output="table")

    def wait_serving(self, when):
        """New blobs are taken and every partition serves, whatever is missing."""
        def serving():
            status = self.status()
            return (status is not None and status["groups_open"] > 0
                    and status["partitions"] == {"serving": self.partitions}) or time.sleep(0.1)
        eventually(f"all serves {when}", FULL_SECONDS_MAX, serving)

    # Steps.

    def steady(self):
        time.sleep(15)
        return "none", 0

    def die(self, count):
        """Nodes are killed and never come back: others lead, and make anew what was on them."""
        nodes = self.random.sample(self.alive(), count)
        least, devices = self.held_bytes(nodes), self.status()["devices_in"]
        self.moved_bytes()
        for node in nodes:
            node.kill()
        began = time.time()
        self.dead += nodes
        eventually("they are out", 60, lambda: self.status()["devices_in"] == devices - 2 * count or time.sleep(0.1))
        self.out_s = time.time() - began
        self.wait_serving("without them")
        self.serving_s = time.time() - began
        self.check_kept("while redundancy is reduced")
        eventually("their devices have left", FULL_SECONDS_MAX, lambda: self.status()["devices_out"] == 0 or time.sleep(0.3))
        for node in nodes:
            self.operate("node", "remove", node.name)
        return f"kill -9 of {'a node' if count == 1 else f'{count} nodes'}, for good", least

    def kill_one(self):
        return self.die(1)

    def kill_two(self):
        return self.die(2)

    def add_node(self):
        """New nodes where the dead ones were."""
        dead, self.dead = self.dead, []
        assert dead, "no node has died"
        before = self.status()["devices_in"]
        held = self.held_bytes()
        for old in dead:
            self.made += 1
            node = ClusterNode(self.cluster, self.made, 2, instead=old)
            self.cluster.nodes[self.cluster.nodes.index(old)] = node
            node.start()
        devices = before + 2 * len(dead)
        eventually("their devices are in", 60, lambda: self.status()["devices_in"] == devices or time.sleep(0.1))
        return f"{len(dead)} node{'s' if len(dead) > 1 else ''} added", held * 2 * len(dead) / devices

    def broken_device(self):
        """Every operation of a device fails; it is made up for by the others and leaves the map. Then it is back, as new."""
        node = self.random.choice(self.alive())
        device = self.random.choice(self.devices_of(node))
        least = max(0, node.metric("quarry_device_used_bytes", device=device) - self.empty_bytes.get((node.name, device), 0))
        before = self.status()["devices_in"]
        node.inject(int(device.removeprefix("dev-"), 16), "all")
        eventually("it has left", FULL_SECONDS_MAX, lambda: (status := self.status())["devices_out"] == 0
                   and status["devices_in"] == before - 1 or time.sleep(0.3))
        self.broken = node
        return "a device with EIO", least

    def device_back(self):
        node, held, before = self.broken, self.held_bytes(), self.status()["devices_in"]
        self.moved_bytes()
        node.stop()
        node.start()
        eventually("it is in", 60, lambda: self.status()["devices_in"] == before + 1 or time.sleep(0.1))
        return "that device put back (restart)", held / (before + 1)

    def slow(self, delay_ms):
        """Every operation of a device is late, none fails: whatever is done about it, redundancy stays and clients are served."""
        node = self.random.choice(self.alive())
        device = self.random.choice(self.devices_of(node))
        number, before = int(device.removeprefix("dev-"), 16), self.status()["devices_in"]
        given_up = self.slow_writes()
        node.inject(number, f"slow&delay-ms={delay_ms}")
        time.sleep(SLOW_FOR_S)
        self.check_kept("while a device is slow")
        out = before - self.status()["devices_in"]
        given_up = self.slow_writes() - given_up
        node.inject(number, "none")
        assert out == 0, f"{out} devices left because one was slow"
        return f"a device {delay_ms} ms late for {SLOW_FOR_S} s ({given_up:.0f} shards not waited for)", 0

    def slow_writes(self):
        return sum(node.metric("quarry_device_slow_writes_total") for node in self.alive())

    def slow_device(self):
        return self.slow(100)

    def very_slow_device(self):
        """Later than writes wait for a device at all."""
        return self.slow(3_000)

    def add_device(self):
        node, held, before = self.random.choice(self.alive()), self.held_bytes(), self.status()["devices_in"]
        self.moved_bytes()
        node.paths.append(str(self.root / f"device-{node.number}-{len(node.paths)}"))
        node.write_config()
        node.stop()
        node.start()
        eventually("it is in", 60, lambda: self.status()["devices_in"] == before + 1 or time.sleep(0.1))
        return "one device added (restart)", held / (before + 1)

    def drain(self):
        """A node is emptied and removed; started again it stays out until it is added."""
        node = self.random.choice(self.alive())
        least = self.held_bytes([node])
        self.operate("node", "drain", node.name)
        number = next(entry["node"] for entry in ctl(self.alive()[0], "node", "list") if entry["name"] == node.name)
        eventually("it is empty", FULL_SECONDS_MAX, lambda: all(
            entry["places"] == 0 for entry in ctl(self.alive()[0], "device", "list") if entry["node"] == number)
            or time.sleep(0.3))
        self.moved_bytes()
        self.operate("node", "remove", node.name)
        node.stop()
        self.drained = node
        return "a node drained and removed", least

    def add_again(self):
        node, before, held = self.drained, self.status()["devices_in"], self.held_bytes()
        devices = len(node.paths)
        node.start(wait=False)
        time.sleep(LEASE_TTL_S)
        assert self.status()["devices_in"] == before, "a node that was removed has joined by itself"
        self.operate("node", "add", node.name)
        node.wait_ready()
        eventually("its devices are in", 60, lambda: self.status()["devices_in"] == before + devices or time.sleep(0.1))
        return "the removed node added again", held * devices / (before + devices)

    def restart_all(self):
        for node in self.alive():
            self.moved_bytes()
            node.stop()
            time.sleep(1)
            node.start()
            self.wait_full(f"after the restart of {node.name}")
        return "rolling restart", 0

    def cut_rack(self):
        """All nodes of a rack hear nobody but clients, for less than it takes to make anew what they hold."""
        rack = self.random.choice(sorted({node.rack for node in self.alive()}))
        inside = {node.place for node in self.alive() if node.rack == rack}
        for node in inside:
            for other in set(self.network.addresses) - inside:
                self.network.cut(node, other, False)
                self.network.cut(other, node, False)
        time.sleep(LEASE_TTL_S + 8)
        self.network.heal()
        return f"a rack ({len(inside)} nodes) cut off for {LEASE_TTL_S + 8} s", 0

    def fill(self):
        """Devices become full: writes are refused, reads and deletes go on; then there is room again."""
        client = self.alive()[0].client(retries=2)
        keys, refused = [], 0
        body = b"\xa5" * (2 * MIB)
        while refused < 5:
            key = f"filler/{len(keys)}"
            keys.append(key)
            try:
                client.put_object(Bucket=BUCKET, Key=key, Body=body)
                refused = 0
            except (ClientError, BotoCoreError):
                refused += 1
            assert len(keys) < 4_000, "the devices do not become full"
        self.check_kept("while full")
        for key in keys:
            client.delete_object(Bucket=BUCKET, Key=key)
        assert list_all(client, BUCKET).keys() == dict(KEPT).keys()
        eventually("there is room again", 120, lambda: self.try_put(client) or time.sleep(0.5))
        return f"disk full ({len(keys)} fillers of 2 MiB)", 0

    def try_put(self, client):
        try:
            client.put_object(Bucket=BUCKET, Key="kept/again", Body=bytes(MIB))
            client.delete_object(Bucket=BUCKET, Key="kept/again")
            return True
        except ClientError:
            return False

    def step(self, step):
        """One of these, from full redundancy to full redundancy."""
        self.wait_full("before a step")
        assert self.recorder.poll() is None, (self.root / "recorder.log").read_text()
        before, begin = self.moved_bytes(), time.time()
        self.out_s = self.serving_s = None
        print(f"{time.strftime('%H:%M:%S')} {step.__name__}", flush=True)
        name, least = step()
        healed = time.time()
        self.wait_full(f"after: {name}")
        full = time.time()
        self.check_kept(f"after: {name}")
        moved = self.moved_bytes() - before
        window = {"fault": name, "begin": begin, "healed": healed, "whole": full, "full_s": round(full - begin, 1),
                  "moved_mib": round(moved / MIB, 1), "least_mib": round(least / MIB, 1)}
        for what in ("out_s", "serving_s"):
            seconds = getattr(self, what)
            window[what] = "" if seconds is None else round(seconds, 1)
        print(f"    full after {window['full_s']} s, {window['moved_mib']} MiB moved, at least {window['least_mib']}", flush=True)
        # A little longer: what hung in a client's request ends.
        time.sleep(2)
        self.windows.append(window)
        (self.root / "windows.json").write_text(json.dumps(self.windows))

    def finish(self):
        """As in any run; and after the scrub of every node no shard is lost."""
        for node in self.alive():
            status, body = node.admin_get("/scrub", method="POST")
            assert status < 300, (status, body)
        for node in self.alive():
            eventually(f"the scrub of {node.name}", 300, lambda: node.metric("quarry_scrub_pass_finished")
                       >= node.metric("quarry_scrub_pass_wanted") or time.sleep(0.3))
            damage = node.metric("quarry_scrub_damage_total")
            if damage:
                print(f"the scrub of {node.name} has found {damage:.0f} shards missing or damaged, and mended them", flush=True)
            assert node.metric("quarry_repair_lost_total") == 0, f"{node.name} has lost shards"
        return super().finish()


TABLE = [
    ("fault", "what happened"), ("full_s", "redundancy full after s"), ("out_s", "devices out after s"),
    ("serving_s", "all partitions serve, groups open after s"), ("moved_mib", "MiB moved"), ("least_mib", "least MiB"),
    *[column for column in COLUMNS if column[0] in (
        "calls", "attempts_failed", "standard_errors", "patient_errors", "gap_write_s", "gap_read_s",
        "gap_write_one_key_s", "gap_read_one_key_s", "p99_write_s", "p99_read_s")],
]


def table(rows):
    """As Markdown."""
    lines = ["| " + " | ".join(title for _, title in TABLE) + " |", "|---" * len(TABLE) + "|"]
    for row in rows:
        row = {**row, "calls": row["standard_calls"] + row["patient_calls"]}
        lines.append("| " + " | ".join(str(row.get(name, 0)) for name, _ in TABLE) + " |")
    return "\n".join(lines)


def every_step(run, words=()):
    """The long plan, or what of it is named; a step that follows from another comes with it."""
    plan = [
        [run.steady], [run.kill_one, run.add_node], [run.kill_two, run.add_node], [run.broken_device, run.device_back],
        [run.slow_device], [run.very_slow_device],
        [run.add_device], [run.drain, run.add_again], [run.restart_all], [run.cut_rack], [run.fill],
    ]
    named = [steps for steps in plan if not words or any(word in steps[0].__name__ for word in words)]
    assert named, f"no step is called {words}"
    return [step for steps in named for step in steps]
