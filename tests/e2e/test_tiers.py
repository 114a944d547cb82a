"""Two tiers on one node: classes, lifecycle transitions, the policy, and kill -9 in the middle of moves."""

import datetime
import time

import pytest
from botocore.exceptions import ClientError
from cluster import ctl
from harness import MIB, Node, eventually
from objects import content

BUCKET = "tiers"
COLD_CLASSES = ["STANDARD_IA", "ONEZONE_IA", "GLACIER_IR"]
SIZES = [100, 40_000, 300_000, MIB + 17]
KILLS = 3


@pytest.fixture
def node(scratch):
    """Three hot devices with 2+1, two cold ones with 1+1."""
    devices = [flag for number in range(3) for flag in ("--device", scratch / f"hot-{number}")]
    devices += [flag for number in range(2) for flag in ("--cold-device", scratch / f"cold-{number}")]
    node = Node(scratch / "data", *devices, "--profile", "2+1", "--cold-profile", "1+1", "--cores", "2",
                device_size="256MiB")
    node.start()
    node.client().create_bucket(Bucket=BUCKET)
    yield node
    node.close()


def used(node, tier):
    return node.metric("quarry_tier_used_bytes", tier=tier)


def class_of(s3, key):
    return s3.head_object(Bucket=BUCKET, Key=key).get("StorageClass", "STANDARD")


def assert_whole(s3, bodies):
    for key, body in bodies.items():
        assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body, key


def yesterday():
    return datetime.datetime.combine(datetime.date.today() - datetime.timedelta(days=1), datetime.time())


def transition(s3, prefix, storage_class):
    rule = {
        "ID": "down", "Status": "Enabled", "Filter": {"And": {"Prefix": prefix, "ObjectSizeGreaterThan": 1}},
        "Transitions": [{"Date": yesterday(), "StorageClass": storage_class}],
    }
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [rule]})


def test_a_class_decides_where_bytes_go(node):
    s3 = node.client()
    hot, cold = used(node, "hot"), used(node, "cold")
    body = content("k", 1, 4 * MIB)
    for storage_class in COLD_CLASSES:
        s3.put_object(Bucket=BUCKET, Key=storage_class, Body=body, StorageClass=storage_class)
        assert class_of(s3, storage_class) == storage_class
        assert s3.get_object(Bucket=BUCKET, Key=storage_class)["Body"].read() == body
    eventually("cold devices hold the bytes", 10, lambda: used(node, "cold") >= cold + 3 * 8 * MIB)
    assert used(node, "hot") < hot + 4 * MIB, "metadata alone is on the hot devices"
    listed = {entry["Key"]: entry["StorageClass"] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert listed == {storage_class: storage_class for storage_class in COLD_CLASSES}
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=BUCKET, Key="k", Body=body, StorageClass="DEEP_ARCHIVE")
    assert error.value.response["Error"]["Code"] == "InvalidStorageClass"
    # A copy onto itself changes the class, and the tier with it.
    s3.copy_object(Bucket=BUCKET, Key="GLACIER_IR", CopySource=f"{BUCKET}/GLACIER_IR", StorageClass="STANDARD")
    assert class_of(s3, "GLACIER_IR") == "STANDARD"
    eventually("one of them is hot", 20, lambda: used(node, "cold") < cold + 2 * 8 * MIB + 2 * MIB)


def test_transitions_are_carried_out_and_survive_kills(node):
    s3 = node.client()
    bodies = {}
    for number in range(40):
        key = f"log/{number}"
        bodies[key] = content(key, 1, SIZES[number % len(SIZES)])
        s3.put_object(Bucket=BUCKET, Key=key, Body=bodies[key])
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="log/parts")["UploadId"]
    parts = []
    for number, size in enumerate([5 * MIB, 5 * MIB, 777], 1):
        body = content("log/parts", number, size)
        bodies["log/parts"] = bodies.get("log/parts", b"") + body
        stored = s3.upload_part(Bucket=BUCKET, Key="log/parts", UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": stored["ETag"]})
    s3.complete_multipart_upload(Bucket=BUCKET, Key="log/parts", UploadId=upload, MultipartUpload={"Parts": parts})
    s3.put_object(Bucket=BUCKET, Key="kept", Body=bodies["log/3"])
    before = {key: s3.head_object(Bucket=BUCKET, Key=key) for key in bodies}

    # Slow enough that there are moves to be hit.
    ctl(node, "tier", "policy", "off", "--bytes-per-second", 4 * MIB, "--yes")
    transition(s3, "log/", "STANDARD_IA")
    for _ in range(KILLS):
        # The job looks every ten seconds at most, and begins after a start.
        eventually("moves have begun", 30, lambda: node.metric("quarry_tier_moves_total", reason="transition") > 3)
        node.kill()
        node.start()
        s3 = node.client()
        assert_whole(s3, bodies)
    eventually("all have the class", 60, lambda: all(class_of(s3, key) == "STANDARD_IA" for key in bodies))
    assert class_of(s3, "kept") == "STANDARD"
    assert_whole(s3, bodies)
    for key, head in before.items():
        after = s3.head_object(Bucket=BUCKET, Key=key)
        assert (after["ETag"], after["LastModified"]) == (head["ETag"], head["LastModified"]), key
    ranged = s3.get_object(Bucket=BUCKET, Key="log/parts", Range=f"bytes={5 * MIB - 9}-{5 * MIB + 9}")
    assert ranged["Body"].read() == bodies["log/parts"][5 * MIB - 9:5 * MIB + 10]
    node.stop()
    node.assert_fsck_is_clean()
    node.start()
    assert_whole(node.client(), bodies)


def test_a_cold_tier_that_comes_later_gets_what_waits_for_it(scratch):
    hot = [flag for number in range(3) for flag in ("--device", scratch / f"hot-{number}")]
    node = Node(scratch / "data", *hot, "--profile", "2+1", "--cores", "1")
    try:
        node.start()
        s3 = node.client()
        s3.create_bucket(Bucket=BUCKET)
        body = content("k", 1, MIB)
        s3.put_object(Bucket=BUCKET, Key="k", Body=body, StorageClass="GLACIER_IR")
        assert class_of(s3, "k") == "GLACIER_IR"
        node.stop()
        node.start("--cold-device", scratch / "cold", "--cold-profile", "1+0")
        eventually("it moves", 40, lambda: node.metric("quarry_tier_moves_total", reason="class", tier="cold") == 1)
        s3 = node.client()
        assert s3.get_object(Bucket=BUCKET, Key="k")["Body"].read() == body and class_of(s3, "k") == "GLACIER_IR"
        node.stop()
        node.assert_fsck_is_clean()
    finally:
        node.close()


def test_the_policy_shows_its_plan_and_acts_on_it(node):
    s3 = node.client()
    bodies = {f"k{number}": content("k", number, 3 * MIB) for number in range(12)}
    for key, body in bodies.items():
        s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    status = ctl(node, "tier", "status")
    assert status["policy"]["enabled"] is False
    assert [tier["profile"] for tier in status["tiers"]] == ["2+1", "1+1"]
    asked = ["--high-percent", "2", "--low-percent", "1", "--idle-s", "1"]
    ctl(node, "tier", "policy", "off", *asked, "--yes")
    eventually("the policy is known", 10, lambda: ctl(node, "tier", "status")["policy"]["high-percent"] == 2)
    time.sleep(1.5)
    plan = ctl(node, "tier", "plan", "--dry-run")
    assert plan["demote"]["versions"] > 2 and plan["promote"]["versions"] == 0, plan
    assert plan["hot_device_bytes_saved"] == plan["demote"]["bytes"] * 3 / 2
    assert plan["moves"][0]["to"] == "cold" and plan["moves"][0]["key"] in bodies
    assert node.metric("quarry_tier_moves_total", reason="policy") == 0, "a plan moves nothing"
    ctl(node, "tier", "policy", "on", "--yes")
    eventually("it demotes", 90, lambda: node.metric("quarry_tier_moves_total", reason="policy", tier="cold") > 2)
    assert_whole(s3, bodies)
    assert {class_of(s3, key) for key in bodies} == {"STANDARD"}, "the class is what was asked for"
    node.kill()
    node.start()
    assert_whole(node.client(), bodies)
    assert ctl(node, "tier", "status")["policy"]["enabled"] is True
    node.stop()
    node.assert_fsck_is_clean()
