"""Delta Lake tables on a node by delta-rs: history, merges, and commits that race.

delta-rs commits a version by writing its log entry with If-None-Match: *, so that of several writers one wins and the
others try again with the next version. No commit may be lost and none may be there twice.
"""

import collections
import json
import multiprocessing
import random

import polars as pl
import pyarrow as pa
import pytest
from clients import LONG, keys_of
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

COMMITTERS = 8
COMMITS_EACH = 50 if LONG else 6
DEVICE_SIZE = "256MiB"


def options(node):
    access, secret = node.credentials()
    return {
        "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": node.endpoint,
        "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true", "conditional_put": "etag"}


@pytest.fixture(scope="module")
def storage(shared_node):
    shared_node.client().create_bucket(Bucket="delta")
    return options(shared_node)


def rows(table):
    return sorted(zip(*pa.table(table.to_pyarrow_table()).to_pydict().values()))


def test_history_of_a_table(storage, shared_node):
    uri = "s3://delta/history"
    write_deltalake(uri, pa.table({"id": [1, 2], "v": ["a", "b"]}), storage_options=storage)
    write_deltalake(uri, pa.table({"id": [3], "v": ["c"]}), mode="append", storage_options=storage)
    table = DeltaTable(uri, storage_options=storage)
    table.merge(
        pa.table({"id": [2, 4], "v": ["B", "D"]}), predicate="t.id = s.id", source_alias="s", target_alias="t",
    ).when_matched_update_all().when_not_matched_insert_all().execute()
    assert rows(table) == [(1, "a"), (2, "B"), (3, "c"), (4, "D")] and table.version() == 2
    table.delete("id = 3")
    assert rows(table) == [(1, "a"), (2, "B"), (4, "D")]
    # Time travel, also for another reader.
    assert rows(DeltaTable(uri, version=0, storage_options=storage)) == [(1, "a"), (2, "b")]
    assert rows(DeltaTable(uri, version=1, storage_options=storage)) == [(1, "a"), (2, "b"), (3, "c")]
    assert pl.read_delta(uri, version=1, storage_options=storage).height == 3
    table.restore(1)
    assert rows(table) == [(1, "a"), (2, "b"), (3, "c")]
    table.optimize.compact()
    table.create_checkpoint()
    assert any(key.endswith(".checkpoint.parquet") for key in keys_of(shared_node.client(), "delta", "history/_delta_log/"))
    assert table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    assert rows(DeltaTable(uri, storage_options=storage)) == [(1, "a"), (2, "b"), (3, "c")]
    with pytest.raises(DeltaError, match="already exists"):
        write_deltalake(uri, pa.table({"id": [1], "v": ["x"]}), mode="error", storage_options=storage)


def commit(arguments):
    """One committer, a process of its own: appends rows one commit at a time; returns what was acknowledged."""
    storage, uri, number = arguments
    acknowledged = []
    for round_number in range(COMMITS_EACH):
        row = number * 1_000_000 + round_number
        while True:
            try:
                write_deltalake(uri, pa.table({"row": [row]}), mode="append", storage_options=storage)
                acknowledged.append(row)
                break
            except CommitFailedError:  # gave up after its own retries
                continue
    return acknowledged


def test_eight_committers_lose_no_commit(storage, shared_node):
    uri = "s3://delta/race"
    write_deltalake(uri, pa.table({"row": pa.array([], pa.int64())}), storage_options=storage)
    with multiprocessing.get_context("spawn").Pool(COMMITTERS) as pool:
        acknowledged = [row for rows in pool.map(commit, [(storage, uri, n) for n in range(COMMITTERS)]) for row in rows]
    assert len(acknowledged) == COMMITTERS * COMMITS_EACH
    table = DeltaTable(uri, storage_options=storage)
    found = collections.Counter(table.to_pyarrow_table()["row"].to_pylist())
    lost = sorted(set(acknowledged) - set(found))
    assert not lost, f"{len(lost)} acknowledged commits are not in the table: {lost[:10]}"
    assert set(found.values()) == {1} and set(found) == set(acknowledged), "rows twice, or never acknowledged"
    # One log entry for each commit, without a gap, and each adds one file.
    assert table.version() == len(acknowledged)
    client = shared_node.client()
    entries = [key for key in keys_of(client, "delta", "race/_delta_log/") if key.endswith(".json")]
    assert entries == [f"race/_delta_log/{version:020}.json" for version in range(len(acknowledged) + 1)]
    for key in random.Random(1).sample(entries[1:], 5):
        lines = client.get_object(Bucket="delta", Key=key)["Body"].read().splitlines()
        assert sum("add" in json.loads(line) for line in lines) == 1
