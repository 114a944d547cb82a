"""What the tests of foreign clients share: an environment without the user's own settings, and trees of files."""

import hashlib
import os
import random
import shutil
import subprocess

import pytest
from harness import MIB

# The record run: the sizes that the project promises. By default the same steps with less.
LONG = os.environ.get("QUARRY_E2E_LONG") == "1"
# Names that clients get wrong, if not servers.
ODD_NAMES = ["a b", "a+b", "a%2Fb", "a&b=c", "ünï/日本 語", "(1) 'x'", "~!$,;@", "deep/er/and/deeper/file", "#1"]


def needs(command):
    """Skips the module where a client is not installed; deploy/packages.sh installs all of them."""
    return pytest.mark.skipif(shutil.which(command) is None, reason=f"{command} is not installed")


def environment(home, **more):
    """The caller's environment without its credentials, endpoints, certificates and proxies; `home` is empty."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("AWS_", "RCLONE_", "S3_")) and not name.lower().endswith("_proxy")}
    return {**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC", **more}


def run(command, env, ok=True, stdin=None, timeout=600):
    """Runs a client to its end and returns it; its output is text and shown when it fails."""
    done = subprocess.run(
        [str(word) for word in command], env=env, input=stdin, capture_output=True, text=True, timeout=timeout)
    if ok:
        words = " ".join(map(str, command))
        assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def make_tree(root, files, big=True):
    """`files` small files in folders, files with odd names, an empty one, and one of several parts."""
    seeded = random.Random(files)
    for number in range(files):
        path = root / f"folder-{number % 17:02}" / f"file-{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seeded.randbytes(seeded.choice([1, 100, 3000])))
    for name in ODD_NAMES:
        path = root / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "empty").write_bytes(b"")
    if big:
        (root / "big.bin").write_bytes(seeded.randbytes(17 * MIB + 5))
    return root


def sums(root):
    """Relative path -> MD5 of every file below `root`."""
    return {str(path.relative_to(root)): file_sum(path) for path in sorted(root.rglob("*")) if path.is_file()}


def file_sum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def random_file(path, size, seed=1):
    """A file of `size` bytes that does not compress, written piece by piece."""
    seeded = random.Random(seed)
    with open(path, "wb") as file:
        for start in range(0, size, 8 * MIB):
            file.write(seeded.randbytes(min(8 * MIB, size - start)))
    return path


def keys_of(client, bucket, prefix=""):
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def requests_of(node, operation):
    """How many requests of an operation the node has answered; its series begins with the first one."""
    _, text = node.admin_get("/metrics")
    named = f'quarry_s3_requests_total{{operation="{operation}"'
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(named))
