"""A full node: clear refusals, deletes that work, and space that comes back to the last byte that matters."""

import concurrent.futures

import pytest
from botocore.exceptions import ClientError
from harness import MIB, eventually
from objects import content, list_all

BUCKET = "space"
FREED_SECONDS_MAX = 90
# Indexes keep some pages that they did not have at the start.
LEFT_OVER_MAX = 0.05


def free_bytes(node):
    return node.metric("quarry_device_free_bytes")


def fill(client, prefix, size, threads=4):
    """PUTs until the node says that it is full; returns the acknowledged keys. Any other error is a failure."""
    def one_thread(thread):
        keys = []
        while len(keys) < 100_000:
            key = f"{prefix}/{thread}/{len(keys):06}"
            try:
                client.put_object(Bucket=BUCKET, Key=key, Body=content(key, 1, size))
            except ClientError as error:
                answer = (error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"])
                assert answer == ("InsufficientStorage", 507), f"a full node answers {answer}: {error}"
                return keys
            keys.append(key)
        raise AssertionError("the devices never get full")

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [key for keys in pool.map(one_thread, range(threads)) for key in keys]


def check(client, keys, size, when):
    for key in keys:
        body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert body == content(key, 1, size), f"{when}: {key} reads wrong"


def delete_all(client, keys, threads=4):
    def delete(key):
        try:
            client.delete_object(Bucket=BUCKET, Key=key)
        except ClientError as error:
            return f"{key}: {error}"

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        refused = [problem for problem in pool.map(delete, keys) if problem]
    assert not refused, f"{len(refused)} of {len(keys)} deletes refused on a full node: {refused[:5]}"


def space_is_back(node, at_start, capacity, when):
    limit = at_start - LEFT_OVER_MAX * capacity
    try:
        eventually("free space", FREED_SECONDS_MAX, lambda: free_bytes(node) >= limit)
    except AssertionError:
        missing = at_start - free_bytes(node)
        pytest.fail(f"{when}: {missing / MIB:.1f} of {capacity / MIB:.0f} MiB are not free again after {FREED_SECONDS_MAX} s")


def test_full_refuses_deletes_work_and_space_comes_back(make_node):
    node = make_node(device_size="64MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    at_start, capacity = free_bytes(node), node.metric("quarry_device_capacity_bytes")
    written = []
    for cycle in (1, 2, 3):
        keys = fill(client, f"cycle-{cycle}", MIB)
        written.append(len(keys))
        assert len(keys) * MIB * 1.5 > capacity * 0.6, (
            f"cycle {cycle}: full after {len(keys)} MiB of objects, on {capacity / MIB:.0f} MiB of devices")
        check(client, keys[::7], MIB, f"cycle {cycle}, while full")
        assert set(list_all(client, BUCKET)) == set(keys), f"cycle {cycle}: the listing of a full node is not what was acknowledged"
        delete_all(client, keys)
        assert list_all(client, BUCKET) == {}, f"cycle {cycle}: still listed after the deletes"
        space_is_back(node, at_start, capacity, f"cycle {cycle}")
        client.put_object(Bucket=BUCKET, Key="again", Body=b"x" * MIB)
        client.delete_object(Bucket=BUCKET, Key="again")
    assert min(written) > 0.9 * written[0], f"less fits in every time: {written} objects of 1 MiB"
    node.stop()
    node.assert_fsck_is_clean()


def test_full_of_inline_objects(make_node):
    """Small bodies live in indexes and journals; these get full too, and empty again."""
    node = make_node(device_size="64MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    at_start, capacity = free_bytes(node), node.metric("quarry_device_capacity_bytes")
    keys = fill(client, "inline", 30_000, threads=8)
    check(client, keys[::50], 30_000, "while full of inline objects")
    delete_all(client, keys)
    assert list_all(client, BUCKET, page=1000) == {}, "still listed after the deletes"
    client.put_object(Bucket=BUCKET, Key="again", Body=b"x" * MIB)
    client.delete_object(Bucket=BUCKET, Key="again")
    space_is_back(node, at_start, capacity, "after inline objects")
    node.stop()
    node.assert_fsck_is_clean()


def test_a_full_node_restarts_and_still_deletes(make_node):
    node = make_node(device_size="64MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    at_start, capacity = free_bytes(node), node.metric("quarry_device_capacity_bytes")
    big = fill(client, "big", MIB)
    small = fill(client, "small", 20_000)
    node.stop()
    node.start()
    client = node.client()
    assert set(list_all(client, BUCKET)) == {*big, *small}, "a full node lost keys in a restart"
    check(client, big[::5], MIB, "full, restarted")
    check(client, small[::20], 20_000, "full, restarted")
    node.kill()
    node.start()
    client = node.client()
    delete_all(client, [*big, *small])
    space_is_back(node, at_start, capacity, "after two restarts")
    client.put_object(Bucket=BUCKET, Key="again", Body=b"x" * MIB)
    node.stop()
    node.assert_fsck_is_clean()


def test_space_of_overwrites_aborts_and_failed_puts_comes_back(make_node):
    node = make_node(device_size="128MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    at_start, capacity = free_bytes(node), node.metric("quarry_device_capacity_bytes")
    # Ten times the capacity over the same few keys: each overwrite must give its space back in time.
    total = 0
    round_number = 0
    while total < 3 * capacity:
        for key in range(8):
            try:
                client.put_object(Bucket=BUCKET, Key=f"over/{key}", Body=content(str(key), round_number, 4 * MIB))
            except ClientError as error:
                assert error.response["Error"]["Code"] == "InsufficientStorage", error
                eventually("space of overwrites", FREED_SECONDS_MAX, lambda: free_bytes(node) > capacity / 2)
            total += 4 * MIB
        round_number += 1
    for key in range(8):
        client.delete_object(Bucket=BUCKET, Key=f"over/{key}")
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="aborted")["UploadId"]
    for number in range(1, 4):
        client.upload_part(Bucket=BUCKET, Key="aborted", UploadId=upload, PartNumber=number, Body=b"p" * 5 * MIB)
    client.abort_multipart_upload(Bucket=BUCKET, Key="aborted", UploadId=upload)
    # A wrong checksum is found out when the shards are written already.
    for number in range(8):
        with pytest.raises(ClientError):
            client.put_object(Bucket=BUCKET, Key="bad", Body=b"q" * 4 * MIB, ContentMD5="AAAAAAAAAAAAAAAAAAAAAA==")
    space_is_back(node, at_start, capacity, "overwrites, aborts and failed PUTs")
    node.stop()
    node.assert_fsck_is_clean()
