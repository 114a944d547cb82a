"""pyarrow, Polars and DuckDB read and write one data set on a node, each what the others wrote."""

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from clients import LONG, keys_of
from harness import MIB
from test_parquet import connect_duckdb

ROWS = 20_000_000 if LONG else 400_000
DEVICE_SIZE = "1GiB" if LONG else "256MiB"
YEARS = (2024, 2025, 2026)


@pytest.fixture(scope="module")
def lake(shared_node):
    """A bucket with a table that pyarrow wrote, and the table itself."""
    shared_node.client().create_bucket(Bucket="lake")
    ids = pa.array(range(ROWS), pa.int64())
    table = pa.table({
        "id": ids,
        "year": pc.cast(pc.add(pc.divide(ids, ROWS // len(YEARS) + 1), YEARS[0]), pa.int32()),
        "name": pc.cast(pc.multiply(ids, 7919), pa.string()),
        "amount": pc.divide(pc.cast(pc.subtract(pc.multiply(ids, 31), 1000), pa.float64()), 4.0),
    })
    ds.write_dataset(
        table, "lake/arrow", filesystem=arrow(shared_node), format="parquet", partitioning=["year"],
        partitioning_flavor="hive", max_rows_per_group=50_000)
    return table


def arrow(node):
    access, secret = node.credentials()
    return pyarrow.fs.S3FileSystem(
        access_key=access, secret_key=secret, endpoint_override=node.endpoint, region="us-east-1", scheme="http")


def polars_options(node):
    access, secret = node.credentials()
    return {
        "aws_access_key_id": access, "aws_secret_access_key": secret, "aws_endpoint_url": node.endpoint,
        "aws_region": "us-east-1", "aws_allow_http": "true"}


def test_pyarrow_dataset(lake, shared_node):
    keys = keys_of(shared_node.client(), "lake", "arrow/")
    # pyarrow writes a marker for each folder too.
    assert {key.split("/")[1] for key in keys if not key.endswith("/")} == {f"year={year}" for year in YEARS}
    dataset = ds.dataset("lake/arrow", filesystem=arrow(shared_node), format="parquet", partitioning="hive")
    assert dataset.count_rows() == ROWS
    assert dataset.to_table().select(lake.column_names).sort_by("id").equals(lake)
    before = shared_node.metric("quarry_s3_bytes_total", direction="out")
    found = dataset.to_table(columns=["id", "amount"], filter=(ds.field("year") == 2025) & (ds.field("id") < ROWS // 2))
    assert found.num_rows == pc.sum(pc.and_(pc.equal(lake["year"], 2025), pc.less(lake["id"], ROWS // 2))).as_py()
    read = shared_node.metric("quarry_s3_bytes_total", direction="out") - before
    assert read < sum(file.size for file in arrow(shared_node).get_file_info(
        pyarrow.fs.FileSelector("lake/arrow", recursive=True)) if file.is_file) / 2, "columns and partitions not pruned"


def test_pyarrow_file_system(lake, shared_node):
    files = arrow(shared_node)
    files.create_dir("lake/files/empty")
    with files.open_output_stream("lake/files/a", metadata={"Content-Type": "text/x"}) as out:
        for _ in range(12):
            out.write(b"x" * MIB)  # several parts
    with files.open_input_file("lake/files/a") as file:
        assert file.size() == 12 * MIB
        file.seek(12 * MIB - 3)
        assert file.read() == b"xxx" and file.read_at(5, 7 * MIB) == b"xxxxx"
    files.copy_file("lake/files/a", "lake/files/b")
    files.move("lake/files/b", "lake/files/c")
    found = {info.path: info.type for info in files.get_file_info(pyarrow.fs.FileSelector("lake/files"))}
    assert found == {"lake/files/a": pyarrow.fs.FileType.File, "lake/files/c": pyarrow.fs.FileType.File,
                     "lake/files/empty": pyarrow.fs.FileType.Directory}
    assert files.get_file_info("lake/files/none").type == pyarrow.fs.FileType.NotFound
    files.delete_dir("lake/files")
    assert keys_of(shared_node.client(), "lake", "files/") == []
    with pytest.raises(FileNotFoundError):
        files.open_input_file("lake/files/a")


def test_polars(lake, shared_node):
    options = polars_options(shared_node)
    scan = pl.scan_parquet("s3://lake/arrow/**/*.parquet", storage_options=options, hive_partitioning=True)
    found = scan.filter(pl.col("year") == 2026).select(pl.len(), pl.col("amount").sum()).collect()
    expected = pl.from_arrow(lake).lazy().filter(pl.col("year") == 2026).select(pl.len(), pl.col("amount").sum()).collect()
    assert found.equals(expected), (found, expected)

    frame = pl.from_arrow(lake.slice(0, 100_000))
    frame.write_parquet("s3://lake/polars/one.parquet", storage_options=options)
    assert pl.read_parquet("s3://lake/polars/one.parquet", storage_options=options).equals(frame)
    # Streamed there from the other table, in parts; pyarrow reads what Polars wrote.
    scan.sink_parquet("s3://lake/polars/all.parquet", storage_options=options)
    back = pq.read_table("lake/polars/all.parquet", filesystem=arrow(shared_node))
    assert back.num_rows == ROWS and pc.sum(back["id"]).as_py() == ROWS * (ROWS - 1) // 2
    frame.lazy().sink_csv("s3://lake/polars/one.csv", storage_options=options)
    assert pl.scan_csv("s3://lake/polars/one.csv", storage_options=options).select(pl.len()).collect().item() == 100_000
    with pytest.raises(Exception, match="(?i)not ?found|expanded paths were empty"):
        pl.read_parquet("s3://lake/polars/none.parquet", storage_options=options)


def test_duckdb_writes(lake, shared_node):
    connection = connect_duckdb(shared_node)
    table = "read_parquet('s3://lake/arrow/**/*.parquet', hive_partitioning = true)"
    connection.execute(f"COPY (SELECT * FROM {table}) TO 's3://lake/duckdb' (FORMAT parquet, PARTITION_BY (year))")
    assert connection.execute("SELECT count(*) FROM glob('s3://lake/duckdb/*/*.parquet')").fetchone()[0] >= len(YEARS)
    dataset = ds.dataset("lake/duckdb", filesystem=arrow(shared_node), format="parquet", partitioning="hive")
    assert dataset.to_table().select(lake.column_names).sort_by("id").equals(lake)
    connection.execute("COPY (SELECT 1 AS a, 'x' AS b) TO 's3://lake/duckdb/one.csv' (HEADER)")
    assert connection.execute("SELECT * FROM 's3://lake/duckdb/one.csv'").fetchall() == [(1, "x")]
    with pytest.raises(duckdb.Error, match="404"):
        connection.execute("SELECT * FROM 's3://lake/duckdb/none.parquet'")
    connection.close()
