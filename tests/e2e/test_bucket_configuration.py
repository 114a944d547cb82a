"""Configuration of buckets with boto3 against a real node: documents, other origins, websites, forms, expiry."""

import datetime
import time
import urllib.error
import urllib.parse
import urllib.request

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from harness import eventually

DAY = datetime.timedelta(days=1)


@pytest.fixture
def node(make_node):
    return make_node("--domain", "s3.test", "--website-domain", "site.test", device_size="256MiB")


@pytest.fixture
def s3(node):
    access, secret = node.credentials()
    client = boto3.client(
        "s3", endpoint_url=node.endpoint, aws_access_key_id=access, aws_secret_access_key=secret,
        region_name="us-east-1", config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 1}))
    client.create_bucket(Bucket="bucket")
    return client


def refused(code, call, **arguments):
    with pytest.raises(ClientError) as error:
        call(**arguments)
    assert error.value.response["Error"]["Code"] == code


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def http(node, path, method="GET", body=None, host=None, **headers):
    """Status, headers and body of an unsigned request; redirects are not followed."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if host:
        headers["Host"] = host
    request = urllib.request.Request(node.endpoint + path, method=method, data=body, headers=headers)
    try:
        with urllib.request.build_opener(NoRedirects).open(request, timeout=20) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_documents_survive_a_restart(node, s3):
    cors = [{"AllowedOrigins": ["https://*.example"], "AllowedMethods": ["GET", "PUT"], "AllowedHeaders": ["*"],
             "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 300, "ID": "one"}]
    tags = [{"Key": "team", "Value": "storage"}, {"Key": "a b", "Value": ""}]
    rules = [
        {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 7},
         "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}},
        {"ID": "both", "Status": "Disabled", "NoncurrentVersionExpiration": {"NoncurrentDays": 3},
         "Filter": {"And": {"Prefix": "x", "Tags": [{"Key": "k", "Value": "v"}], "ObjectSizeGreaterThan": 5}}},
        {"ID": "bare", "Status": "Enabled", "Prefix": "p/",
         "Expiration": {"Date": datetime.datetime(2040, 1, 1, tzinfo=datetime.timezone.utc)}},
    ]
    site = {"IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "error.html"}}
    s3.put_bucket_cors(Bucket="bucket", CORSConfiguration={"CORSRules": cors})
    s3.put_bucket_tagging(Bucket="bucket", Tagging={"TagSet": tags})
    s3.put_bucket_lifecycle_configuration(Bucket="bucket", LifecycleConfiguration={"Rules": rules})
    s3.put_bucket_website(Bucket="bucket", WebsiteConfiguration=site)
    s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    for _ in range(2):
        assert s3.get_bucket_cors(Bucket="bucket")["CORSRules"] == cors
        assert s3.get_bucket_tagging(Bucket="bucket")["TagSet"] == tags
        assert s3.get_bucket_lifecycle_configuration(Bucket="bucket")["Rules"] == rules
        assert s3.get_bucket_website(Bucket="bucket")["IndexDocument"] == site["IndexDocument"]
        assert s3.get_bucket_versioning(Bucket="bucket")["Status"] == "Enabled"
        node.stop()
        node.start()
    s3.delete_bucket_cors(Bucket="bucket")
    s3.delete_bucket_tagging(Bucket="bucket")
    s3.delete_bucket_lifecycle(Bucket="bucket")
    s3.delete_bucket_website(Bucket="bucket")
    refused("NoSuchCORSConfiguration", s3.get_bucket_cors, Bucket="bucket")
    refused("NoSuchTagSet", s3.get_bucket_tagging, Bucket="bucket")
    refused("NoSuchLifecycleConfiguration", s3.get_bucket_lifecycle_configuration, Bucket="bucket")
    refused("NoSuchWebsiteConfiguration", s3.get_bucket_website, Bucket="bucket")


def test_what_is_off_reads_as_off(s3):
    refused("ServerSideEncryptionConfigurationNotFoundError", s3.get_bucket_encryption, Bucket="bucket")
    refused("ObjectLockConfigurationNotFoundError", s3.get_object_lock_configuration, Bucket="bucket")
    refused("ReplicationConfigurationNotFoundError", s3.get_bucket_replication, Bucket="bucket")
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket="bucket")
    assert "Status" not in s3.get_bucket_accelerate_configuration(Bucket="bucket")
    assert s3.get_bucket_request_payment(Bucket="bucket")["Payer"] == "BucketOwner"
    assert "QueueConfigurations" not in s3.get_bucket_notification_configuration(Bucket="bucket")
    refused("NotImplemented", s3.put_bucket_accelerate_configuration, Bucket="bucket",
            AccelerateConfiguration={"Status": "Enabled"})
    for name in ["list-a", "list-b", "list-c"]:
        s3.create_bucket(Bucket=name)
    s3.create_bucket(Bucket="list-a")  # in the region without a name one's own bucket is no conflict
    page = s3.list_buckets(Prefix="list-", MaxBuckets=2)
    names = [bucket["Name"] for bucket in page["Buckets"]]
    page = s3.list_buckets(Prefix="list-", ContinuationToken=page["ContinuationToken"])
    assert names + [bucket["Name"] for bucket in page["Buckets"]] == ["list-a", "list-b", "list-c"]
    assert "ContinuationToken" not in page


def test_pages_of_other_origins(node, s3):
    rule = {"AllowedOrigins": ["https://*.example"], "AllowedMethods": ["PUT", "GET"], "AllowedHeaders": ["x-amz-*"]}
    s3.put_bucket_cors(Bucket="bucket", CORSConfiguration={"CORSRules": [rule]})
    asked = {"Origin": "https://a.example", "Access_Control_Request_Method": "PUT",
             "Access_Control_Request_Headers": "X-Amz-Date"}
    status, headers, _ = http(node, "/bucket/key", "OPTIONS", **asked)
    assert status == 200 and headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert headers["Access-Control-Allow-Headers"] == "x-amz-date"
    status, headers, _ = http(node, "/bucket/key", "OPTIONS", **{**asked, "Origin": "https://a.org"})
    assert status == 403 and "Access-Control-Allow-Origin" not in headers
    # An error is readable for the page too.
    status, headers, _ = http(node, "/bucket/key", Origin="https://a.example")
    assert status == 403 and headers["Access-Control-Allow-Origin"] == "https://a.example"
    url = s3.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "key"})
    path = url.removeprefix(node.endpoint)
    status, headers, _ = http(node, path, "PUT", b"body", Origin="https://a.example")
    assert status == 200 and headers["Vary"].startswith("Origin")
    assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"body"


def test_a_website_asks_who_may_read(node, s3):
    site = {"IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "error.html"},
            "RoutingRules": [{"Condition": {"KeyPrefixEquals": "old/"}, "Redirect": {"ReplaceKeyPrefixWith": "new/"}}]}
    s3.put_bucket_website(Bucket="bucket", WebsiteConfiguration=site)
    s3.put_object(Bucket="bucket", Key="index.html", Body=b"home", ContentType="text/html")
    status, headers, body = http(node, "/", host="bucket.site.test")
    assert status == 403 and headers["Content-Type"].startswith("text/html") and b"AccessDenied" in body
    status, headers, _ = http(node, "/old/x", host="bucket.site.test")
    assert status == 301 and headers["Location"] == "http://bucket.site.test/new/x"
    assert http(node, "/", host="nobody.site.test")[0] == 404


def test_virtual_hosts(node, s3):
    s3.put_object(Bucket="bucket", Key="a/b", Body=b"by path")
    access, secret = node.credentials()
    by_host = boto3.client(
        "s3", endpoint_url=f"http://s3.test:{node.listen}", aws_access_key_id=access, aws_secret_access_key=secret,
        region_name="us-east-1", config=Config(signature_version="s3v4", s3={"addressing_style": "virtual"}))
    url = urllib.parse.urlsplit(by_host.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "a/b"}))
    assert url.hostname == "bucket.s3.test"
    assert http(node, f"{url.path}?{url.query}", host=url.netloc)[0::2] == (200, b"by path")
    assert http(node, f"{url.path}?{url.query}", host=url.netloc.replace("bucket", "other"))[0] == 403


def form(post, file, name="a.txt"):
    boundary = "----form"
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
             for key, value in post["fields"].items()]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return b"".join([*parts, head, file, f"\r\n--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


@pytest.mark.parametrize("size", [0, 1000, 100_000, 9_000_000])
def test_forms_upload_what_their_policy_allows(node, s3, size):
    content = bytes(i % 251 for i in range(1000)) * (size // 1000)
    post = s3.generate_presigned_post(
        "bucket", "up/${filename}", Fields={"x-amz-meta-who": "me", "success_action_status": "201"},
        Conditions=[{"x-amz-meta-who": "me"}, {"success_action_status": "201"}, ["content-length-range", 0, size]])
    body, kind = form(post, content)
    status, _, answer = http(node, "/bucket", "POST", body, Content_Type=kind)
    assert status == 201 and b"<Key>up/a.txt</Key>" in answer, answer
    found = s3.get_object(Bucket="bucket", Key="up/a.txt")
    assert found["Body"].read() == content and found["Metadata"] == {"who": "me"}
    body, kind = form(post, content + b"x", "b.txt")
    assert http(node, "/bucket", "POST", body, Content_Type=kind)[0] == 400
    post["fields"]["x-amz-meta-more"] = "1"
    body, kind = form(post, b"", "b.txt")
    assert http(node, "/bucket", "POST", body, Content_Type=kind)[0] == 403
    refused("NoSuchKey", s3.get_object, Bucket="bucket", Key="up/b.txt")


def test_what_is_over_is_gone_at_once_and_freed_soon(node, s3):
    for key in ["kept", "logs/a", "logs/b"]:
        s3.put_object(Bucket="bucket", Key=key, Body=b"x" * 100_000)
    today = datetime.datetime.now(datetime.timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    rule = {"ID": "r 1", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Date": today}}
    later = {"ID": "later", "Status": "Enabled", "Filter": {"Prefix": "kept"}, "Expiration": {"Days": 2}}
    s3.put_bucket_lifecycle_configuration(Bucket="bucket", LifecycleConfiguration={"Rules": [rule, later]})
    refused("NoSuchKey", s3.get_object, Bucket="bucket", Key="logs/a")
    expiration = s3.head_object(Bucket="bucket", Key="kept")["Expiration"]
    assert 'rule-id="later"' in expiration and "00:00:00 GMT" in expiration
    # An object's own time is exact at every read.
    headers = {"x-quarry-expires": "2"}
    s3.meta.events.register("before-sign.s3.PutObject", lambda request, **_: [
        request.headers.add_header(name, value) for name, value in headers.items()])
    s3.put_object(Bucket="bucket", Key="own", Body=b"soon")
    assert "x-quarry-expires" in s3.head_object(Bucket="bucket", Key="own")["ResponseMetadata"]["HTTPHeaders"]
    time.sleep(2.1)
    refused("NoSuchKey", s3.get_object, Bucket="bucket", Key="own")
    listed = lambda: [entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket")["Contents"]]
    eventually("the job deletes what is over", 60, lambda: listed() == ["kept"])
    assert node.metric("quarry_object_expired_total") == 3
    node.stop()
    node.assert_fsck_is_clean()
