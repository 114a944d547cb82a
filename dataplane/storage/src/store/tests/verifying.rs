//! Verification of the index in steps and of the copies, and their healing.

use super::*;
use crate::format::superblock::{slot_offset, slots_of};
use crate::index::PAGE_BYTES;
use crate::store::{IndexDamage, Mend, VerifyStep};

const ROWS: u64 = 400;

/// An index of two inner levels: neighbours share long prefixes and others none, so that separators are long.
async fn fill(store: &Store<SimDevice>) {
    let item = |n: u64| format!("{:02}{}{:02}={}", n / 20, "a".repeat(1900), n % 20, "v".repeat(900));
    for sequence in 1..=ROWS / 4 {
        let payload = (0..4).map(|n| item((sequence - 1) * 4 + n)).collect::<Vec<_>>().join(",");
        append(store, PARTITION, sequence, &payload).await;
    }
    for sequence in 1..=20 {
        append(store, PartitionId(9), sequence, &format!("k{sequence}={}", "w".repeat(2000))).await;
        put_shard(store, sequence, 3).await.unwrap();
    }
    store.checkpoint().await.unwrap();
    assert_eq!(store.tree().root().unwrap().height, 2);
}

async fn append(store: &Store<SimDevice>, partition: PartitionId, sequence: u64, payload: &str) {
    store.append(Epoch(1), entry(partition, sequence, sequence - 1, payload)).await.unwrap();
    store.apply(partition, Sequence(sequence), decode(payload.as_bytes()).unwrap());
}

fn filled(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.run(|store| async move { fill(&store).await });
    rig
}

async fn extents(store: &Store<SimDevice>) -> Vec<(Extent, bool)> {
    let mut found = Vec::new();
    let visit = |visit: Visit<'_>| match visit {
        Visit::Page { extent, .. } => found.push((extent, true)),
        Visit::Value { extent, .. } => found.push((extent, false)),
        Visit::Damaged { error, .. } => panic!("{error}"),
    };
    store.tree().walk(WalkDepth::Pages, visit).await;
    found
}

async fn verify_all(store: &Store<SimDevice>, bytes_max: usize) -> (Vec<IndexDamage>, u64, u64) {
    let (mut resume, mut damage, mut steps, mut bytes) = (None, Vec::new(), 0, 0);
    loop {
        let VerifyStep { read_bytes, damage: found, next } =
            store.verify_index(resume.take(), bytes_max).await.unwrap();
        assert!(
            read_bytes <= (bytes_max as u64).saturating_add(4 * PAGE_BYTES as u64),
            "{read_bytes} read in one step"
        );
        damage.extend(found);
        (steps, bytes) = (steps + 1, bytes + read_bytes);
        match next {
            Some(next) => resume = Some(next),
            None => return (damage, steps, bytes),
        }
    }
}

#[test]
fn the_index_is_verified_in_steps_past_the_cache() {
    let mut rig = filled(50);
    let device = rig.device.clone();
    rig.run(|store| async move {
        let extents = extents(&store).await;
        let whole: u64 = extents.iter().map(|(extent, _)| extent.len_bytes()).sum();
        assert_eq!(verify_all(&store, usize::MAX).await, (vec![], 1, whole));
        let (damage, steps, bytes) = verify_all(&store, 1).await;
        assert!(damage.is_empty() && steps > 30 && bytes > whole, "{steps} steps, {bytes} of {whole} bytes");
        for &(extent, is_page) in &extents {
            let at = extent.start.offset_bytes() + 40;
            device.flip_bit(at, 2);
            for bytes_max in [1, 100_000, usize::MAX] {
                let (damage, ..) = verify_all(&store, bytes_max).await;
                let offsets: Vec<u64> = damage.iter().map(|damage| damage.offset_bytes).collect();
                // The way to where a step goes on is read again: damage on it ends the round.
                assert!(!offsets.is_empty(), "{extent:?}, page: {is_page}");
                assert!(offsets.iter().all(|&offset| offset == extent.start.offset_bytes()), "{damage:?}");
            }
            device.flip_bit(at, 2);
        }
    });
}

#[test]
fn checkpoints_are_no_damage_to_a_verification() {
    let mut rig = filled(51);
    rig.device.set_shuffle(true);
    rig.run(|store| async move {
        let writer = async {
            for sequence in 21..60 {
                append(&store, PartitionId(9), sequence, &format!("k{sequence}={}", "w".repeat(1900))).await;
                append(&store, PartitionId(10), sequence - 20, &format!("k{}=1", sequence % 7)).await;
                store.checkpoint().await.unwrap();
            }
        };
        let verifier = async {
            for bytes_max in [1, 50_000, usize::MAX, 20_000, 1 << 20] {
                assert_eq!(verify_all(&store, bytes_max).await.0, []);
                assert!(store.verify_copies().await.unwrap().is_whole());
            }
        };
        futures::join!(writer, verifier);
        check_space(&store).await;
    });
}

#[test]
fn damaged_copies_are_found_and_written_anew() {
    let mut rig = filled(52);
    let device = rig.device.clone();
    rig.run(|store| async move {
        assert!(store.verify_copies().await.unwrap().is_whole());
        store.append(Epoch(1), entry(PARTITION, ROWS / 4 + 1, ROWS / 4, "tail=1")).await.unwrap();
        let superblock = store.0.superblock.borrow().clone();
        let live = superblock.journal.start.0 + superblock.replay.position % superblock.journal.blocks;
        let map = superblock.free_map.extents[0].start.offset_bytes();
        let newest = slots_of(superblock.checkpoint)[1];
        let older = slots_of(superblock.checkpoint + 1)[0];
        let places = [slot_offset(newest, DEVICE_BYTES), slot_offset(older, DEVICE_BYTES), map, live * 4096];
        for (n, &place) in places.iter().enumerate() {
            device.flip_bit(place + 50, 1);
            let health = store.verify_copies().await.unwrap();
            let found = [
                health.superblocks.iter().any(|(slot, _)| *slot == newest),
                health.superblocks.iter().any(|(slot, _)| *slot == older),
                health.free_map.is_some(),
                health.journal.is_some(),
            ];
            let expected: Vec<bool> = (0..4).map(|m| m <= n).collect();
            assert_eq!(found[..], expected, "{health:?}");
        }
        store.rewrite_copies().await.unwrap();
        let health = store.verify_copies().await.unwrap();
        assert!(health.is_whole(), "{health:?}");
        check_space(&store).await;
    });
    rig.reopen_after_crash(3).run(|store| async move {
        assert_eq!(store.recovered_log(PARTITION).tail.len(), 1);
        check_space(&store).await;
    });
}

fn open_mending(device: &SimDevice) -> Rig {
    let mut pool = LocalPool::new();
    let options = StoreOptions { mend: Mend::AfterSurvey, ..options(&pool) };
    let store = pool.run_until(Store::open(Rc::new(device.clone()), options)).unwrap();
    Rig { pool, device: device.clone(), store }
}

/// The partition in few leaves keeps its rows unless its own leaf, a value or the root goes.
async fn check_mended(store: Store<SimDevice>) {
    let losses = store.losses();
    assert!(losses.mended);
    for (partition, rows) in [(PARTITION, 400), (PartitionId(9), 20)] {
        let found = store.rows(partition, b"", None, usize::MAX).await.unwrap();
        let lost = losses.lost_partitions.contains(&partition);
        assert_eq!(found.len(), if lost { 0 } else { rows }, "{partition}");
    }
    assert!(store.shards(None, 100).await.unwrap().len() == 20 || losses.shards_incomplete);
    check_space(&store).await;
}

#[test]
fn damage_at_every_level_of_a_tall_index_is_mended() {
    let mut rig = filled(53);
    let extents = rig.run(|store| async move { extents(&store).await });
    let levels = extents.iter().filter(|(_, is_page)| *is_page).count();
    assert!(levels > 30, "{levels} pages");
    for (n, &(extent, is_page)) in extents.iter().enumerate() {
        let device = rig.device.crash_keeping_nothing();
        device.flip_bit(extent.start.offset_bytes() + 40, 1);
        if is_page && n % 2 == 1 {
            // A neighbour too, so that both sides of what is joined are gone.
            device.flip_bit(extents[n - 1].0.start.offset_bytes() + 40, 1);
        }
        open_mending(&device).run(check_mended);
        Rig::open(device.crash_keeping_nothing()).unwrap().run(|store| async move {
            assert!(!store.losses().mended);
            assert_eq!(verify_all(&store, usize::MAX).await.0, []);
        });
    }
}

#[test]
fn what_cannot_be_read_counts_as_damaged_and_what_can_at_the_second_try_does_not() {
    let mut rig = filled(54);
    let extents = rig.run(|store| async move { extents(&store).await });
    for &(extent, _) in extents.iter().step_by(9) {
        let range = extent.start.offset_bytes()..extent.end().offset_bytes();
        for times in [1, 2, u64::MAX] {
            let device = rig.device.crash_keeping_nothing();
            device.inject(Fault::Error, When::on(Operation::Read).touching(range.clone()).times(times));
            let mut rig = open_mending(&device);
            if times < 2 {
                // Recovery itself does not try twice: it may have mended, and lost nothing.
                assert!(rig.store.losses().lost_partitions.is_empty());
                continue;
            }
            device.clear_faults();
            if times > 2 {
                assert!(rig.store.losses().mended);
            }
            rig.run(|store| async move { check_space(&store).await });
        }
    }
}

#[test]
fn space_of_the_old_tree_comes_back() {
    let mut rig = filled(55);
    let before = rig.store.space().free_bytes;
    let map = rig.store.free_map_extents()[0];
    rig.run(|store| async move { store.shutdown().await.unwrap() });
    let device = rig.device.crash_keeping_nothing();
    device.flip_bit(map.start.offset_bytes() + 40, 1);
    let mut rig = open_mending(&device);
    rig.run(|store| async move {
        check_space(&store).await;
        store.checkpoint().await.unwrap();
        check_space(&store).await;
        assert!(store.space().free_bytes + 4096 * 32 > before, "{:?} was {before}", store.space());
    });
}
