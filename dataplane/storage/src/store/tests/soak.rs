//! No block leaks, whatever happens: a long random workload on a small device that is nearly always full, with power
//! cuts and orderly shutdowns, checked against a model after each.
//!
//! `QUARRY_SOAK_OPERATIONS=N` (20,000 by default) and `QUARRY_SOAK_SEED=S`. Several tasks work at once, each on
//! subjects of its own: what was acknowledged of a subject must be there after a power cut, what was submitted later
//! wholly or not at all, and the space is accounted for to the block. In the end everything is deleted and as many
//! blocks are free as on a fresh store.

use std::collections::BTreeSet;
use std::time::Instant;

use event_listener::Event;
use futures::future::{Either, select};

use super::*;
use crate::device::SECTOR_BYTES;

const SOAK_DEVICE_BYTES: u64 = 8 << 20;
const TASKS: u64 = 6;
const SHARDS_PER_TASK: u64 = 16;
const PARTITIONS: u16 = 4;
const LOCALS: usize = 3;
/// Unapplied bytes of one partition: together they stay below what the ring takes, or appends would wait for ever.
const TAIL_BYTES_MAX: usize = 6 << 10;

/// A shard's version and blocks.
type Shard = Option<(u32, u64)>;

/// What is durable of a subject, and what may be.
#[derive(Clone, Default, Debug)]
struct Value<T> {
    acknowledged: T,
    submitted: Option<T>,
}

impl<T: Clone> Value<T> {
    fn settle(&mut self) {
        self.acknowledged = self.submitted.take().expect("submitted before");
    }
}

#[derive(Clone, Debug)]
enum LogChange {
    /// Payload, and what the entry says is committed.
    Append(String, u64),
    Truncate(u64),
    Reset(u64),
}

/// A partition's log: where the last opening found it, and the changes since.
#[derive(Clone, Default, Debug)]
struct LogModel {
    rows: BTreeMap<Bytes, Bytes>,
    base: u64,
    tail: Vec<String>,
    /// Applied at least and at most.
    applied: (u64, u64),
    changes: Vec<LogChange>,
    acknowledged: usize,
}

impl LogModel {
    /// After so many of the changes.
    fn after(&self, changes: usize) -> Self {
        let mut log = Self { changes: Vec::new(), acknowledged: 0, ..self.clone() };
        log.applied.0 = log.base;
        for change in &self.changes[..changes] {
            match change {
                LogChange::Append(payload, committed) => {
                    log.tail.push(payload.clone());
                    log.applied.0 = log.applied.0.max(*committed);
                }
                LogChange::Truncate(after) => log.tail.truncate(usize::try_from(after - log.base).unwrap()),
                LogChange::Reset(base) => {
                    (log.rows, log.tail) = (BTreeMap::new(), Vec::new());
                    (log.base, log.applied.0) = (*base, *base);
                }
            }
        }
        log
    }

    fn last(&self) -> u64 {
        self.base + self.tail.len() as u64
    }

    /// Moves entries up to `applied` into the rows.
    fn apply(&mut self, applied: u64) {
        for payload in self.tail.drain(..usize::try_from(applied - self.base).unwrap()) {
            for Mutation { key, value } in decode(payload.as_bytes()).unwrap() {
                match value {
                    Some(value) => self.rows.insert(key, value),
                    None => self.rows.remove(&key),
                };
            }
        }
        (self.base, self.applied) = (applied, (applied, applied));
    }
}

#[derive(Default, Debug)]
struct Counts {
    operations: u64,
    cuts: u64,
    shutdowns: u64,
    checkpoints: u64,
    full: u64,
    overloaded: u64,
    replaced: u64,
    freed_under_pin: u64,
    released: u64,
}

struct Soak {
    seed: u64,
    random: Cell<u64>,
    version: Cell<u32>,
    counts: RefCell<Counts>,
    shards: RefCell<BTreeMap<u64, Value<Shard>>>,
    logs: RefCell<Vec<LogModel>>,
    locals: RefCell<[Value<Option<Bytes>>; LOCALS]>,
    /// Versions whose record came up unacknowledged where nothing was before: perhaps without their data.
    uncertain: RefCell<BTreeSet<u32>>,
    /// The round ends at this number of operations.
    round_ends: Cell<u64>,
    orderly: Cell<bool>,
    round_over: Event,
}

impl Soak {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            random: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            version: Cell::default(),
            counts: RefCell::default(),
            shards: RefCell::default(),
            logs: RefCell::new(vec![LogModel::default(); usize::from(PARTITIONS)]),
            locals: RefCell::default(),
            uncertain: RefCell::default(),
            round_ends: Cell::default(),
            orderly: Cell::default(),
            round_over: Event::new(),
        }
    }

    fn random(&self, below: u64) -> u64 {
        let mut state = self.random.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.set(state);
        (state >> 11) % below
    }

    /// Counts an operation; false if the round is over and the tasks shall end.
    fn next(&self) -> bool {
        let mut counts = self.counts.borrow_mut();
        if counts.operations >= self.round_ends.get() {
            self.round_over.notify(usize::MAX);
            if self.orderly.get() {
                return false;
            }
        }
        counts.operations += 1;
        true
    }

    /// Whether it worked; else it was refused for want of room, and nothing has changed.
    fn accepted<T>(&self, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(StoreError::Full { .. }) => self.counts.borrow_mut().full += 1,
            Err(StoreError::Overloaded { .. }) => self.counts.borrow_mut().overloaded += 1,
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
        None
    }

    fn shard(&self, n: u64) -> Shard {
        self.shards.borrow().get(&n).and_then(|value| value.acknowledged)
    }

    fn submit(&self, n: u64, shard: Shard) {
        self.shards.borrow_mut().entry(n).or_default().submitted = Some(shard);
    }

    fn settle(&self, n: u64) {
        self.shards.borrow_mut().get_mut(&n).unwrap().settle();
    }

    async fn put(&self, store: &Store<SimDevice>, n: u64) {
        let blocks = if self.random(4) == 0 { 1 + self.random(96) } else { 1 + self.random(36) };
        let before = store.space().free_bytes;
        let Some(extents) = self.accepted(store.reserve(blocks * BLOCK_BYTES as u64)) else {
            assert_eq!(store.space().free_bytes, before, "refused, so nothing was taken");
            return;
        };
        let version = self.version.get() + 1;
        self.version.set(version);
        for extent in &extents {
            let mut buf = IoBuf::zeroed(usize::try_from(extent.len_bytes()).unwrap());
            buf.fill(u8::try_from(version % 251).unwrap());
            store.device().write(extent.start.offset_bytes(), buf).await.0.unwrap();
        }
        if self.random(8) == 0 {
            store.release(extents);
            self.counts.borrow_mut().released += 1;
            return;
        }
        let mut row = row(n, 1, &extents);
        row.extents.iter_mut().for_each(|piece| piece.checksums.fill(version));
        self.counts.borrow_mut().replaced += u64::from(self.shard(n).is_some());
        self.submit(n, Some((version, blocks)));
        match self.accepted(store.commit_shard(row).await) {
            Some(()) => self.settle(n),
            None => self.shards.borrow_mut().get_mut(&n).unwrap().submitted = None,
        }
    }

    /// Deletes; on a full device, too.
    async fn delete(&self, store: &Store<SimDevice>, n: u64) {
        let there = self.shard(n).is_some();
        self.submit(n, None);
        assert_eq!(free(store, n).await, Ok(there), "seed {}: shard {n}", self.seed);
        self.settle(n);
    }

    async fn shard_task(&self, store: &Store<SimDevice>, task: u64) {
        while self.next() {
            let n = task * SHARDS_PER_TASK + self.random(SHARDS_PER_TASK);
            match self.random(16) {
                0..=9 => self.put(store, n).await,
                10..=13 => self.delete(store, n).await,
                14 => assert_eq!(stored(get_shard(store, n).await), self.shard(n), "shard {n}"),
                _ => {
                    let pin = store.pin(PG, blob(n), ShardIndex(0));
                    let row = get_shard(store, n).await;
                    self.delete(store, n).await;
                    for _ in 0..self.random(4) {
                        let other = task * SHARDS_PER_TASK + self.random(SHARDS_PER_TASK);
                        self.put(store, other).await;
                    }
                    if let Some(row) = row {
                        self.counts.borrow_mut().freed_under_pin += 1;
                        self.check_data(store, &row).await;
                    }
                    drop(pin);
                }
            }
        }
    }

    /// Submits changes of one log at once.
    async fn change_log(&self, store: &Store<SimDevice>, n: u16, changes: Vec<LogChange>) {
        let (partition, epoch) = (PartitionId(n), Epoch(1));
        let mut submitted = self.logs.borrow()[usize::from(n)].changes.len();
        let calls = changes.into_iter().map(|change| {
            let log = self.logs.borrow()[usize::from(n)].clone();
            let last = log.after(log.changes.len()).last();
            self.logs.borrow_mut()[usize::from(n)].changes.push(change.clone());
            submitted += 1;
            let number = submitted;
            async move {
                let result = match change {
                    LogChange::Append(payload, committed) => {
                        store.append(epoch, entry(partition, last + 1, committed, &payload)).await
                    }
                    LogChange::Truncate(after) => store.truncate(partition, epoch, Sequence(after)).await,
                    LogChange::Reset(base) => store.reset(partition, epoch, Sequence(base)).await,
                };
                result.unwrap();
                let log = &mut self.logs.borrow_mut()[usize::from(n)];
                log.acknowledged = log.acknowledged.max(number);
            }
        });
        join_all(calls.collect::<Vec<_>>()).await;
    }

    fn payload(&self) -> String {
        let key = format!("k{}", self.random(24));
        match self.random(8) {
            0..=2 => key,
            3 => format!("{key}={}", "l".repeat(1100 + usize::try_from(self.random(2000)).unwrap())),
            _ => format!(
                "{key}={}{}",
                self.random(1 << 30),
                "s".repeat(usize::try_from(self.random(300)).unwrap())
            ),
        }
    }

    async fn log_task(&self, store: &Store<SimDevice>, n: u16) {
        while self.next() {
            let log = self.logs.borrow()[usize::from(n)].clone();
            let (applied, now) = (log.applied.1, log.after(log.changes.len()));
            let waiting = usize::try_from(applied - now.base).unwrap();
            let tail_bytes: usize = now.tail[waiting..].iter().map(String::len).sum();
            match self.random(64) {
                0 => {
                    let base = now.last() + self.random(10);
                    self.change_log(store, n, vec![LogChange::Reset(base)]).await;
                    self.logs.borrow_mut()[usize::from(n)].applied.1 = base;
                }
                1..=4 => {
                    let after = applied + self.random(now.last() - applied + 1);
                    self.change_log(store, n, vec![LogChange::Truncate(after)]).await;
                }
                5..=24 => self.apply_log(store, n, applied + self.random(now.last() - applied + 1)),
                _ if tail_bytes > TAIL_BYTES_MAX => self.apply_log(store, n, now.last()),
                _ => {
                    let append = |_| LogChange::Append(self.payload(), applied);
                    let changes = (0..1 + self.random(3)).map(append).collect();
                    self.change_log(store, n, changes).await;
                }
            }
        }
    }

    /// Everything that was submitted is acknowledged.
    fn apply_log(&self, store: &Store<SimDevice>, n: u16, through: u64) {
        let log = &mut self.logs.borrow_mut()[usize::from(n)];
        let now = log.after(log.changes.len());
        let index = |sequence: u64| usize::try_from(sequence - now.base).unwrap();
        let payloads = &now.tail[index(log.applied.1)..index(through)];
        let mutations = payloads.iter().flat_map(|payload| decode(payload.as_bytes()).unwrap()).collect();
        store.apply(PartitionId(n), Sequence(through), mutations);
        log.applied.1 = through;
    }

    async fn other_task(&self, store: &Store<SimDevice>) {
        while self.next() {
            if self.random(12) == 0 {
                let _ = self.accepted(store.checkpoint().await);
                continue;
            }
            let n = usize::try_from(self.random(LOCALS as u64)).unwrap();
            let bytes = usize::try_from(self.random(2500)).unwrap();
            let value = Bytes::from(vec![u8::try_from(self.random(256)).unwrap(); bytes]);
            self.locals.borrow_mut()[n].submitted = Some(Some(value.clone()));
            let put = self.accepted(store.put_local(&format!("local{n}"), value).await);
            let local = &mut self.locals.borrow_mut()[n];
            match put {
                Some(()) => local.settle(),
                None => local.submitted = None,
            }
        }
    }

    async fn work(&self, store: &Store<SimDevice>) {
        let shards = join_all((0..TASKS).map(|task| self.shard_task(store, task)));
        let logs = join_all((0..PARTITIONS).map(|n| self.log_task(store, n)));
        futures::join!(shards, logs, self.other_task(store));
    }

    /// Works until the power fails, or all is done and the store may be shut down; the device as it is then.
    async fn round(&self, store: Store<SimDevice>) -> SimDevice {
        let over = self.round_over.listen();
        let cut = async {
            over.await;
            for _ in 0..self.random(40) {
                yield_once().await;
            }
        };
        if self.orderly.get() {
            self.work(&store).await;
            return SimDevice::clone(store.device());
        }
        let work = std::pin::pin!(self.work(&store));
        let Either::Right(_) = select(work, std::pin::pin!(cut)).await else { unreachable!() };
        self.counts.borrow_mut().cuts += 1;
        let (capture, seed) = (store.device().capture(), self.random(u64::MAX));
        match self.random(6) {
            0 => capture.crash_keeping_nothing(),
            1 => capture.crash_keeping_everything(),
            2 => capture.crash_torn(SECTOR_BYTES, seed),
            3 => capture.crash_torn(BLOCK_BYTES, seed),
            _ => capture.crash(seed),
        }
    }

    /// The store is what the model allows, which then knows which of the allowed states it is.
    async fn check(&self, store: &Store<SimDevice>) {
        check_space(store).await;
        for n in 0..TASKS * SHARDS_PER_TASK {
            let row = get_shard(store, n).await;
            let found = stored(row.clone());
            let value = self.shards.borrow().get(&n).cloned().unwrap_or_default();
            let known = found == value.acknowledged;
            assert!(known || Some(found) == value.submitted, "shard {n}: {found:?}, allowed {value:?}");
            if let Some(row) = row {
                if value.acknowledged.is_none() {
                    self.uncertain.borrow_mut().insert(version(&row));
                }
                self.check_data(store, &row).await;
            }
            self.shards.borrow_mut().insert(n, Value { acknowledged: found, submitted: None });
        }
        for n in 0..PARTITIONS {
            self.check_log(store, n).await;
        }
        for n in 0..LOCALS {
            let found = store.get_local(&format!("local{n}")).await.unwrap();
            let value = &mut self.locals.borrow_mut()[n];
            assert!(found == value.acknowledged || Some(&found) == value.submitted.as_ref(), "local row {n}");
            *value = Value { acknowledged: found, submitted: None };
        }
    }

    async fn check_data(&self, store: &Store<SimDevice>, row: &ShardRow) {
        if self.uncertain.borrow().contains(&version(row)) {
            return;
        }
        let expected = u8::try_from(version(row) % 251).unwrap();
        for ShardExtent { extent, .. } in &row.extents {
            let buf = IoBuf::zeroed(usize::try_from(extent.len_bytes()).unwrap());
            let (result, buf) = store.device().read(extent.start.offset_bytes(), buf).await;
            result.unwrap();
            assert!(buf.iter().all(|&byte| byte == expected), "{}: not its data", row.blob);
        }
    }

    async fn check_log(&self, store: &Store<SimDevice>, n: u16) {
        let RecoveredLog { applied, tail, .. } = store.recovered_log(PartitionId(n));
        let tail: Vec<_> = tail.into_iter().map(|entry| entry.payload).collect();
        let found = store.rows(PartitionId(n), b"", None, usize::MAX).await.unwrap();
        let found: BTreeMap<_, _> = found.into_iter().collect();
        let model = self.logs.borrow()[usize::from(n)].clone();
        let fits = |changes: usize| {
            let mut log = model.after(changes);
            let range = log.applied.0..=log.last();
            if !range.contains(&applied.0) {
                return None;
            }
            log.apply(applied.0);
            let same_tail = log.tail.iter().map(String::as_bytes).eq(tail.iter().map(|payload| &payload[..]));
            (same_tail && log.rows == found).then_some(log)
        };
        let fitting = (model.acknowledged..=model.changes.len()).find_map(fits);
        let Some(log) = fitting else {
            panic!("{n}: applied {applied}, tail {tail:?}, rows {found:?}; model {model:?}")
        };
        self.logs.borrow_mut()[usize::from(n)] = log;
    }

    /// Deletes everything and says how many blocks are free.
    async fn clear(&self, store: &Store<SimDevice>) -> u64 {
        join_all((0..TASKS * SHARDS_PER_TASK).map(|n| self.delete(store, n))).await;
        for n in 0..PARTITIONS {
            store.reset(PartitionId(n), Epoch(1), Sequence(1 << 40)).await.unwrap();
        }
        for n in 0..LOCALS {
            store.put_local(&format!("local{n}"), Bytes::new()).await.unwrap();
        }
        store.checkpoint().await.unwrap();
        store.checkpoint().await.unwrap();
        check_space(store).await;
        assert!(store.shards(None, usize::MAX).await.unwrap().is_empty());
        store.space().free_bytes / BLOCK_BYTES as u64
    }
}

async fn yield_once() {
    let mut yielded = false;
    futures::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

fn stored(row: Option<ShardRow>) -> Shard {
    row.map(|row| (version(&row), row.len_bytes / BLOCK_BYTES as u64))
}

fn version(row: &ShardRow) -> u32 {
    row.extents[0].checksums[0]
}

fn fresh(seed: u64) -> SimDevice {
    let device = SimDevice::new(SOAK_DEVICE_BYTES, seed);
    LocalPool::new().run_until(Store::format(Rc::new(device.clone()), params())).unwrap();
    device
}

/// Shuts down a store that rests: nothing is reserved, pinned or held back any more.
fn close(mut rig: Rig, soak: &Soak) -> SimDevice {
    rig.run(|store| async move { check_space(&store).await });
    // A last checkpoint refused for want of room: then the journal holds it all.
    let closed = rig.run(|store| async move { store.shutdown().await });
    let _ = soak.accepted(closed);
    soak.counts.borrow_mut().shutdowns += 1;
    rig.device.crash_keeping_nothing()
}

fn soak(seed: u64, operations: u64) {
    let (soak, started) = (Rc::new(Soak::new(seed)), Instant::now());
    let (mut device, mut told) = (fresh(seed), 0);
    loop {
        let done = soak.counts.borrow().operations;
        if done / 100_000 > told {
            told = done / 100_000;
            println!("seed {seed}, {:?}: {:?}", started.elapsed(), soak.counts.borrow());
        }
        soak.orderly.set(soak.random(8) == 0 || done >= operations);
        soak.round_ends.set(done + 1 + soak.random(600));
        let mut rig = Rig::open(device).unwrap_or_else(|error| panic!("seed {seed}, {done} done: {error}"));
        // Opening may have begun a checkpoint.
        rig.pool.run_until_stalled();
        rig.run(|store| {
            let soak = Rc::clone(&soak);
            async move { soak.check(&store).await }
        });
        if done >= operations {
            device = rig.device.clone();
            break;
        }
        rig.device.set_shuffle(soak.random(2) == 0);
        let next = Rc::new(RefCell::new(None));
        let (store, working, slot) = (rig.store.clone(), Rc::clone(&soak), Rc::clone(&next));
        let stats = store.stats();
        let work = async move {
            let left = working.round(store).await;
            *slot.borrow_mut() = Some(left);
        };
        rig.pool.spawner().spawn_local(work).unwrap();
        rig.pool.run_until_stalled();
        soak.counts.borrow_mut().checkpoints += stats.load().checkpoints;
        device =
            next.take().unwrap_or_else(|| panic!("seed {seed}: {done} operations, then all waits for ever"));
        if soak.orderly.get() {
            device = close(rig, &soak);
        }
    }
    let clear = |device: SimDevice| {
        let soak = Rc::new(Soak::new(seed));
        move |known: &Soak| {
            soak.shards.replace(known.shards.borrow().clone());
            let mut rig = Rig::open(device).unwrap();
            rig.pool.run_until_stalled();
            rig.run(|store| async move { soak.clear(&store).await })
        }
    };
    let left = clear(device)(&soak);
    assert_eq!(left, clear(fresh(seed))(&Soak::new(seed)), "seed {seed}: free blocks, beside a fresh store");
    let counts = soak.counts.borrow();
    println!("seed {seed}, {:?}: {counts:?}", started.elapsed());
    let reached = [counts.cuts, counts.shutdowns, counts.full, counts.replaced, counts.freed_under_pin];
    assert!(reached.iter().all(|&count| count >= operations / 10_000), "{counts:?}");
    assert!(counts.checkpoints > operations / 1000 && counts.released > 0, "{counts:?}");
}

#[test]
fn nothing_leaks() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    soak(number("QUARRY_SOAK_SEED").unwrap_or(1), number("QUARRY_SOAK_OPERATIONS").unwrap_or(20_000));
}
