//! CRC32C of one checksum unit (32 KiB), by library; CRC64NVME and MD5 beside it, of which MD5 is a PUT's dearest part.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::{hint::black_box, time::Duration};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use md5::{Digest as _, Md5};
use quarry_storage::store::CHECKSUM_UNIT_BYTES;

fn bench(c: &mut Criterion) {
    let unit: Vec<u8> = (0..CHECKSUM_UNIT_BYTES).map(|i| (i * 31).to_le_bytes()[0]).collect();
    assert_eq!(
        u64::from(crc32c::crc32c(&unit)),
        checksum(CrcAlgorithm::Crc32Iscsi, &unit),
        "the same function"
    );
    let mut group = c.benchmark_group("checksum of 32 KiB");
    group.throughput(Throughput::Bytes(CHECKSUM_UNIT_BYTES));
    group.bench_function("crc32c, crc-fast", |b| {
        b.iter(|| checksum(CrcAlgorithm::Crc32Iscsi, black_box(&unit)))
    });
    group.bench_function("crc32c, crc32c", |b| b.iter(|| crc32c::crc32c(black_box(&unit))));
    group.bench_function("crc64nvme, crc-fast", |b| {
        b.iter(|| checksum(CrcAlgorithm::Crc64Nvme, black_box(&unit)))
    });
    group.bench_function("md5", |b| b.iter(|| Md5::digest(black_box(&unit))));
    group.finish();
    md5_streams(c);
}

/// Streams of one core that get 32 KiB each in turns.
fn md5_streams(c: &mut Criterion) {
    let piece = Bytes::from(vec![7; 32 * 1024]);
    let mut group = c.benchmark_group("MD5 of 64 pieces of 32 KiB for each of N streams");
    for streams in [1, 2, 4, 8, 16] {
        group.throughput(Throughput::Bytes(64 * (piece.len() * streams) as u64));
        group.bench_function(streams.to_string(), |b| {
            b.iter(|| {
                let mut open: Vec<_> = (0..streams).map(|_| quarry_digest::Md5::new()).collect();
                for _ in 0..64 {
                    open.iter_mut().for_each(|stream| stream.update(piece.clone()));
                }
                open.into_iter().map(quarry_digest::Md5::finish).collect::<Vec<_>>()
            });
        });
    }
    group.finish();
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
