"""Every call that the README says works, by boto3: one test for each, with its errors.

tests/s3_basics.py has what needs requests made by hand; calls with a state of their own (versions, tags, policies and the
like) have files of their own.
"""

import base64
import datetime
import hashlib
import io
import zlib

import pytest
from botocore.exceptions import ClientError
from harness import MIB

BUCKET = "calls"
DAY = datetime.timedelta(days=1)
EMPTY_MD5 = '"d41d8cd98f00b204e9800998ecf8427e"'


@pytest.fixture(scope="module")
def s3(shared_node):
    client = shared_node.client()
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def put(s3, request):
    """Puts an object below a prefix of the test's own and returns its key; `put.prefix` is that prefix."""
    prefix = f"{request.node.name}/"

    def call(name, body=b"", **more):
        s3.put_object(Bucket=BUCKET, Key=prefix + name, Body=body, **more)
        return prefix + name

    call.prefix = prefix
    return call


def refused(status, code, call, **arguments):
    """The call fails with exactly this; HEAD has no body and therefore only its status as a code."""
    with pytest.raises(ClientError) as error:
        call(**arguments)
    response = error.value.response
    assert (response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]) == (status, code), response
    return response


def base64_of(data):
    return base64.b64encode(data).decode()


def crc32(data):
    return base64_of(zlib.crc32(data).to_bytes(4, "big"))


def md5(data):
    return f'"{hashlib.md5(data).hexdigest()}"'


def test_create_bucket(s3):
    assert s3.create_bucket(Bucket="made-1.x")["Location"] == "/made-1.x"
    assert s3.create_bucket(Bucket="made-1.x")["Location"] == "/made-1.x"
    for name in ("Bad", "a_b", "ab", "x" * 64, "-ab", "ab-", "a..b", "192.168.5.4", "xn--abc", "abc-s3alias"):
        refused(400, "InvalidBucketName", s3.create_bucket, Bucket=name)
    s3.create_bucket(Bucket="x" * 63)
    s3.delete_bucket(Bucket="x" * 63)
    refused(400, "InvalidLocationConstraint", s3.create_bucket, Bucket="elsewhere",
            CreateBucketConfiguration={"LocationConstraint": "eu-nowhere-9"})
    s3.delete_bucket(Bucket="made-1.x")


def test_list_buckets(s3):
    names = [f"listed-{number}" for number in range(5)]
    for name in names:
        s3.create_bucket(Bucket=name)
    answer = s3.list_buckets()
    found = {entry["Name"]: entry["CreationDate"] for entry in answer["Buckets"]}
    assert set(names) <= set(found) and list(found) == sorted(found) and answer["Owner"]["ID"]
    assert all(abs(found[name] - datetime.datetime.now(datetime.timezone.utc)) < DAY for name in names)
    pages = list(s3.get_paginator("list_buckets").paginate(Prefix="listed-", PaginationConfig={"PageSize": 2}))
    assert [len(page["Buckets"]) for page in pages] == [2, 2, 1] and pages[0]["Prefix"] == "listed-"
    assert [entry["Name"] for page in pages for entry in page["Buckets"]] == names
    for name in names:
        s3.delete_bucket(Bucket=name)
    assert s3.list_buckets(Prefix="listed-")["Buckets"] == []


def test_head_bucket(s3):
    assert s3.head_bucket(Bucket=BUCKET)["BucketRegion"] == "us-east-1"
    refused(404, "404", s3.head_bucket, Bucket="no-such-bucket")
    refused(400, "400", s3.head_bucket, Bucket="Bad")


def test_get_bucket_location(s3):
    assert s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] is None
    refused(404, "NoSuchBucket", s3.get_bucket_location, Bucket="no-such-bucket")


def test_delete_bucket(s3):
    refused(404, "NoSuchBucket", s3.delete_bucket, Bucket="no-such-bucket")
    s3.create_bucket(Bucket="deleted")
    s3.put_object(Bucket="deleted", Key="k")
    refused(409, "BucketNotEmpty", s3.delete_bucket, Bucket="deleted")
    s3.delete_object(Bucket="deleted", Key="k")
    late = {"Bucket": "deleted", "Key": "k"}
    late["UploadId"] = s3.create_multipart_upload(**late)["UploadId"]
    part = {"PartNumber": 1, "ETag": s3.upload_part(PartNumber=1, Body=b"x", **late)["ETag"]}
    assert s3.delete_bucket(Bucket="deleted")["ResponseMetadata"]["HTTPStatusCode"] == 204
    refused(404, "404", s3.head_bucket, Bucket="deleted")
    s3.create_bucket(Bucket="deleted")
    refused(404, "NoSuchUpload", s3.complete_multipart_upload, MultipartUpload={"Parts": [part]}, **late)
    assert s3.list_objects_v2(Bucket="deleted")["KeyCount"] == 0, "an object came back with its bucket"
    s3.delete_bucket(Bucket="deleted")


def test_put_object(s3, put):
    expires = datetime.datetime(2031, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
    headers = {
        "ContentType": "text/x; charset=utf-8", "CacheControl": "max-age=1", "ContentDisposition": 'attachment; filename="a b"',
        "ContentEncoding": "gzip", "ContentLanguage": "de, en", "Expires": expires,
        "Metadata": {"one": "1", "with-dash": "a  b", "empty": ""}}
    key = put("headers", b"x", **headers)
    for answer in (s3.head_object(Bucket=BUCKET, Key=key), s3.get_object(Bucket=BUCKET, Key=key)):
        assert {name: answer[name] for name in headers} == headers
    named = {"Bucket": BUCKET, "Key": put.prefix + "k"}
    assert s3.put_object(Body=b"x", ContentMD5=base64_of(hashlib.md5(b"x").digest()), **named)["ETag"] == md5(b"x")
    assert s3.put_object(**named)["ETag"] == EMPTY_MD5
    assert s3.get_object(**named)["ContentType"] == "binary/octet-stream"
    refused(400, "BadDigest", s3.put_object, Body=b"y", ContentMD5=base64_of(hashlib.md5(b"x").digest()), **named)
    refused(400, "InvalidDigest", s3.put_object, Body=b"y", ContentMD5="nonsense", **named)
    refused(400, "BadDigest", s3.put_object, Body=b"y", ChecksumCRC32=crc32(b"x"), **named)
    refused(400, "MetadataTooLarge", s3.put_object, Body=b"y", Metadata={"m": "x" * 2048}, **named)
    refused(400, "KeyTooLongError", s3.put_object, Body=b"y", Bucket=BUCKET, Key="ü" * 513)
    refused(404, "NoSuchBucket", s3.put_object, Body=b"y", Bucket="no-such-bucket", Key="k")
    refused(412, "PreconditionFailed", s3.put_object, Body=b"y", IfNoneMatch="*", **named)
    refused(412, "PreconditionFailed", s3.put_object, Body=b"y", IfMatch=md5(b"other"), **named)
    refused(404, "NoSuchKey", s3.put_object, Body=b"y", Bucket=BUCKET, Key=put.prefix + "none", IfMatch=md5(b"x"))
    assert s3.get_object(**named)["Body"].read() == b"", "a refused PUT wrote"


def test_put_object_with_an_unknown_storage_class(s3, put):
    refused(400, "InvalidStorageClass", s3.put_object, Bucket=BUCKET, Key=put.prefix + "k", StorageClass="NOT_ONE")


def test_calls_that_are_not_known_are_refused(s3, put):
    put("from", b"from")
    put("to", b"to")
    refused(501, "NotImplemented", s3.rename_object, Bucket=BUCKET, Key=put.prefix + "to", RenameSource=f"{put.prefix}from")
    assert s3.get_object(Bucket=BUCKET, Key=put.prefix + "to")["Body"].read() == b"to"


@pytest.mark.parametrize("header", ["bytes=4-2", "bytes=a-b", "bytes=", "lines=1-2", "bytes=0-1,4-5"])
def test_what_is_no_range_or_more_than_one_is_left_out(s3, put, header):
    answer = s3.get_object(Bucket=BUCKET, Key=put("digits", b"0123456789"), Range=header)
    assert (answer["ResponseMetadata"]["HTTPStatusCode"], answer["Body"].read()) == (200, b"0123456789")


def test_an_empty_file_and_another_on_one_connection(shared_node, s3, put):
    """A body that is a file is sent with Expect: 100-continue, an empty one too."""
    client = shared_node.client(max_pool_connections=1, read_timeout=4)
    for body in (b"", b"x", b"", b"y"):
        client.put_object(Bucket=BUCKET, Key=put.prefix + "k", Body=io.BytesIO(body))


def test_get_object(s3, put):
    key = put("digits", b"0123456789")
    named = {"Bucket": BUCKET, "Key": key}
    for header, body, shown in (
        ("bytes=0-0", b"0", "bytes 0-0/10"), ("bytes=2-4", b"234", "bytes 2-4/10"), ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"), ("bytes=5-99", b"56789", "bytes 5-9/10"), ("bytes=-99", b"0123456789", "bytes 0-9/10"),
    ):
        answer = s3.get_object(Range=header, **named)
        assert (answer["ResponseMetadata"]["HTTPStatusCode"], answer["Body"].read(), answer["ContentRange"]) == (206, body, shown)
    for header in ("bytes=10-", "bytes=10-12", "bytes=-0"):
        refused(416, "InvalidRange", s3.get_object, Range=header, **named)
    refused(404, "NoSuchKey", s3.get_object, Bucket=BUCKET, Key=put.prefix + "none")
    refused(404, "NoSuchBucket", s3.get_object, Bucket="no-such-bucket", Key="k")
    answer = s3.get_object(
        ResponseContentType="a/b", ResponseContentLanguage="fr", ResponseExpires=datetime.datetime(2030, 1, 1),
        ResponseCacheControl="no-store", ResponseContentDisposition="inline", ResponseContentEncoding="identity", **named)
    assert [answer[name] for name in ("ContentType", "ContentLanguage", "CacheControl", "ContentDisposition", "ContentEncoding")] == [
        "a/b", "fr", "no-store", "inline", "identity"] and answer["Expires"].year == 2030


def test_conditional_reads(s3, put):
    named = {"Bucket": BUCKET, "Key": put("k", b"x")}
    etag, modified = md5(b"x"), s3.head_object(Bucket=BUCKET, Key=put.prefix + "k")["LastModified"]
    for call, failed in ((s3.get_object, "PreconditionFailed"), (s3.head_object, "412")):
        for good in (
            {"IfMatch": etag}, {"IfMatch": "*"}, {"IfMatch": etag.strip('"')}, {"IfNoneMatch": '"other"'},
            {"IfModifiedSince": modified - DAY}, {"IfUnmodifiedSince": modified},
            # The entity tag outweighs the date.
            {"IfMatch": etag, "IfUnmodifiedSince": modified - DAY}, {"IfNoneMatch": '"other"', "IfModifiedSince": modified},
        ):
            assert call(**good, **named)["ETag"] == etag, good
        for not_modified in ({"IfNoneMatch": etag}, {"IfNoneMatch": "*"}, {"IfModifiedSince": modified},
                             {"IfNoneMatch": etag, "IfModifiedSince": modified - DAY}):
            refused(304, "304", call, **not_modified, **named)
        for wrong in ({"IfMatch": '"other"'}, {"IfUnmodifiedSince": modified - DAY}):
            refused(412, failed, call, **wrong, **named)


def test_head_object(s3, put):
    answer = s3.head_object(Bucket=BUCKET, Key=put("k", b"0123456789", StorageClass="STANDARD"))
    assert (answer["ContentLength"], answer["ETag"], answer["AcceptRanges"]) == (10, md5(b"0123456789"), "bytes")
    assert "StorageClass" not in answer, "S3 leaves STANDARD out"
    part = s3.head_object(Bucket=BUCKET, Key=put.prefix + "k", Range="bytes=1-3")
    assert (part["ContentLength"], part["ContentRange"]) == (3, "bytes 1-3/10")
    refused(416, "416", s3.head_object, Bucket=BUCKET, Key=put.prefix + "k", Range="bytes=10-")
    refused(404, "404", s3.head_object, Bucket=BUCKET, Key=put.prefix + "none")
    refused(404, "404", s3.head_object, Bucket="no-such-bucket", Key="k")


def test_delete_object(s3, put):
    named = {"Bucket": BUCKET, "Key": put("k", b"x")}
    refused(412, "PreconditionFailed", s3.delete_object, IfMatch=md5(b"other"), **named)
    assert s3.delete_object(IfMatch=md5(b"x"), **named)["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert s3.delete_object(**named)["ResponseMetadata"]["HTTPStatusCode"] == 204
    refused(404, "NoSuchBucket", s3.delete_object, Bucket="no-such-bucket", Key="k")


def test_delete_objects(s3, put):
    keys = [put(f"{number} ü&<", b"x") for number in range(3)]
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in [*keys, put.prefix + "none"]]})
    assert sorted(entry["Key"] for entry in answer["Deleted"]) == sorted([*keys, put.prefix + "none"]) and "Errors" not in answer
    keys = [put(f"{number}", b"x") for number in range(2)]
    wrong = [{"Key": keys[0], "ETag": md5(b"other")}, {"Key": keys[1], "ETag": md5(b"x")}]
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": wrong, "Quiet": True})
    assert [(error["Key"], error["Code"]) for error in answer["Errors"]] == [(keys[0], "PreconditionFailed")]
    assert "Deleted" not in answer
    for condition in ({"Size": 1}, {"LastModifiedTime": datetime.datetime(2020, 1, 1)}):
        key = put("kept", b"xyz")
        answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key, **condition}]})
        assert [error["Code"] for error in answer["Errors"]] == ["PreconditionFailed"], "deleted, whatever the condition says"
        head = s3.head_object(Bucket=BUCKET, Key=key)
        met = {"Size": 3} if "Size" in condition else {"LastModifiedTime": head["LastModified"]}
        answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key, **met}]})
        assert [entry["Key"] for entry in answer["Deleted"]] == [key] and "Errors" not in answer
    many = [{"Key": f"{put.prefix}{number}"} for number in range(1001)]
    assert len(s3.delete_objects(Bucket=BUCKET, Delete={"Objects": many[:1000]})["Deleted"]) == 1000
    refused(400, "MalformedXML", s3.delete_objects, Bucket=BUCKET, Delete={"Objects": many})
    refused(400, "MalformedXML", s3.delete_objects, Bucket=BUCKET, Delete={"Objects": []})
    refused(404, "NoSuchBucket", s3.delete_objects, Bucket="no-such-bucket", Delete={"Objects": many[:1]})


def test_copy_object(s3, put):
    key = put("from ü+ %41", b"copied", Metadata={"m": "1"}, ContentType="text/x", CacheControl="no-cache")
    source, to = {"Bucket": BUCKET, "Key": key}, {"Bucket": BUCKET, "Key": put.prefix + "to"}
    result = s3.copy_object(CopySource=source, **to)["CopyObjectResult"]
    assert result["ETag"] == md5(b"copied") and result["LastModified"]
    answer = s3.get_object(**to)
    assert (answer["Body"].read(), answer["Metadata"], answer["ContentType"], answer["CacheControl"]) == (
        b"copied", {"m": "1"}, "text/x", "no-cache")
    s3.copy_object(CopySource=source, MetadataDirective="REPLACE", Metadata={"n": "2"}, ContentType="a/b", **to)
    answer = s3.head_object(**to)
    assert (answer["Metadata"], answer["ContentType"]) == ({"n": "2"}, "a/b") and "CacheControl" not in answer
    s3.copy_object(CopySource=source, MetadataDirective="REPLACE", Metadata={"self": "1"}, **source)
    assert s3.head_object(**source)["Metadata"] == {"self": "1"}
    modified = s3.head_object(**source)["LastModified"]
    for wrong in ({"CopySourceIfMatch": '"other"'}, {"CopySourceIfNoneMatch": md5(b"copied")},
                  {"CopySourceIfUnmodifiedSince": modified - DAY}, {"CopySourceIfModifiedSince": modified}):
        refused(412, "PreconditionFailed", s3.copy_object, CopySource=source, **wrong, **to)
    for good in ({"CopySourceIfMatch": md5(b"copied"), "CopySourceIfUnmodifiedSince": modified - DAY},
                 {"CopySourceIfNoneMatch": '"other"'}, {"CopySourceIfModifiedSince": modified - DAY}):
        s3.copy_object(CopySource=source, **good, **to)
    refused(400, "InvalidRequest", s3.copy_object, CopySource=source, **source)
    refused(404, "NoSuchKey", s3.copy_object, CopySource={"Bucket": BUCKET, "Key": "none"}, **to)
    refused(404, "NoSuchBucket", s3.copy_object, CopySource={"Bucket": "no-such-bucket", "Key": "k"}, **to)
    refused(404, "NoSuchBucket", s3.copy_object, CopySource=source, Bucket="no-such-bucket", Key="k")
    refused(400, "InvalidArgument", s3.copy_object, CopySource="nonsense", **to)
    refused(400, "InvalidArgument", s3.copy_object, CopySource=source, MetadataDirective="NONSENSE", **to)


def test_copy_object_keeps_or_makes_checksums(s3, put):
    source = {"Bucket": BUCKET, "Key": put("from", b"copied", ChecksumAlgorithm="SHA256")}
    to = {"Bucket": BUCKET, "Key": put.prefix + "to"}
    kept = s3.copy_object(CopySource=source, **to)["CopyObjectResult"].get("ChecksumSHA256")
    assert kept == base64_of(hashlib.sha256(b"copied").digest()) == s3.head_object(ChecksumMode="ENABLED", **to).get("ChecksumSHA256")
    asked = s3.copy_object(CopySource=source, ChecksumAlgorithm="CRC32", **to)["CopyObjectResult"].get("ChecksumCRC32")
    assert asked == crc32(b"copied") == s3.head_object(ChecksumMode="ENABLED", **to).get("ChecksumCRC32")


@pytest.mark.parametrize("condition", [{"IfNoneMatch": "*"}, {"IfMatch": '"other"'}])
def test_copy_object_only_if(s3, put, condition):
    source = {"Bucket": BUCKET, "Key": put("from", b"copied")}
    put("to", b"there before")
    refused(412, "PreconditionFailed", s3.copy_object, CopySource=source, Bucket=BUCKET, Key=put.prefix + "to", **condition)
    assert s3.get_object(Bucket=BUCKET, Key=put.prefix + "to")["Body"].read() == b"there before"


def test_list_objects_v2(s3, put):
    prefix, names = put.prefix, ["a", "b/1", "b/2", "b/c/3", "d e+ü", "z\x01"]
    for name in names:
        put(name, b"12345")
    answer = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    assert [entry["Key"] for entry in answer["Contents"]] == [prefix + name for name in names]
    assert {(entry["Size"], entry["ETag"], entry["StorageClass"]) for entry in answer["Contents"]} == {(5, md5(b"12345"), "STANDARD")}
    assert (answer["KeyCount"], answer["MaxKeys"], answer["IsTruncated"], answer["Name"]) == (6, 1000, False, BUCKET)
    assert "Owner" not in answer["Contents"][0]
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix, FetchOwner=True)["Contents"][0]["Owner"]["ID"]
    grouped = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix, Delimiter="/")
    assert [entry["Prefix"] for entry in grouped["CommonPrefixes"]] == [f"{prefix}b/"] and grouped["KeyCount"] == 4
    inner = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}b/", Delimiter="/", StartAfter=f"{prefix}b/1")
    assert [entry["Key"] for entry in inner["Contents"]] == [f"{prefix}b/2"] and len(inner["CommonPrefixes"]) == 1
    longer = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix, Delimiter=" e")
    assert [entry["Prefix"] for entry in longer["CommonPrefixes"]] == [f"{prefix}d e"]
    for size in (1, 2, 5):
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=prefix, Delimiter="/", PaginationConfig={"PageSize": size})
        found = [entry.get("Key", entry.get("Prefix")) for page in pages
                 for entry in page.get("CommonPrefixes", []) + page.get("Contents", [])]
        assert sorted(found) == [prefix + name for name in ("a", "b/", "d e+ü", "z\x01")], size
    assert s3.list_objects_v2(Bucket=BUCKET, MaxKeys=0)["IsTruncated"] is False
    assert s3.list_objects_v2(Bucket=BUCKET, MaxKeys=5000)["MaxKeys"] == 1000
    refused(400, "InvalidArgument", s3.list_objects_v2, Bucket=BUCKET, MaxKeys=-1)
    refused(400, "InvalidArgument", s3.list_objects_v2, Bucket=BUCKET, ContinuationToken="forged")
    refused(400, "InvalidArgument", s3.list_objects_v2, Bucket=BUCKET, EncodingType="base64")
    refused(404, "NoSuchBucket", s3.list_objects_v2, Bucket="no-such-bucket")


def test_list_objects(s3, put):
    prefix, names = put.prefix, ["a", "b/1", "b/2", "c"]
    for name in names:
        put(name)
    answer = s3.list_objects(Bucket=BUCKET, Prefix=prefix, Marker=f"{prefix}a", MaxKeys=2)
    assert [entry["Key"] for entry in answer["Contents"]] == [f"{prefix}b/1", f"{prefix}b/2"]
    assert answer["IsTruncated"] and answer["Marker"] == f"{prefix}a" and answer["Contents"][0]["Owner"]["ID"]
    # Only with a delimiter does version 1 say where to go on.
    grouped = s3.list_objects(Bucket=BUCKET, Prefix=prefix, Delimiter="/", MaxKeys=2)
    assert grouped["NextMarker"] == f"{prefix}b/"
    rest = s3.list_objects(Bucket=BUCKET, Prefix=prefix, Delimiter="/", Marker=grouped["NextMarker"])
    assert [entry["Key"] for entry in rest["Contents"]] == [f"{prefix}c"] and "CommonPrefixes" not in rest
    refused(404, "NoSuchBucket", s3.list_objects, Bucket="no-such-bucket")


@pytest.fixture
def upload(s3, put):
    """The names of a new upload in each call: `upload()`."""
    def call(**more):
        named = {"Bucket": BUCKET, "Key": put.prefix + "parts"}
        return {**named, "UploadId": s3.create_multipart_upload(**named, **more)["UploadId"]}
    return call


def test_create_multipart_upload(s3, upload):
    first, second = upload(Metadata={"m": "1"}, ContentType="text/x", CacheControl="no-cache"), upload()
    assert first["UploadId"] != second["UploadId"]
    part = s3.upload_part(PartNumber=1, Body=b"x", **first)
    answer = s3.complete_multipart_upload(MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}, **first)
    assert answer["Key"] == first["Key"] and answer["Bucket"] == BUCKET and first["Key"] in answer["Location"]
    head = s3.head_object(Bucket=BUCKET, Key=first["Key"])
    assert (head["Metadata"], head["ContentType"], head["CacheControl"]) == ({"m": "1"}, "text/x", "no-cache")
    refused(404, "NoSuchBucket", s3.create_multipart_upload, Bucket="no-such-bucket", Key="k")
    s3.abort_multipart_upload(**second)


def test_upload_part(s3, upload):
    named = upload()
    assert s3.upload_part(PartNumber=10_000, Body=b"x", **named)["ETag"] == md5(b"x")
    for number in (0, 10_001, -1):
        refused(400, "InvalidArgument", s3.upload_part, PartNumber=number, Body=b"x", **named)
    refused(400, "BadDigest", s3.upload_part, PartNumber=1, Body=b"x", ContentMD5=base64_of(bytes(16)), **named)
    refused(400, "BadDigest", s3.upload_part, PartNumber=1, Body=b"x", ChecksumCRC32=crc32(b"y"), **named)
    refused(404, "NoSuchUpload", s3.upload_part, PartNumber=1, Body=b"x", **{**named, "UploadId": "none"})
    refused(404, "NoSuchUpload", s3.upload_part, PartNumber=1, Body=b"x", **{**named, "Key": "another"})
    s3.abort_multipart_upload(**named)


def test_upload_part_copy(s3, put, upload):
    named, body = upload(), bytes(range(256)) * (6 * MIB // 256)
    source = {"Bucket": BUCKET, "Key": put("from ü", body)}
    first = s3.upload_part_copy(PartNumber=1, CopySource=source, **named)["CopyPartResult"]
    second = s3.upload_part_copy(PartNumber=2, CopySource=source, CopySourceRange="bytes=5-104", **named)["CopyPartResult"]
    assert first["ETag"] == md5(body) and second["ETag"] == md5(body[5:105])
    for wrong in ("bytes=1-", "bytes=-5", "5-10", "bytes=10-5"):
        refused(400, "InvalidArgument", s3.upload_part_copy, PartNumber=3, CopySource=source, CopySourceRange=wrong, **named)
    refused(412, "PreconditionFailed", s3.upload_part_copy, PartNumber=3, CopySource=source, CopySourceIfMatch='"other"', **named)
    refused(404, "NoSuchKey", s3.upload_part_copy, PartNumber=3, CopySource={"Bucket": BUCKET, "Key": "none"}, **named)
    refused(404, "NoSuchUpload", s3.upload_part_copy, PartNumber=3, CopySource=source, **{**named, "UploadId": "none"})
    parts = [{"PartNumber": number, "ETag": part["ETag"]} for number, part in ((1, first), (2, second))]
    s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **named)
    assert s3.get_object(Bucket=BUCKET, Key=named["Key"])["Body"].read() == body + body[5:105]


def test_upload_part_copy_beyond_the_end(s3, put, upload):
    source = {"Bucket": BUCKET, "Key": put("from", b"0123456789")}
    named = upload()
    with pytest.raises(ClientError, match="InvalidRange"):
        s3.upload_part_copy(PartNumber=1, CopySource=source, CopySourceRange="bytes=0-10", **named)


def test_list_parts(s3, upload):
    named = upload()
    for number in (7, 1, 3):
        s3.upload_part(PartNumber=number, Body=b"x" * number, **named)
    s3.upload_part(PartNumber=3, Body=b"again", **named)
    answer = s3.list_parts(**named)
    assert [(part["PartNumber"], part["Size"]) for part in answer["Parts"]] == [(1, 1), (3, 5), (7, 7)]
    assert answer["Parts"][1]["ETag"] == md5(b"again") and answer["Owner"]["ID"] and answer["StorageClass"] == "STANDARD"
    page = s3.list_parts(MaxParts=1, PartNumberMarker=1, **named)
    assert [part["PartNumber"] for part in page["Parts"]] == [3] and page["IsTruncated"] and page["NextPartNumberMarker"] == 3
    refused(404, "NoSuchUpload", s3.list_parts, **{**named, "UploadId": "none"})
    s3.abort_multipart_upload(**named)


def test_complete_multipart_upload(s3, put, upload):
    named, pieces = upload(), [b"a" * 5 * MIB, b"b" * 5 * MIB, b"c"]
    complete, parts = s3.complete_multipart_upload, []
    for number, piece in zip((2, 5, 9), pieces):
        parts.append({"PartNumber": number, "ETag": s3.upload_part(PartNumber=number, Body=piece, **named)["ETag"]})
    for code, wrong in (
        ("InvalidPartOrder", parts[::-1]), ("InvalidPart", [*parts, {"PartNumber": 10, "ETag": md5(b"x")}]),
        ("InvalidPart", [{"PartNumber": 2, "ETag": md5(b"x")}]),
    ):
        refused(400, code, complete, MultipartUpload={"Parts": wrong}, **named)
    refused(400, "MalformedXML", complete, MultipartUpload={"Parts": []}, **named)
    refused(404, "NoSuchUpload", complete, MultipartUpload={"Parts": parts}, **{**named, "UploadId": "none"})
    put("parts", b"there before")
    refused(412, "PreconditionFailed", complete, MultipartUpload={"Parts": parts}, IfNoneMatch="*", **named)
    assert s3.get_object(Bucket=BUCKET, Key=named["Key"])["Body"].read() == b"there before"
    # Parts may be left out; the ETag is that of the parts taken.
    answer = complete(MultipartUpload={"Parts": [parts[0], parts[2]]}, **named)
    digest = hashlib.md5(hashlib.md5(pieces[0]).digest() + hashlib.md5(pieces[2]).digest()).hexdigest()
    assert answer["ETag"] == f'"{digest}-2"'
    assert s3.get_object(Bucket=BUCKET, Key=named["Key"])["Body"].read() == pieces[0] + pieces[2]
    refused(404, "NoSuchUpload", s3.list_parts, **named)

    small = upload()
    parts = [{"PartNumber": n, "ETag": s3.upload_part(PartNumber=n, Body=b"x", **small)["ETag"]} for n in (1, 2)]
    refused(400, "EntityTooSmall", complete, MultipartUpload={"Parts": parts}, **small)
    s3.abort_multipart_upload(**small)


def test_abort_multipart_upload(s3, upload):
    named = upload()
    s3.upload_part(PartNumber=1, Body=b"x", **named)
    assert s3.abort_multipart_upload(**named)["ResponseMetadata"]["HTTPStatusCode"] == 204
    refused(404, "NoSuchUpload", s3.list_parts, **named)
    refused(404, "NoSuchUpload", s3.abort_multipart_upload, **{**named, "UploadId": "none"})
    refused(404, "404", s3.head_object, Bucket=BUCKET, Key=named["Key"])


SUMS = {
    "CRC32": crc32, "SHA1": lambda data: base64_of(hashlib.sha1(data).digest()),
    "SHA256": lambda data: base64_of(hashlib.sha256(data).digest()),
}


@pytest.mark.parametrize("algorithm", SUMS)
def test_checksums(s3, put, upload, shared_node, algorithm):
    """Those that boto3 computes by itself; tests/s3_basics.py sends the others."""
    field, expected = f"Checksum{algorithm}", SUMS[algorithm]
    key = put("k", b"123456789", ChecksumAlgorithm=algorithm)
    answer = s3.get_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    assert answer["Body"].read() == b"123456789" and answer["ChecksumType"] == "FULL_OBJECT"
    assert answer[field] == expected(b"123456789")
    unasked = shared_node.client(response_checksum_validation="when_required")
    assert field not in unasked.get_object(Bucket=BUCKET, Key=key)
    named = upload(ChecksumAlgorithm=algorithm)
    part = s3.upload_part(PartNumber=1, Body=b"123456789", ChecksumAlgorithm=algorithm, **named)
    assert part[field] == expected(b"123456789")
    s3.abort_multipart_upload(**named)


@pytest.mark.parametrize("algorithm", SUMS)
def test_composite_checksums(s3, upload, algorithm):
    field, expected = f"Checksum{algorithm}", SUMS[algorithm]
    named = upload(ChecksumAlgorithm=algorithm, ChecksumType="COMPOSITE")
    part = s3.upload_part(PartNumber=1, Body=b"123456789", ChecksumAlgorithm=algorithm, **named)
    taken = {"PartNumber": 1, "ETag": part["ETag"], field: part[field]}
    refused(400, "InvalidPart", s3.complete_multipart_upload,
            MultipartUpload={"Parts": [{**taken, field: expected(b"other")}]}, **named)
    answer = s3.complete_multipart_upload(MultipartUpload={"Parts": [taken]}, **named)
    composite = expected(base64.b64decode(part[field]))
    assert (answer.get("ChecksumType"), answer.get(field)) == ("COMPOSITE", f"{composite}-1")
    assert s3.head_object(Bucket=BUCKET, Key=named["Key"], ChecksumMode="ENABLED")[field] == f"{composite}-1"
