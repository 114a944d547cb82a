"""Flipped bits in every area of up to m devices at a time: all of them are caught, none is served, all are repaired.

By default one small round per area. QUARRY_E2E_LONG=1: 1,000 flips in each area, and 10,000 over whole devices in
proportion to the areas, in rounds; after each round everything must read back, and fsck must find nothing.
"""

import json
import os
import random

import pytest
from harness import MIB, eventually, run_quarryd
from objects import ObjectSet
from test_scrub import scrub

LONG = os.environ.get("QUARRY_E2E_LONG") == "1"
BUCKET = "flips"
BLOCK = 4096
DEVICE_SIZE = "256MiB"
# Index pages are allocated from the high end; an index of these tests is far smaller.
INDEX_BYTES = 4 * MIB


def areas(path):
    """Byte ranges of a device's areas; the last superblock copy is left alone: without any, the device is another's."""
    superblock = json.loads(run_quarryd("inspect", path, "--json").stdout)["superblock"]
    journal, data = superblock["journal"], superblock["data"]
    data_end = (data["start_block"] + data["blocks"]) * BLOCK
    return {
        "superblock": [(0, 2 * BLOCK), (data_end, data_end + BLOCK)],
        "journal": [(journal["start_block"] * BLOCK, (journal["start_block"] + journal["blocks"]) * BLOCK)],
        "index": [(data_end - INDEX_BYTES, data_end)],
        "extents": [(data["start_block"] * BLOCK, data_end - INDEX_BYTES)],
        "whole": [(0, data_end + BLOCK)],
    }


def flip(path, ranges, flips, chance):
    total = sum(end - start for start, end in ranges)
    with open(path, "r+b") as file:
        for _ in range(flips):
            at = chance.randrange(total)
            for start, end in ranges:
                if at < end - start:
                    at += start
                    break
                at -= end - start
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))
        file.flush()
        os.fsync(file.fileno())


def fill(node, objects, name):
    """Some objects in checkpointed indexes, some in the journal only."""
    objects.write(node.client(), f"{name}/old", small=40)
    node.stop()
    node.start()
    objects.write(node.client(), f"{name}/new", small=40)


def whole_again(node, objects, when):
    """Reads are right at once; then scrubs, and the start between them, leave nothing to be found."""
    objects.verify(node.client(retries=4), f"right after {when}")
    scrub(node)
    if len(node.devices_in()) < 6:
        # An index that was found damaged is mended by a start.
        node.stop()
        node.start()
        scrub(node)
    assert len(node.devices_in()) == 6, f"{when}: {node.map()['devices']}"
    assert node.metric("quarry_repair_lost_total") == 0
    eventually("joiners are whole", 30, lambda: not any(entry["joining"] for entry in node.map()["partitions"]))
    scrub(node)
    objects.verify(node.client(), f"after {when} and a scrub")
    node.stop()
    found = run_quarryd("fsck", "--data", node.data, "--verify-data")
    assert found.returncode == 0, f"{when}:\n{found.stdout}{found.stderr}"
    node.start()


@pytest.mark.parametrize("area", ["superblock", "journal", "index", "extents", "whole"])
def test_flipped_bits(make_node, area):
    rounds, flips = (20, 500) if LONG and area == "whole" else (4, 250) if LONG else (1, 60)
    node = make_node(device_size=DEVICE_SIZE)
    node.client().create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    chance = random.Random(area)
    for number in range(rounds):
        if number % 4 == 0:
            fill(node, objects, f"round-{number}")
        victims = chance.sample(list(node.device_paths().values()), 2)
        # Now with a journal that is replayed, now with one that is not.
        if number % 2 == 0:
            node.kill()
        else:
            node.stop()
        for path in victims:
            flip(path, areas(path)[area], flips // 2, chance)
        node.start()
        whole_again(node, objects, f"{flips} flips ({area}, round {number})")
