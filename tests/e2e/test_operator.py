"""What operators ask: why, doctor, plan what-if, device list --available."""

import json

import pytest
from cluster import ETCD, Cluster, ctl, run_ctl
from harness import MIB, Node, eventually
from objects import content

BUCKET = "asked"
BODY = content("k", 1, 2 * MIB)


@pytest.fixture
def node(scratch):
    devices = [flag for number in range(3) for flag in ("--device", scratch / f"device-{number}")]
    node = Node(scratch / "data", *devices, "--profile", "2+1", "--cores", "2", device_size="256MiB")
    node.start()
    node.client().create_bucket(Bucket=BUCKET)
    yield node
    node.close()


def states(told):
    return [shard["state"] for blob in told["blobs"] for shard in blob["shards"]]


def test_why_an_object_is_where_it_is(node):
    s3 = node.client()
    s3.put_object(Bucket=BUCKET, Key="a/b", Body=BODY)
    s3.put_object(Bucket=BUCKET, Key="small", Body=b"small")
    told = ctl(node, "why", f"{BUCKET}/a/b")
    assert (told["size_bytes"], told["storage_class"], told["primary"]["in"]) == (len(BODY), "STANDARD", True)
    assert states(told) == ["present"] * 3
    blob = told["blobs"][0]
    assert (blob["profile"], blob["tier"]) == ("2+1", "hot")
    assert len({shard["device"] for shard in blob["shards"]}) == 3
    assert any("2+1, the profile" in reason for reason in told["why"]), told["why"]
    small = ctl(node, "why", f"{BUCKET}/small")
    assert small["blobs_all"] == 0 and any("metadata" in reason for reason in small["why"])
    assert "present" in run_ctl(node, "why", f"{BUCKET}/a/b").stdout
    for missing in (f"{BUCKET}/none", "nobucket/k"):
        assert run_ctl(node, "why", missing).returncode != 0


def test_what_if_and_what_is_available(node):
    now = ctl(node, "plan", "what-if", "--trials", "2000", "--cost-per-tb", "100")
    assert (now["devices"], now["profile"], now["positions_moved"]) == (3, "2+1", 0)
    assert now["annual_loss_probability"] < 0.1 and now["mttdl_years"] > 1
    more = ctl(node, "plan", "what-if", "--trials", "2000", "--add-device", "3", "--users", "1000")
    assert more["devices"] == 6 and more["usable_bytes"] == pytest.approx(2 * now["usable_bytes"], rel=0.01)
    assert more["envelope"]["requests_per_s"] == pytest.approx(10_000 / 86_400)
    again = ctl(node, "plan", "what-if", "--trials", "2000", "--cost-per-tb", "100")
    assert again == now, "equal seeds, equal answers"
    disks = ctl(node, "device", "list", "--available")
    assert all(disk["available"] == (not disk["why_not"]) for disk in disks)


def test_doctor_tells_what_is_bad(node):
    told = run_ctl(node, "doctor", output="json")
    findings = json.loads(told.stdout)
    assert {"clock", "versions", "partitions", "groups"} <= {finding["check"] for finding in findings}
    assert (told.returncode == 0) == all(finding["grade"] != "bad" for finding in findings)
    assert all(finding["advice"] for finding in findings if finding["grade"] != "ok")


@pytest.mark.skipif(ETCD is None, reason="etcd is not installed")
def test_any_node_of_a_cluster_tells_where_shards_are_and_which_are_gone(scratch):
    cluster = Cluster(scratch / "cluster")
    try:
        cluster.start()
        s3 = cluster.nodes[0].client()
        s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key="k", Body=BODY)
        told = [ctl(node, "why", f"{BUCKET}/k") for node in cluster.nodes]
        assert all(states(one) == ["present"] * 3 for one in told), told
        assert len({shard["node"] for shard in told[0]["blobs"][0]["shards"]}) == 3
        cluster.nodes[2].kill()

        def one_is_unknown():
            seen = states(ctl(cluster.nodes[0], "why", f"{BUCKET}/k"))
            return sorted(state.split(":")[0] for state in seen) == ["present", "present", "unknown"]

        eventually("the dead node's shard is unknown", 60, one_is_unknown)

        def doctor_sees_it():
            findings = json.loads(run_ctl(cluster.nodes[0], "doctor", output="json").stdout)
            told = [finding for finding in findings if finding["check"] in ("groups", "devices")]
            return any(finding["grade"] != "ok" for finding in told)

        eventually("the doctor sees what is missing", 60, doctor_sees_it)
    finally:
        cluster.close()
