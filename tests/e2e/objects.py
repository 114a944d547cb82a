"""Objects of every size class, with content that only depends on (key, version): write, damage, then verify them."""

import concurrent.futures
import hashlib
import random

from botocore.exceptions import BotoCoreError, ClientError
from harness import MIB

PART = 8 * MIB
# Empty, one byte, inline, both sides of the inline limit, one stripe, several stripes with a short one, multipart.
SIZES = [0, 1, 4 << 10, 31 << 10, 33 << 10, MIB, 5 * MIB + 1, 20 * MIB]
MULTIPART_FROM = 20 * MIB


def content(key, version, size):
    return random.Random(f"{key}|{version}").randbytes(size)


def put(client, bucket, key, body):
    """A single PUT, or a multipart upload for what is big."""
    if len(body) < MULTIPART_FROM:
        return client.put_object(Bucket=bucket, Key=key, Body=body)
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(body), PART), 1):
        part = client.upload_part(
            Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body[start:start + PART])
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    return client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})


def list_all(client, bucket, prefix="", page=97):
    """Every key with its size, by many small pages."""
    found, more = {}, {}
    while True:
        answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=page, **more)
        for entry in answer.get("Contents", []):
            assert entry["Key"] not in found, f"listed twice: {entry['Key']}"
            found[entry["Key"]] = entry["Size"]
        if not answer["IsTruncated"]:
            return found
        more = {"ContinuationToken": answer["NextContinuationToken"]}


class ObjectSet:
    """Keys that were acknowledged, and their versions."""

    def __init__(self, bucket):
        self.bucket = bucket
        self.sizes = {}
        self.versions = {}

    def write(self, client, prefix, copies=1, small=0, threads=8):
        """`copies` objects of each size and `small` more of 100 bytes; every one must be acknowledged."""
        wanted = [(f"{prefix}/{size}/{copy}", size) for size in SIZES for copy in range(copies)]
        wanted += [(f"{prefix}/small/{index:04}", 100) for index in range(small)]
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda entry: self.put(client, *entry), wanted):
                pass

    def put(self, client, key, size):
        version = self.versions.get(key, 0) + 1
        put(client, self.bucket, key, content(key, version, size))
        self.sizes[key], self.versions[key] = size, version

    def damaged(self, client, key):
        """What is wrong with a key; `None`: it reads byte for byte, whole and by ranges."""
        size, expected = self.sizes[key], content(key, self.versions[key], self.sizes[key])
        try:
            answer = client.get_object(Bucket=self.bucket, Key=key)
            body = answer["Body"].read()
            if body != expected:
                return difference(expected, body)
            if size < MULTIPART_FROM and answer["ETag"].strip('"') != hashlib.md5(expected).hexdigest():
                return f"ETag {answer['ETag']} is not the content's MD5"
            if size > 1:
                first, last = size // 3, min(size - 1, size // 3 + 70_000)
                answer = client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={first}-{last}")
                if answer["Body"].read() != expected[first:last + 1]:
                    return f"range {first}-{last} differs"
        except (BotoCoreError, ClientError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def verify(self, client, when, threads=4):
        """Every key is listed, with its size, and reads byte for byte."""
        listed = list_all(client, self.bucket)
        lost = sorted(set(self.sizes) - set(listed))
        assert not lost, f"{when}: acknowledged but not listed ({len(lost)} of {len(self.sizes)}): {lost[:10]}"
        extra = sorted(set(listed) - set(self.sizes))
        assert not extra, f"{when}: listed but never acknowledged: {extra[:10]}"
        sizes = {key: (listed[key], size) for key, size in self.sizes.items() if listed[key] != size}
        assert not sizes, f"{when}: listed with a wrong size (found, expected): {sizes}"
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            problems = [(key, problem) for key, problem in
                        zip(self.sizes, pool.map(lambda key: self.damaged(client, key), self.sizes)) if problem]
        assert not problems, f"{when}: {len(problems)} of {len(self.sizes)} objects do not read right: " + "; ".join(
            f"{key}: {problem}" for key, problem in problems[:10])


def difference(expected, body):
    """Where two contents differ, in words."""
    if len(body) != len(expected):
        return f"{len(body)} bytes instead of {len(expected)}"
    at = next(index for index, (a, b) in enumerate(zip(expected, body)) if a != b)
    wrong = sum(a != b for a, b in zip(expected, body))
    return f"{wrong} of {len(expected)} bytes differ, the first at {at}"
