"""Two of six devices go: by I/O errors, random bytes or truncation while the node runs, or by deletion before a start.

What must hold: every acknowledged key still lists and reads byte for byte, and PUT goes on in a smaller profile.
QUARRY_E2E_LONG=1 runs all fifteen pairs of devices instead of a sample.
"""

import itertools
import os
import random
import time

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from harness import MIB, eventually
from objects import ObjectSet, list_all

LONG = os.environ.get("QUARRY_E2E_LONG") == "1"
DEVICE_SIZE = "256MiB"
BUCKET = "loss"
# How long PUT may be refused while the node finds out, plans and elects.
TAKEOVER_SECONDS_MAX = 10
# What SDKs do by themselves in that time.
RETRIES = 4


def pairs(*sample):
    return list(itertools.combinations(range(6), 2)) if LONG else list(sample)


def make_filled_node(make_node):
    """A node with objects of every size, half of them in checkpointed indexes and half in the journal only."""
    node = make_node(device_size=DEVICE_SIZE)
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    objects.write(client, "old", small=150)
    node.stop()
    node.start()
    client = node.client()
    objects.write(client, "new", small=150)
    objects.verify(client, "before any loss")
    return node, objects


def put_goes_on(node, objects, key):
    """PUT is acknowledged again soon, and what it wrote reads back."""
    client = node.client()
    started, refused = time.monotonic(), []
    while True:
        try:
            objects.put(client, key, 300_000)
            break
        except (BotoCoreError, ClientError) as error:
            refused.append(str(error))
        assert time.monotonic() - started < TAKEOVER_SECONDS_MAX, f"PUT is refused for {TAKEOVER_SECONDS_MAX} s: {refused[-1]}"
        time.sleep(0.1)
    problem = objects.damaged(node.client(retries=RETRIES), key)
    assert not problem, f"{key}, written after the loss: {problem}"


def reads_and_puts_go_on(node, objects, when):
    """Right in the moment of the loss, with an SDK's retries; then PUT; then without any retry."""
    objects.verify(node.client(retries=RETRIES), f"right after {when}")
    put_goes_on(node, objects, "after/first")
    objects.write(node.client(retries=RETRIES), "after", small=20)
    objects.verify(node.client(), f"after {when} and PUTs")


def two_out_and_small_groups_open(node, lost):
    eventually("the map shows the lost devices as out", TAKEOVER_SECONDS_MAX, lambda: not node.devices_in() & set(lost))
    assert len(node.devices_in()) == 4, f"more devices are out than the two that were lost: {node.map()['devices']}"
    profiles = eventually("placement groups are open", TAKEOVER_SECONDS_MAX, node.open_profiles)
    assert profiles == {(2, 2)}, f"open groups have the profiles {profiles}"


def restart_finds_everything(node, objects, when):
    node.stop()
    node.start()
    objects.verify(node.client(), f"after {when} and a restart")
    put_goes_on(node, objects, "after/restart")
    node.stop()


def test_primary_and_replica_of_a_partition_taken_away(make_node):
    node, objects = make_filled_node(make_node)
    partition = random.Random(1).choice(node.map()["partitions"])
    primary = partition["primary"]
    replica = next(device for device in partition["replicas"] if device != primary)
    node.inject(primary, "all")
    node.inject(replica, "all")
    reads_and_puts_go_on(node, objects, "primary and replica were taken away")
    two_out_and_small_groups_open(node, [primary, replica])
    after = node.map()
    gone = {primary, replica}
    led = [index for index, entry in enumerate(after["partitions"]) if entry["primary"] in gone]
    assert not led, f"partitions whose primary is still a lost device: {led}"
    restart_finds_everything(node, objects, "primary and replica were taken away")


def test_two_devices_lost_one_after_the_other(make_node):
    node, objects = make_filled_node(make_node)
    first, second = list(node.device_paths())[1:5:3]
    node.inject(first, "all")
    put_goes_on(node, objects, "between/first")
    eventually("the first device is out", TAKEOVER_SECONDS_MAX, lambda: first not in node.devices_in())
    objects.verify(node.client(retries=RETRIES), "after the first loss")
    assert node.open_profiles() == {(3, 2)}, f"open groups with five devices: {node.open_profiles()}"
    objects.write(node.client(retries=RETRIES), "between", small=20)
    node.inject(second, "all")
    reads_and_puts_go_on(node, objects, "the second loss")
    two_out_and_small_groups_open(node, [first, second])
    restart_finds_everything(node, objects, "the second loss")


@pytest.mark.parametrize("mode", ["all", "read", "write", "flush"])
@pytest.mark.parametrize("pair", pairs((0, 5)), ids=str)
def test_two_devices_fail_with_io_errors(make_node, pair, mode):
    node, objects = make_filled_node(make_node)
    lost = [list(node.device_paths())[index] for index in pair]
    for device in lost:
        node.inject(device, mode)
    reads_and_puts_go_on(node, objects, f"I/O errors ({mode})")
    if mode != "read":
        two_out_and_small_groups_open(node, lost)
    restart_finds_everything(node, objects, f"I/O errors ({mode})")


@pytest.mark.parametrize("pair", pairs((0, 1), (2, 5)), ids=str)
def test_two_devices_overwritten_while_running(make_node, pair):
    node, objects = make_filled_node(make_node)
    paths = [list(node.device_paths().values())[index] for index in pair]
    for path in paths:
        noise = random.Random(path.name)
        with open(path, "r+b") as file:
            for _ in range(path.stat().st_size // (16 * MIB)):
                file.write(noise.randbytes(16 * MIB))
            file.flush()
            os.fsync(file.fileno())
    reads_and_puts_go_on(node, objects, "two devices were overwritten")
    restart_finds_everything(node, objects, "two devices were overwritten")


@pytest.mark.parametrize("pair", pairs((0, 3), (4, 5)), ids=str)
def test_two_devices_truncated_while_running(device_files, make_node, pair):
    node, objects = make_filled_node(make_node)
    for index in pair:
        os.truncate(list(node.device_paths().values())[index], 0)
    reads_and_puts_go_on(node, objects, "two devices were truncated")
    restart_finds_everything(node, objects, "two devices were truncated")


@pytest.mark.parametrize("pair", pairs((0, 1), (1, 4), (3, 5)), ids=str)
def test_two_device_files_deleted_before_a_start(device_files, make_node, pair):
    node, objects = make_filled_node(make_node)
    by_path = list(node.device_paths().items())
    node.stop()
    for index in pair:
        by_path[index][1].unlink()
    node.start()
    objects.verify(node.client(), "after two device files were deleted")
    put_goes_on(node, objects, "after/first")
    two_out_and_small_groups_open(node, [by_path[index][0] for index in pair])
    objects.write(node.client(), "after", small=20)
    objects.verify(node.client(), "after two device files were deleted and PUTs")
    restart_finds_everything(node, objects, "two device files were deleted")


def test_three_devices_lost_gives_errors_and_never_wrong_bytes(make_node):
    """Beyond what 4+2 survives: an error is right, other bytes are not, and the node does not fall over."""
    node, objects = make_filled_node(make_node)
    for device in list(node.device_paths())[:3]:
        node.inject(device, "all")
    client = node.client(read_timeout=10)
    deadline = time.monotonic() + 12
    for key in objects.sizes:
        if time.monotonic() > deadline:
            break
        problem = objects.damaged(client, key)
        assert problem is None or "Error" in problem, f"{key}: {problem}"
    assert node.process.poll() is None, "the node has died"
    assert node.admin_get("/health/live")[0] == 200


def test_deletes_and_overwrites_with_two_devices_out(make_node):
    node, objects = make_filled_node(make_node)
    for device in list(node.device_paths())[2:4]:
        node.inject(device, "all")
    put_goes_on(node, objects, "after/first")
    client = node.client(retries=RETRIES)
    for key in [key for key in objects.sizes if key.startswith("old/")]:
        client.delete_object(Bucket=BUCKET, Key=key)
        del objects.sizes[key], objects.versions[key]
    objects.write(client, "new", small=30)
    objects.verify(node.client(), "after deletes and overwrites with two devices out")
    node.stop()
    node.start()
    objects.verify(node.client(), "after a restart")
    assert not [key for key in list_all(node.client(), BUCKET) if key.startswith("old/")], "deleted keys came back"
    node.stop()
