"""fsck of a stopped cluster: clean after a crash under writes, tells what it cannot know of one node, finds what is planted."""

import os
import threading

import pytest
from cluster import ETCD, Cluster, ctl, fsck, stop_all
from harness import eventually
from objects import ObjectSet

pytestmark = pytest.mark.skipif(ETCD is None, reason="etcd is not installed")
BUCKET = "checked"
SERVE_SECONDS_MAX = 60


def serves(cluster):
    status = ctl(cluster.nodes[0], "status")
    return status["devices_out"] == 0 and set(status["partitions"]) == {"serving"}


def test_a_stopped_cluster_is_checked_as_a_whole(scratch):
    cluster = Cluster(scratch / "cluster", nodes=3, profile="2+1")
    try:
        cluster.start()
        cluster.nodes[0].client(retries=10).create_bucket(Bucket=BUCKET)
        objects = ObjectSet(BUCKET)
        client = cluster.nodes[0].client(retries=10)
        writing = threading.Thread(target=objects.write, args=(client, "while"), kwargs={"small": 40, "threads": 4})
        writing.start()
        cluster.nodes[1].kill()
        cluster.nodes[1].start()
        writing.join()
        eventually("all is served again", SERVE_SECONDS_MAX, lambda: serves(cluster))
        objects.verify(client, "before the stop")
        code, report = fsck(cluster.nodes)
        assert code == 2 and "is running" in report, report
        stop_all(cluster)

        code, report = fsck(cluster.nodes, "--verify-data")
        assert code == 0 and report["clean"] and report["objects"] == len(objects.sizes), report
        assert report["partitions"] == 64 and report["verified_bytes"] > 0, report
        assert not {"unread_device", "unread_partition"} & set(report["info"]), report
        code, report = fsck(cluster.nodes[:1], "--verify-data")
        assert code == 0 and report["clean"] and report["info"]["unread_device"] == 4, report
        assert report["info"]["unread_partition"] + report["partitions"] == 64, report
        code, report = fsck([])
        assert code == 2, report

        victim = cluster.root / "device-2-0"
        with open(victim, "r+b") as device:
            for offset in range(80 << 20, os.path.getsize(victim), 4096):
                device.seek(offset)
                if any(old := device.read(4096)):
                    device.seek(offset)
                    device.write(bytes([old[0] ^ 1]))
        code, report = fsck(cluster.nodes, "--verify-data")
        assert code == 1 and not report["clean"] and report["errors"], report
        code, report = fsck(cluster.nodes[:1], "--verify-data")
        assert code == 0, f"another node's damage: {report}"
    finally:
        cluster.close()
