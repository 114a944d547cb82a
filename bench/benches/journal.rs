//! A durable log entry on a real file: ring, journal batch, flush. What it costs follows the disk's flush; the
//! difference between 1 and 16 writers is the group commit. `QUARRY_BENCH_DIR` chooses the directory.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::{cell::RefCell, future::Future, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::{
    StreamExt as _,
    future::{LocalBoxFuture, try_join_all},
    stream::FuturesUnordered,
};
use quarry_clustermap::{ClusterId, DeviceId, Epoch, PartitionId, Sequence};
use quarry_storage::{
    device::{BufferPool, DeviceFile, Ring, UringDevice},
    store::{FormatParams, LogEntry, Mutation, Store, StoreOptions},
};

const DEVICE_BYTES: u64 = 512 << 20;
const RING_DEPTH: u32 = 64;
const POOL_SLOTS: usize = 64;
/// About one manifest.
const PAYLOAD_BYTES: usize = 300;
const WRITERS: [u16; 2] = [1, 16];

type Tasks = Rc<RefCell<FuturesUnordered<LocalBoxFuture<'static, ()>>>>;

/// A store with its ring, and the thread of the bench as its executor.
struct Bed {
    ring: Ring,
    tasks: Tasks,
    spawned: Rc<RefCell<Vec<LocalBoxFuture<'static, ()>>>>,
    sequences: RefCell<Vec<Sequence>>,
}

impl Bed {
    fn run<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        self.ring.drive_blocking(std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            loop {
                let ended = self.tasks.borrow_mut().poll_next_unpin(cx);
                let new = std::mem::take(&mut *self.spawned.borrow_mut());
                if !matches!(ended, Poll::Ready(Some(()))) && new.is_empty() {
                    return Poll::Pending;
                }
                self.tasks.borrow_mut().extend(new);
            }
        }))
    }

    /// One entry from each of `writers` partitions at once.
    async fn commit(&self, store: &Store<UringDevice>, writers: u16) {
        let entries = (0..writers).map(|partition| {
            let sequence = {
                let last = &mut self.sequences.borrow_mut()[usize::from(partition)];
                *last = last.next();
                *last
            };
            let partition = PartitionId(partition);
            let entry = LogEntry {
                partition,
                epoch: Epoch(1),
                sequence,
                committed: Sequence(sequence.0 - 1),
                payload: Bytes::from_static(&[7; PAYLOAD_BYTES]),
            };
            async move {
                store.append(entry.epoch, entry).await?;
                // One row per partition, written again and again: the overlay stays small.
                let row =
                    Mutation { key: Bytes::from_static(b"row"), value: Some(Bytes::from_static(b"value")) };
                store.apply(partition, sequence, vec![row]);
                Ok::<_, quarry_storage::store::StoreError>(())
            }
        });
        try_join_all(entries).await.expect("the file has room and no faults");
    }
}

fn bench(c: &mut Criterion) {
    let base = std::env::var_os("QUARRY_BENCH_DIR").unwrap_or_else(|| ".".into());
    let directory =
        tempfile::Builder::new().prefix("journal-bench").tempdir_in(base).expect("a directory to write in");
    let file =
        DeviceFile::create(directory.path().join("device"), DEVICE_BYTES).expect("space for the device file");
    let ring = Ring::new(RING_DEPTH, &BufferPool::new(POOL_SLOTS).expect("memory")).expect("io_uring");
    let device = Rc::new(UringDevice::new(&ring, file));
    let bed = Bed {
        ring,
        tasks: Tasks::default(),
        spawned: Rc::default(),
        sequences: RefCell::new(vec![Sequence(0); usize::from(WRITERS[1])]),
    };
    let spawned = Rc::clone(&bed.spawned);
    let store = bed.run(async {
        let params = FormatParams::new(ClusterId([1; 16]), DeviceId(1), DEVICE_BYTES);
        Store::format(Rc::clone(&device), params).await.expect("the file takes a store");
        let spawn = Rc::new(move |task| spawned.borrow_mut().push(task));
        Store::open(device, StoreOptions::new(spawn, Rc::new(|_| Ok(Vec::new()))))
            .await
            .expect("it was just formatted")
    });
    let mut group = c.benchmark_group("durable log entries of 300 B");
    for writers in WRITERS {
        group.throughput(Throughput::Elements(u64::from(writers)));
        group.bench_function(format!("{writers} at once"), |b| {
            b.iter(|| bed.run(bed.commit(&store, writers)))
        });
    }
    group.finish();
    bed.run(store.shutdown()).expect("the file has no faults");
    // The writer task ends with the store; a ring must not be dropped under a task that uses it.
    bed.tasks.borrow_mut().clear();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = bench
}
criterion_main!(benches);
