use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use futures::executor::LocalPool;
use futures::future::{FutureExt, join_all};
use futures::task::LocalSpawnExt;
use quarry_clustermap::{
    BlobId, ClusterId, DeviceId, Epoch, Incarnation, NodeId, PartitionId, PgId, Sequence, ShardIndex,
    WriterCounter,
};

use super::{
    FormatParams, LogEntry, Mutation, RecoveredLog, ShardExtent, ShardRow, Store, StoreError, StoreOptions,
    StoreState,
};
use crate::device::{BLOCK_BYTES, Device, Event, Fault, IoBuf, Operation, SimDevice, When};
use crate::extent::{Extent, FreeMap};
use crate::index::{Visit, WalkDepth};

mod copy;
mod crash;
mod inspection;
mod mending;
mod quarantine;
mod soak;
mod space;
mod verifying;
mod walking;

const DEVICE_BYTES: u64 = 4 << 20;
const JOURNAL_BYTES: u64 = 256 << 10;
const PG: PgId = PgId(1);
const PARTITION: PartitionId = PartitionId(3);

/// Test payloads: `key=value` or `key` (a deletion), separated by commas.
fn decode(payload: &[u8]) -> Result<Vec<Mutation>, String> {
    let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let one = |item: &str| match item.split_once('=') {
        Some((key, value)) => Mutation { key: bytes(key), value: Some(bytes(value)) },
        None => Mutation { key: bytes(item), value: None },
    };
    Ok(text.split(',').filter(|item| !item.is_empty()).map(one).collect())
}

fn options(pool: &LocalPool) -> StoreOptions {
    let spawner = pool.spawner();
    let spawn = Rc::new(move |task| spawner.spawn_local(task).unwrap());
    let mut options = StoreOptions::new(spawn, Rc::new(decode));
    options.cache_bytes = 1 << 20;
    options
}

fn params() -> FormatParams {
    FormatParams { cluster: ClusterId([7; 16]), device: DeviceId(0xabcd), journal_bytes: JOURNAL_BYTES }
}

/// A store on a simulated device, with its executor.
struct Rig {
    pool: LocalPool,
    device: SimDevice,
    store: Store<SimDevice>,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let device = SimDevice::new(DEVICE_BYTES, seed);
        LocalPool::new().run_until(Store::format(Rc::new(device.clone()), params())).unwrap();
        Self::open(device).unwrap()
    }

    fn open(device: SimDevice) -> Result<Self, StoreError> {
        let mut pool = LocalPool::new();
        let options = options(&pool);
        let store = pool.run_until(Store::open(Rc::new(device.clone()), options))?;
        Ok(Self { pool, device, store })
    }

    /// Runs `work` with a handle to the store.
    fn run<F: Future>(&mut self, work: impl FnOnce(Store<SimDevice>) -> F) -> F::Output {
        self.pool.run_until(work(self.store.clone()))
    }

    fn reopen_after_crash(&self, seed: u64) -> Self {
        Self::open(self.device.crash(seed)).unwrap()
    }
}

fn blob(n: u64) -> BlobId {
    BlobId { writer: NodeId(1), incarnation: Incarnation(1), counter: WriterCounter(n) }
}

fn row(n: u64, epoch: u64, extents: &[Extent]) -> ShardRow {
    let piece = |&extent: &Extent| ShardExtent {
        extent,
        len_bytes: u32::try_from(extent.len_bytes()).unwrap(),
        checksums: vec![7; usize::try_from(extent.len_bytes().div_ceil(32 * 1024)).unwrap()],
    };
    let extents: Vec<_> = extents.iter().map(piece).collect();
    let len_bytes = extents.iter().map(|piece| u64::from(piece.len_bytes)).sum();
    ShardRow {
        pg: PG,
        blob: blob(n),
        shard: ShardIndex(0),
        owner_partition: PARTITION,
        epoch: Epoch(epoch),
        writer: NodeId(1),
        len_bytes,
        extents,
    }
}

/// Reserves, writes the data and commits.
async fn put_shard<D: Device + 'static>(
    store: &Store<D>,
    n: u64,
    blocks: u64,
) -> Result<ShardRow, StoreError> {
    let extents = store.reserve(blocks * BLOCK_BYTES as u64)?;
    for extent in &extents {
        let mut buf = IoBuf::zeroed(usize::try_from(extent.len_bytes()).unwrap());
        buf.fill(u8::try_from(n % 251).unwrap());
        store.device().write(extent.start.offset_bytes(), buf).await.0?;
    }
    let row = row(n, 1, &extents);
    store.commit_shard(row.clone()).await.map(|()| row)
}

async fn get_shard<D: Device + 'static>(store: &Store<D>, n: u64) -> Option<ShardRow> {
    store.shard(PG, blob(n), ShardIndex(0)).await.unwrap()
}

async fn free<D: Device + 'static>(store: &Store<D>, n: u64) -> Result<bool, StoreError> {
    store.free_shard(PG, Epoch(1), blob(n), ShardIndex(0)).await
}

fn entry(partition: PartitionId, sequence: u64, committed: u64, payload: &str) -> LogEntry {
    LogEntry {
        partition,
        epoch: Epoch(1),
        sequence: Sequence(sequence),
        committed: Sequence(committed),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

/// The free map must be the data area minus the index, the free map's own image and the shards.
async fn check_space<D: Device + 'static>(store: &Store<D>) {
    let mut expected = FreeMap::new(store.0.space.free.borrow().area());
    store.0.superblock.borrow().free_map.extents.iter().for_each(|&e| expected.reserve_exact(e).unwrap());
    let mut pages = Vec::new();
    let visit = |visit: Visit<'_>| match visit {
        Visit::Page { extent, .. } | Visit::Value { extent, .. } => pages.push(extent),
        Visit::Damaged { error, .. } => panic!("{error}"),
    };
    store.0.tree.walk(WalkDepth::Values, visit).await;
    pages.into_iter().for_each(|extent| expected.reserve_exact(extent).unwrap());
    for row in store.shards(None, usize::MAX).await.unwrap() {
        row.extents.iter().for_each(|piece| expected.reserve_exact(piece.extent).unwrap());
    }
    store.0.space.collect();
    let free = store.0.space.free.borrow();
    free.quarantined().into_iter().for_each(|extent| expected.quarantine(extent));
    assert_eq!(free.idle(), expected.idle());
    let runs = |map: &FreeMap| map.runs().collect::<Vec<_>>();
    assert_eq!(runs(&free), runs(&expected), "blocks leaked or are owned twice");
}

#[test]
fn what_was_acknowledged_survives_a_crash() {
    let mut rig = Rig::new(1);
    rig.run(|store| async move {
        put_shard(&store, 1, 40).await.unwrap();
        put_shard(&store, 2, 3).await.unwrap();
        assert!(free(&store, 1).await.unwrap());
        assert!(!free(&store, 1).await.unwrap());
        for sequence in 1..=4 {
            let payload = format!("k{sequence}=v{sequence}");
            store
                .append(Epoch(1), entry(PARTITION, sequence, sequence.saturating_sub(2), &payload))
                .await
                .unwrap();
        }
        store.put_local("map", Bytes::from_static(b"newest")).await.unwrap();
        store.raise_pg_epoch(PG, Epoch(5)).await.unwrap();
    });
    let mut again = rig.reopen_after_crash(9);
    again.run(|store| async move {
        assert_eq!(get_shard(&store, 1).await, None);
        assert_eq!(get_shard(&store, 2).await.unwrap().len_bytes, 3 * 4096);
        let RecoveredLog { epoch, applied, tail } = store.recovered_log(PARTITION);
        assert_eq!((epoch, applied), (Epoch(1), Sequence(2)), "applied as far as entry 4 knew");
        assert_eq!(tail.iter().map(|entry| entry.sequence.0).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(store.row(PARTITION, b"k2").await.unwrap().unwrap(), "v2");
        assert_eq!(store.row(PARTITION, b"k3").await.unwrap(), None);
        assert_eq!(store.get_local("map").await.unwrap().unwrap(), "newest");
        assert_eq!(store.pg_epoch(PG), Epoch(5));
        check_space(&store).await;
    });
}

#[test]
fn one_flush_serves_all_waiting_callers() {
    let mut rig = Rig::new(2);
    let before = rig.store.stats().load();
    rig.run(|store| async move {
        let entry = |n| entry(PartitionId(n), 1, 0, "k=v");
        let store = &store;
        let appends = (0..50).map(|n| store.append(Epoch(1), entry(n)));
        join_all(appends).await.into_iter().for_each(Result::unwrap);
    });
    let after = rig.store.stats().load();
    assert_eq!(after.records - before.records, 50);
    assert!(after.batches - before.batches <= 2, "{after:?}");
    assert_eq!(after.flushes - before.flushes, after.batches - before.batches);
}

#[test]
fn nobody_resolves_before_the_flush_that_covers_data_and_record() {
    let mut rig = Rig::new(3);
    rig.device.set_shuffle(true);
    let acknowledged = Rc::new(RefCell::new(Vec::<(Vec<Extent>, usize)>::new()));
    let log = Rc::clone(&acknowledged);
    let device = rig.device.clone();
    device.clear_events();
    rig.run(|store| async move {
        let writers = (0..20).map(|n| {
            let (store, device, log) = (&store, &device, &log);
            async move {
                let row = put_shard(store, n, 2).await.unwrap();
                let extents = row.extents.iter().map(|piece| piece.extent).collect();
                log.borrow_mut().push((extents, device.events().len()));
            }
        });
        join_all(writers).await;
    });
    let events = rig.device.events();
    let journal_end = (2 + JOURNAL_BYTES / 4096) * 4096;
    let in_journal = |offset: u64| (2 * 4096..journal_end).contains(&offset);
    for (extents, acknowledged_at) in acknowledged.borrow().iter() {
        let data_done = extents.iter().map(|extent| {
            let at = extent.start.offset_bytes();
            events.iter().position(|e| matches!(e, Event::WriteDone { offset, .. } if *offset == at)).unwrap()
        });
        let data_done = data_done.max().unwrap();
        let from =
            |at: usize, wanted: &dyn Fn(&Event) -> bool| at + events[at..].iter().position(wanted).unwrap();
        // A batch begun after the data, a flush begun after that batch was written, and its end.
        let start =
            from(data_done, &|e| matches!(e, Event::WriteStart { offset, .. } if in_journal(*offset)));
        let done = from(start, &|e| matches!(e, Event::WriteDone { offset, .. } if in_journal(*offset)));
        let flush = from(done, &|e| *e == Event::FlushStart);
        let flushed = from(flush, &|e| *e == Event::FlushDone);
        assert!(flushed < *acknowledged_at, "data {data_done}, flush {flushed}, ack {acknowledged_at}");
    }
    assert_eq!(acknowledged.borrow().len(), 20);
}

#[test]
fn stale_epochs_are_refused_also_after_a_crash() {
    let mut rig = Rig::new(4);
    let check = |store: Store<SimDevice>| async move {
        let extents = store.reserve(4096).unwrap();
        let stale = StoreError::StalePgEpoch { pg: PG, seen: Epoch(5) };
        assert_eq!(store.commit_shard(row(1, 4, &extents)).await, Err(stale.clone()));
        assert_eq!(free(&store, 1).await, Err(stale.clone()));
        assert_eq!(store.raise_pg_epoch(PG, Epoch(4)).await, Err(stale));
        let stale = StoreError::StaleEpoch { partition: PARTITION, seen: Epoch(6) };
        assert_eq!(store.append(Epoch(1), entry(PARTITION, 1, 0, "")).await, Err(stale.clone()));
        assert_eq!(store.truncate(PARTITION, Epoch(5), Sequence(0)).await, Err(stale.clone()));
        assert_eq!(store.reset(PARTITION, Epoch(5), Sequence(0)).await, Err(stale.clone()));
        assert!(stale.is_stale());
        check_space(&store).await;
    };
    rig.run(|store| async move {
        store.raise_pg_epoch(PG, Epoch(5)).await.unwrap();
        store.raise_partition_epoch(PARTITION, Epoch(6)).await.unwrap();
    });
    rig.run(check);
    let mut again = rig.reopen_after_crash(1);
    again.run(check);
    again.run(|store| async move { store.shutdown().await.unwrap() });
    Rig::open(again.device.clone()).unwrap().run(check);
}

#[test]
fn log_rules() {
    let mut rig = Rig::new(5);
    rig.run(|store| async move {
        let append = |sequence, payload| store.append(Epoch(1), entry(PARTITION, sequence, 0, payload));
        append(1, "a=1").await.unwrap();
        let gap =
            StoreError::OutOfSequence { partition: PARTITION, expected: Sequence(2), given: Sequence(3) };
        assert_eq!(append(3, "c=1").await, Err(gap));
        append(2, "b=1").await.unwrap();
        append(3, "c=1").await.unwrap();
        store.apply(PARTITION, Sequence(2), decode(b"a=1,b=1").unwrap());
        store.apply(PARTITION, Sequence(1), decode(b"a=old").unwrap());
        assert_eq!(store.row(PARTITION, b"a").await.unwrap().unwrap(), "1");
        let refused = store.truncate(PARTITION, Epoch(1), Sequence(1)).await;
        assert!(matches!(refused, Err(StoreError::TruncatesApplied { .. })));
        store.truncate(PARTITION, Epoch(2), Sequence(2)).await.unwrap();
        assert!(store.recovered_log(PARTITION).tail.is_empty());
        let late = LogEntry { epoch: Epoch(2), ..entry(PARTITION, 3, 2, "d=1") };
        store.append(Epoch(2), late).await.unwrap();
        store.reset(PartitionId(9), Epoch(1), Sequence(99)).await.unwrap();
        store.append(Epoch(4), entry(PartitionId(9), 100, 0, "x=1")).await.unwrap();
        let joiner = store.recovered_log(PartitionId(9));
        assert_eq!((joiner.epoch, joiner.applied), (Epoch(4), Sequence(99)), "a joiner starts in the middle");
        let huge = "x".repeat(1 << 20);
        let huge = store.append(Epoch(1), entry(PartitionId(8), 1, 0, &huge)).await;
        assert!(matches!(huge, Err(StoreError::RecordTooLarge { .. })));
    });
    let mut again = rig.reopen_after_crash(2);
    again.run(|store| async move {
        let log = store.recovered_log(PARTITION);
        assert_eq!((log.epoch, log.applied), (Epoch(2), Sequence(2)));
        assert_eq!(log.tail.len(), 1);
        assert_eq!(log.tail[0].payload, "d=1");
        let joiner = store.recovered_log(PartitionId(9));
        assert_eq!(
            (joiner.epoch, joiner.tail[0].epoch),
            (Epoch(4), Epoch(1)),
            "in force, and the entry's own"
        );
        assert_eq!(joiner.tail[0].sequence, Sequence(100));
    });
}

#[test]
fn a_reset_wipes_rows_wherever_they_are() {
    let mut rig = Rig::new(6);
    rig.run(|store| async move {
        for (sequence, payload) in [(1, "a=1,b=1"), (2, "c=1")] {
            store.append(Epoch(1), entry(PARTITION, sequence, 0, payload)).await.unwrap();
            store.apply(PARTITION, Sequence(sequence), decode(payload.as_bytes()).unwrap());
            if sequence == 1 {
                store.checkpoint().await.unwrap();
            }
        }
        store.append(Epoch(1), entry(PartitionId(4), 1, 0, "other=1")).await.unwrap();
        store.apply(PartitionId(4), Sequence(1), decode(b"other=1").unwrap());
        assert_eq!(store.rows(PARTITION, b"", None, 10).await.unwrap().len(), 3);
        store.reset(PARTITION, Epoch(3), Sequence(49)).await.unwrap();
        assert!(store.rows(PARTITION, b"", None, 10).await.unwrap().is_empty());
        let fresh = LogEntry { epoch: Epoch(3), ..entry(PARTITION, 50, 0, "new=1") };
        store.append(Epoch(3), fresh).await.unwrap();
        store.apply(PARTITION, Sequence(50), decode(b"new=1").unwrap());
    });
    let check = |store: Store<SimDevice>| async move {
        let rows = store.rows(PARTITION, b"", None, 10).await.unwrap();
        assert_eq!(rows.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [b"new"]);
        assert_eq!(store.row(PARTITION, b"a").await.unwrap(), None);
        assert_eq!(store.row(PartitionId(4), b"other").await.unwrap().unwrap(), "1");
        check_space(&store).await;
    };
    rig.run(check);
    rig.run(|store| async move { store.checkpoint().await.unwrap() });
    rig.run(check);
    rig.reopen_after_crash(3).run(check);
}

#[test]
fn a_failed_write_or_flush_fails_the_store_for_ever() {
    for operation in [Operation::Write, Operation::Flush] {
        let mut rig = Rig::new(7);
        let told = Rc::new(Cell::new(0));
        let (pool, device) = (LocalPool::new(), rig.device.clone());
        rig.run(|store| async move { store.shutdown().await.unwrap() });
        let mut options = options(&pool);
        let count = Rc::clone(&told);
        options.on_failed = Some(Rc::new(move |_| count.set(count.get() + 1)));
        let mut rig = Rig { pool, store: rig.store.clone(), device: device.clone() };
        rig.store = rig.pool.run_until(Store::open(Rc::new(device.clone()), options)).unwrap();
        device.inject(Fault::Error, When::on(operation));
        rig.run(|store| async move {
            let (first, second) = futures::join!(
                store.append(Epoch(1), entry(PARTITION, 1, 0, "a=1")),
                store.append(Epoch(1), entry(PARTITION, 2, 0, "b=1")),
            );
            assert!(matches!(first, Err(StoreError::Device(_))), "{first:?}");
            assert!(second.is_err());
            let later = store.append(Epoch(1), entry(PARTITION, 3, 0, "c=1")).await;
            assert!(matches!(later, Err(StoreError::Failed { .. })), "{later:?}");
            assert!(matches!(store.state(), StoreState::Failed(_)));
            assert!(store.checkpoint().await.is_err());
        });
        assert_eq!(told.get(), 1);
        rig.reopen_after_crash(1).run(|store| async move { check_space(&store).await });
    }
}

#[test]
fn shutdown_leaves_nothing_to_replay_and_read_only_writes_nothing() {
    let mut rig = Rig::new(8);
    rig.run(|store| async move {
        put_shard(&store, 1, 5).await.unwrap();
        store.append(Epoch(1), entry(PARTITION, 1, 0, "a=1")).await.unwrap();
        store.shutdown().await.unwrap();
        assert_eq!(store.append(Epoch(1), entry(PARTITION, 2, 0, "b=1")).await, Err(StoreError::Closed));
    });
    let device = rig.device.crash_keeping_nothing();
    let pool = LocalPool::new();
    let mut pool = pool;
    let options = options(&pool);
    let store = pool.run_until(Store::open_read_only(Rc::new(device.clone()), options)).unwrap();
    pool.run_until(async {
        assert!(get_shard(&store, 1).await.is_some());
        assert_eq!(store.recovered_log(PARTITION).tail.len(), 1, "uncommitted entries were carried over");
        assert_eq!(store.reserve(1), Err(StoreError::ReadOnly));
        check_space(&store).await;
    });
    assert!(device.events().iter().all(|event| matches!(event, Event::Read { .. })));
}

#[test]
fn damage_in_the_middle_of_the_journal_is_not_a_torn_tail() {
    let mut rig = Rig::new(9);
    for sequence in 1..=5 {
        rig.run(|store| async move {
            store.append(Epoch(1), entry(PARTITION, sequence, 0, "a=1")).await.unwrap()
        });
    }
    let torn = rig.device.crash_keeping_nothing();
    torn.flip_bit((2 + 4) * 4096 + 70, 3);
    Rig::open(torn).unwrap().run(|store| async move {
        assert_eq!(store.recovered_log(PARTITION).tail.len(), 4);
    });
    let damaged = rig.device.crash_keeping_nothing();
    damaged.flip_bit((2 + 2) * 4096 + 70, 3);
    let refused = Rig::open(damaged.clone()).err();
    assert_eq!(refused, Some(StoreError::JournalDamaged { expected: 3, found: 5 }));
    let mut pool = LocalPool::new();
    let options = StoreOptions { salvage: true, ..options(&pool) };
    pool.run_until(async {
        let store = Store::open(Rc::new(damaged.clone()), options).await.unwrap();
        assert_eq!(store.recovered_log(PARTITION).tail.len(), 2);
        store.append(Epoch(1), entry(PARTITION, 3, 0, "b=1")).await.unwrap();
    });
    Rig::open(damaged.crash_keeping_nothing()).unwrap().run(|store| async move {
        assert_eq!(store.recovered_log(PARTITION).tail.len(), 3, "salvaged once, whole again");
        check_space(&store).await;
    });
}

#[test]
fn one_bad_superblock_pair_does_not_matter() {
    let mut rig = Rig::new(10);
    rig.run(|store| async move {
        put_shard(&store, 1, 5).await.unwrap();
        store.shutdown().await.unwrap();
    });
    for slots in [[0, 1], [2, 3], [0, 3], [1, 2]] {
        let device = rig.device.crash_keeping_nothing();
        for slot in slots {
            device.flip_bit(crate::format::superblock::slot_offset(slot, DEVICE_BYTES) + 20, 1);
        }
        Rig::open(device).unwrap().run(|store| async move { assert!(get_shard(&store, 1).await.is_some()) });
    }
    let blank = SimDevice::new(DEVICE_BYTES, 1);
    assert!(matches!(Rig::open(blank).err(), Some(StoreError::NoSuperblock { .. })));
}

#[test]
fn reads_see_every_layer_while_a_checkpoint_runs() {
    let mut rig = Rig::new(11);
    rig.device.set_shuffle(true);
    rig.run(|store| async move {
        let mut model = BTreeMap::new();
        for round in 0..40_u64 {
            let key = format!("k{:02}", round * 7 % 23);
            let payload = if round % 5 == 4 { key.clone() } else { format!("{key}={round}") };
            store.append(Epoch(1), entry(PARTITION, round + 1, round, &payload)).await.unwrap();
            store.apply(PARTITION, Sequence(round + 1), decode(payload.as_bytes()).unwrap());
            match payload.split_once('=') {
                Some((key, value)) => model.insert(key.to_owned(), value.to_owned()),
                None => model.remove(&key),
            };
            let checkpoint = store.checkpoint().fuse();
            let reads = async {
                for limit in [1, 3, 100] {
                    let found = store.rows(PARTITION, b"", None, limit).await.unwrap();
                    let expected = model.iter().take(limit);
                    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                    let found: Vec<_> = found.iter().map(|(key, value)| (text(key), text(value))).collect();
                    assert!(
                        found.iter().map(|(key, value)| (key, value)).eq(expected),
                        "round {round}: {found:?}"
                    );
                }
                for n in 0..23 {
                    let key = format!("k{n:02}");
                    let found = store.row(PARTITION, key.as_bytes()).await.unwrap();
                    assert_eq!(found.as_deref(), model.get(&key).map(String::as_bytes));
                }
            };
            if round % 3 == 0 {
                futures::join!(checkpoint, reads).0.unwrap();
            } else {
                reads.await;
            }
        }
        check_space(&store).await;
    });
}
