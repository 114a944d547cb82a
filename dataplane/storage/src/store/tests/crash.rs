//! Power cuts at every flush boundary of a mixed workload: what was acknowledged is there, what was not is there
//! wholly or not at all, and no block is lost or owned twice.
//!
//! At each boundary the unflushed writes survive as a whole, not at all, torn at 512 and at 4,096 bytes, and as random
//! subsets in random order. `QUARRY_CRASH_FULL=1`: more seeds, and every subset that lacks one write or has only one.

use event_listener::Event;

use super::*;
use crate::device::{self, Capture, DeviceError, SECTOR_BYTES};
use crate::store::read_identity;

/// Operations of the workload; those on one subject are issued in order.
const OPERATIONS: usize = 90;
const SHARDS: u64 = 6;
const PARTITIONS: u16 = 3;
/// Subject of the local row.
const LOCAL: u64 = 2000;

fn is_full() -> bool {
    std::env::var_os("QUARRY_CRASH_FULL").is_some()
}

/// Devices as a power cut at that boundary may leave them.
fn images(capture: &Capture, seed: u64) -> Vec<SimDevice> {
    let mut images = vec![capture.crash_keeping_nothing(), capture.crash_keeping_everything()];
    for seed in (0..if is_full() { 8 } else { 1 }).map(|crash| seed * 1000 + crash) {
        images.extend([SECTOR_BYTES, BLOCK_BYTES].map(|unit_bytes| capture.crash_torn(unit_bytes, seed)));
        images.push(capture.crash(seed));
    }
    if is_full() {
        for one in 0..capture.unflushed().len() {
            images.push(capture.crash_keeping(|number| number != one));
            images.push(capture.crash_keeping(|number| number == one));
        }
    }
    images
}

/// What an operation leaves behind on its subject.
#[derive(Clone, Debug)]
enum Effect {
    /// The shard has that many blocks; 0: it is gone.
    Shard(u64),
    /// The whole log of the partition: payloads from sequence 1.
    Log(Vec<String>),
    /// Value of the local row.
    Local(Bytes),
}

/// One operation in the history of its subject, with the device's event counts around it.
struct Step {
    submitted: usize,
    acknowledged: usize,
    effect: Effect,
}

#[derive(Default)]
struct History(BTreeMap<u64, Vec<Step>>);

impl History {
    /// States the subject may be in after a crash at that event: all acknowledged, possibly the next ones.
    fn allowed(&self, subject: u64, events: usize) -> Vec<Option<&Effect>> {
        let steps = self.0.get(&subject).map_or(&[][..], |steps| &steps[..]);
        let acknowledged = steps.iter().filter(|step| step.acknowledged <= events).count();
        let submitted = steps.iter().filter(|step| step.submitted <= events).count();
        (acknowledged..=submitted).map(|n| n.checked_sub(1).map(|n| &steps[n].effect)).collect()
    }
}

struct Workload {
    store: Store<SimDevice>,
    history: RefCell<History>,
    random: Cell<u64>,
}

impl Workload {
    fn random(&self, below: u64) -> u64 {
        let mut state = self.random.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.set(state);
        state % below
    }

    fn events(&self) -> usize {
        self.store.device().events().len()
    }

    async fn note<T>(&self, subject: u64, effect: Effect, work: impl Future<Output = Result<T, StoreError>>) {
        let submitted = self.events();
        let slot = {
            let mut history = self.history.borrow_mut();
            let steps = history.0.entry(subject).or_default();
            steps.push(Step { submitted, acknowledged: usize::MAX, effect });
            steps.len() - 1
        };
        work.await.unwrap();
        self.history.borrow_mut().0.get_mut(&subject).unwrap()[slot].acknowledged = self.events();
    }

    async fn shard_operations(&self, n: u64) {
        let mut stored = false;
        for _ in 0..OPERATIONS / 6 {
            if stored && self.random(2) == 0 {
                self.note(n, Effect::Shard(0), free(&self.store, n)).await;
                stored = false;
            } else {
                let blocks = 1 + self.random(12);
                self.note(n, Effect::Shard(blocks), put_shard(&self.store, n, blocks)).await;
                stored = true;
            }
        }
    }

    async fn log_operations(&self, partition: PartitionId) {
        let subject = 1000 + u64::from(partition.0);
        let (mut log, mut applied): (Vec<String>, usize) = (Vec::new(), 0);
        for round in 0..OPERATIONS / 3 {
            if log.len() > applied && self.random(5) == 0 {
                let keep = applied + usize::try_from(self.random((log.len() - applied) as u64)).unwrap();
                log.truncate(keep);
                let truncate = self.store.truncate(partition, Epoch(1), Sequence(keep as u64));
                self.note(subject, Effect::Log(log.clone()), truncate).await;
                continue;
            }
            let padding = "p".repeat(usize::try_from(self.random(1500)).unwrap());
            let payload = format!("k{}={round}{padding}", self.random(8));
            log.push(payload.clone());
            let entry = entry(partition, log.len() as u64, applied as u64, &payload);
            self.note(subject, Effect::Log(log.clone()), self.store.append(Epoch(1), entry)).await;
            if self.random(3) != 0 {
                let through =
                    applied + 1 + usize::try_from(self.random((log.len() - applied) as u64)).unwrap();
                let mutations =
                    log[applied..through].iter().flat_map(|payload| decode(payload.as_bytes()).unwrap());
                self.store.apply(partition, Sequence(through as u64), mutations.collect());
                applied = through;
            }
        }
    }

    async fn checkpoints(&self) {
        for round in 0..6_u64 {
            for tick in 0..self.random(12) {
                let value = Bytes::from(format!("{round}/{tick}"));
                let put = self.store.put_local("tick", value.clone());
                self.note(LOCAL, Effect::Local(value), put).await;
            }
            self.store.checkpoint().await.unwrap();
        }
    }

    async fn run(&self) {
        let shards = join_all((0..SHARDS).map(|n| self.shard_operations(n)));
        let logs = join_all((0..PARTITIONS).map(|n| self.log_operations(PartitionId(n))));
        futures::join!(shards, logs, self.checkpoints());
    }
}

/// The rows that a log's entries up to `applied` leave behind.
fn rows_of(log: &[String]) -> BTreeMap<Bytes, Bytes> {
    let mut rows = BTreeMap::new();
    for mutation in log.iter().flat_map(|payload| decode(payload.as_bytes()).unwrap()) {
        rows.insert(mutation.key, mutation.value.unwrap());
    }
    rows
}

async fn check_log(store: &Store<SimDevice>, partition: PartitionId, allowed: &[Option<&Effect>]) {
    let RecoveredLog { applied, tail, .. } = store.recovered_log(partition);
    let applied = usize::try_from(applied.0).unwrap();
    let matches = |effect: &Option<&Effect>| {
        let log = match effect {
            Some(Effect::Log(log)) => &log[..],
            _ => &[],
        };
        log.len() == applied + tail.len()
            && tail.iter().zip(&log[applied..]).all(|(entry, payload)| entry.payload == payload.as_bytes())
            && tail.iter().zip(applied + 1..).all(|(entry, n)| entry.sequence.0 == n as u64)
    };
    let found = allowed.iter().find(|effect| matches(effect));
    let Some(found) = found else { panic!("{partition}: {applied} + {tail:?} is none of {allowed:?}") };
    let log = match found {
        Some(Effect::Log(log)) => &log[..applied],
        _ => &[],
    };
    let rows = store.rows(partition, b"", None, 100).await.unwrap();
    assert_eq!(
        rows.into_iter().collect::<BTreeMap<_, _>>(),
        rows_of(log),
        "rows are those of applied entries"
    );
}

async fn check(store: &Store<SimDevice>, history: &History, events: usize) {
    for n in 0..SHARDS {
        let found = get_shard(store, n).await;
        let blocks = found.as_ref().map_or(0, |row| row.len_bytes / 4096);
        let allowed = history.allowed(n, events);
        let fits = |effect: &Option<&Effect>| match effect {
            Some(Effect::Shard(expected)) => *expected == blocks,
            _ => blocks == 0,
        };
        assert!(allowed.iter().any(fits), "shard {n} has {blocks} blocks, allowed {allowed:?}");
        if matches!(allowed[0], None | Some(Effect::Shard(0))) {
            // Not acknowledged: the record may be there without its data. A replacement has its data in any case.
            continue;
        }
        for extent in found.iter().flat_map(|row| &row.extents).map(|piece| piece.extent) {
            let buf = IoBuf::zeroed(usize::try_from(extent.len_bytes()).unwrap());
            let (result, buf) = store.device().read(extent.start.offset_bytes(), buf).await;
            result.unwrap();
            assert!(buf.iter().all(|&byte| u64::from(byte) == n % 251), "shard {n} reads back");
        }
    }
    for n in 0..PARTITIONS {
        let partition = PartitionId(n);
        check_log(store, partition, &history.allowed(1000 + u64::from(n), events)).await;
    }
    let value = store.get_local("tick").await.unwrap();
    let allowed = history.allowed(LOCAL, events);
    let fits = |effect: &Option<&Effect>| match effect {
        Some(Effect::Local(expected)) => value.as_ref() == Some(expected),
        _ => value.is_none(),
    };
    assert!(allowed.iter().any(fits), "the local row is {value:?}, allowed {allowed:?}");
    check_space(store).await;
}

/// Whether unflushed writes (offset and length) are what is looked for.
type Wanted<'w> = &'w dyn Fn(&[(u64, usize)]) -> bool;

/// The workload reaches what it is for: boundaries with a superblock, a replaced page or a wrapped batch unflushed.
fn check_boundaries(captures: &[Capture]) {
    let journal = 2 * 4096..2 * 4096 + JOURNAL_BYTES;
    let some = |what: &str, wanted: Wanted<'_>| {
        assert!(captures.iter().any(|capture| wanted(&capture.unflushed())), "no boundary with {what}");
    };
    let superblock = |offset: u64| offset < journal.start || offset >= DEVICE_BYTES - 2 * 4096;
    some("a superblock", &|writes| writes.iter().any(|(offset, _)| superblock(*offset)));
    some("a batch beside a checkpoint's pages", &|writes| {
        let page = |(offset, len): &(u64, usize)| *offset >= journal.end && *len == 16 * 1024;
        writes.iter().any(page) && writes.iter().any(|(offset, _)| journal.contains(offset))
    });
    some("several writes", &|writes| writes.len() > 3);
}

fn crash_everywhere(seed: u64) {
    let mut rig = Rig::new(seed);
    rig.device.clear_events();
    rig.device.set_shuffle(true);
    rig.device.set_capture(true);
    let workload = Workload {
        store: rig.store.clone(),
        history: RefCell::default(),
        random: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
    };
    rig.pool.run_until(workload.run());
    rig.device.set_capture(false);
    let captures = rig.device.captures();
    let history = workload.history.borrow();
    assert!(captures.len() > 30, "{} flushes", captures.len());
    check_boundaries(&captures);
    let mut tried = 0;
    for (n, capture) in captures.iter().enumerate() {
        let events = capture.events_before();
        for (image, device) in images(capture, seed).into_iter().enumerate() {
            tried += 1;
            let mut rig =
                Rig::open(device).unwrap_or_else(|error| panic!("flush {n}, image {image}: {error}"));
            rig.run(|store| {
                let history = &history;
                async move { check(&store, history, events).await }
            });
            if n % 4 == 0 {
                // Recovery may be repeated, and what comes after it is not confused with what was there.
                let mut again = rig.reopen_after_crash(seed + 1);
                again.run(|store| {
                    let history = &history;
                    async move {
                        check(&store, history, events).await;
                        put_shard(&store, 77, 4).await.unwrap();
                        store.put_local("after", Bytes::from_static(b"1")).await.unwrap();
                    }
                });
                again.reopen_after_crash(seed + 2).run(|store| async move {
                    assert_eq!(get_shard(&store, 77).await.unwrap().len_bytes, 4 * 4096);
                    assert!(store.get_local("after").await.unwrap().is_some());
                    store.checkpoint().await.unwrap();
                    check_space(&store).await;
                });
            }
        }
    }
    println!("seed {seed}: {} flush boundaries, {tried} power cuts", captures.len());
}

#[test]
fn every_flush_boundary_recovers() {
    for seed in 1..=if is_full() { 10 } else { 3 } {
        crash_everywhere(seed);
    }
}

/// The process died, not the machine: what it wrote may lie in a volatile cache, where the next process sees it, builds
/// on it and shows it to others. Opening makes it durable first.
#[test]
fn what_a_new_process_has_seen_survives_a_power_cut() {
    let mut rig = Rig::new(1);
    rig.device.set_skip_flush(true);
    rig.run(|store| async move {
        put_shard(&store, 1, 3).await.unwrap();
        store.append(Epoch(1), entry(PARTITION, 1, 0, "a=1")).await.unwrap();
    });
    rig.device.set_skip_flush(false);
    let device = rig.device.clone();
    assert!(!device.capture().unflushed().is_empty(), "the journal lies in the cache");
    drop(rig);
    let check = |store: Store<SimDevice>| async move {
        assert!(get_shard(&store, 1).await.is_some());
        assert_eq!(store.recovered_log(PARTITION).tail.len(), 1);
        check_space(&store).await;
    };
    Rig::open(device.clone()).unwrap().run(check);
    Rig::open(device.crash_keeping_nothing()).unwrap().run(check);
}

/// Whatever a power cut leaves of a device that is being formatted: the new store, or no store at all; never one
/// that is half of the new one, nor the one that was there before.
#[test]
fn a_power_cut_while_formatting_leaves_no_half_store() {
    for seed in 0..40 {
        let mut rig = Rig::new(seed);
        rig.run(|store| async move {
            put_shard(&store, 1, 3).await.unwrap();
            store.checkpoint().await.unwrap();
            store.checkpoint().await.unwrap();
        });
        let device = rig.device.capture().crash_keeping_everything();
        device.set_capture(true);
        let new = FormatParams { device: DeviceId(0xef), ..params() };
        LocalPool::new().run_until(Store::format(Rc::new(device.clone()), new)).unwrap();
        let captures = device.captures();
        for image in captures.iter().flat_map(|capture| images(capture, seed)) {
            let identity = futures::executor::block_on(read_identity(&image)).map(|found| found.device);
            let Ok(mut rig) = Rig::open(image) else {
                assert_ne!(identity, Ok(new.device), "a superblock names what was not written before it");
                continue;
            };
            let id = rig.store.device_id();
            let stored = rig.run(|store| async move {
                check_space(&store).await;
                get_shard(&store, 1).await.is_some()
            });
            assert_eq!(stored, id == params().device, "a store is the old one or the new one");
        }
        let mut rig = Rig::open(device.crash_keeping_nothing()).expect("format ended with a flush");
        assert_eq!(rig.store.device_id(), new.device);
        rig.run(|store| async move { check_space(&store).await });
    }
}

/// A device whose journal takes no write while it is held.
struct HeldJournal {
    device: SimDevice,
    held: Cell<bool>,
    released: Event,
}

impl Device for HeldJournal {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        self.device.read(offset, buf).await
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        let journal = 2 * 4096..2 * 4096 + JOURNAL_BYTES;
        while self.held.get() && journal.contains(&offset) {
            self.released.listen().await;
        }
        self.device.write(offset, buf).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush().await
    }
}

/// Replay from the new superblock begins behind the first copies of uncommitted entries: until the second ones are
/// durable, it must not exist.
#[test]
fn a_checkpoint_waits_for_the_entries_it_appends_anew() {
    let inner = Rig::new(1).device;
    let device =
        Rc::new(HeldJournal { device: inner.clone(), held: Cell::new(false), released: Event::new() });
    let mut pool = LocalPool::new();
    let options = options(&pool);
    let store = pool.run_until(Store::open(Rc::clone(&device), options)).unwrap();
    pool.run_until(store.append(Epoch(1), entry(PARTITION, 1, 0, "a=1"))).unwrap();
    device.held.set(true);
    inner.clear_events();
    let done = Rc::new(Cell::new(false));
    let (checkpoint, ended) = (store.clone(), Rc::clone(&done));
    let work = async move {
        checkpoint.checkpoint().await.unwrap();
        ended.set(true);
    };
    pool.spawner().spawn_local(work).unwrap();
    pool.run_until_stalled();
    let superblock = |event: &device::Event| {
        matches!(event, device::Event::WriteStart { offset, .. }
            if *offset < 2 * 4096 || *offset >= DEVICE_BYTES - 2 * 4096)
    };
    assert!(!inner.events().iter().any(superblock), "replay could miss the entry");
    device.held.set(false);
    device.released.notify(usize::MAX);
    pool.run_until_stalled();
    assert!(done.get() && inner.events().iter().any(superblock));
    Rig::open(inner.crash_keeping_nothing()).unwrap().run(|store| async move {
        assert_eq!(store.recovered_log(PARTITION).tail.len(), 1);
    });
}
