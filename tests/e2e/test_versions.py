"""Versions, delete markers, tags, listings of versions and uploads, parts and their checksums, through boto3."""

import base64
import pathlib
import shutil
import tempfile
import zlib

import pytest
from botocore.exceptions import ClientError

from conftest import SCRATCH
from harness import MIB, Node

BUCKET = "versions"


@pytest.fixture(scope="module")
def s3():
    SCRATCH.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH))
    node = Node(scratch / "data", device_size="256MiB").start()
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    yield client
    node.stop()
    node.assert_fsck_is_clean()
    shutil.rmtree(scratch, ignore_errors=True)


def fails(code, status, call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    assert response["Error"]["Code"] in (code, str(status)), response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == status
    return response["ResponseMetadata"]["HTTPHeaders"]


def versioning(s3, status):
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": status})


def read(s3, key, **more):
    return s3.get_object(Bucket=BUCKET, Key=key, **more)["Body"].read()


def stack(s3, key):
    """(id, latest, marker) of every version of a key, newest first."""
    page = s3.list_object_versions(Bucket=BUCKET, Prefix=key)
    found = [(v["LastModified"], v["VersionId"], v["IsLatest"], False) for v in page.get("Versions", [])]
    found += [(m["LastModified"], m["VersionId"], m["IsLatest"], True) for m in page.get("DeleteMarkers", [])]
    return [entry[1:] for entry in sorted(found, key=lambda entry: (entry[2], entry[0]), reverse=True)]


def test_enable_suspend_and_the_null_version(s3):
    put = lambda body: s3.put_object(Bucket=BUCKET, Key="k", Body=body).get("VersionId")
    assert put(b"null") is None
    versioning(s3, "Enabled")
    one, two = put(b"one"), put(b"two")
    assert len({one, two}) == 2
    assert [read(s3, "k", VersionId=version) for version in ("null", one, two)] == [b"null", b"one", b"two"]
    marker = s3.delete_object(Bucket=BUCKET, Key="k")
    assert marker["DeleteMarker"] is True
    headers = fails("NoSuchKey", 404, s3.get_object, Bucket=BUCKET, Key="k")
    assert headers["x-amz-delete-marker"] == "true" and headers["x-amz-version-id"] == marker["VersionId"]
    fails("MethodNotAllowed", 405, s3.get_object, Bucket=BUCKET, Key="k", VersionId=marker["VersionId"])
    fails("NoSuchVersion", 404, s3.get_object, Bucket=BUCKET, Key="k", VersionId=one[:-2] + "AA")
    fails("InvalidArgument", 400, s3.get_object, Bucket=BUCKET, Key="k", VersionId="nonsense")
    assert [entry[1:] for entry in stack(s3, "k")] == [(True, True), (False, False), (False, False), (False, False)]

    versioning(s3, "Suspended")
    assert put(b"other null") is None, "as in S3, a write does not name the null version"
    assert read(s3, "k") == read(s3, "k", VersionId="null") == b"other null"
    assert len(stack(s3, "k")) == 4, "the older null version was replaced"
    assert s3.delete_object(Bucket=BUCKET, Key="k")["VersionId"] == "null"
    assert len(stack(s3, "k")) == 4
    s3.delete_object(Bucket=BUCKET, Key="k", VersionId="null")
    fails("NoSuchKey", 404, s3.get_object, Bucket=BUCKET, Key="k")
    s3.delete_object(Bucket=BUCKET, Key="k", VersionId=marker["VersionId"])
    assert read(s3, "k") == b"two"
    versioning(s3, "Enabled")


def test_conditions_count_a_marker_as_absence(s3):
    key = "conditional"
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    fails("PreconditionFailed", 412, s3.put_object, Bucket=BUCKET, Key=key, Body=b"2", IfNoneMatch="*")
    s3.delete_object(Bucket=BUCKET, Key=key)
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"2", IfNoneMatch="*")
    assert read(s3, key) == b"2"


def test_versions_survive_pages_and_many_deletes(s3):
    expected = []
    for key in ("p/a", "p/b"):
        for n in range(5):
            expected.append((key, s3.put_object(Bucket=BUCKET, Key=key, Body=bytes([n]))["VersionId"]))
        s3.delete_object(Bucket=BUCKET, Key=key)
    pages = s3.get_paginator("list_object_versions").paginate(
        Bucket=BUCKET, Prefix="p/", PaginationConfig={"PageSize": 2})
    versions, markers = [], []
    for page in pages:
        versions += [(v["Key"], v["VersionId"]) for v in page.get("Versions", [])]
        markers += [(m["Key"], m["VersionId"]) for m in page.get("DeleteMarkers", [])]
    assert sorted(versions) == sorted(expected) and len(markers) == 2
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET, Prefix="p/")
    objects = [{"Key": key, "VersionId": version} for key, version in versions + markers]
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": objects})
    assert len(answer["Deleted"]) == 12 and "Errors" not in answer
    assert stack(s3, "p/") == []


def test_tags(s3):
    put = s3.put_object(Bucket=BUCKET, Key="tagged", Body=b"x", Tagging="a=1&b=two%20words")
    get = lambda **more: s3.get_object_tagging(Bucket=BUCKET, Key="tagged", **more)["TagSet"]
    assert get() == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "two words"}]
    assert s3.head_object(Bucket=BUCKET, Key="tagged")["ResponseMetadata"]["HTTPHeaders"]["x-amz-tagging-count"] == "2"
    s3.put_object(Bucket=BUCKET, Key="tagged", Body=b"y")
    assert get() == [] and len(get(VersionId=put["VersionId"])) == 2
    s3.put_object_tagging(Bucket=BUCKET, Key="tagged", Tagging={"TagSet": [{"Key": "c", "Value": "3"}]})
    source = {"Bucket": BUCKET, "Key": "tagged"}
    s3.copy_object(Bucket=BUCKET, Key="copied", CopySource=source)
    assert s3.get_object_tagging(Bucket=BUCKET, Key="copied")["TagSet"] == [{"Key": "c", "Value": "3"}]
    s3.delete_object_tagging(Bucket=BUCKET, Key="tagged")
    assert get() == []
    many = {"TagSet": [{"Key": str(n), "Value": ""} for n in range(11)]}
    fails("InvalidTag", 400, s3.put_object_tagging, Bucket=BUCKET, Key="tagged", Tagging=many)


def test_uploads_are_listed(s3):
    uploads = [(key, s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"])
               for key in ("u/b", "u/a", "u/a", "u/c/d")]
    ordered = [uploads[1], uploads[2], uploads[0], uploads[3]]
    pages = s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=BUCKET, Prefix="u/", PaginationConfig={"PageSize": 1})
    assert [(u["Key"], u["UploadId"]) for page in pages for u in page.get("Uploads", [])] == ordered
    rolled = s3.list_multipart_uploads(Bucket=BUCKET, Prefix="u/", Delimiter="/")
    assert [prefix["Prefix"] for prefix in rolled["CommonPrefixes"]] == ["u/c/"]
    for key, upload in uploads:
        s3.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)


@pytest.mark.parametrize("kind", ["FULL_OBJECT", "COMPOSITE"])
def test_parts_and_checksums(s3, kind):
    key, bodies = f"big-{kind}", [b"a" * (5 * MIB), b"b" * (6 * MIB), b"end"]
    crc = lambda data: base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    upload = s3.create_multipart_upload(
        Bucket=BUCKET, Key=key, ChecksumAlgorithm="CRC32", ChecksumType=kind)["UploadId"]
    parts = []
    for number, body in enumerate(bodies, 1):
        sent = s3.upload_part(
            Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32")
        parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumCRC32": sent["ChecksumCRC32"]})
    named = dict(Bucket=BUCKET, Key=key, UploadId=upload)
    wrong = [dict(parts[0], ChecksumCRC32=parts[1]["ChecksumCRC32"]), *parts[1:]]
    fails("InvalidPart", 400, s3.complete_multipart_upload, **named, MultipartUpload={"Parts": wrong})
    fails("InvalidRequest", 400, s3.complete_multipart_upload, **named, MultipartUpload={"Parts": parts},
          MpuObjectSize=5)
    done = s3.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    joined = b"".join(base64.b64decode(part["ChecksumCRC32"]) for part in parts)
    whole = crc(b"".join(bodies)) if kind == "FULL_OBJECT" else f"{crc(joined)}-3"
    assert done["ChecksumCRC32"] == whole
    head = s3.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    assert (head["ChecksumCRC32"], head["ChecksumType"]) == (whole, kind)
    for number, body in enumerate(bodies, 1):
        part = s3.get_object(Bucket=BUCKET, Key=key, PartNumber=number)
        assert part["ResponseMetadata"]["HTTPStatusCode"] == 206 and part["PartsCount"] == 3
        assert part["Body"].read() == body
    fails("InvalidPartNumber", 416, s3.get_object, Bucket=BUCKET, Key=key, PartNumber=4)
    found = s3.get_object_attributes(
        Bucket=BUCKET, Key=key, ObjectAttributes=["Checksum", "ObjectParts", "ObjectSize"], MaxParts=2)
    assert found["ObjectSize"] == sum(map(len, bodies)) and found["ObjectParts"]["TotalPartsCount"] == 3
    listed = [part["ChecksumCRC32"] for part in found["ObjectParts"]["Parts"]]
    assert listed == [part["ChecksumCRC32"] for part in parts[:2]] and found["ObjectParts"]["IsTruncated"]


def test_what_is_left_is_whole(s3):
    """Deletes every version: the bucket is empty then."""
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=BUCKET):
        entries = page.get("Versions", []) + page.get("DeleteMarkers", [])
        for entry in entries:
            s3.delete_object(Bucket=BUCKET, Key=entry["Key"], VersionId=entry["VersionId"])
    s3.delete_bucket(Bucket=BUCKET)
