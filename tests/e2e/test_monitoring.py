"""What an operator sees: a real Prometheus scrapes real processes under load; dashboards show data, alerts fire and clear.

The rules are those of deploy/monitoring with shorter times (`prometheus.impatient`). Alerts that need hours, another
machine's clock or a slow disk are tested by promtool with made-up series only (rules-test.yml).
"""

import json
import subprocess
import sys
import time
import urllib.request

import jsonschema
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from cluster import ETCD, KEYS, Cluster
from harness import BINARIES, MIB, Node, eventually, free_port, run_quarryd
from prometheus import (MONITORING, PROMETHEUS, PROMTOOL, SCHEMA, Prometheus, dashboards, documented, exported,
                        panel_queries)
from test_scrub import used_data
from test_tls import client as tls_client
from test_tls import make_certificate

needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
BUCKET = "watched"
# Panels without data until something happened that this cluster has not: one node with TLS shows them.
PANELS_OF_THE_NODE = {"node/Certificate ends in"}
# Families that only such a node has.
FAMILIES_OF_THE_NODE = {"quarry_tls_certificate_expiry_timestamp_seconds"}


def test_dashboards_are_what_grafana_takes():
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    found = dashboards()
    assert found.keys() == {"overview", "node", "device", "s3", "repair", "loadgen"}
    assert len({dashboard["uid"] for dashboard in found.values()}) == len(found)
    for name, dashboard in found.items():
        jsonschema.validate(dashboard, schema)
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids), name
        cells = [(x, y) for panel in dashboard["panels"] for at in [panel["gridPos"]]
                 for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
        assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24, f"panels of {name} overlap"
    made = subprocess.run([sys.executable, MONITORING / "grafana" / "make_dashboards.py", "--check"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_rules_by_promtool():
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "rules-test.yml"]):
        done = subprocess.run([PROMTOOL, *command], cwd=MONITORING, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def watch(scratch):
    """`watch(targets)`: a Prometheus that ends with the test."""
    started = []

    def start(targets):
        started.append(Prometheus(scratch / f"prometheus-{len(started)}", targets))
        return started[-1].start()

    yield start
    for prometheus in started:
        prometheus.kill()
        errors = [line for line in prometheus.log().splitlines() if "level=error" in line]
        assert not errors, errors[:5]


@pytest.fixture
def cluster(request, scratch):
    made = Cluster(scratch / "cluster", partitions=32)
    for node in made.nodes:
        audit = f'audit-log = "{scratch / f"audit-{node.number}"}"\naudit-reads = true\nlog-format = "json"\n'
        node.config_path.write_text(audit + node.config_path.read_text())
    try:
        yield made.start()
        if getattr(request.node, "failed", True):
            for process in (*made.controllers, *made.nodes):
                print(f"--- end of {process.log_path.name}:\n{process.log()[-3000:]}")
    finally:
        made.close()


@pytest.fixture
def load(cluster):
    """A load generator that runs until the test ends, and the address of its metrics."""
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [BINARIES / "quarry-loadgen", "run", "--endpoint", cluster.nodes[0].endpoint, "--access-key", KEYS["QUARRY_ACCESS_KEY"],
         "--secret-key", KEYS["QUARRY_SECRET_KEY"], "--bucket", BUCKET, "--mix", "put=30,get=50,list=2,delete=3,head=5,multipart=1",
         "--size", "histogram:2KiB=50,100KiB=45,600KiB=5", "--objects", "40", "--rate", "25", "--phases", "prepare,steady:300s",
         "--keep-going", "--metrics-address", address, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    yield address
    process.kill()
    process.communicate()


def missing_panels(prometheus, skipped=frozenset()):
    return sorted({name for name, query in panel_queries() if name not in skipped and not prometheus.query(query)})


def wait_for_data(prometheus, skipped):
    deadline = time.monotonic() + 40
    while missing := missing_panels(prometheus, skipped):
        assert time.monotonic() < deadline, f"panels without data: {missing}"
        time.sleep(1)


@needs_prometheus
@pytest.mark.skipif(ETCD is None, reason="etcd is not installed")
def test_a_cluster_under_load_and_its_faults(cluster, load, watch):
    first, last = cluster.nodes[0], cluster.nodes[-1]
    targets = {"quarry": [f"127.0.0.1:{node.admin}" for node in cluster.nodes], "quarry-loadgen": [load],
               "quarry-controller": [cluster.controller_metrics[0]]}
    prometheus = watch(targets)
    # One request without rights, for the panel of those, and one that Quarry does not count by its name.
    for path in (f"/{BUCKET}/secret", "/"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{first.endpoint}{path}", timeout=10)
    wait_for_data(prometheus, PANELS_OF_THE_NODE)
    check_families(cluster, load, targets)
    check_request_ids_and_audit(first)
    # A cluster that begins is short of primaries for a moment; nothing else is wrong.
    prometheus.wait_clear("QuarryPartitionsNotServed", "QuarryEtcdFails", "QuarryErrorRatioHigh", seconds=40)
    assert prometheus.firing() <= {"QuarryCoreLate"}, "alerts fire without a fault"

    cluster.controllers[0].kill()
    last.kill()
    prometheus.wait_for("QuarryControllerDown", "QuarryNoLeader", "QuarryNodeDown", "QuarryPartitionsNotServed")
    cluster.controllers[0].start()
    prometheus.wait_clear("QuarryControllerDown", "QuarryNoLeader", "QuarryPartitionsNotServed", seconds=60)
    prometheus.wait_for("QuarryRedundancyReduced")
    last.start()
    prometheus.wait_clear("QuarryNodeDown", "QuarryRedundancyReduced", "QuarryPartitionsNotServed", seconds=60)

    cluster.etcd.kill()
    prometheus.wait_for("QuarryEtcdFails")
    cluster.etcd.start()
    prometheus.wait_clear("QuarryEtcdFails", "QuarryNoLeader", seconds=60)


def check_families(cluster, load, targets):
    """What is shown is documented. The other way round: nothing documented is missing where so much has happened."""
    for job, title in (("quarry", "Node"), ("quarry-controller", "Controller"), ("quarry-loadgen", "Load generator")):
        shown = exported(targets[job][0])
        assert shown == documented(title) - FAMILIES_OF_THE_NODE, (
            job, "not documented:", shown - documented(title), "not shown:", documented(title) - shown)


def check_request_ids_and_audit(node):
    client = node.client()
    answer = client.put_object(Bucket=BUCKET, Key="audited/ü", Body=b"x")
    request_id = answer["ResponseMetadata"]["RequestId"]
    with pytest.raises(ClientError) as refused:
        client.get_object(Bucket=BUCKET, Key="no/such/key")
    path = next(node.config_path.parent.parent.glob(f"audit-{node.number}"))

    def lines():
        return {line.get("request_id"): line for line in map(json.loads, path.read_text().splitlines())}

    line = eventually("the request is in the audit log", 10, lambda: lines().get(request_id))
    found = {name: line[name] for name in ("source", "who", "client", "operation", "bucket", "key", "status")}
    assert found == {"source": "s3", "who": "root", "client": "127.0.0.1", "operation": "PutObject", "bucket": BUCKET,
                     "key": "audited/ü", "status": 200}
    missing = refused.value.response["ResponseMetadata"]["RequestId"]
    line = eventually("the read is there too", 10, lambda: lines().get(missing))
    assert (line["operation"], line["status"], line["error"]) == ("GetObject", 404, "NoSuchKey")
    events = [json.loads(entry) for entry in node.log().splitlines() if entry.startswith("{")]
    assert any(event.get("event") == "core_serving" for event in events), "the log is not JSON"


@pytest.fixture
def single(request, scratch):
    """A node with HTTPS, small devices and a slow repair."""
    config = scratch / "node.toml"
    config.write_text('repair-per-second = "1500KiB"\ncores = 1\n')
    certificate, key = make_certificate(scratch, "short")
    node = Node(scratch / "node", "--config", config, "--tls-certificate", certificate, "--tls-key", key, device_size="96MiB")
    yield node.start(), certificate
    if getattr(request.node, "failed", True):
        print(f"--- end of the log:\n{node.tail()}")
    node.close()


def put_all(s3, prefix, count, size):
    for number in range(count):
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{number:04}", Body=bytes([number % 251]) * size)


def keep_trying(s3, seconds):
    """Requests that may fail, for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            s3.put_object(Bucket=BUCKET, Key="tried", Body=b"x" * 100_000)
            s3.get_object(Bucket=BUCKET, Key="base/0001")["Body"].read()
        except (ClientError, BotoCoreError):
            pass


@needs_prometheus
def test_faults_of_one_node(single, watch, device_files):
    node, certificate = single
    s3 = tls_client(node, certificate)
    s3.create_bucket(Bucket=BUCKET)
    put_all(s3, "base", 16, MIB)
    prometheus = watch({"quarry": [f"127.0.0.1:{node.admin}"]})

    # The certificate of the fixture ends in two days; one that lasts is taken without a restart.
    prometheus.wait_for("QuarryCertificateExpires")
    for name, query in panel_queries():
        if name in PANELS_OF_THE_NODE:
            assert prometheus.query(query), name
    make_certificate(certificate.parent, "long", days=90)
    prometheus.wait_clear("QuarryCertificateExpires")
    s3 = tls_client(node, certificate)

    # Nearly full, then not.
    capacity = node.metric("quarry_device_capacity_bytes") / 6
    filled = 0
    while node.metric("quarry_device_free_bytes") / 6 > 0.085 * capacity and filled < 400:
        put_all(s3, f"fill-{filled}", 4, MIB)
        filled += 4
    prometheus.wait_for("QuarryDeviceNearlyFull")
    for start in range(0, filled, 4):
        for number in range(4):
            s3.delete_object(Bucket=BUCKET, Key=f"fill-{start}/{number:04}")
    prometheus.wait_clear("QuarryDeviceNearlyFull", seconds=60)

    # Damage that nobody reads: the scrub finds it, and a slow repair takes its time.
    victim = list(node.device_paths().items())[2]
    first, _ = used_data(node, *victim)
    with open(victim[1], "r+b") as file:
        # Most shards of the 16 objects; the index and the copy of the tables come behind them.
        for at in range(first, first + 3 * MIB, 64 << 10):
            file.seek(at)
            file.write(b"damaged!")
    node.start()
    prometheus.wait_clear("QuarryNodeDown")
    node.admin_get("/scrub", method="POST")
    prometheus.wait_for("QuarryScrubFoundDamage", "QuarryRepairBacklog")
    prometheus.wait_clear("QuarryScrubFoundDamage", "QuarryRepairBacklog", seconds=90)

    # A device that fails, then more than the profile bears; a restart mends what was injected.
    s3 = tls_client(node, certificate)
    broken = list(node.device_paths())
    node.inject(broken[0], "all")
    keep_trying(s3, 1)
    prometheus.wait_for("QuarryDeviceOut", "QuarryDeviceErrors", "QuarryRedundancyReduced")
    for device in broken[1:4]:
        node.inject(device, "all")
    keep_trying(s3, 5)
    prometheus.wait_for("QuarryErrorRatioHigh", "QuarryNoGroupOpen")
    node.kill()
    node.start()
    s3 = tls_client(node, certificate)
    eventually("the node reads again", 30, lambda: s3.get_object(Bucket=BUCKET, Key="base/0001")["Body"].read())
    keep_trying(s3, 2)
    prometheus.wait_clear(
        "QuarryDeviceOut", "QuarryDeviceErrors", "QuarryErrorRatioHigh", "QuarryNoGroupOpen", "QuarryNodeDown", seconds=60)
