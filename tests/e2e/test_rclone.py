"""rclone against a node: copies that it checks itself, syncs, parts, and copies on the server."""

import urllib.request

import pytest
from clients import LONG, environment, file_sum, keys_of, make_tree, needs, random_file, requests_of, run, sums
from harness import MIB

pytestmark = needs("rclone")
FILES = 5_000 if LONG else 200
LARGE_BYTES = 1024 * MIB if LONG else 32 * MIB
DEVICE_SIZE = "1GiB" if LONG else "256MiB"


@pytest.fixture
def rclone(shared_node, scratch):
    """`rclone("lsf", "q:bucket")`: standard output; no retries, so that nothing is hidden."""
    access, secret = shared_node.credentials()
    env = environment(
        scratch, RCLONE_CONFIG_Q_TYPE="s3", RCLONE_CONFIG_Q_PROVIDER="Other", RCLONE_CONFIG_Q_ACCESS_KEY_ID=access,
        RCLONE_CONFIG_Q_SECRET_ACCESS_KEY=secret, RCLONE_CONFIG_Q_ENDPOINT=shared_node.endpoint,
        RCLONE_CONFIG_Q_REGION="us-east-1", RCLONE_RETRIES="1", RCLONE_LOW_LEVEL_RETRIES="1")

    def call(*words, ok=True, stdin=None):
        done = run(["rclone", *words], env, ok=ok, stdin=stdin, timeout=1800)
        return done.stdout if ok else done.stderr

    return call


def test_a_tree_there_and_back_checked_by_rclone(rclone, shared_node, scratch):
    source = make_tree(scratch / "source", FILES)
    expected = sums(source)
    rclone("mkdir", "q:rclone-tree")
    rclone("copy", source, "q:rclone-tree/x")
    rclone("check", source, "q:rclone-tree/x")
    rclone("check", "--download", source, "q:rclone-tree/x")
    assert set(rclone("lsf", "-R", "--files-only", "q:rclone-tree/x").splitlines()) == set(expected)
    assert "folder-03/" in rclone("lsf", "q:rclone-tree/x").splitlines()
    hashes = dict(reversed(line.split("  ", 1)) for line in rclone("hashsum", "MD5", "q:rclone-tree/x").splitlines())
    assert hashes == expected
    before = requests_of(shared_node, "PutObject")
    rclone("sync", source, "q:rclone-tree/x")
    assert requests_of(shared_node, "PutObject") == before, "a second sync writes"

    (source / "folder-00" / "file-00000.bin").unlink()
    (source / "new").write_text("new")
    rclone("sync", source, "q:rclone-tree/x")
    assert sorted(keys_of(shared_node.client(), "rclone-tree", "x/")) == sorted(f"x/{name}" for name in sums(source))

    # A copy on the server moves no bytes through the client.
    out = shared_node.metric("quarry_s3_bytes_total", direction="out")
    rclone("copy", "q:rclone-tree/x", "q:rclone-tree/y")
    assert requests_of(shared_node, "CopyObject") >= len(sums(source))
    assert shared_node.metric("quarry_s3_bytes_total", direction="out") - out < 4 * MIB
    rclone("check", "q:rclone-tree/x", "q:rclone-tree/y")
    rclone("copy", "q:rclone-tree/y", scratch / "out")
    assert sums(scratch / "out") == sums(source)
    # What differs is found: the check is one that can fail.
    shared_node.client().put_object(Bucket="rclone-tree", Key="y/new", Body=b"old")
    assert "1 differences found" in rclone("check", "q:rclone-tree/x", "q:rclone-tree/y", ok=False)
    rclone("purge", "q:rclone-tree")
    assert "rclone-tree/" not in rclone("lsf", "q:").splitlines()


def test_a_large_file_in_parts(rclone, shared_node, scratch):
    large = random_file(scratch / "large", LARGE_BYTES)
    before = requests_of(shared_node, "UploadPart")
    rclone("mkdir", "q:rclone-parts")
    rclone("copy", "--s3-chunk-size", "5M", "--s3-upload-cutoff", "5M", large, "q:rclone-parts")
    assert requests_of(shared_node, "UploadPart") - before == -(-LARGE_BYTES // (5 * MIB))
    # rclone keeps the MD5 of the whole in the object's metadata.
    assert rclone("hashsum", "MD5", "q:rclone-parts").split() == [file_sum(large), "large"]
    rclone("check", "--download", large.parent, "q:rclone-parts", "--include", "/large")
    # More than one copied range: the copy is a multipart upload too.
    before = requests_of(shared_node, "UploadPartCopy")
    rclone("copyto", "--s3-copy-cutoff", "10M", "q:rclone-parts/large", "q:rclone-parts/copy")
    assert requests_of(shared_node, "UploadPartCopy") - before >= LARGE_BYTES // (10 * MIB)
    rclone("copyto", "--multi-thread-streams", "4", "--multi-thread-cutoff", "1M", "q:rclone-parts/copy", scratch / "back")
    assert file_sum(scratch / "back") == file_sum(large)
    rclone("purge", "q:rclone-parts")


def test_single_objects(rclone, shared_node):
    rclone("mkdir", "q:rclone-one")
    rclone("rcat", "q:rclone-one/a/ü+ b", stdin="text from a pipe")
    assert rclone("cat", "q:rclone-one/a/ü+ b") == "text from a pipe"
    assert rclone("cat", "--offset", "5", "--count", "4", "q:rclone-one/a/ü+ b") == "from"
    rclone("moveto", "q:rclone-one/a/ü+ b", "q:rclone-one/b")
    assert keys_of(shared_node.client(), "rclone-one") == ["b"]
    # Sets the time by a copy of the object onto itself.
    rclone("touch", "--timestamp", "2020-02-03T04:05:06", "q:rclone-one/b")
    assert "2020-02-03 04:05:06" in rclone("lsl", "q:rclone-one")
    with urllib.request.urlopen(rclone("link", "--expire", "1h", "q:rclone-one/b").strip(), timeout=30) as answer:
        assert answer.read() == b"text from a pipe"
    assert "Total objects: 1" in rclone("size", "q:rclone-one")
    rclone("deletefile", "q:rclone-one/b")
    rclone("rmdir", "q:rclone-one")
    assert "directory not found" in rclone("lsf", "q:rclone-one", ok=False)
