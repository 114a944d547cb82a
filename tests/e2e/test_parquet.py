"""A partitioned Parquet data set through aws-cli, boto3 and DuckDB, before and after a restart: the main job.

QUARRY_E2E_PARQUET_MIB sets its size; the record run uses 2048.
"""

import concurrent.futures
import hashlib
import importlib.util
import os
import pathlib
import random
import shutil
import subprocess
import sys

import boto3
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from harness import MIB

SIZE_MIB = int(os.environ.get("QUARRY_E2E_PARQUET_MIB", "192"))
AWS = pathlib.Path(sys.executable).with_name("aws")
FILES = 12
PAYLOAD_BYTES = 64
# id, amount and payload are stored plain and do not compress; day is a dictionary.
ROW_BYTES = 8 + 8 + PAYLOAD_BYTES
ROWS_PER_FILE = SIZE_MIB * MIB // FILES // ROW_BYTES
ROWS_PER_GROUP = 65536


def write_data_set(root):
    """year=/month=/part-0.parquet; ids grow within a file, so that row group statistics can rule groups out."""
    for number in range(FILES):
        year, month = 2025 + number // 6, number % 6 + 1
        directory = root / f"year={year}" / f"month={month}"
        directory.mkdir(parents=True)
        seeded = random.Random(number)
        schema = pa.schema(
            [("id", pa.int64()), ("day", pa.int32()), ("amount", pa.int64()), ("payload", pa.binary(PAYLOAD_BYTES))])
        with pq.ParquetWriter(
            directory / "part-0.parquet", schema, compression="none", use_dictionary=["day"]
        ) as writer:
            for first in range(0, ROWS_PER_FILE, ROWS_PER_GROUP):
                rows = min(ROWS_PER_GROUP, ROWS_PER_FILE - first)
                start = number * ROWS_PER_FILE + first
                # 62 bits of every amount are cut, so that sums of millions of rows stay far from overflow.
                amounts = pc.shift_right(column(seeded, pa.int64(), rows, 8), 34)
                days = pa.array([(start + row) // 1000 % 28 + 1 for row in range(rows)], pa.int32())
                ids = pa.array(range(start, start + rows), pa.int64())
                payload = column(seeded, pa.binary(PAYLOAD_BYTES), rows, PAYLOAD_BYTES)
                writer.write_table(pa.table([ids, days, amounts, payload], schema), row_group_size=ROWS_PER_GROUP)


def column(seeded, kind, rows, width):
    """Random values straight from bytes."""
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(seeded.randbytes(rows * width))])


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(root):
    return {str(path.relative_to(root)): sha256(path) for path in sorted(root.rglob("*.parquet"))}


def aws(node, *arguments):
    run = subprocess.run([str(AWS), *map(str, arguments)], env=node.environment(), capture_output=True, text=True)
    assert run.returncode == 0, f"aws {' '.join(map(str, arguments))}: {run.stdout}\n{run.stderr}"


def check_aws_copy_out(node, expected, scratch):
    out = scratch / "out"
    aws(node, "s3", "cp", "--recursive", "--only-show-errors", "s3://lake/table", out)
    found = sums(out)
    shutil.rmtree(out)
    assert set(found) == set(expected), f"files differ: {set(found) ^ set(expected)}"
    wrong = [name for name in expected if found[name] != expected[name]]
    assert not wrong, f"came back from `aws s3 cp` with other bytes: {wrong}"


def check_boto3_both_ways(node, data_set, expected, scratch):
    """Multipart both ways: boto3 splits everything above 8 MiB."""
    client = node.client()
    transfer = boto3.s3.transfer.TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB)
    names = sorted(expected)[:: max(1, FILES // 4)]
    for name in names:
        copy = scratch / "copy.parquet"
        client.upload_file(str(data_set / name), "lake", f"boto3/{name}", Config=transfer)
        size = client.head_object(Bucket="lake", Key=f"boto3/{name}")["ContentLength"]
        assert size == (data_set / name).stat().st_size, f"{name}: HEAD says {size} bytes"
        client.download_file("lake", f"boto3/{name}", str(copy), Config=transfer)
        found = sha256(copy)
        copy.unlink()
        assert found == expected[name], f"{name} came back from boto3 with other bytes"
        client.delete_object(Bucket="lake", Key=f"boto3/{name}")


def connect_duckdb(node):
    access, secret = node.credentials()
    package = pathlib.Path(importlib.util.find_spec("duckdb_extension_httpfs").origin).parent
    extension = package / "extensions" / f"v{duckdb.__version__}" / "httpfs.duckdb_extension"
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    connection.execute(f"LOAD '{extension}'")
    connection.execute(f"""CREATE SECRET quarry (TYPE s3, KEY_ID '{access}', SECRET '{secret}', REGION 'us-east-1',
        ENDPOINT '127.0.0.1:{node.listen}', URL_STYLE 'path', USE_SSL false)""")
    return connection


def bytes_out(node):
    return node.metric("quarry_s3_bytes_total", direction="out")


def check_duckdb_reads_in_place(node, data_set):
    total = sum(path.stat().st_size for path in data_set.rglob("*.parquet"))
    local = ds.dataset(data_set, partitioning="hive")
    connection = connect_duckdb(node)
    table = "read_parquet('s3://lake/table/**/*.parquet', hive_partitioning = true)"

    # One partition and a narrow range of ids: all other files and row groups are ruled out.
    low = 4 * ROWS_PER_FILE + 100
    high = low + 1000
    before = bytes_out(node)
    found = connection.execute(
        f"SELECT id, day, amount, payload FROM {table} WHERE year = 2025 AND month = 5 AND id BETWEEN ? AND ? "
        "ORDER BY id", [low, high]).fetchall()
    read = bytes_out(node) - before
    where = (ds.field("year") == 2025) & (ds.field("month") == 5) & (ds.field("id") >= low) & (ds.field("id") <= high)
    expected = local.to_table(["id", "day", "amount", "payload"], where).sort_by("id").to_pylist()
    assert found == [tuple(row.values()) for row in expected] and len(found) == 1001, "rows differ from pyarrow's"
    # At most a few row groups (5 MiB each) and the footers.
    assert read < total / 10 + 8 * MIB, f"predicate not pushed down: {read / MIB:.1f} of {total / MIB:.0f} MiB were read"

    # One column of every file.
    before = bytes_out(node)
    found = connection.execute(
        f"SELECT year, month, count(*)::BIGINT, sum(amount)::BIGINT, min(id), max(id) FROM {table} GROUP BY ALL "
        "ORDER BY year, month").fetchall()
    read = bytes_out(node) - before
    grouped = local.to_table(["year", "month", "amount", "id"]).group_by(["year", "month"]).aggregate(
        [("amount", "count"), ("amount", "sum"), ("id", "min"), ("id", "max")])
    expected = sorted(
        (row["year"], row["month"], row["amount_count"], row["amount_sum"], row["id_min"], row["id_max"])
        for row in grouped.to_pylist())
    assert found == expected, "aggregates differ from pyarrow's"
    assert read < total / 2, f"columns not projected: {read / MIB:.1f} of {total / MIB:.0f} MiB were read"
    connection.close()


def check_all(node, data_set, expected, scratch):
    check_aws_copy_out(node, expected, scratch)
    check_boto3_both_ways(node, data_set, expected, scratch)
    check_duckdb_reads_in_place(node, data_set)


def test_a_partitioned_data_set_in_and_out_and_after_a_restart(make_node, scratch):
    data_set = scratch / "table"
    write_data_set(data_set)
    expected = sums(data_set)
    assert len(expected) == FILES
    # 4+2 makes it one and a half times as big; a third of it is there a second time while boto3 copies.
    device_mib = max(256, int(SIZE_MIB * 1.5 * 1.6 / 6) + 64)
    node = make_node(device_size=f"{device_mib}MiB")
    aws(node, "s3", "mb", "s3://lake")
    aws(node, "s3", "cp", "--recursive", "--only-show-errors", data_set, "s3://lake/table")
    check_all(node, data_set, expected, scratch)
    node.stop()
    node.start()
    check_all(node, data_set, expected, scratch)
    # The same data set over itself: every file is replaced whole.
    aws(node, "s3", "cp", "--recursive", "--only-show-errors", data_set, "s3://lake/table")
    check_aws_copy_out(node, expected, scratch)
    node.stop()
    node.assert_fsck_is_clean()


def test_many_clients_copy_at_once(make_node, scratch):
    """Four `aws s3 cp --recursive` in, then out, at the same time."""
    source = scratch / "source"
    seeded = random.Random(4)
    for number in range(24):
        path = source / f"day={number % 4}" / f"part-{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seeded.randbytes(seeded.choice([100, 40_000, MIB, 3 * MIB + 17, 9 * MIB])))
    expected = sums(source)
    node = make_node(device_size="256MiB")
    aws(node, "s3", "mb", "s3://lake")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(
            lambda n: aws(node, "s3", "cp", "--recursive", "--only-show-errors", source, f"s3://lake/{n}"), range(4)))
        list(pool.map(
            lambda n: aws(node, "s3", "cp", "--recursive", "--only-show-errors", f"s3://lake/{n}", scratch / str(n)),
            range(4)))
    for number in range(4):
        assert sums(scratch / str(number)) == expected, f"copy {number} differs"
    node.stop()
    node.assert_fsck_is_clean()
