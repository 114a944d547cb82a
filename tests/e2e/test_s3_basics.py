"""The S3 protocol checks of tests/s3_basics.py, against a node of its own."""

import re
import subprocess
import sys

from harness import ROOT


def test_every_s3_basics_check_passes(make_node):
    node = make_node(device_size="256MiB")
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "s3_basics.py"), node.endpoint, *node.credentials()],
        capture_output=True, text=True, timeout=180,
    )
    closing = re.search(r"(\d+) passed, (\d+) failed", run.stdout)
    assert closing, f"no closing line:\n{run.stdout}\n{run.stderr}"
    assert run.returncode == 0 and int(closing[2]) == 0 and int(closing[1]) > 0, f"{run.stdout}\n{run.stderr}"
    node.stop()
    node.assert_fsck_is_clean()
