#!/usr/bin/env python3
"""Checks the S3 protocol of a running server with boto3 and with requests made by hand.

Usage: s3_basics.py ENDPOINT ACCESS_KEY SECRET_KEY
Prints one line per check and a closing line "N passed, M failed"; exits with 1 if any failed.
"""

import base64
import datetime
import hashlib
import hmac
import http.client
import os
import sys
import traceback
import urllib.parse
import uuid
import zlib

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT, ACCESS, SECRET = sys.argv[1:4]
HOST = urllib.parse.urlsplit(ENDPOINT).netloc
REGION = "us-east-1"
BUCKET = "basics-" + uuid.uuid4().hex[:12]


def client(access=ACCESS, secret=SECRET, **config):
    return boto3.client(
        "s3", endpoint_url=ENDPOINT, aws_access_key_id=access, aws_secret_access_key=secret, region_name=REGION,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, **config))


s3 = client()
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def fails(code, status, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        found = (error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"])
        assert found == (code, status), f"{found} instead of {(code, status)}"
        return error.response
    raise AssertionError(f"no {code}")


def put(key, body=b"", **more):
    return s3.put_object(Bucket=BUCKET, Key=key, Body=body, **more)


def get(key, **more):
    return s3.get_object(Bucket=BUCKET, Key=key, **more)


def crc(data, polynomial, bits):
    value = mask = (1 << bits) - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
    return base64.b64encode((value ^ mask).to_bytes(bits // 8, "big")).decode()


def sha256_hex(data):
    return hashlib.sha256(data).hexdigest()


def mac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Signer:
    """Signature Version 4 by hand, so that requests can be wrong on purpose."""

    def __init__(self, secret=SECRET, age_seconds=0):
        now = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age_seconds)
        self.time = now.strftime("%Y%m%dT%H%M%SZ")
        self.scope = f"{self.time[:8]}/{REGION}/s3/aws4_request"
        self.key = ("AWS4" + secret).encode()
        for part in self.scope.split("/"):
            self.key = mac(self.key, part)

    def sign(self, text, kind="AWS4-HMAC-SHA256"):
        return mac(self.key, f"{kind}\n{self.time}\n{self.scope}\n{text}").hex()

    def headers(self, method, path, query, payload, extra):
        headers = {"host": HOST, "x-amz-date": self.time, "x-amz-content-sha256": payload, **extra}
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        self.seed = self.sign(sha256_hex(f"{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}".encode()))
        headers["authorization"] = (f"AWS4-HMAC-SHA256 Credential={ACCESS}/{self.scope}, "
                                    f"SignedHeaders={names}, Signature={self.seed}")
        return headers


def send(method, path, headers, body=b"", query=""):
    connection = http.client.HTTPConnection(HOST, timeout=30)
    connection.putrequest(method, path + ("?" + query if query else ""), skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response, data


def raw(method, path, body=b"", payload=None, extra=None, query="", signer=None, add=None, length=True):
    signer = signer or Signer()
    headers = signer.headers(method, path, query, payload or sha256_hex(body), extra or {})
    if length:
        headers["content-length"] = str(len(body))
    return send(method, path, {**headers, **(add or {})}, body, query)


def expect(answer, status, code=None):
    response, data = answer
    assert response.status == status, f"{response.status} {data[:300]}"
    assert response.headers["x-amz-request-id"] and response.headers["Server"] == "Quarry" and response.headers["Date"]
    if code:
        text = data.decode()
        assert f"<Code>{code}</Code>" in text, text
        for element in ("Message", "Resource", "RequestId"):
            assert f"<{element}>" in text, text
    return response, data


@check
def bucket_lifecycle():
    name = BUCKET + "-life"
    fails("404", 404, s3.head_bucket, Bucket=name)
    s3.create_bucket(Bucket=name)
    s3.head_bucket(Bucket=name)
    assert name in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    assert s3.get_bucket_location(Bucket=name)["LocationConstraint"] in (None, REGION)
    s3.put_object(Bucket=name, Key="k", Body=b"1")
    fails("BucketNotEmpty", 409, s3.delete_bucket, Bucket=name)
    s3.delete_object(Bucket=name, Key="k")
    s3.delete_bucket(Bucket=name)
    fails("NoSuchBucket", 404, s3.list_objects_v2, Bucket=name)
    expect(raw("PUT", "/Bad_Name"), 400, "InvalidBucketName")


@check
def put_get_head_delete():
    data = os.urandom(300_000)
    etag = put("dir/key", data, ContentType="text/x", Metadata={"a": "b c"}, CacheControl="max-age=1")["ETag"]
    assert etag == '"' + hashlib.md5(data).hexdigest() + '"'
    for answer in (get("dir/key"), s3.head_object(Bucket=BUCKET, Key="dir/key")):
        assert (answer["ETag"], answer["ContentLength"], answer["ContentType"]) == (etag, len(data), "text/x")
        assert answer["Metadata"] == {"a": "b c"} and answer["CacheControl"] == "max-age=1"
        assert answer["LastModified"] and answer["AcceptRanges"] == "bytes"
    assert get("dir/key")["Body"].read() == data
    s3.delete_object(Bucket=BUCKET, Key="dir/key")
    s3.delete_object(Bucket=BUCKET, Key="dir/key")
    fails("NoSuchKey", 404, get, key="dir/key")
    fails("404", 404, s3.head_object, Bucket=BUCKET, Key="dir/key")
    fails("NoSuchBucket", 404, s3.put_object, Bucket=BUCKET + "-none", Key="k", Body=b"x" * 100_000)


@check
def empty_object():
    put("empty")
    answer = get("empty")
    assert answer["ContentLength"] == 0 and answer["Body"].read() == b""
    assert answer["ETag"] == '"d41d8cd98f00b204e9800998ecf8427e"'
    fails("InvalidRange", 416, get, key="empty", Range="bytes=0-")


@check
def ranges():
    put("range", b"0123456789")
    for header, body, shown in (("bytes=2-4", b"234", "bytes 2-4/10"), ("bytes=7-", b"789", "bytes 7-9/10"),
                                ("bytes=-3", b"789", "bytes 7-9/10"), ("bytes=5-99", b"56789", "bytes 5-9/10")):
        answer = get("range", Range=header)
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert (answer["Body"].read(), answer["ContentRange"]) == (body, shown), header
        assert s3.head_object(Bucket=BUCKET, Key="range", Range=header)["ContentLength"] == len(body)
    refused = fails("InvalidRange", 416, get, key="range", Range="bytes=10-")
    assert refused["ResponseMetadata"]["HTTPHeaders"]["content-range"] == "bytes */10"


@check
def read_conditions():
    etag = put("cond", b"x")["ETag"]
    modified = get("cond")["LastModified"]
    day = datetime.timedelta(days=1)
    get("cond", IfMatch=etag, IfNoneMatch='"no"', IfUnmodifiedSince=modified)
    fails("PreconditionFailed", 412, get, key="cond", IfMatch='"no"')
    fails("304", 304, get, key="cond", IfNoneMatch=etag)
    fails("304", 304, get, key="cond", IfModifiedSince=modified)
    fails("PreconditionFailed", 412, get, key="cond", IfUnmodifiedSince=modified - day)
    get("cond", IfModifiedSince=modified - day)
    get("cond", IfMatch=etag, IfUnmodifiedSince=modified - day)


@check
def write_conditions():
    etag = put("once", b"1", IfNoneMatch="*")["ETag"]
    fails("PreconditionFailed", 412, put, key="once", body=b"2", IfNoneMatch="*")
    fails("PreconditionFailed", 412, put, key="once", body=b"2", IfMatch='"0123"')
    # A refused client that was not told to continue sends no body, but perhaps its next request, on the same connection.
    for _ in range(150):
        fails("PreconditionFailed", 412, put, key="once", body=b"2", IfNoneMatch="*")
        put("other", b"3")
    put("once", b"2", IfMatch=etag)
    assert get("once")["Body"].read() == b"2"


@check
def response_overrides():
    put("over", b"x", ContentType="text/plain")
    answer = get("over", ResponseContentType="text/y", ResponseContentDisposition="attachment", ResponseCacheControl="no-store")
    assert (answer["ContentType"], answer["ContentDisposition"], answer["CacheControl"]) == ("text/y", "attachment", "no-store")


@check
def unusual_keys():
    prefix = "odd/"
    keys = [prefix + key for key in (
        "ü/日本 語", "a b", "a+b", "a%2Fb", "a%20b", "x//y", "x/../y", "./z", "trail/", "q?&=#;", "\U0001f600", "<&>\"'", "*~!()")]
    for key in keys:
        put(key, key.encode())
    for key in keys:
        assert get(key)["Body"].read() == key.encode(), key
    listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
    assert listed == sorted(keys, key=str.encode), listed
    gone = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})
    assert len(gone["Deleted"]) == len(keys) and "Errors" not in gone
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"] == 0
    fails("KeyTooLongError", 400, put, key="k" * 1025)
    put("k" * 1024)


@check
def listings():
    keys = [f"list/{top}/{number:02}" for top in "abc" for number in range(5)] + ["list/z"]
    for key in keys:
        put(key, b"1")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="list/", PaginationConfig={"PageSize": 4})
    assert [entry["Key"] for page in pages for entry in page["Contents"]] == keys
    pages = s3.get_paginator("list_objects").paginate(Bucket=BUCKET, Prefix="list/", PaginationConfig={"PageSize": 3})
    assert [entry["Key"] for page in pages for entry in page["Contents"]] == keys
    for name in ("list_objects_v2", "list_objects"):
        for size in (1, 2, 1000):
            pages = list(s3.get_paginator(name).paginate(
                Bucket=BUCKET, Prefix="list/", Delimiter="/", PaginationConfig={"PageSize": size}))
            found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
            assert found == ["list/a/", "list/b/", "list/c/"], (name, size, found)
            assert [entry["Key"] for page in pages for entry in page.get("Contents", [])] == ["list/z"]
    answer = s3.list_objects_v2(Bucket=BUCKET, Prefix="list/", StartAfter="list/c/02", FetchOwner=True)
    assert [entry["Key"] for entry in answer["Contents"]] == ["list/c/03", "list/c/04", "list/z"]
    assert answer["Contents"][0]["Owner"]["ID"] and answer["Contents"][0]["StorageClass"] == "STANDARD"
    assert s3.list_objects_v2(Bucket=BUCKET, MaxKeys=0)["KeyCount"] == 0
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix="nothing/")["KeyCount"] == 0
    fails("InvalidArgument", 400, s3.list_objects_v2, Bucket=BUCKET, ContinuationToken="forged")


@check
def copies():
    put("src ü+", b"copied", Metadata={"m": "1"}, ContentType="text/x")
    source = {"Bucket": BUCKET, "Key": "src ü+"}
    etag = s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=source)["CopyObjectResult"]["ETag"]
    answer = get("copy")
    assert (answer["Body"].read(), answer["Metadata"], answer["ETag"]) == (b"copied", {"m": "1"}, etag)
    s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=source, MetadataDirective="REPLACE", Metadata={"n": "2"})
    assert get("copy")["Metadata"] == {"n": "2"}
    fails("PreconditionFailed", 412, s3.copy_object, Bucket=BUCKET, Key="c", CopySource=source, CopySourceIfNoneMatch=etag)
    fails("PreconditionFailed", 412, s3.copy_object, Bucket=BUCKET, Key="c", CopySource=source, CopySourceIfMatch='"0"')
    fails("NoSuchKey", 404, s3.copy_object, Bucket=BUCKET, Key="c", CopySource={"Bucket": BUCKET, "Key": "none"})
    fails("InvalidRequest", 400, s3.copy_object, Bucket=BUCKET, Key="src ü+", CopySource=source)


@check
def checksums():
    data = b"123456789" * 1000
    sums = {
        "CRC32": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode(),
        "CRC32C": crc(data, 0x82F63B78, 32),
        "CRC64NVME": crc(data, 0x9A6C9329AC4BC9B5, 64),
        "SHA1": base64.b64encode(hashlib.sha1(data).digest()).decode(),
        "SHA256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
    }
    for name, value in sums.items():
        field = "Checksum" + name
        assert put("sum", data, **{field: value})[field] == value, name
        assert get("sum", ChecksumMode="ENABLED")[field] == value
        assert s3.head_object(Bucket=BUCKET, Key="sum", ChecksumMode="ENABLED")[field] == value
        wrong = base64.b64encode(bytes(len(base64.b64decode(value)))).decode()
        fails("BadDigest", 400, put, key="sum", body=data, **{field: wrong})
    for name in ("CRC32", "SHA1", "SHA256"):
        assert put("sum", data, ChecksumAlgorithm=name)["Checksum" + name] == sums[name]
    quiet = client(request_checksum_calculation="when_required")
    quiet.put_object(Bucket=BUCKET, Key="none", Body=data)
    answer = get("none", ChecksumMode="ENABLED")
    found = {key: answer[key] for key in answer if key.startswith("Checksum")}
    assert set(found) == {"ChecksumCRC64NVME", "ChecksumType"} and found["ChecksumType"] == "FULL_OBJECT"


@check
def digests():
    path = f"/{BUCKET}/digest"
    good = base64.b64encode(hashlib.md5(b"body").digest()).decode()
    zero = base64.b64encode(bytes(16)).decode()
    expect(raw("PUT", path, b"body", extra={"content-md5": good}), 200)
    expect(raw("PUT", path, b"body", extra={"content-md5": zero}), 400, "BadDigest")
    expect(raw("PUT", path, b"body", extra={"content-md5": "short"}), 400, "InvalidDigest")
    expect(raw("PUT", path, b"body", payload=sha256_hex(b"else")), 400, "XAmzContentSHA256Mismatch")
    expect(raw("PUT", path, b"body", payload="UNSIGNED-PAYLOAD"), 200)
    expect(raw("PUT", path, b"0\r\n\r\n", payload="UNSIGNED-PAYLOAD", length=False,
               add={"transfer-encoding": "chunked"}), 501, "NotImplemented")
    expect(raw("PUT", path, b"", payload="UNSIGNED-PAYLOAD", length=False), 411, "MissingContentLength")
    xml = b"<Delete><Object><Key>digest</Key></Object></Delete>"
    expect(raw("POST", f"/{BUCKET}", xml, query="delete=", extra={"content-md5": zero}), 400, "BadDigest")
    expect(raw("POST", f"/{BUCKET}", xml, query="delete=", payload=sha256_hex(b"")), 400, "XAmzContentSHA256Mismatch")
    expect(raw("POST", f"/{BUCKET}", b"<Delete>", query="delete="), 400, "MalformedXML")


def signed_chunks(signer, pieces, trailer=None, spoil=False):
    previous, body = signer.seed, b""
    for piece in pieces + [b""]:
        text = f"{previous}\n{sha256_hex(b'')}\n{sha256_hex(piece)}"
        previous = signer.sign(text, "AWS4-HMAC-SHA256-PAYLOAD")
        shown = "0" * 64 if spoil and not piece else previous
        body += f"{len(piece):x};chunk-signature={shown}\r\n".encode() + piece + (b"\r\n" if piece else b"")
    if trailer:
        signature = signer.sign(f"{previous}\n{sha256_hex((trailer + chr(10)).encode())}", "AWS4-HMAC-SHA256-TRAILER")
        body += f"{trailer}\r\nx-amz-trailer-signature:{signature}\r\n".encode()
    return body + b"\r\n"


@check
def aws_chunked():
    path = f"/{BUCKET}/chunked"
    pieces = [b"a" * 70_000, b"b" * 10]
    data = b"".join(pieces)
    sum32 = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()

    def upload(kind, make, extra=None):
        signer = Signer()
        extra = {"x-amz-decoded-content-length": str(len(data)), **(extra or {})}
        headers = signer.headers("PUT", path, "", kind, extra)
        body = make(signer)
        return send("PUT", path, {**headers, "content-length": str(len(body)), "content-encoding": "aws-chunked"}, body)

    def unsigned(*parts, trailer=""):
        return lambda _: b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + f"0\r\n{trailer}\r\n".encode()

    signed, plain = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    trail = {"x-amz-trailer": "x-amz-checksum-crc32"}
    line = f"x-amz-checksum-crc32:{sum32}"
    expect(upload(signed, lambda signer: signed_chunks(signer, pieces)), 200)
    answer = get("chunked")
    assert answer["Body"].read() == data and "ContentEncoding" not in answer
    expect(upload(signed, lambda signer: signed_chunks(signer, pieces, spoil=True)), 403, "SignatureDoesNotMatch")
    expect(upload(signed + "-TRAILER", lambda signer: signed_chunks(signer, pieces, line), trail), 200)
    expect(upload(plain, unsigned(*pieces, trailer=line + "\r\n"), trail), 200)
    assert get("chunked", ChecksumMode="ENABLED")["ChecksumCRC32"] == sum32
    expect(upload(plain, unsigned(*pieces, trailer="x-amz-checksum-crc32:AAAAAA==\r\n"), trail), 400, "BadDigest")
    expect(upload(plain, unsigned(*pieces), trail), 400, "MalformedTrailerError")
    expect(upload(plain, unsigned(pieces[0], trailer=line + "\r\n"), trail), 400, "IncompleteBody")
    expect(upload(plain, unsigned(*pieces, b"more", trailer=line + "\r\n"), trail), 400, "InvalidRequest")
    expect(upload(plain, lambda _: b"%x\r\n%s\r\n" % (len(data), data), trail), 400, "IncompleteBody")
    expect(upload(plain, lambda _: b"7fffffff\r\n" + data, trail), 400, "InvalidRequest")


@check
def authentication():
    path = f"/{BUCKET}/auth"
    put("auth", b"x")
    fails("SignatureDoesNotMatch", 403, client(secret="wrong").get_object, Bucket=BUCKET, Key="auth")
    fails("InvalidAccessKeyId", 403, client(access="nobody").get_object, Bucket=BUCKET, Key="auth")
    expect(send("GET", path, {"host": HOST}), 403, "AccessDenied")
    expect(send("GET", path, {"host": HOST, "authorization": f"AWS {ACCESS}:c2ln"}), 400, "InvalidRequest")
    expect(raw("GET", path, signer=Signer(age_seconds=3600)), 403, "RequestTimeTooSkewed")
    expect(raw("PUT", path, add={"x-amz-copy-source": f"/{BUCKET}/range"}), 403, "AccessDenied")
    expect(raw("GET", path), 200)


@check
def presigned():
    put("pre sign", b"signed")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "pre sign"}, ExpiresIn=60)
    parts = urllib.parse.urlsplit(url)
    response, data = send("GET", parts.path, {"host": HOST}, query=parts.query)
    if "X-Amz-Signature" not in parts.query:
        v4 = client(signature_version="s3v4")
        url = v4.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "pre sign"}, ExpiresIn=60)
        parts = urllib.parse.urlsplit(url)
        response, data = send("GET", parts.path, {"host": HOST}, query=parts.query)
    assert (response.status, data) == (200, b"signed"), (response.status, data)
    expect(send("GET", parts.path + "x", {"host": HOST}, query=parts.query), 403, "SignatureDoesNotMatch")
    v4 = client(signature_version="s3v4")
    url = v4.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "pre put"}, ExpiresIn=60)
    parts = urllib.parse.urlsplit(url)
    expect(send("PUT", parts.path, {"host": HOST, "content-length": "3"}, b"new", query=parts.query), 200)
    assert get("pre put")["Body"].read() == b"new"


@check
def multipart():
    size, count = 8 << 20, 13
    pieces = [os.urandom(size) for _ in range(count - 1)] + [os.urandom(4 << 20)]
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="big", Metadata={"m": "p"}, ContentType="text/b")["UploadId"]
    named = {"Bucket": BUCKET, "Key": "big", "UploadId": upload}
    parts = []
    for number, piece in enumerate(pieces, 1):
        etag = s3.upload_part(PartNumber=number, Body=piece, **named)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    listed = [part["PartNumber"] for page in s3.get_paginator("list_parts").paginate(
        **named, PaginationConfig={"PageSize": 5}) for part in page["Parts"]]
    assert listed == list(range(1, count + 1)), listed
    complete = s3.complete_multipart_upload
    fails("InvalidPartOrder", 400, complete, MultipartUpload={"Parts": parts[::-1]}, **named)
    fails("InvalidPart", 400, complete, MultipartUpload={"Parts": [{"PartNumber": 99, "ETag": parts[0]["ETag"]}]}, **named)
    etag = complete(MultipartUpload={"Parts": parts}, **named)["ETag"]
    digest = hashlib.md5(b"".join(hashlib.md5(piece).digest() for piece in pieces)).hexdigest()
    assert etag == f'"{digest}-{count}"', etag
    answer = get("big")
    whole = b"".join(pieces)
    assert answer["Body"].read() == whole and answer["Metadata"] == {"m": "p"} and answer["ContentType"] == "text/b"
    at = size - 5
    assert get("big", Range=f"bytes={at}-{at + 9}")["Body"].read() == whole[at:at + 10]


@check
def multipart_edges():
    start = lambda: {"Bucket": BUCKET, "Key": "mp", "UploadId": s3.create_multipart_upload(Bucket=BUCKET, Key="mp")["UploadId"]}
    named = start()
    fails("InvalidArgument", 400, s3.upload_part, PartNumber=10001, Body=b"x", **named)
    parts = [{"PartNumber": number, "ETag": s3.upload_part(PartNumber=number, Body=b"x", **named)["ETag"]} for number in (1, 2)]
    fails("EntityTooSmall", 400, s3.complete_multipart_upload, MultipartUpload={"Parts": parts}, **named)
    s3.abort_multipart_upload(**named)
    fails("NoSuchUpload", 404, s3.list_parts, **named)
    fails("NoSuchUpload", 404, s3.upload_part, PartNumber=1, Body=b"x", **named)
    put("part source", b"0123456789")
    named = start()
    result = s3.upload_part_copy(PartNumber=1, CopySource={"Bucket": BUCKET, "Key": "part source"}, CopySourceRange="bytes=2-5", **named)
    s3.complete_multipart_upload(
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": result["CopyPartResult"]["ETag"]}]}, **named)
    assert get("mp")["Body"].read() == b"2345"


@check
def multi_delete_quiet():
    for number in range(3):
        put(f"del/{number}")
    keys = [{"Key": f"del/{number}"} for number in range(5)]
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": keys, "Quiet": True})
    assert "Deleted" not in answer and "Errors" not in answer
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix="del/")["KeyCount"] == 0


@check
def not_implemented():
    for call, more in ((s3.get_bucket_metrics_configuration, {"Id": "x"}), (s3.get_object_legal_hold, {"Key": "x"}), (s3.get_object_torrent, {"Key": "x"})):
        fails("NotImplemented", 501, call, Bucket=BUCKET, **more)
    fails("NotImplemented", 501, put, key="enc", body=b"x", ServerSideEncryption="AES256")
    fails("AccessControlListNotSupported", 400, put, key="acl", body=b"x", ACL="public-read")
    expect(raw("GET", f"/{BUCKET}", query="inventory="), 501, "NotImplemented")


@check
def keep_alive():
    connection = http.client.HTTPConnection(HOST, timeout=30)
    for _ in range(3):
        headers = Signer().headers("GET", f"/{BUCKET}/nothing", "", sha256_hex(b""), {})
        connection.request("GET", f"/{BUCKET}/nothing", headers=headers)
        response = connection.getresponse()
        assert response.status == 404 and b"NoSuchKey" in response.read()
        assert connection.sock is not None
    connection.close()


def clean_up():
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            s3.delete_object(Bucket=BUCKET, Key=entry["Key"])
    s3.delete_bucket(Bucket=BUCKET)


def main():
    passed = failed = 0
    s3.create_bucket(Bucket=BUCKET)
    for function in CHECKS + [clean_up]:
        try:
            function()
            passed += 1
            print(f"ok      {function.__name__}", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED  {function.__name__}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
