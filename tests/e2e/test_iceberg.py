"""Iceberg tables on a node by pyiceberg, with a catalog in SQLite: history, changes, and commits that race.

The catalog decides which of two commits wins; data, manifests and metadata files are on Quarry, and every commit reads
what the one before it has just written. pyiceberg has no catalog that commits by conditional PUT alone, so such a commit
is made here by hand, as catalogs on object stores do: the next metadata pointer is created with If-None-Match: *.
"""

import collections
import concurrent.futures
import multiprocessing

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from clients import LONG, keys_of
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import CommitFailedException
from test_parquet import connect_duckdb

COMMITTERS = 8
COMMITS_EACH = 25 if LONG else 3
POINTERS = 200 if LONG else 40
DEVICE_SIZE = "256MiB"


@pytest.fixture(scope="module")
def properties(shared_node, tmp_path_factory):
    """Of a catalog whose warehouse is a bucket of the node."""
    shared_node.client().create_bucket(Bucket="iceberg")
    access, secret = shared_node.credentials()
    database = tmp_path_factory.mktemp("catalog") / "catalog.db"
    properties = {
        # Committers wait for each other's transaction on the catalog's file.
        "type": "sql", "uri": f"sqlite:///{database}?timeout=120", "warehouse": "s3://iceberg/warehouse",
        "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO", "s3.endpoint": shared_node.endpoint,
        "s3.access-key-id": access, "s3.secret-access-key": secret, "s3.region": "us-east-1"}
    load_catalog("e2e", **properties).create_namespace("db")
    return properties


def rows(table):
    return sorted(zip(*table.to_pydict().values()))


def test_history_of_a_table(properties, shared_node):
    catalog = load_catalog("e2e", **properties)
    first = pa.table({"id": pa.array([1, 2], pa.int64()), "v": ["a", "b"]})
    table = catalog.create_table("db.history", schema=first.schema)
    table.append(first)
    table.append(pa.table({"id": pa.array([3], pa.int64()), "v": ["c"]}))
    snapshot = table.current_snapshot().snapshot_id
    table.delete("id = 2")
    table.overwrite(pa.table({"id": pa.array([3], pa.int64()), "v": ["C"]}), overwrite_filter="id = 3")
    with table.update_schema() as update:
        update.add_column("more", table.schema().find_field("v").field_type)
    table.append(pa.table({"id": pa.array([4], pa.int64()), "v": ["d"], "more": ["m"]}))
    assert rows(table.scan().to_arrow()) == [(1, "a", None), (3, "C", None), (4, "d", "m")]
    assert rows(table.scan(snapshot_id=snapshot).to_arrow()) == [(1, "a"), (2, "b"), (3, "c")]
    # Another process would see the same: a new catalog object, from the files.
    again = load_catalog("e2e", **properties).load_table("db.history")
    assert rows(again.scan(row_filter="id >= 3", selected_fields=("id", "more")).to_arrow()) == [(3, None), (4, "m")]
    # DuckDB reads the files that the table names.
    files = again.inspect.files()["file_path"].to_pylist()
    connection = connect_duckdb(shared_node)
    found = connection.execute("SELECT id FROM read_parquet(?, union_by_name = true) ORDER BY id", [files]).fetchall()
    assert found == [(1,), (3,), (4,)]
    connection.close()
    catalog.purge_table("db.history")
    left = [key for key in keys_of(shared_node.client(), "iceberg", "warehouse/db/history/") if "/data/" in key]
    assert not set(f"s3://iceberg/{key}" for key in left) & set(files)


def commit(arguments):
    """One committer, a process of its own; returns the rows whose commit was acknowledged, and how often it lost."""
    properties, number = arguments
    catalog = load_catalog("e2e", **properties)
    acknowledged, lost_races = [], 0
    for round_number in range(COMMITS_EACH):
        row = number * 1_000_000 + round_number
        while True:
            table = catalog.load_table("db.race")
            try:
                table.append(pa.table({"row": pa.array([row], pa.int64())}))
                acknowledged.append(row)
                break
            except CommitFailedException:
                lost_races += 1
    return acknowledged, lost_races


def test_eight_committers_lose_no_commit(properties, shared_node):
    catalog = load_catalog("e2e", **properties)
    catalog.create_table("db.race", schema=pa.schema([("row", pa.int64())]))
    with multiprocessing.get_context("spawn").Pool(COMMITTERS) as pool:
        results = pool.map(commit, [(properties, number) for number in range(COMMITTERS)])
    acknowledged = [row for rows, _ in results for row in rows]
    assert len(acknowledged) == COMMITTERS * COMMITS_EACH
    table = catalog.load_table("db.race")
    found = collections.Counter(table.scan().to_arrow()["row"].to_pylist())
    lost = sorted(set(acknowledged) - set(found))
    assert not lost, f"{len(lost)} acknowledged commits are not in the table: {lost[:10]}"
    assert set(found.values()) == {1} and set(found) == set(acknowledged), "rows twice, or never acknowledged"
    assert len(table.snapshots()) == len(acknowledged)


def test_a_pointer_by_conditional_put_has_one_winner_each(shared_node):
    """Eight writers create the pointers 0, 1, 2, ... with If-None-Match: *; each has one winner, whose content stands."""
    shared_node.client().create_bucket(Bucket="pointers")

    def write(number):
        client = shared_node.client()
        won = []
        for version in range(POINTERS):
            try:
                client.put_object(
                    Bucket="pointers", Key=f"metadata/v{version}.json", Body=f"{number}".encode(), IfNoneMatch="*")
                won.append(version)
            except ClientError as error:
                # S3 answers either, the second while another write of the key is on its way.
                assert error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"), error
        return won

    with concurrent.futures.ThreadPoolExecutor(COMMITTERS) as pool:
        winners = list(pool.map(write, range(COMMITTERS)))
    assert sorted(version for won in winners for version in won) == list(range(POINTERS))
    client = shared_node.client()
    for number, won in enumerate(winners):
        for version in won:
            assert client.get_object(Bucket="pointers", Key=f"metadata/v{version}.json")["Body"].read() == f"{number}".encode()
