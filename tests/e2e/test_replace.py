"""A device is lost for good and a new one put in its place: redundancy comes back while clients go on."""

import subprocess

from harness import eventually, run_quarryd
from objects import ObjectSet
from test_scrub import scrub

BUCKET = "replace"


def states(node):
    return {group["state"] for group in node.map()["placement_groups"].values()}


def test_a_new_device_takes_the_place_of_a_lost_one(device_files, make_node):
    node = make_node(device_size="256MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    objects.write(client, "before", copies=2, small=60)
    lost, path = list(node.device_paths().items())[3]
    node.stop()
    path.unlink()
    # Without being told to, the node does not put a new device there.
    node.start()
    assert lost not in node.devices_in()
    assert not path.exists()
    objects.write(node.client(), "without", small=20)
    node.stop()
    node.start("--replace-device", path)
    objects.write(node.client(), "while", small=20)
    eventually("no group moves any more", 60, lambda: "moving" not in states(node))
    eventually("the lost device has left the map", 20, lambda: str(lost) not in node.map()["devices"])
    assert len(node.devices_in()) == 6
    assert node.metric("quarry_repair_shards_total") > 0
    assert node.metric("quarry_repair_lost_total") == 0
    scrub(node)
    assert node.metric("quarry_scrub_damage_total") == 0, "the scrub found what the move left out"
    # As many others as the profile has parity may go now.
    for device in [device for device in node.devices_in()][:2]:
        node.inject(device, "all")
    objects.verify(node.client(retries=4), "after the replacement and two more losses")
    node.stop()
    node.start()
    scrub(node)
    node.stop()
    found = run_quarryd("fsck", "--data", node.data, "--verify-data")
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_whole_device_is_not_replaced(make_node):
    node = make_node(device_size="256MiB")
    paths = list(node.device_paths().values())
    node.stop()
    refused = subprocess.run(node.command("--replace-device", paths[0]), capture_output=True, text=True, timeout=30)
    assert refused.returncode != 0 and "is there and whole" in refused.stderr, refused.stderr
    refused = subprocess.run(
        node.command("--replace-device", node.data / "nothing"), capture_output=True, text=True, timeout=30)
    assert refused.returncode != 0 and "no device there" in refused.stderr, refused.stderr
    node.start()
    assert len(node.devices_in()) == 6
