"""Fixtures: a directory for device files, and nodes in it that end with the test.

QUARRY_E2E_LOOP=1 gives every node without devices of its own six loop devices in the place of six files: the same tests,
on raw block devices.
"""

import os
import pathlib
import shutil
import tempfile

import pytest
from harness import ROOT, Node
from loops import LoopDevices, size_bytes

RAW = os.environ.get("QUARRY_E2E_LOOP") == "1"

# Device files need O_DIRECT, which a temporary file system in memory may not have.
SCRATCH = pathlib.Path(os.environ.get("QUARRY_E2E_DIR", ROOT / "target" / "e2e"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call":
        report = outcome.get_result()
        item.failed = report.failed
        if report.failed and "shared_node" in item.funcargs:
            report.sections.append(("end of the node's log", item.funcargs["shared_node"].tail()))


@pytest.fixture
def device_files():
    """For tests that delete or truncate the node's devices, which only files bear."""
    if RAW:
        pytest.skip("deletes or truncates device files; test_loop_devices.py does the like with block devices")


@pytest.fixture
def scratch():
    """An empty directory on a real file system, gone after the test."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_node(request):
    """One node for all tests of a file, which asks for devices of `DEVICE_SIZE`. It has to stop and be clean at the end."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH))
    node = Node(path / "data", device_size=getattr(request.module, "DEVICE_SIZE", "256MiB"))
    try:
        yield node.start()
        node.stop()
        node.assert_fsck_is_clean()
    finally:
        node.close()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_node(request, scratch):
    """`make_node(*flags, device_size=..., name=...)`: a started node. Its log is shown when the test fails."""
    nodes = []
    raw = []

    def make(*flags, name="data", **options):
        if RAW and "--device" not in flags:
            devices = LoopDevices(scratch / f"{name}-raw", 6, size_bytes(options.get("device_size", "1GiB")))
            raw.append(devices)
            flags = (*flags, *devices.flags())
        node = Node(scratch / name, *flags, **options)
        nodes.append(node)
        return node.start()

    yield make
    for node in nodes:
        if getattr(request.node, "failed", True):
            print(f"--- log of {node.data.name}, its end:\n{node.tail()}")
        node.close()
    for devices in raw:
        devices.detach()
