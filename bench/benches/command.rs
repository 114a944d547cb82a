//! The commands of a partition as they travel between cores, and the hash that finds the partition.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quarry_clustermap::{
    BlobId, BucketId, ErasureProfile, Incarnation, NodeId, PARTITIONS_CLUSTER, PgId, WriterCounter,
    partition_of,
};
use quarry_partition::{
    BlobRef,
    command::{Command, Conditions, Content, Framed as _, Lookup, Put, StoredAttributes},
};

const KEY: &str = "warehouse/events/year=2026/month=11/day=22/part-00042.parquet";
const BUCKET: BucketId = BucketId(7);

fn put(content: Content) -> Command {
    Command::Put(Put {
        bucket: BUCKET,
        key: KEY.into(),
        etag: "d41d8cd98f00b204e9800998ecf8427e".into(),
        attributes: StoredAttributes {
            headers: vec![("content-type".into(), "application/vnd.apache.parquet".into())],
            user: Vec::new(),
        },
        tags: Vec::new(),
        checksums: vec![("crc64nvme".into(), "AAAAAAAAAAA=".into())],
        content,
        conditions: Conditions::default(),
    })
}

fn blob(count: u64) -> BlobRef {
    BlobRef {
        blob: BlobId { writer: NodeId(1), incarnation: Incarnation(1), counter: WriterCounter(count) },
        pg: PgId(3),
        profile: ErasureProfile { data_shards: 4, parity_shards: 2 },
        size_bytes: 64 << 20,
        missing_shards: 0,
    }
}

fn bench(c: &mut Criterion) {
    let commands = [
        ("head", Command::Head(Lookup::newest(BUCKET, KEY))),
        ("put of one blob", put(Content::Blobs(vec![blob(1)]))),
        ("put of 4 KiB inline", put(Content::Inline { request: blob(1).blob, bytes: vec![7; 4096] })),
    ];
    let mut group = c.benchmark_group("command");
    for (name, command) in &commands {
        let frame = command.encode();
        assert_eq!(Command::decode(&frame).as_ref(), Ok(command));
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(format!("encode {name}"), |b| b.iter(|| black_box(command).encode()));
        group.bench_function(format!("decode {name}"), |b| b.iter(|| Command::decode(black_box(&frame))));
    }
    group.finish();
    c.bench_function("partition_of a 61-byte key", |b| {
        b.iter(|| partition_of(BUCKET, black_box(KEY.as_bytes()), PARTITIONS_CLUSTER));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
    targets = bench
}
criterion_main!(benches);
