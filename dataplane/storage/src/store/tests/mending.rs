//! Random damage in every area of a device: mending never serves anything wrong, keeps what is whole, says what is
//! not, and accounts for every block; also when power fails while it is at work.
//!
//! `QUARRY_SEEDS` sets the number of devices (default 2); each suffers 311 flips in each area.

use std::collections::BTreeSet;

use super::*;
use crate::format::superblock::{SLOTS, Superblock, slot_offset, slots_of};
use crate::journal::RingReader;
use crate::store::{Losses, Mend, newest_superblock};

const PARTITIONS: u16 = 6;
const SHARDS: u64 = 24;
const ROUNDS: u64 = 300;
/// Rounds from here on are in the journal alone.
const LAST_ROUNDS: u64 = 260;

fn seeds() -> u64 {
    std::env::var("QUARRY_SEEDS").map_or(2, |text| text.parse().unwrap())
}

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What was acknowledged.
#[derive(Default)]
struct Model {
    /// Payloads from sequence 1.
    logs: BTreeMap<PartitionId, Vec<String>>,
    /// Every state a shard was in, `None`: absent.
    shards: BTreeMap<u64, Vec<Option<ShardRow>>>,
}

impl Model {
    fn shard_now(&self, n: u64) -> Option<&ShardRow> {
        self.shards.get(&n)?.last()?.as_ref()
    }
}

/// Some rows of random length; one in seven is out of line, one in nine a deletion.
fn random_payload(random: &mut Random, round: u64, short: bool) -> String {
    let items = if short { 1 } else { 1 + random.below(4) };
    let item = |random: &mut Random| {
        let key = random.below(90);
        let length = if short { 40 } else { 300 + random.below(600) };
        match random.below(9) {
            0 => format!("k{key:02}"),
            _ => format!("k{key:02}={round}{}", "x".repeat(usize::try_from(length).unwrap())),
        }
    };
    match random.below(7) {
        0 if !short => format!(
            "k{:02}={round}{}",
            random.below(90),
            "y".repeat(1500 + usize::try_from(round).unwrap() * 20)
        ),
        _ => (0..items).map(|_| item(random)).collect::<Vec<_>>().join(","),
    }
}

struct Scene {
    device: SimDevice,
    model: Model,
}

impl Scene {
    /// Several checkpoints, and live records of all kinds after the last one. The very last batch holds nothing that
    /// is checked: its damage cannot be told from a torn write.
    fn new(seed: u64) -> Self {
        let mut rig = Rig::new(seed);
        let mut random = Random::new(seed + 1);
        let model = rig.run(|store| async move {
            let mut model = Model::default();
            let mut applied = BTreeMap::<PartitionId, usize>::new();
            for round in 0..ROUNDS {
                let partition = PartitionId(u16::try_from(random.below(PARTITIONS.into())).unwrap() * 3);
                let log = model.logs.entry(partition).or_default();
                // The last rounds are short, so that no checkpoint begins by itself.
                let payload = random_payload(&mut random, round, round >= LAST_ROUNDS);
                let done = applied.entry(partition).or_default();
                log.push(payload.clone());
                let entry = entry(partition, log.len() as u64, *done as u64, &payload);
                store.append(Epoch(2), entry).await.unwrap();
                if random.below(8) != 0 {
                    let mutations =
                        log[*done..].iter().flat_map(|payload| decode(payload.as_bytes()).unwrap());
                    store.apply(partition, Sequence(log.len() as u64), mutations.collect());
                    *done = log.len();
                }
                let n = random.below(SHARDS);
                let state = match model.shard_now(n) {
                    Some(_) if random.below(3) == 0 => {
                        assert!(free(&store, n).await.unwrap());
                        None
                    }
                    _ if random.below(2) == 0 => {
                        Some(put_shard(&store, n, 1 + random.below(10)).await.unwrap())
                    }
                    _ => model.shard_now(n).cloned(),
                };
                model.shards.entry(n).or_default().push(state);
                if round % 50 == 17 || round + 1 == LAST_ROUNDS {
                    store.checkpoint().await.unwrap();
                }
            }
            store.put_local("end", Bytes::new()).await.unwrap();
            model
        });
        Self { device: rig.device.crash_keeping_nothing(), model }
    }

    fn superblock(&self) -> Superblock {
        LocalPool::new().run_until(newest_superblock(&self.device)).unwrap()
    }

    /// Byte ranges of an area.
    fn ranges(&self, area: Area) -> Vec<(u64, u64)> {
        let superblock = self.superblock();
        let block = BLOCK_BYTES as u64;
        match area {
            Area::Superblocks => (0..SLOTS).map(|slot| (slot_offset(slot, DEVICE_BYTES), block)).collect(),
            Area::FreeMap => {
                let place = superblock.free_map;
                assert_eq!(place.extents.len(), 1);
                vec![(place.extents[0].start.offset_bytes(), place.len_bytes)]
            }
            Area::Journal => LocalPool::new().run_until(async {
                let mut reader =
                    RingReader::new(&self.device, superblock.journal, superblock.device, superblock.replay);
                let mut batches = Vec::new();
                let mut position = superblock.replay.position;
                while let Some((header, _)) = reader.next_batch().await {
                    let blocks = position..position + header.blocks();
                    batches.push(blocks.map(|at| {
                        let index = at % superblock.journal.blocks;
                        ((superblock.journal.start.0 + index) * block, block)
                    }));
                    position += header.blocks();
                }
                assert!(batches.len() > 10, "{} live batches", batches.len());
                batches.pop();
                batches.into_iter().flatten().collect()
            }),
            Area::Pages | Area::Values => LocalPool::new().run_until(async {
                let root = crate::store::root_of(&superblock).unwrap();
                let tree = crate::index::Tree::open(Rc::new(self.device.clone()), root, 0);
                let mut found = Vec::new();
                tree.walk(WalkDepth::Pages, |visit| match visit {
                    Visit::Page { extent, .. } if area == Area::Pages => {
                        found.push((extent.start.offset_bytes(), extent.len_bytes()));
                    }
                    Visit::Value { extent, len_bytes, .. } if area == Area::Values => {
                        found.push((extent.start.offset_bytes(), u64::from(len_bytes)));
                    }
                    _ => {}
                })
                .await;
                found
            }),
        }
    }

    fn damaged(&self, area: Area, flips: u64, random: &mut Random) -> SimDevice {
        let device = self.device.crash_keeping_nothing();
        let ranges = self.ranges(area);
        for _ in 0..flips {
            let (start, bytes) = ranges[usize::try_from(random.below(ranges.len() as u64)).unwrap()];
            device.flip_bit(start + random.below(bytes), u8::try_from(random.below(8)).unwrap());
        }
        device
    }

    /// What must be true of a store, however damaged the device was.
    async fn check(&self, store: &Store<SimDevice>) {
        let losses = store.losses();
        for n in 0..PARTITIONS {
            let partition = PartitionId(n * 3);
            let log = self.model.logs.get(&partition).map_or(&[][..], |log| log);
            let rows = store.rows(partition, b"", None, usize::MAX).await.unwrap();
            let RecoveredLog { applied, tail, .. } = store.recovered_log(partition);
            assert_eq!(losses.lost_partitions.contains(&partition), store.is_lost(partition));
            if store.is_lost(partition) {
                assert!(rows.is_empty() && tail.is_empty() && applied == Sequence(0), "{partition} is lost");
                let refused = store.append(Epoch(9), entry(partition, 1, 0, "a=1")).await;
                assert_eq!(refused, Err(StoreError::PartitionLost { partition }));
                continue;
            }
            let applied = usize::try_from(applied.0).unwrap();
            assert_eq!(applied + tail.len(), log.len(), "{partition} is whole");
            assert!(
                tail.iter().zip(&log[applied..]).all(|(entry, payload)| entry.payload == payload.as_bytes())
            );
            let mut expected = BTreeMap::new();
            for mutation in log[..applied].iter().flat_map(|payload| decode(payload.as_bytes()).unwrap()) {
                match mutation.value {
                    Some(value) => expected.insert(mutation.key, value),
                    None => expected.remove(&mutation.key),
                };
            }
            assert_eq!(rows.into_iter().collect::<BTreeMap<_, _>>(), expected, "{partition}");
        }
        let journal_lost = losses.lost_partitions.contains(&PartitionId(u16::MAX));
        for row in store.shards(None, usize::MAX).await.unwrap() {
            let n = row.blob.counter.0;
            let states = &self.model.shards[&n];
            let from = if journal_lost && losses.shards_incomplete { 0 } else { states.len() - 1 };
            assert!(states[from..].contains(&Some(row)), "shard {n} is one that was stored");
        }
        for n in 0..SHARDS {
            let found = get_shard(store, n).await;
            assert!(found.as_ref() == self.model.shard_now(n) || losses.shards_incomplete, "shard {n}");
        }
        check_space(store).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Area {
    Superblocks,
    Journal,
    Pages,
    Values,
    FreeMap,
}

const AREAS: [Area; 5] = [Area::Superblocks, Area::Journal, Area::Pages, Area::Values, Area::FreeMap];

fn open_mending(device: &SimDevice) -> Result<Rig, StoreError> {
    open_with(device, Mend::AfterSurvey)
}

fn open_with(device: &SimDevice, mend: Mend) -> Result<Rig, StoreError> {
    let mut pool = LocalPool::new();
    let options = StoreOptions { mend, ..options(&pool) };
    let store = pool.run_until(Store::open(Rc::new(device.clone()), options))?;
    Ok(Rig { pool, device: device.clone(), store })
}

/// Mends and checks; `None` if no superblock is left.
fn mend(scene: &Scene, device: &SimDevice, what: &str) -> Option<Losses> {
    let mut rig = match open_mending(device) {
        Ok(rig) => rig,
        Err(StoreError::NoSuperblock { .. }) => return None,
        Err(error) => panic!("{what}: {error}"),
    };
    let losses = rig.store.losses();
    rig.run(|store| async move { scene.check(&store).await });
    let mut again = Rig::open(rig.device.crash_keeping_nothing())
        .unwrap_or_else(|error| panic!("{what}: damage is left after mending: {error}"));
    assert_eq!(again.store.losses(), Losses { mended: false, ..losses.clone() }, "{what}: marks last");
    again.run(|store| async move { scene.check(&store).await });
    Some(losses)
}

#[test]
fn random_damage_is_never_served_and_leaves_the_rest() {
    for seed in 0..seeds() {
        let scene = Scene::new(seed);
        let mut random = Random::new(seed + 1000);
        for area in AREAS {
            // Few slots are left by many flips.
            let flips = if area == Area::Superblocks { [1, 2, 4] } else { [1, 10, 300] };
            for flips in flips {
                let what = format!("seed {seed}, {flips} flips in {area:?}");
                let device = scene.damaged(area, flips, &mut random);
                let losses = mend(&scene, &device, &what);
                match (area, losses) {
                    (Area::Superblocks, None) => assert!(flips > 1, "{what}"),
                    (_, None) => panic!("{what}: refused"),
                    (Area::FreeMap, Some(losses)) => {
                        assert!(losses.lost_partitions.is_empty() && !losses.shards_incomplete, "{what}");
                    }
                    (Area::Values, Some(losses)) => {
                        assert!(losses.mended && !losses.lost_partitions.is_empty(), "{what}");
                        assert!(losses.lost_partitions.len() <= usize::try_from(flips).unwrap(), "{what}");
                        assert!(!losses.shards_incomplete, "{what}");
                    }
                    (Area::Pages, Some(losses)) => assert!(losses.mended, "{what}"),
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn power_may_fail_while_mending() {
    for seed in 0..seeds() {
        let scene = Scene::new(100 + seed);
        let mut random = Random::new(seed + 2000);
        for area in [Area::Journal, Area::Pages, Area::Values, Area::FreeMap] {
            let device = scene.damaged(area, 1 + 9 * (seed % 2), &mut random);
            device.set_shuffle(true);
            device.set_capture(true);
            let rig = open_mending(&device).unwrap();
            // A flip in the padding of a batch does no harm.
            assert!(rig.store.losses().mended || area == Area::Journal);
            device.set_capture(false);
            for (n, capture) in device.captures().iter().enumerate() {
                let images = [
                    capture.crash_keeping_nothing(),
                    capture.crash_keeping_everything(),
                    capture.crash(seed),
                ];
                for (image, device) in images.iter().enumerate() {
                    let what = format!("seed {seed}, {area:?}, flush {n}, image {image}");
                    mend(&scene, device, &what).unwrap();
                }
            }
        }
    }
}

#[test]
fn the_checkpoint_before_the_newest_is_as_good_or_nothing_is() {
    let (mut replayed, mut lost) = (0, 0);
    for seed in 0..seeds() * 2 {
        let scene = Scene::new(300 + seed);
        let superblock = scene.superblock();
        let device = scene.device.crash_keeping_nothing();
        for slot in slots_of(superblock.checkpoint) {
            device.flip_bit(slot_offset(slot, DEVICE_BYTES) + 77, 1);
        }
        let losses = mend(&scene, &device, &format!("seed {seed}")).unwrap();
        if losses.lost_partitions.contains(&PartitionId(0)) { lost += 1 } else { replayed += 1 }
    }
    println!("{replayed} replayed, {lost} lost");
}

#[test]
fn damage_in_all_areas_at_once() {
    for seed in 0..seeds() {
        let scene = Scene::new(200 + seed);
        let mut random = Random::new(seed + 3000);
        let device = scene.device.crash_keeping_nothing();
        for area in [Area::Journal, Area::Pages, Area::Values, Area::FreeMap] {
            let ranges = scene.ranges(area);
            for _ in 0..5 {
                let (start, bytes) = ranges[usize::try_from(random.below(ranges.len() as u64)).unwrap()];
                device.flip_bit(start + random.below(bytes), 3);
            }
        }
        mend(&scene, &device, &format!("seed {seed}")).unwrap();
    }
}

#[test]
fn a_whole_device_is_not_touched() {
    let scene = Scene::new(7);
    let device = scene.device.crash_keeping_nothing();
    device.clear_events();
    let mut rig = open_mending(&device).unwrap();
    assert_eq!(rig.store.losses(), Losses::default());
    assert!(device.events().iter().all(|event| !matches!(event, Event::WriteStart { .. })));
    rig.run(|store| async move { scene.check(&store).await });
}

#[test]
fn losses_end_with_a_reset_and_a_comparison() {
    let scene = Scene::new(8);
    let device = scene.damaged(Area::Journal, 200, &mut Random::new(1));
    let mut rig = open_mending(&device).unwrap();
    let lost: BTreeSet<PartitionId> = (0..=u16::MAX).map(PartitionId).collect();
    let expected = Losses { lost_partitions: lost, shards_incomplete: true, mended: true };
    assert_eq!(rig.store.losses(), expected, "nobody can tell whose records were in the ring");
    let fences: Vec<Epoch> =
        scene.model.logs.keys().map(|&partition| rig.store.recovered_log(partition).epoch).collect();
    assert!(fences.iter().all(|&epoch| epoch == Epoch(2)), "epochs are kept: {fences:?}");
    rig.run(|store| async move {
        // An epoch is not a reset, and what follows a reset may be under way together with it.
        store.raise_partition_epoch(PartitionId(0), Epoch(5)).await.unwrap();
        store.raise_partition_epoch(PartitionId(999), Epoch(5)).await.unwrap();
        assert!(store.is_lost(PartitionId(0)) && store.is_lost(PartitionId(999)));
        for partition in [PartitionId(3), PartitionId(1000)] {
            let (reset, appended) = futures::join!(
                store.reset(partition, Epoch(5), Sequence(40)),
                store.append(Epoch(5), entry(partition, 41, 40, "new=1")),
            );
            reset.and(appended).unwrap();
        }
        store.shards_checked().await.unwrap();
    });
    let check = |store: Store<SimDevice>| async move {
        let Losses { lost_partitions, shards_incomplete, .. } = store.losses();
        assert_eq!(lost_partitions.len(), usize::from(u16::MAX) + 1 - 2);
        assert!(!lost_partitions.contains(&PartitionId(3)) && !lost_partitions.contains(&PartitionId(1000)));
        assert!(!shards_incomplete);
        assert_eq!(store.recovered_log(PartitionId(0)).epoch, Epoch(5));
        let RecoveredLog { applied, tail, .. } = store.recovered_log(PartitionId(3));
        assert_eq!((applied, tail.len()), (Sequence(40), 1));
    };
    rig.run(check);
    rig.reopen_after_crash(1).run(check);
    rig.run(|store| async move { store.checkpoint().await.unwrap() });
    rig.reopen_after_crash(2).run(check);
}

#[test]
fn only_what_lies_in_a_lost_page_is_lost() {
    let scene = Scene::new(9);
    let pages = scene.ranges(Area::Pages);
    let mut kept = 0;
    for &(start, _) in &pages {
        let device = scene.device.crash_keeping_nothing();
        device.flip_bit(start + 100, 1);
        let losses = mend(&scene, &device, &format!("page at {start}")).unwrap();
        let here = |partition: &&PartitionId| partition.0 < PARTITIONS * 3;
        kept += usize::from(losses.lost_partitions.iter().filter(here).count() <= 3);
    }
    assert!(pages.len() > 8 && kept * 2 > pages.len(), "{kept} of {} pages cost few partitions", pages.len());
}

#[test]
fn damage_met_while_serving_is_mended_at_the_next_start() {
    let scene = Scene::new(10);
    let mark = |store: Store<SimDevice>| async move { store.mark_index_damaged().await.unwrap() };
    let mut unmet = 0;
    for &(start, _) in &scene.ranges(Area::Pages) {
        let device = scene.device.crash_keeping_nothing();
        device.flip_bit(start + 100, 1);
        let mut rig = open_with(&device, Mend::WhenDamaged).unwrap();
        if rig.store.losses().mended {
            continue;
        }
        unmet += 1;
        rig.run(mark);
        // The mark is durable when the call returns.
        let again = open_with(&rig.device.crash_keeping_nothing(), Mend::WhenDamaged).unwrap();
        assert!(again.store.losses().mended, "page at {start}");
    }
    assert!(unmet > 4, "{unmet} pages were not read at the start");
    // What was marked and is whole is left alone.
    let mut rig = open_with(&scene.device.crash_keeping_nothing(), Mend::WhenDamaged).unwrap();
    rig.run(mark);
    let mut again = open_with(&rig.device.crash_keeping_nothing(), Mend::WhenDamaged).unwrap();
    assert_eq!(again.store.losses(), Losses::default());
    again.run(|store| async move { scene.check(&store).await });
}

#[test]
fn shard_rows_that_share_blocks_are_dropped() {
    let mut rig = Rig::new(40);
    let shared = rig.run(|store| async move {
        let rows = [put_shard(&store, 1, 4).await.unwrap(), put_shard(&store, 2, 4).await.unwrap()];
        put_shard(&store, 3, 4).await.unwrap();
        store.checkpoint().await.unwrap();
        // Rows that no program writes: one on another's blocks, one outside the data area.
        let mut twin = row(4, 1, &[rows[0].extents[0].extent]);
        for (n, start) in [(4, twin.extents[0].extent.start), (5, crate::extent::BlockIndex(1 << 40))] {
            twin.blob = blob(n);
            twin.extents[0].extent.start = start;
            let pieces = crate::format::rows::ShardRowV1::from_row(&twin);
            let key = crate::format::rows::shard_key(twin.key(), 0);
            let value = crate::format::rows::encode_shard(&pieces[0]);
            store.0.core.borrow_mut().active.put(key, Some(value));
        }
        store.checkpoint().await.unwrap();
        store.0.superblock.borrow().free_map.extents[0]
    });
    let device = rig.device.crash_keeping_nothing();
    device.flip_bit(shared.start.offset_bytes() + 9, 1);
    let mut rig = open_mending(&device).unwrap();
    assert!(rig.store.losses().shards_incomplete);
    rig.run(|store| async move {
        let shards = store.shards(None, 100).await.unwrap();
        assert_eq!(shards.iter().map(|row| row.blob.counter.0).collect::<Vec<_>>(), [2, 3]);
        check_space(&store).await;
        store.checkpoint().await.unwrap();
        check_space(&store).await;
    });
}

#[test]
fn an_unknown_version_is_refused_and_not_dropped() {
    let scene = Scene::new(10);
    let root = crate::store::root_of(&scene.superblock()).unwrap().unwrap();
    let mut page = scene.device.peek(root.page.offset_bytes(), crate::index::PAGE_BYTES);
    page[4] = 2;
    let device = scene.device.crash_keeping_nothing();
    device.poke(root.page.offset_bytes(), &page);
    let root = crate::index::TreeRoot { checksum: crc32c::crc32c(&page), ..root };
    let mut superblock = scene.superblock();
    superblock.root.as_mut().unwrap()[..16].copy_from_slice(&root.encode());
    for slot in 0..SLOTS {
        device.poke(slot_offset(slot, DEVICE_BYTES), &superblock.encode(slot));
    }
    device.clear_events();
    let refused = open_mending(&device).err();
    assert!(matches!(refused, Some(StoreError::Index { .. })), "{refused:?}");
    assert!(device.events().iter().all(|event| !matches!(event, Event::WriteStart { .. })));
}

#[test]
fn mending_writes_around_shards() {
    let mut rig = Rig::new(41);
    let (rows, value) = rig.run(|store| async move {
        let payload = (0..9).map(|n| format!("k{n}={}", "v".repeat(1200))).collect::<Vec<_>>().join(",");
        store.append(Epoch(1), entry(PARTITION, 1, 0, &payload)).await.unwrap();
        store.apply(PARTITION, Sequence(1), decode(payload.as_bytes()).unwrap());
        // Everything that mending may write to lies below two shards: one is in the index, one in the journal alone.
        let take =
            |wanted: &dyn Fn(&mut FreeMap) -> Vec<Extent>| wanted(&mut store.0.space.free.borrow_mut());
        let ballast = take(&|free| {
            let blocks = free.free_blocks() - 168;
            free.allocate_fragmented(blocks, 1 << 16, 1).unwrap()
        });
        let live = row(1, 1, &store.reserve(40 * 4096).unwrap());
        let indexed = row(2, 1, &take(&|free| vec![free.allocate_high(128).unwrap()]));
        ballast.into_iter().for_each(|extent| store.0.space.free.borrow_mut().free(extent));
        let pieces = crate::format::rows::ShardRowV1::from_row(&indexed);
        let key = crate::format::rows::shard_key(indexed.key(), 0);
        let encoded = crate::format::rows::encode_shard(&pieces[0]);
        store.0.core.borrow_mut().active.put(key, Some(encoded));
        store.checkpoint().await.unwrap();
        for row in [&live, &indexed] {
            let extent = row.extents[0].extent;
            let mut buf = IoBuf::zeroed(usize::try_from(extent.len_bytes()).unwrap());
            buf.fill(0x5a);
            store.device().write(extent.start.offset_bytes(), buf).await.0.unwrap();
        }
        store.commit_shard(live.clone()).await.unwrap();
        let mut value = None;
        let visit = |visit: Visit<'_>| {
            if let Visit::Value { extent, .. } = visit {
                value = Some(extent);
            }
        };
        store.tree().walk(WalkDepth::Pages, visit).await;
        ([live, indexed], value.unwrap())
    });
    let device = rig.device.crash_keeping_nothing();
    device.flip_bit(value.start.offset_bytes(), 1);
    let mut mended = open_mending(&device).unwrap();
    let losses = mended.store.losses();
    assert_eq!((losses.lost_partitions, losses.shards_incomplete), (BTreeSet::from([PARTITION]), false));
    for row in &rows {
        let extent = row.extents[0].extent;
        let bytes = device.peek(extent.start.offset_bytes(), usize::try_from(extent.len_bytes()).unwrap());
        assert!(bytes.iter().all(|&byte| byte == 0x5a), "{extent:?} was overwritten");
    }
    mended.run(|store| async move {
        assert_eq!(store.shards(None, 9).await.unwrap(), rows);
        check_space(&store).await;
    });
}
