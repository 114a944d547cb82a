"""Users, keys and policies by quarryctl, and what they may do by boto3; anonymous reads by a bucket policy."""

import json
import os
import subprocess
import urllib.error
import urllib.request

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from harness import BINARIES



def ctl(node, *words, token=True, expect=0):
    command = [str(BINARIES / "quarryctl"), "--admin", f"http://127.0.0.1:{node.admin}", "--output", "json"]
    if token:
        command += ["--token-file", str(node.data / "admin-token")]
    environment = {name: value for name, value in os.environ.items() if name != "QUARRY_ADMIN_TOKEN"}
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == expect, (words, done.stdout, done.stderr)
    return json.loads(done.stdout) if expect == 0 else done.stderr


def client_of(node, key):
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, signature_version="s3v4")
    return boto3.client(
        "s3", endpoint_url=node.endpoint, aws_access_key_id=key["id"], aws_secret_access_key=key["secret"],
        region_name="us-east-1", config=config,
    )


def outcome(call, **arguments):
    """The error code of a call, or None."""
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return None


def anonymous(node, path):
    try:
        with urllib.request.urlopen(f"{node.endpoint}{path}", timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture
def node(make_node):
    node = make_node("--profile", "1+0", "--cores", "1", device_size="256MiB")
    root = node.client()
    root.create_bucket(Bucket="c-other")
    for key in ("in/x", "out/x"):
        root.put_object(Bucket="c-other", Key=key, Body=b"data")
    return node


def user(node, name, *policies):
    ctl(node, "user", "create", name)
    for policy in policies:
        ctl(node, "policy", "attach", policy, name)
    return ctl(node, "key", "create", name)


def test_users_may_what_their_policies_say(node, scratch):
    bucket = "c-other"
    document = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}",
             "Condition": {"StringLike": {"s3:prefix": "in/*"}}},
            {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": f"arn:aws:s3:::{bucket}/in/*"},
        ],
    }
    path = scratch / "inbox.json"
    path.write_text(json.dumps(document))
    ctl(node, "policy", "put", "inbox", path)
    nobody, reader, writer, inbox = (
        client_of(node, user(node, "nobody")),
        client_of(node, user(node, "reader", "readonly")),
        client_of(node, user(node, "writer", "writeonly")),
        client_of(node, user(node, "inbox", "inbox")),
    )
    denied = "AccessDenied"
    body = {"Bucket": bucket, "Body": b"new"}
    for call, arguments, expected in [
        ("list_buckets", {}, (denied, None, denied, denied)),
        ("list_objects_v2", {"Bucket": bucket}, (denied, None, denied, denied)),
        ("list_objects_v2", {"Bucket": bucket, "Prefix": "in/"}, (denied, None, denied, None)),
        ("get_object", {"Bucket": bucket, "Key": "in/x"}, (denied, None, denied, None)),
        ("get_object", {"Bucket": bucket, "Key": "out/x"}, (denied, None, denied, denied)),
        ("get_object", {"Bucket": bucket, "Key": "none"}, (denied, "NoSuchKey", denied, denied)),
        # Who may list what begins with it may know that there is none.
        ("head_object", {"Bucket": bucket, "Key": "in/none"}, ("403", "404", "403", "404")),
        ("head_object", {"Bucket": bucket, "Key": "out/none"}, ("403", "404", "403", "403")),
        ("put_object", {**body, "Key": "in/new"}, (denied, denied, None, None)),
        ("put_object", {**body, "Key": "out/new"}, (denied, denied, None, denied)),
        ("delete_object", {"Bucket": bucket, "Key": "in/x"}, (denied, denied, denied, denied)),
        ("create_multipart_upload", {"Bucket": bucket, "Key": "in/m"}, (denied, denied, None, None)),
        ("copy_object", {"Bucket": bucket, "Key": "in/c", "CopySource": f"{bucket}/out/x"}, (denied, denied, denied, denied)),
        ("copy_object", {"Bucket": bucket, "Key": "in/c", "CopySource": f"{bucket}/in/x"}, (denied, denied, denied, None)),
        ("create_bucket", {"Bucket": "new"}, (denied, denied, denied, denied)),
        ("delete_bucket", {"Bucket": bucket}, (denied, denied, denied, denied)),
        ("get_bucket_location", {"Bucket": bucket}, (denied, None, denied, denied)),
        ("put_bucket_versioning", {"Bucket": bucket, "VersioningConfiguration": {"Status": "Enabled"}}, (denied,) * 4),
    ]:
        found = tuple(outcome(getattr(who, call), **arguments) for who in (nobody, reader, writer, inbox))
        assert found == expected, (call, arguments)
    many = {"Objects": [{"Key": "in/x"}, {"Key": "out/x"}]}
    answer = inbox.delete_objects(Bucket=bucket, Delete=many)
    assert {error["Code"] for error in answer["Errors"]} == {denied} and len(answer["Errors"]) == 2
    node.client().get_object(Bucket=bucket, Key="in/x")


def test_keys_come_and_go(node):
    key = user(node, "alice", "admin")
    alice = client_of(node, key)
    assert outcome(alice.list_buckets) is None
    ctl(node, "key", "disable", key["id"])
    assert outcome(alice.list_buckets) == "InvalidAccessKeyId"
    ctl(node, "key", "enable", key["id"])
    assert outcome(alice.list_buckets) is None
    wrong = client_of(node, {**key, "secret": "x" * 40})
    assert outcome(wrong.list_buckets) == "SignatureDoesNotMatch"
    ctl(node, "policy", "detach", "admin", "alice")
    assert outcome(alice.list_buckets) == "AccessDenied"
    ctl(node, "policy", "attach", "admin", "alice")
    # All of it outlives the process.
    node.stop()
    node.start()
    assert outcome(alice.list_buckets) is None
    shown = ctl(node, "user", "info", "alice")
    assert shown["keys"][0]["id"] == key["id"] and key["secret"] not in json.dumps(shown)
    ctl(node, "user", "delete", "alice")
    assert outcome(alice.list_buckets) == "InvalidAccessKeyId"
    assert key["secret"] not in node.log()


def test_bucket_policies_open_and_close(node):
    root, bucket = node.client(), "c-other"
    alice = client_of(node, user(node, "alice", "admin"))
    assert anonymous(node, f"/{bucket}/in/x")[0] == 403
    statements = [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/in/*"}]
    put = lambda: root.put_bucket_policy(  # noqa: E731
        Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements})
    )
    put()
    assert anonymous(node, f"/{bucket}/in/x") == (200, b"data")
    assert [anonymous(node, path)[0] for path in (f"/{bucket}/out/x", f"/{bucket}/in/none", f"/{bucket}", "/")] == [403] * 4
    assert root.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is True
    statements.append({"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]})
    put()
    assert anonymous(node, f"/{bucket}/in/x")[0] == 403
    for who in (root, alice):
        assert outcome(who.get_object, Bucket=bucket, Key="in/x") == "AccessDenied"
    assert outcome(alice.delete_bucket_policy, Bucket=bucket) == "AccessDenied"
    root.delete_bucket_policy(Bucket=bucket)
    assert outcome(alice.get_object, Bucket=bucket, Key="in/x") is None
    root.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration={"BlockPublicPolicy": True})
    statements.pop()
    assert outcome(root.put_bucket_policy, Bucket=bucket, Policy=json.dumps({"Statement": statements})) == "AccessDenied"
    assert outcome(root.put_bucket_policy, Bucket=bucket, Policy="{}") == "MalformedPolicy"
    assert outcome(root.put_bucket_acl, Bucket=bucket, ACL="public-read") == "AccessControlListNotSupported"


def test_the_admin_address_wants_its_token(node, scratch):
    assert "token" in ctl(node, "user", "list", token=False, expect=1)
    assert node.admin_get("/admin/users")[0] == 401
    assert node.admin_get("/metrics")[0] == 200
    assert (node.data / "admin-token").stat().st_mode & 0o777 == 0o600
    ctl(node, "user", "create", "alice")
    assert "exists" in ctl(node, "user", "create", "alice", expect=1)
    assert "does not exist" in ctl(node, "policy", "attach", "none", "alice", expect=1)
    bad = scratch / "bad.json"
    bad.write_text('{"Statement":{"Effect":"Allow","Action":"s3:GetObjekt","Resource":"*"}}')
    assert "s3:GetObjekt" in ctl(node, "policy", "put", "bad", bad, expect=1)
    names = {policy["name"] for policy in ctl(node, "policy", "list")}
    assert names == {"readonly", "readwrite", "writeonly", "tenant", "admin"}
