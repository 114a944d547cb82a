//! The index on a simulated device: what its code costs, without any I/O.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::{cell::RefCell, collections::BTreeMap, hint::black_box, rc::Rc, time::Duration};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::executor::block_on;
use quarry_storage::{
    device::{BLOCK_BYTES, SimDevice},
    extent::{BlockIndex, FreeMap},
    index::Tree,
};

const DEVICE_BLOCKS: u64 = 1 << 15;
const ROWS: u64 = 20_000;
/// About one manifest.
const ROW_BYTES: usize = 300;
/// The whole tree stays cached.
const CACHE_BYTES: usize = 64 << 20;
const SCATTERED_ROWS: u64 = 1000;
const SCAN_ROWS: usize = 1000;

type Batch = BTreeMap<Bytes, Option<Bytes>>;

struct Bed {
    device: SimDevice,
    tree: Tree<SimDevice>,
    space: RefCell<FreeMap>,
}

impl Bed {
    fn new() -> Self {
        let device = SimDevice::new(DEVICE_BLOCKS * BLOCK_BYTES as u64, 1);
        let tree = Tree::open(Rc::new(device.clone()), None, CACHE_BYTES);
        let space = RefCell::new(FreeMap::new(BlockIndex(1)..BlockIndex(DEVICE_BLOCKS)));
        Self { device, tree, space }
    }

    /// One checkpoint: apply, install, free the old pages.
    fn apply(&self, batch: &Batch) {
        let applied = block_on(self.tree.apply(batch, &self.space)).expect("the device has no faults");
        assert!(!self.tree.install(applied.root).in_use(), "nobody reads meanwhile");
        applied.freed.iter().for_each(|extent| self.space.borrow_mut().free(*extent));
        // The simulator remembers everything; a long run must not.
        block_on(quarry_storage::device::Device::flush(&self.device)).expect("the device has no faults");
        self.device.clear_events();
    }
}

fn key(row: u64) -> Bytes {
    // Scattered, as keys of a hash-partitioned table are.
    format!("{:016x}/object", row.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into()
}

fn puts(rows: impl Iterator<Item = u64>, fill: u8) -> Batch {
    rows.map(|row| (key(row), Some(vec![fill; ROW_BYTES].into()))).collect()
}

fn bench(c: &mut Criterion) {
    let bed = Bed::new();
    bed.apply(&puts(0..ROWS, 1));
    let mut group = c.benchmark_group("index of 20,000 rows");

    let scattered = puts((0..ROWS).step_by((ROWS / SCATTERED_ROWS) as usize), 2);
    group.throughput(Throughput::Elements(scattered.len() as u64));
    group.bench_function("apply 1,000 scattered puts", |b| b.iter(|| bed.apply(black_box(&scattered))));

    let mut row = 0;
    group.throughput(Throughput::Elements(1));
    group.bench_function("get, cached", |b| {
        b.iter(|| {
            row = (row + 7919) % ROWS;
            block_on(bed.tree.get(&key(row))).expect("the device has no faults").expect("the row exists")
        });
    });

    group.throughput(Throughput::Elements(SCAN_ROWS as u64));
    group.bench_function("scan 1,000 rows, cached", |b| {
        b.iter(|| {
            let rows = block_on(bed.tree.scan(b"4", b"z", SCAN_ROWS)).expect("the device has no faults");
            assert_eq!(rows.len(), SCAN_ROWS);
            rows
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = bench
}
criterion_main!(benches);
