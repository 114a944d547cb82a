"""s3cmd against a node: buckets, files, parts, syncs, metadata."""

import urllib.error
import urllib.request

import pytest
from clients import LONG, environment, file_sum, keys_of, make_tree, needs, random_file, requests_of, run, sums
from harness import MIB

pytestmark = needs("s3cmd")
FILES = 2_000 if LONG else 100
LARGE_BYTES = 1024 * MIB if LONG else 32 * MIB
DEVICE_SIZE = "1GiB" if LONG else "256MiB"


@pytest.fixture
def s3cmd(shared_node, scratch):
    """`s3cmd("ls", ...)`: standard output."""
    access, secret = shared_node.credentials()
    host = shared_node.endpoint.removeprefix("http://")
    config = scratch / "s3cfg"
    config.write_text(
        f"[default]\naccess_key = {access}\nsecret_key = {secret}\nhost_base = {host}\nhost_bucket = {host}\n"
        "use_https = False\nbucket_location = us-east-1\nmax_retries = 1\nencoding = UTF-8\n")
    env = environment(scratch)

    def call(*words, ok=True):
        done = run(["s3cmd", "-c", config, "--no-progress", *words], env, ok=ok, timeout=1800)
        return done.stdout if ok else done.stderr

    return call


def test_buckets_and_single_files(s3cmd, shared_node, scratch):
    body = scratch / "body"
    body.write_text("s3cmd")
    assert "Bucket 's3://s3cmd-one/' created" in s3cmd("mb", "s3://s3cmd-one")
    s3cmd("put", body, "s3://s3cmd-one/ü +key", "--add-header=Cache-Control: max-age=3", "-m", "text/x")
    shown = s3cmd("info", "s3://s3cmd-one/ü +key")
    assert "File size: 5" in shown and "MIME type: text/x" in shown and f"MD5 sum:   {file_sum(body)}" in shown, shown
    assert shared_node.client().head_object(Bucket="s3cmd-one", Key="ü +key")["CacheControl"] == "max-age=3"
    s3cmd("get", "s3://s3cmd-one/ü +key", scratch / "back")
    assert (scratch / "back").read_text() == "s3cmd"
    s3cmd("cp", "s3://s3cmd-one/ü +key", "s3://s3cmd-one/copy")
    s3cmd("mv", "s3://s3cmd-one/copy", "s3://s3cmd-one/dir/moved")
    s3cmd("modify", "--add-header=x-amz-meta-one:1", "s3://s3cmd-one/dir/moved")
    assert "x-amz-meta-one: 1" in s3cmd("info", "s3://s3cmd-one/dir/moved")
    listing = s3cmd("ls", "s3://s3cmd-one")
    assert "DIR  s3://s3cmd-one/dir/" in listing and "s3://s3cmd-one/ü +key" in listing
    assert "Location:  us-east-1" in s3cmd("info", "s3://s3cmd-one")
    assert s3cmd("du", "s3://s3cmd-one").split()[:2] == ["10", "2"]
    assert "BucketNotEmpty" in s3cmd("rb", "s3://s3cmd-one", ok=False)
    s3cmd("del", "s3://s3cmd-one/ü +key")
    assert "404" in s3cmd("info", "s3://s3cmd-one/ü +key", ok=False)
    s3cmd("del", "--recursive", "--force", "s3://s3cmd-one")
    s3cmd("rb", "s3://s3cmd-one")
    assert "s3cmd-one" not in s3cmd("ls")


def test_signed_url(s3cmd, shared_node, scratch):
    """s3cmd signs URLs by Signature Version 2 only, which S3 gave up for new buckets; the answer says so."""
    (scratch / "body").write_text("x")
    s3cmd("mb", "s3://s3cmd-url")
    s3cmd("put", scratch / "body", "s3://s3cmd-url/k")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(s3cmd("signurl", "s3://s3cmd-url/k", "+60").strip(), timeout=30)
    text = refused.value.read().decode()
    assert refused.value.code == 400 and "AWS4-HMAC-SHA256" in text, text


def test_sync_both_ways(s3cmd, shared_node, scratch):
    source = make_tree(scratch / "source", FILES)
    expected = sums(source)
    s3cmd("mb", "s3://s3cmd-sync")
    first = s3cmd("sync", f"{source}/", "s3://s3cmd-sync/x/")
    # A file that is there twice is sent once and copied on the server.
    assert first.count("upload: ") + first.count("remote copy: ") == len(expected)
    assert "upload: " not in s3cmd("sync", f"{source}/", "s3://s3cmd-sync/x/")
    (scratch / "out").mkdir()
    s3cmd("sync", "s3://s3cmd-sync/x/", f"{scratch / 'out'}/")
    assert sums(scratch / "out") == expected
    (source / "empty").unlink()
    s3cmd("sync", "--delete-removed", f"{source}/", "s3://s3cmd-sync/x/")
    assert sorted(keys_of(shared_node.client(), "s3cmd-sync", "x/")) == sorted(f"x/{name}" for name in sums(source))


def test_a_large_file_in_parts(s3cmd, shared_node, scratch):
    large = random_file(scratch / "large", LARGE_BYTES)
    s3cmd("mb", "s3://s3cmd-parts")
    before = requests_of(shared_node, "UploadPart")
    s3cmd("put", "--multipart-chunk-size-mb=5", large, "s3://s3cmd-parts/large")
    assert requests_of(shared_node, "UploadPart") - before == -(-LARGE_BYTES // (5 * MIB))
    s3cmd("cp", "s3://s3cmd-parts/large", "s3://s3cmd-parts/copy")
    s3cmd("get", "s3://s3cmd-parts/copy", scratch / "back")
    assert file_sum(scratch / "back") == file_sum(large)
