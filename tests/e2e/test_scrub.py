"""Damage in cold data that nobody reads: one scrub pass makes everything whole, and fsck has nothing to say."""

import json
import random

from harness import MIB, eventually, run_quarryd
from objects import ObjectSet

BUCKET = "cold"
FLIPS = 1000


def used_data(node, device, path):
    """(first byte, bytes) of the part of a device that holds shards: they are allocated from its low end."""
    label = f"dev-{device:016x}"
    used = node.metric("quarry_device_capacity_bytes", device=label) - node.metric(
        "quarry_device_free_bytes", device=label)
    node.stop()
    inspected = run_quarryd("inspect", path, "--json")
    return json.loads(inspected.stdout)["superblock"]["data"]["start_block"] * 4096, int(used)


def scrub(node, seconds=120):
    status, body = node.admin_get("/scrub", method="POST")
    assert status == 202, (status, body)
    wanted = json.loads(body)["pass"]
    eventually(
        f"scrub pass {wanted} is finished", seconds,
        lambda: json.loads(node.admin_get("/scrub")[1])["finished"] >= wanted)


def test_one_pass_repairs_a_thousand_flipped_bits(make_node):
    node = make_node(device_size="256MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    objects.write(client, "cold", copies=2, small=50)
    scrub(node)
    assert node.metric("quarry_scrub_damage_total") == 0
    assert node.metric("quarry_scrub_bytes_total") > 50 * MIB
    # As many devices as the profile has parity: whatever is hit, enough is left.
    victims = list(node.device_paths().items())[1:5:3]
    chance = random.Random(7)
    first, used = used_data(node, *victims[0])
    for _, path in victims:
        with open(path, "r+b") as file:
            for _ in range(FLIPS // 2):
                at = first + chance.randrange(used * 9 // 10)
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1 << chance.randrange(8)]))
    found = run_quarryd("fsck", "--data", node.data, "--verify-data")
    assert found.returncode != 0, "fsck does not see the damage"
    node.start()
    scrub(node)
    assert node.metric("quarry_scrub_damage_total") >= 10
    assert node.metric("quarry_repair_shards_total") >= 10
    assert node.metric("quarry_repair_lost_total") == 0
    objects.verify(node.client(), "after the scrub")
    node.stop()
    found = run_quarryd("fsck", "--data", node.data, "--verify-data")
    assert found.returncode == 0, found.stdout + found.stderr
