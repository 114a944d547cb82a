"""kill -9 under mixed load, many times: what was acknowledged is there after every restart, whole.

Every key belongs to one thread, so its history is a line: the last acknowledged version, and after it the attempts
whose outcome nobody learnt. A restart may show the former or any of the latter, and nothing else, ever after.
QUARRY_E2E_KILLS is the number of rounds; the record run uses 50.
"""

import hashlib
import os
import random
import threading
import time

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from harness import MIB
from objects import content, difference, list_all

KILLS = int(os.environ.get("QUARRY_E2E_KILLS", "6"))
SEED = int(os.environ.get("QUARRY_E2E_SEED", "1"))
BUCKET = "kill9"
WRITERS = 8
KEYS_PER_WRITER = 8
SIZES = [0, 1, 100, 4 << 10, 31 << 10, 33 << 10, 200_000, MIB, 5 * MIB + 1]
PART_SIZES = [5 * MIB, 5 * MIB, 123_457]
ABSENT = None


def size_of(key, version):
    return random.Random(f"size|{key}|{version}").choice(SIZES)


class Version:
    """One generation of a key: enough to write its bytes and to recognise them."""

    def __init__(self, key, number, multipart=False):
        self.key, self.number, self.multipart = key, number, multipart
        self.size = sum(PART_SIZES) if multipart else size_of(key, number)

    def body(self):
        return content(self.key, self.number, self.size)

    def __repr__(self):
        return f"version {self.number} ({self.size} B{', multipart' if self.multipart else ''})"


class History:
    """What is known of one key."""

    def __init__(self, key):
        self.key = key
        self.numbers = 0
        self.settled = ABSENT
        self.unknown = []
        self.all = {}
        # A multipart upload whose parts are acknowledged and that is not completed yet: (upload id, parts, version).
        self.upload = None

    def next(self, multipart=False):
        self.numbers += 1
        version = Version(self.key, self.numbers, multipart)
        self.all[self.numbers] = version
        return version

    def attempt(self, version):
        self.unknown.append(version)

    def acknowledge(self, version):
        self.settled, self.unknown = version, []

    def possible(self):
        return [self.settled, *self.unknown]


def read(client, key):
    """(number, body, ETag) of what is there, or ABSENT."""
    try:
        answer = client.get_object(Bucket=BUCKET, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return ABSENT
        raise
    return int(answer["Metadata"]["version"]), answer["Body"].read(), answer["ETag"].strip('"')


def judge(history, found):
    """The version that was found; fails if it is none of the possible ones or not exactly one of them."""
    key, possible = history.key, history.possible()
    if found is ABSENT:
        assert ABSENT in possible, f"LOST {key}: absent, but {history.settled} was acknowledged; unknown: {history.unknown}"
        return ABSENT
    number, body, etag = found
    version = history.all.get(number)
    assert version is not None, f"WRONG VERSION of {key}: {number}, which nobody has written"
    assert version in possible, (
        f"WRONG VERSION of {key}: {version} was found; acknowledged: {history.settled}, unknown: {history.unknown}")
    assert body == version.body(), f"MIXED OR DAMAGED {key}, {version}: {difference(version.body(), body)}"
    if not version.multipart:
        assert etag == hashlib.md5(body).hexdigest(), f"ETag of {key}, {version} is of other content"
    return version


class Writer(threading.Thread):
    """Works on its own keys until the node is gone; an answer that is no acknowledgement ends it too."""

    def __init__(self, client, histories, seed):
        super().__init__()
        self.client, self.histories = client, histories
        self.random = random.Random(seed)
        self.killed = threading.Event()
        self.operations = 0
        self.problem = None

    def run(self):
        try:
            while True:
                self.step(self.random.choice(self.histories))
                self.operations += 1
        except ClientError as error:
            # While it runs, the node must not answer with errors.
            if not self.killed.is_set():
                self.problem = f"answered with {error}"
        except BotoCoreError as error:
            if not self.killed.wait(5):
                self.problem = f"connection failed before the kill: {error}"
        except AssertionError as error:
            self.problem = str(error)

    def step(self, history):
        operation = self.random.choices(
            ["put", "delete", "get", "multipart", "parts", "complete"], [10, 3, 5, 1, 1, 1])[0]
        getattr(self, operation)(history)

    def put(self, history):
        version = history.next()
        history.attempt(version)
        self.client.put_object(
            Bucket=BUCKET, Key=history.key, Body=version.body(), Metadata={"version": str(version.number)})
        history.acknowledge(version)

    def delete(self, history):
        history.attempt(ABSENT)
        self.client.delete_object(Bucket=BUCKET, Key=history.key)
        history.acknowledge(ABSENT)

    def get(self, history):
        found = read(self.client, history.key)
        judge(history, found)

    def parts(self, history):
        """Uploads parts and leaves them: the next start must find them."""
        if history.upload is not None:
            return
        version = history.next(multipart=True)
        upload = self.client.create_multipart_upload(
            Bucket=BUCKET, Key=history.key, Metadata={"version": str(version.number)})["UploadId"]
        body, start, done = version.body(), 0, []
        for number, size in enumerate(PART_SIZES, 1):
            part = self.client.upload_part(
                Bucket=BUCKET, Key=history.key, UploadId=upload, PartNumber=number, Body=body[start:start + size])
            done.append({"PartNumber": number, "ETag": part["ETag"]})
            start += size
        history.upload = (upload, done, version)

    def complete(self, history):
        if history.upload is None:
            return
        upload, done, version = history.upload
        history.upload = None
        history.attempt(version)
        self.client.complete_multipart_upload(
            Bucket=BUCKET, Key=history.key, UploadId=upload, MultipartUpload={"Parts": done})
        history.acknowledge(version)

    def multipart(self, history):
        self.complete(history)
        self.parts(history)
        self.complete(history)


def load(node, histories, seconds, seed):
    """Mixed load for a while, then kill -9 in the middle of it. Returns the number of operations that ended."""
    writers = [
        Writer(node.client(), histories[index::WRITERS], f"{seed}|{index}") for index in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    time.sleep(seconds)
    # Set first: an error between here and the kill is indistinguishable from one after it.
    for writer in writers:
        writer.killed.set()
    node.kill()
    for writer in writers:
        writer.join(90)
        assert not writer.is_alive(), "a request neither ended nor failed within 90 s after the kill"
    problems = [writer.problem for writer in writers if writer.problem]
    assert not problems, "under load, before the kill: " + "; ".join(problems)
    return sum(writer.operations for writer in writers)


def verify(node, histories, when):
    """Every key shows a possible version, the listing agrees, and both stay so."""
    client, problems, present = node.client(), [], {}
    for history in histories:
        try:
            version = judge(history, read(client, history.key))
        except (AssertionError, ClientError, BotoCoreError) as error:
            problems.append(f"{history.key}: {error}")
            continue
        # From now on this is the only one: an unknown outcome cannot change its mind.
        history.acknowledge(version)
        if version is not ABSENT:
            present[history.key] = version.size
    assert not problems, f"{when}: {len(problems)} of {len(histories)} keys are wrong: " + "\n".join(problems[:10])
    listed = list_all(client, BUCKET, page=17)
    assert listed == present, f"{when}: the listing shows {set(listed.items()) ^ set(present.items())} otherwise than GET"


def complete_uploads(node, histories, when):
    """Parts that were acknowledged before the kill can be completed after it."""
    completer, count = Writer(node.client(), histories, 0), 0
    for history in histories:
        if history.upload is not None and history.upload[2].number % 2:
            version = history.upload[2]
            try:
                completer.complete(history)
            except ClientError as error:
                pytest.fail(f"{when}: parts of {history.key} were acknowledged, but complete answers {error}")
            assert judge(history, read(completer.client, history.key)) is version
            count += 1
    return count


def test_acknowledged_objects_survive_kill_9_under_load(make_node):
    node = make_node(device_size="1GiB")
    node.client().create_bucket(Bucket=BUCKET)
    histories = [History(f"key/{index % 7}/{index:03}") for index in range(WRITERS * KEYS_PER_WRITER)]
    chance, operations, completed = random.Random(SEED), 0, 0
    for kill in range(1, KILLS + 1):
        when = f"after kill {kill} of {KILLS} (QUARRY_E2E_SEED={SEED})"
        operations += load(node, histories, chance.uniform(0.3, 2.5), f"{SEED}|{kill}")
        node.start()
        if chance.random() < 0.25:
            # Dies again while it recovers, or just after.
            node.kill()
            node.start(wait=False)
            time.sleep(chance.uniform(0, 0.6))
            node.kill()
            node.start()
        verify(node, histories, when)
        completed += complete_uploads(node, histories, when)
    print(f"{KILLS} kills, {operations} operations, {completed} uploads completed after a kill")
    assert operations > 20 * KILLS, f"only {operations} operations in {KILLS} rounds: this was no load"
    verify(node, histories, "before the stop")
    node.stop()
    node.assert_fsck_is_clean()
    node.start()
    verify(node, histories, "after a clean stop")
    node.stop()


def test_acknowledged_objects_survive_kill_9_at_once_after_the_answer(make_node):
    """No load and no time to write anything back: the answer itself is the promise."""
    node = make_node(device_size="256MiB")
    node.client().create_bucket(Bucket=BUCKET)
    histories = []
    for size in SIZES:
        client = node.client()
        history = History(f"sole/{size}")
        version = history.next()
        version.size = size
        client.put_object(Bucket=BUCKET, Key=history.key, Body=version.body(), Metadata={"version": "1"})
        node.kill()
        history.acknowledge(version)
        histories.append(history)
        node.start()
        verify(node, histories, f"after kill -9 right after a PUT of {size} bytes")
    node.client().delete_object(Bucket=BUCKET, Key=histories[0].key)
    node.kill()
    histories[0].acknowledge(ABSENT)
    node.start()
    verify(node, histories, "after kill -9 right after a DELETE")
    node.stop()
    node.assert_fsck_is_clean()
