"""Several nodes are one store: any node answers any request, also while another one is gone."""

import time

import pytest
from botocore.exceptions import ClientError
from cluster import ETCD, LEASE_TTL_S, Cluster, ctl
from harness import MIB, eventually
from objects import ObjectSet, content, list_all

pytestmark = pytest.mark.skipif(ETCD is None, reason="etcd is not installed")
BUCKET = "cluster"
# A node's lease, the controller's grace, and new primaries: until then writes may wait or be refused.
TAKE_OVER_SECONDS_MAX = 60


@pytest.fixture
def make_cluster(request, scratch):
    clusters = []

    def make(**options):
        cluster = Cluster(scratch / f"cluster-{len(clusters)}", **options)
        clusters.append(cluster)
        return cluster.start()

    yield make
    for cluster in clusters:
        if getattr(request.node, "failed", True):
            for process in (*cluster.controllers, *cluster.nodes):
                print(f"--- end of {process.log_path.name}:\n{process.log()[-4000:]}")
        cluster.close()


def clients(cluster, **options):
    return [node.client(**options) for node in cluster.nodes if node.process is not None]


@pytest.mark.parametrize("profile", ["2+1", "4+2"])
def test_every_node_serves_everything_and_one_may_be_lost(make_cluster, profile):
    cluster = make_cluster(profile=profile)
    first, second, third = clients(cluster)
    first.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    for number, client in enumerate((first, second, third), 1):
        objects.write(client, f"by-{number}", small=20, threads=4)
    for client in (first, second, third):
        objects.verify(client, f"profile {profile}, all nodes")
        assert list_all(client, BUCKET) == objects.sizes

    cluster.nodes[2].kill()
    killed = time.monotonic()
    for client in (first, second):
        objects.verify(client_with_retries(cluster, client), "right after kill -9 of a node")
    objects.put(client_with_retries(cluster, first), "after-the-kill", 100_000)
    print(f"first write {time.monotonic() - killed:.1f} s after the kill")
    eventually("the node's devices are out", TAKE_OVER_SECONDS_MAX, lambda: len(cluster.nodes[0].devices_in()) == 4)
    objects.write(second, "with-two-nodes", small=20, threads=4)
    for client in (first, second):
        objects.verify(client, "with two nodes")
        assert list_all(client, BUCKET) == objects.sizes

    cluster.nodes[2].start()
    eventually("its devices are in again", TAKE_OVER_SECONDS_MAX, lambda: len(cluster.nodes[0].devices_in()) == 6)
    for client in clients(cluster):
        objects.verify(client, "after its restart")
        assert list_all(client, BUCKET) == objects.sizes
    for node in cluster.nodes:
        node.stop()


def test_quarryctl_shows_the_cluster(make_cluster):
    cluster = make_cluster(partitions=32)
    first = cluster.nodes[0]
    status = eventually("all partitions serve", TAKE_OVER_SECONDS_MAX, lambda: all_serve(first, 32))
    assert (status["leader"], status["controllers"], status["profile"]) == ("controller-0", 1, "2+1")
    assert (status["nodes"], status["nodes_not_alive"], status["devices_in"], status["devices_out"]) == (3, [], 6, 0)
    assert sorted(node["name"] for node in ctl(first, "node", "list")) == ["node-1", "node-2", "node-3"]
    assert ctl(first, "node", "info", "node-2")["devices_in"] == 2
    devices = {device["device"]: device for device in ctl(first, "map", "devices")}
    assert {len(group["members"]) for group in ctl(first, "map", "groups")} == {3}
    partitions = ctl(first, "partition", "list")
    assert [entry["partition"] for entry in partitions] == list(range(32))
    assert all(entry["primary"] in devices and len(entry["in_sync"]) == 2 for entry in partitions)
    assert ctl(first, "partition", "info", "7") == partitions[7]
    cluster.nodes[2].kill()
    eventually("it is seen as gone", TAKE_OVER_SECONDS_MAX,
               lambda: ctl(first, "status")["nodes_not_alive"] == ["node-3"] and ctl(first, "status")["devices_out"] == 2)
    table = ctl(first, "status", output="table")
    assert "nodes_not_alive         node-3\n" in table, table
    assert "STATE" in ctl(first, "partition", "list", "--state", "serving", output="table").splitlines()[0]


def all_serve(node, partitions):
    status = ctl(node, "status")
    whole = status["partitions_with_joiner"] == status["devices_out"] == 0
    return status if whole and status["partitions"] == {"serving": partitions} else None


def client_with_retries(cluster, client):
    node = next(node for node in cluster.nodes if node.endpoint == client.meta.endpoint_url)
    return node.client(retries=10)


def test_a_change_of_a_bucket_is_known_to_every_node_when_it_is_answered(make_cluster):
    cluster = make_cluster()
    first, second, third = clients(cluster)
    for number in range(10):
        name = f"bucket-{number}"
        first.create_bucket(Bucket=name)
        second.put_object(Bucket=name, Key="k", Body=b"1")
        third.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        assert "VersionId" in first.put_object(Bucket=name, Key="k", Body=b"2"), "the primary did not know of it"
        with pytest.raises(ClientError, match="BucketNotEmpty"):
            second.delete_bucket(Bucket=name)
        third.put_object(Bucket=name, Key="k", Body=b"3")
        for version in first.list_object_versions(Bucket=name)["Versions"]:
            second.delete_object(Bucket=name, Key="k", VersionId=version["VersionId"])
        third.delete_bucket(Bucket=name)
        for client in (first, second, third):
            with pytest.raises(ClientError, match="NoSuchBucket"):
                client.put_object(Bucket=name, Key="k", Body=b"4")


def test_nodes_serve_on_without_etcd_and_controllers(make_cluster):
    cluster = make_cluster()
    first, second, third = clients(cluster)
    first.create_bucket(Bucket=BUCKET)
    cluster.etcd.kill()
    for controller in cluster.controllers:
        controller.kill()
    ends = time.monotonic() + 3 * LEASE_TTL_S
    number = 0
    while time.monotonic() < ends:
        number += 1
        body = content("k", number, 50_000)
        first.put_object(Bucket=BUCKET, Key="k", Body=body)
        for client in (second, third):
            assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == body
    assert number > 3
    # A restarted etcd finds everybody again.
    cluster.etcd.start()
    for controller in cluster.controllers:
        controller.start()
    eventually("a bucket can be made again", TAKE_OVER_SECONDS_MAX, lambda: makes_bucket(second))
    assert third.get_object(Bucket=BUCKET, Key="k")["Body"].read() == content("k", number, 50_000)
    assert len(cluster.nodes[0].devices_in()) == 6, "a node was taken out although only etcd was away"


def makes_bucket(client):
    try:
        client.create_bucket(Bucket="after")
        return True
    except ClientError:
        return False


def test_a_rolling_restart_loses_nothing(make_cluster):
    cluster = make_cluster()
    first = cluster.nodes[0].client()
    first.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    objects.write(first, "before", small=10, threads=4)
    for node in cluster.nodes:
        node.stop()
        other = next(other for other in cluster.nodes if other is not node)
        objects.put(other.client(retries=10), f"while-{node.number}-is-away", MIB)
        node.start()
        objects.verify(node.client(retries=10), f"after the restart of node {node.number}")
