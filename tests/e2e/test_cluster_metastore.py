"""A metastore that was lost is made anew from what nodes keep, and a standalone node becomes a cluster; no object is lost."""

import json
import shutil
import subprocess

import pytest
from cluster import ETCD, KEYS, Cluster, ctl
from harness import BINARIES, Node, eventually
from objects import ObjectSet, list_all

pytestmark = pytest.mark.skipif(ETCD is None, reason="etcd is not installed")
BUCKET = "kept"
SERVE_SECONDS_MAX = 60


def quarryctl_metastore(*words):
    command = [str(word) for word in (BINARIES / "quarryctl", "--output", "json", "metastore", *words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def start_anew(cluster):
    """etcd with nothing in it."""
    cluster.etcd.kill()
    shutil.rmtree(cluster.root / "etcd-0", ignore_errors=True)
    cluster.etcd.start()
    eventually("etcd answers", 20, cluster.etcd_answers)


def serves(cluster):
    status = ctl(cluster.nodes[0], "status")
    return status["devices_out"] == 0 and set(status["partitions"]) == {"serving"}


def test_a_lost_metastore_is_restored_from_the_nodes(scratch):
    cluster = Cluster(scratch / "cluster")
    try:
        cluster.start()
        client = cluster.nodes[0].client(retries=10)
        client.create_bucket(Bucket=BUCKET)
        objects = ObjectSet(BUCKET)
        objects.write(client, "before", small=20, threads=4)
        for node in cluster.nodes:
            node.stop()
        for controller in cluster.controllers:
            controller.kill()
        start_anew(cluster)

        data = [word for node in cluster.nodes for word in ("--data", node.data)]
        config = ("--config", cluster.nodes[0].config_path)
        refused = quarryctl_metastore("restore", *config, *data[:2])
        assert refused.returncode == 1 and "nodes without a name: [" in refused.stderr, refused
        restored = quarryctl_metastore("restore", *config, *data)
        assert restored.returncode == 0, restored
        assert json.loads(restored.stdout)["nodes"] == 3
        again = quarryctl_metastore("restore", *config, *data)
        assert again.returncode == 1 and "already has a cluster" in again.stderr, again

        for process in cluster.controllers:
            process.start()
        for node in cluster.nodes:
            node.start(wait=False)
        for node in cluster.nodes:
            node.wait_ready()
        eventually("all partitions serve", SERVE_SECONDS_MAX, lambda: serves(cluster))
        for node in cluster.nodes:
            objects.verify(node.client(retries=10), "after the metastore was restored")
            assert list_all(node.client(), BUCKET) == objects.sizes
        cluster.nodes[1].client(retries=10).create_bucket(Bucket="after")
        objects.write(cluster.nodes[2].client(retries=10), "after", small=10, threads=4)
        objects.verify(cluster.nodes[0].client(retries=10), "with what was written after")
        for node in cluster.nodes:
            node.stop()
    finally:
        cluster.close()


def test_a_standalone_node_becomes_a_cluster(scratch):
    cluster = Cluster(scratch / "cluster", nodes=3, profile="4+2", partitions=256)
    first = cluster.nodes[0]
    # The first node of the cluster is this one, with its data and devices.
    alone = Node(first.data, device_size="256MiB", environment=KEYS)
    try:
        alone.start()
        client = alone.client()
        client.create_bucket(Bucket=BUCKET)
        objects = ObjectSet(BUCKET)
        objects.write(client, "alone", small=20, threads=4)
        devices = [str(path) for path in alone.device_paths().values()]
        alone.stop()
        first.config_path.write_text("".join(
            f"devices = {json.dumps(devices)}\n" if line.startswith("devices = ") else line
            for line in first.config_path.read_text().splitlines(keepends=True)))
        cluster.etcd.start()
        eventually("etcd answers", 20, cluster.etcd_answers)
        moved = quarryctl_metastore("migrate", "--config", first.config_path, "--data", first.data, "--node-name", "node-1")
        assert moved.returncode == 0, moved
        for process in cluster.controllers:
            process.start()
        for node in cluster.nodes:
            node.start(wait=False)
        for node in cluster.nodes:
            node.wait_ready()
        eventually("all nodes are in", SERVE_SECONDS_MAX, lambda: len(first.devices_in()) == 10 and serves(cluster))
        for node in cluster.nodes:
            objects.verify(node.client(retries=10), "after it became a cluster")
        objects.write(cluster.nodes[2].client(retries=10), "together", small=10, threads=4)
        objects.verify(first.client(retries=10), "written through a new node")
        for node in cluster.nodes:
            node.stop()
    finally:
        alone.close() if alone.process is not None else None
        cluster.close()
