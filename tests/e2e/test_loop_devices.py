"""The raw path: loop devices with direct I/O in place of files; kill -9, damage and scrub, one device gone under load.

Needs root and loop devices; skipped where there are none. QUARRY_REQUIRE_LOOP=1 makes that a failure.
"""

import os
import random
import threading

import pytest
from harness import MIB, eventually
from loops import LoopDevices, NoLoopDevices, losetup
from objects import ObjectSet
from test_scrub import scrub

BUCKET = "raw"
DEVICES = 6
DEVICE_BYTES = 256 * MIB


@pytest.fixture
def loop_devices(scratch):
    """(loop device, backing file) of each; detached in the end."""
    try:
        devices = LoopDevices(scratch / "raw", DEVICES, DEVICE_BYTES)
    except NoLoopDevices as problem:
        assert os.environ.get("QUARRY_REQUIRE_LOOP") != "1", problem
        pytest.skip(f"no loop devices: {problem}")
    yield devices.attached
    devices.detach()


def test_raw_block_devices(make_node, loop_devices):
    flags = [flag for device, _ in loop_devices for flag in ("--device", device)]
    node = make_node(*flags)
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    objects.write(client, "first", small=60)
    node.kill()
    node.start()
    objects.verify(node.client(), "after kill -9")
    node.stop()

    chance = random.Random(3)
    for device, _ in loop_devices[1:3]:
        with open(device, "r+b") as file:
            # Behind the journal: an eighth of the device.
            for _ in range(200):
                file.seek(DEVICE_BYTES // 8 + 2 * 4096 + chance.randrange(16 * MIB))
                file.write(b"\xff")
            file.flush()
            os.fsync(file.fileno())
    node.start()
    scrub(node)
    assert node.metric("quarry_repair_shards_total") > 0
    objects.verify(node.client(), "after damage and a scrub")

    # The kernel keeps a loop device that is in use; without any bytes left it fails every read and write.
    gone, backing = loop_devices[4]
    lost = next(device for device, path in node.device_paths().items() if str(path) == gone)
    stop = threading.Event()
    refused = []

    def load():
        client, count = node.client(retries=4), 0
        while not stop.is_set():
            try:
                objects.put(client, f"load/{count}", 300_000)
            except Exception as error:  # noqa: BLE001 - counted, and looked at below
                refused.append(str(error))
            count += 1

    clients = threading.Thread(target=load)
    clients.start()
    os.truncate(backing, 0)
    assert losetup("--set-capacity", gone).returncode == 0
    eventually("the lost device is out", 20, lambda: lost not in node.devices_in())
    objects.write(node.client(retries=4), "after", small=20)
    stop.set()
    clients.join()
    assert len(refused) <= 1, f"a client that retries saw errors: {refused[:3]}"
    objects.verify(node.client(), "after a device was gone under load")
    node.stop()
    node.start()
    objects.verify(node.client(), "after a device was gone and a restart")
    node.stop()
