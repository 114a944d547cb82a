"""Several nodes are one store: any node answers any request, also while another one is gone."""

import concurrent.futures
import signal
import threading
import time

import pytest
from botocore.exceptions import BotoCoreError, ClientError
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


class Load:
    """Threads that put and read their own keys, each through one node, until told to stop; remembers errors and gaps."""

    def __init__(self, cluster, threads=2):
        self.over, self.errors, self.answered, self.longest = threading.Event(), [], 0, 0.0
        self.threads = [
            threading.Thread(target=self.run, args=(node.client(retries=10), f"{node.number}-{number}"))
            for node in cluster.nodes for number in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, client, name):
        version = 0
        while not self.over.is_set():
            key, version = f"load/{name}/{version % 5}", version + 1
            body = content(key, version, 40_000 if version % 4 == 0 else 300)
            began = time.monotonic()
            try:
                client.put_object(Bucket=BUCKET, Key=key, Body=body)
                assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body, f"{key} is old"
            except Exception as error:  # every kind of error is one that a client saw
                self.errors.append(f"{key}, after {time.monotonic() - began:.1f} s: {error!r}")
            self.answered += 1
            self.longest = max(self.longest, time.monotonic() - began)

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join()
        return self


def test_a_rolling_restart_under_load_costs_clients_no_error(make_cluster):
    cluster = make_cluster(profile="4+2")
    cluster.nodes[0].client().create_bucket(Bucket=BUCKET)
    load = Load(cluster)
    for node in cluster.nodes:
        time.sleep(3)
        began = time.monotonic()
        node.stop()
        stopped = time.monotonic()
        node.start()
        print(f"node {node.number}: stopped in {stopped - began:.1f} s, back after {time.monotonic() - stopped:.1f} s")
        assert "primaries_handed_over" in node.log() and "node_left" in node.log(), node.tail()
        eventually("all devices are in", TAKE_OVER_SECONDS_MAX, lambda: len(cluster.nodes[0].devices_in()) == 6)
    time.sleep(3)
    load.end()
    print(f"{load.answered} pairs of PUT and GET, the longest {load.longest:.1f} s")
    assert load.errors == [] and load.answered > 100, load.errors


def test_a_node_that_was_stopped_answers_nothing_old(make_cluster):
    """SIGSTOP is what leases are for: the node goes on without knowing that others lead its partitions."""
    cluster = make_cluster(profile="4+2", partitions=32)
    first, victim = cluster.nodes[0], cluster.nodes[1]
    first.client().create_bucket(Bucket=BUCKET)
    keys = [f"key-{number}" for number in range(60)]
    versions = {key: 1 for key in keys}
    for key in keys:
        first.client().put_object(Bucket=BUCKET, Key=key, Body=content(key, 1, 200))
    for rounds in range(3):
        victim.process.send_signal(signal.SIGSTOP)
        try:
            eventually("others lead", TAKE_OVER_SECONDS_MAX, lambda: len(first.devices_in()) == 4)
            writer = first.client(retries=10)
            for key in keys:
                writer.put_object(Bucket=BUCKET, Key=key, Body=content(key, versions[key] + 1, 200))
                versions[key] += 1
            writer.delete_object(Bucket=BUCKET, Key=f"gone-{rounds - 1}")
            writer.put_object(Bucket=BUCKET, Key=f"gone-{rounds}", Body=b"new")
            # They wait in its sockets, and are the first that it sees.
            with concurrent.futures.ThreadPoolExecutor(len(keys) + 1) as pool:
                reads = {key: pool.submit(seen, victim, key) for key in (*keys, f"gone-{rounds}")}
                time.sleep(1)
                victim.process.send_signal(signal.SIGCONT)
                answers = {key: read.result() for key, read in reads.items()}
        finally:
            victim.process.send_signal(signal.SIGCONT)
        answered = 0
        for key, answer in answers.items():
            expected = content(key, versions[key], 200) if key in versions else b"new"
            assert answer in (expected, "error"), f"round {rounds}: {key} is {answer[:20]!r}"
            answered += answer == expected
        print(f"round {rounds}: {answered} of {len(answers)} answered, all of them new")
        eventually("it is back", TAKE_OVER_SECONDS_MAX, lambda: len(first.devices_in()) == 6)


def seen(node, key):
    """The bytes, `missing`, or `error`."""
    try:
        return node.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    except ClientError as error:
        missing = error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket")
        return "missing" if missing else "error"
    except BotoCoreError:
        return "error"
