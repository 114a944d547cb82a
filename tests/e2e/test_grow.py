"""Nodes die for good, come, are drained and removed: under load, with redundancy full again after each."""

import threading
import time

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from cluster import ETCD, LEASE_TTL_S, Cluster, ClusterNode, ctl, run_ctl
from harness import eventually
from objects import ObjectSet, content
from test_scrub import scrub

pytestmark = pytest.mark.skipif(ETCD is None, reason="etcd is not installed")
BUCKET = "grow"
REBUILD_AFTER_S = 5
# A lease, the grace, the wait before others take over, and the work itself on a slow machine.
REPAIRED_WITHIN_S = LEASE_TTL_S + REBUILD_AFTER_S + 150
SIZES = (100, 40_000, 700_000)


class Load:
    """Writes and reads back through living nodes until it is stopped; keeps what was acknowledged."""

    def __init__(self, cluster):
        self.cluster, self.acknowledged, self.failures, self.wrong = cluster, {}, 0, []
        self.longest_gap, self.stopping = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()

    def run(self):
        number, last = 0, time.monotonic()
        while not self.stopping.is_set():
            nodes = [node for node in self.cluster.nodes if node.process is not None and node not in self.cluster.leaving]
            client = nodes[number % len(nodes)].client(retries=3, read_timeout=20)
            key, size = f"load/{number % 40}", SIZES[number % len(SIZES)]
            number += 1
            body = content(key, number, size)
            self.acknowledged.pop(key, None)
            try:
                client.put_object(Bucket=BUCKET, Key=key, Body=body)
                self.acknowledged[key] = (number, size)
                if client.get_object(Bucket=BUCKET, Key=key)["Body"].read() != body:
                    self.wrong.append(key)
                self.longest_gap = max(self.longest_gap, time.monotonic() - last)
                last = time.monotonic()
            except (ClientError, BotoCoreError):
                self.failures += 1

    def verify(self, client):
        assert not self.wrong, self.wrong
        for key, (number, size) in self.acknowledged.items():
            assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == content(key, number, size), key


@pytest.fixture
def cluster(request, scratch):
    cluster = Cluster(scratch / "cluster", nodes=4, devices=2, profile="2+1", partitions=24, rebuild_after_s=REBUILD_AFTER_S)
    cluster.leaving = set()
    yield cluster.start()
    if getattr(request.node, "failed", True):
        for process in (*cluster.controllers, *cluster.nodes):
            print(f"--- end of {process.log_path.name}:\n{process.log()[-3000:]}")
    cluster.close()


def settled(node, devices):
    """The status, once redundancy is full, nothing moves and so many devices are there."""
    status = ctl(node, "status")
    still = status["groups_moving"] == status["partitions_with_joiner"] == status["devices_out"] == 0
    jobs = ctl(node, "job", "list")
    idle = all(job["state"] in ("idle", "paused") for job in jobs)
    full = status["redundancy"] == "full" and status["devices_in"] == devices
    return status if still and idle and full else None


def moved_bytes(cluster):
    return sum(node.metric("quarry_repair_bytes_total") for node in cluster.nodes if node.process is not None)


def places(node):
    return {device["device"]: (device["node"], device["places"]) for device in ctl(node, "device", "list")}


def test_nodes_die_return_come_and_go(cluster):
    first, second, third, fourth = cluster.nodes
    client = first.client(retries=5)
    client.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    objects.write(client, "before", small=20, threads=2)

    with Load(cluster) as load:
        cluster.leaving.add(fourth)
        began = time.monotonic()
        fourth.kill()
        eventually("it is out", 60, lambda: ctl(first, "status")["devices_out"] == 2)
        eventually("what it held is elsewhere", REPAIRED_WITHIN_S, lambda: settled(first, 6))
        print(f"a node died: redundancy full after {time.monotonic() - began:.1f} s, "
              f"{moved_bytes(cluster)} bytes made anew, longest gap of the load {load.longest_gap:.1f} s, "
              f"{load.failures} failures")
    report(cluster, objects, load, first, "after a node died")

    with Load(cluster) as load:
        began, before = time.monotonic(), moved_bytes(cluster)
        fourth.start()
        eventually("it has its share", REPAIRED_WITHIN_S, lambda: settled(first, 8))
        held = {device: uses for device, (_, uses) in places(first).items()}
        print(f"it returned: even after {time.monotonic() - began:.1f} s, {moved_bytes(cluster) - before} bytes moved, {held}")
        assert max(held.values()) - min(held.values()) <= 0.1 * max(held.values()) + 3, held
    cluster.leaving.clear()
    report(cluster, objects, load, fourth, "after it returned")

    number = next(node["node"] for node in ctl(first, "node", "list") if node["name"] == "node-3")
    told = ctl(first, "node", "drain", "node-3", "--dry-run", output="table")
    assert "The first step:" in told and "drained node-" in told, told
    assert ctl(first, "map", "devices")[0]["drained"] is False, "a dry run changed something"
    refused = run_ctl(first, "node", "remove", "node-3", "--yes")
    assert refused.returncode != 0 and "drain it first" in refused.stderr, refused
    with Load(cluster) as load:
        began, before = time.monotonic(), moved_bytes(cluster)
        cluster.leaving.add(third)
        ctl(first, "node", "drain", "node-3", "--yes", output="table")
        eventually("it is empty", REPAIRED_WITHIN_S, lambda: all(
            uses == 0 for node, uses in places(first).values() if node == number) and settled(first, 8))
        print(f"drained after {time.monotonic() - began:.1f} s, {moved_bytes(cluster) - before} bytes moved")
        ctl(first, "node", "remove", "node-3", "--yes", output="table")
        third.stop()
        eventually("it has left", 60, lambda: settled(first, 6))
        assert ctl(first, "status")["nodes"] == 3
    report(cluster, objects, load, second, "after a node was drained and removed")

    with Load(cluster) as load:
        began, before = time.monotonic(), moved_bytes(cluster)
        fifth = ClusterNode(cluster, 5, 2)
        cluster.nodes.append(fifth)
        cluster.leaving.add(fifth)
        fifth.start()
        eventually("the new node has its share", REPAIRED_WITHIN_S, lambda: settled(first, 8))
        held = {device: uses for device, (_, uses) in places(first).items()}
        moved = moved_bytes(cluster) - before
        print(f"a node was added: even after {time.monotonic() - began:.1f} s, {moved} bytes moved, {held}")
        assert max(held.values()) - min(held.values()) <= 0.1 * max(held.values()) + 3, held
    cluster.leaving = {third}
    report(cluster, objects, load, fifth, "after a node was added")
    for node in cluster.nodes:
        if node.process is not None:
            scrub(node)
            assert node.metric("quarry_scrub_damage_total") == 0, node.number
    ctl(first, "job", "pause", "rebalance", "--yes", output="table")
    states = {job["job"]: job["state"] for job in ctl(first, "job", "list")}
    assert states == {"repair": "idle", "drain": "idle", "rebalance": "paused"}


def report(cluster, objects, load, node, when):
    print(f"{when}: longest gap of the load {load.longest_gap:.1f} s, {load.failures} failures with retries")
    client = node.client(retries=5)
    load.verify(client)
    problems = {key: objects.damaged(client, key) for key in objects.sizes}
    assert not any(problems.values()), (when, {key: problem for key, problem in problems.items() if problem})
