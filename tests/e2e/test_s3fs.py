"""A bucket mounted as a file system by s3fs: what shells and programs do to files. Needs /dev/fuse."""

import os
import pathlib
import shutil
import subprocess
import time

import pytest
from clients import LONG, environment, file_sum, keys_of, needs, random_file, requests_of, run
from harness import MIB, eventually

FUSE = pathlib.Path("/dev/fuse")
pytestmark = [
    needs("s3fs"),
    pytest.mark.skipif(not os.access(FUSE, os.R_OK | os.W_OK), reason=f"{FUSE} is missing or not ours to open"),
]
LARGE_BYTES = 256 * MIB if LONG else 24 * MIB


class Mount:
    """s3fs in the foreground on a directory; gone with `close`."""

    def __init__(self, node, bucket, scratch):
        self.path = scratch / "mounted"
        self.path.mkdir()
        password = scratch / "passwd"
        password.write_text(":".join(node.credentials()))
        password.chmod(0o600)
        self.env = environment(scratch)
        self.log_path = scratch / "s3fs.log"
        self.command = [
            "s3fs", bucket, str(self.path), "-f", "-o", f"url={node.endpoint}", "-o", f"passwd_file={password}",
            "-o", "use_path_request_style", "-o", "enable_content_md5", "-o", "multipart_size=10",
            # What another client changes is seen at once.
            "-o", "max_stat_cache_size=0", "-o", f"logfile={self.log_path}",
        ]

    def open(self):
        self.process = subprocess.Popen(self.command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually("mounted", 20, lambda: self.path.is_mount() or self.process.poll() is not None)
        assert self.process.poll() is None, f"s3fs ended: {self.log_path.read_text()}"

    def close(self):
        """Unmounts; s3fs ends by itself."""
        for _ in range(20):
            if run(["fusermount", "-u", self.path], self.env, ok=False).returncode == 0:
                break
            time.sleep(0.2)
        assert self.process.wait(timeout=30) == 0, self.log_path.read_text()


@pytest.fixture
def mount(shared_node, scratch):
    shared_node.client().create_bucket(Bucket="mounted")
    mount = Mount(shared_node, "mounted", scratch)
    mount.open()
    yield mount
    if mount.path.is_mount():
        mount.close()


def test_files_of_a_mounted_bucket(mount, shared_node, scratch):
    client = shared_node.client()
    root = mount.path
    large = random_file(scratch / "large", LARGE_BYTES)

    (root / "a").write_text("one\n")
    assert client.get_object(Bucket="mounted", Key="a")["Body"].read() == b"one\n"
    (root / "dir ü").mkdir()
    shutil.move(root / "a", root / "dir ü" / "b")
    with open(root / "dir ü" / "b", "a") as file:
        file.write("two\n")
    assert (root / "dir ü" / "b").read_text() == "one\ntwo\n"
    assert client.get_object(Bucket="mounted", Key="dir ü/b")["Body"].read() == b"one\ntwo\n"

    # A large file goes in parts; a change in its middle uploads that part and copies the others on the server.
    shutil.copyfile(large, root / "large")
    assert file_sum(root / "large") == file_sum(large)
    for path in (large, root / "large"):
        with open(path, "r+b") as file:
            file.seek(LARGE_BYTES // 2)
            file.write(b"changed")
    assert requests_of(shared_node, "UploadPartCopy") > 0
    client.download_file("mounted", "large", str(scratch / "back"))
    assert file_sum(scratch / "back") == file_sum(large)

    # What others write is there, and a folder of theirs without a marker too.
    client.put_object(Bucket="mounted", Key="other/client", Body=b"theirs")
    assert (root / "other" / "client").read_bytes() == b"theirs"
    assert sorted(path.name for path in root.iterdir()) == ["dir ü", "large", "other"]

    os.rename(root / "dir ü", root / "renamed")
    assert (root / "renamed" / "b").read_text() == "one\ntwo\n"
    (root / "renamed" / "b").write_text("one\n")
    (root / "renamed" / "b").chmod(0o600)
    os.symlink("renamed/b", root / "link")
    assert (root / "link").read_text() == "one\n"

    # Unmounted and mounted again: everything is in the bucket.
    mount.close()
    mount.open()
    assert (root / "link").read_text() == "one\n" and (root / "renamed" / "b").stat().st_mode & 0o777 == 0o600
    assert file_sum(root / "large") == file_sum(large)
    for path in list(root.iterdir()):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert list(root.iterdir()) == []
    mount.close()
    assert keys_of(client, "mounted") == []


def test_a_bucket_that_is_missing_is_not_mounted(shared_node, scratch):
    mount = Mount(shared_node, "not-there-at-all", scratch)
    process = subprocess.Popen(mount.command, env=mount.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process.wait(timeout=30)
    assert not mount.path.is_mount() and "bucket or key not found" in mount.log_path.read_text()
