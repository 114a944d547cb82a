use std::time::Duration;

use futures::future::join_all;
use quarry_clustermap::{DeviceId, PartitionId, ShardIndex, Tier};

use super::*;
use crate::{
    cluster::{DamageKind, PeerError},
    test_cluster::{Sim, TestBody, TestCluster, random_bytes},
    writer::write_blob,
};

const UNIT: usize = 32 * 1024;
const BLOCK: usize = 128 * 1024;
const STRIPE: usize = 4 * BLOCK;

fn put(sim: &mut Sim, bytes: &[u8]) -> BlobRef {
    let cluster = Rc::clone(&sim.cluster);
    let mut body = TestBody::new(&cluster, bytes);
    let blob =
        sim.run(async move { write_blob(&cluster, Tier::Hot, PartitionId(0), &mut body).await }).unwrap();
    sim.settle();
    blob
}

/// What arrived, and how it ended.
async fn collect(
    cluster: Rc<TestCluster>,
    blob: BlobRef,
    range: Range<u64>,
    memory: ReadMemory,
) -> (Vec<u8>, Result<(), ReadError>) {
    let mut stream = std::pin::pin!(read_range(cluster, blob, range, memory));
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => {
                assert!(!piece.is_empty());
                bytes.extend_from_slice(&piece);
            }
            Err(error) => {
                assert!(stream.next().await.is_none(), "a stream ends with its error");
                return (bytes, Err(error));
            }
        }
    }
    (bytes, Ok(()))
}

fn get(sim: &mut Sim, blob: BlobRef, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
    let (bytes, end) = sim.run(collect(Rc::clone(&sim.cluster), blob, range, ReadMemory::Pool));
    sim.settle();
    end.map(|()| bytes)
}

fn get_all(sim: &mut Sim, blob: BlobRef) -> Result<Vec<u8>, ReadError> {
    get(sim, blob, 0..blob.size_bytes)
}

fn slice(bytes: &[u8], range: &Range<u64>) -> Vec<u8> {
    bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
}

/// Small numbers from a seed.
fn draw(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    usize::try_from(*seed >> 33).unwrap() % below
}

fn some_range(seed: &mut u64, size: usize) -> Range<u64> {
    let start = draw(seed, size + 1);
    let len = [1, 100, UNIT, BLOCK + 7, 3 * STRIPE][draw(seed, 5)];
    start as u64..(start + draw(seed, len + 1)).min(size) as u64
}

#[test]
fn any_two_devices_may_be_lost() {
    let size = 2 * STRIPE + 150_000;
    let bytes = random_bytes(1, size);
    for first in 0..6 {
        for second in 0..=first {
            let mut sim = Sim::new("4+2", 6, 1, 32, first * 6 + second);
            let blob = put(&mut sim, &bytes);
            sim.disk(first).out.set(true);
            sim.disk(second).shards.borrow_mut().clear();
            let mut seed = first * 7 + second;
            assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
            for _ in 0..6 {
                let range = some_range(&mut seed, size);
                assert_eq!(get(&mut sim, blob, range.clone()).unwrap(), slice(&bytes, &range), "{range:?}");
            }
            assert!(
                sim.cluster
                    .damage
                    .borrow()
                    .iter()
                    .all(|(shard, kind)| { u64::from(shard.0) == second && *kind == DamageKind::Missing })
            );
        }
    }
}

/// Repair may be ahead of the manifest: what it calls missing is asked when nothing else is left.
#[test]
fn shards_called_missing_are_the_last_resort() {
    let mut sim = Sim::new("4+2", 6, 1, 32, 1);
    let bytes = random_bytes(1, 2 * STRIPE + 9);
    let blob = BlobRef { missing_shards: 0b1, ..put(&mut sim, &bytes) };
    assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
    assert_eq!(sim.disk(0).reads.get(), 0);
    [1, 2].into_iter().for_each(|device| sim.disk(device).out.set(true));
    assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
    assert!(sim.disk(0).reads.get() > 0);
    assert!(sim.cluster.damage.borrow().is_empty());
}

#[test]
fn three_lost_devices_are_an_error() {
    let bytes = random_bytes(1, STRIPE + 9);
    for seed in 0..8 {
        let mut sim = Sim::new("4+2", 6, 1, 32, seed);
        let blob = put(&mut sim, &bytes);
        [0, 3, 5].into_iter().for_each(|device| sim.disk(device).out.set(true));
        assert!(matches!(get_all(&mut sim, blob), Err(ReadError::Unavailable { stripe: 0, .. })));
        [0, 3, 5].into_iter().for_each(|device| sim.disk(device).out.set(false));
        assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
        [0, 3, 5].into_iter().for_each(|device| sim.disk(device).shards.borrow_mut().clear());
        assert!(matches!(get_all(&mut sim, blob), Err(ReadError::DataLoss { stripe: 0, .. })));
    }
}

#[test]
fn no_parity_forgives_nothing() {
    let bytes = random_bytes(1, 500_000);
    let mut sim = Sim::new("3+0", 3, 1, 32, 1);
    let blob = put(&mut sim, &bytes);
    assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
    sim.stored(blob.blob, 1).borrow_mut().bytes[77] ^= 1;
    assert!(matches!(get_all(&mut sim, blob), Err(ReadError::DataLoss { .. })));
}

/// A healthy range read touches the units it needs, on the shards that hold them, and nothing else.
#[test]
fn a_range_reads_only_its_units() {
    let mut sim = Sim::new("4+2", 6, 1, 32, 1);
    let bytes = random_bytes(1, 4 * STRIPE);
    let blob = put(&mut sim, &bytes);
    let start = (2 * STRIPE + BLOCK + UNIT + 10) as u64;
    assert_eq!(get(&mut sim, blob, start..start + 20).unwrap(), slice(&bytes, &(start..start + 20)));
    for device in 0..6 {
        let expected = if device == 1 { (1, UNIT as u64) } else { (0, 0) };
        assert_eq!((sim.disk(device).reads.get(), sim.disk(device).read_bytes.get()), expected);
    }
    sim.disk(1).out.set(true);
    assert_eq!(get(&mut sim, blob, start..start + 20).unwrap(), slice(&bytes, &(start..start + 20)));
    assert!(
        (0..6).all(|device| sim.disk(device).read_bytes.get() <= UNIT as u64),
        "decoding reads the same units"
    );
}

#[test]
fn flipped_bits_are_never_served() {
    let size = 3 * STRIPE + 70_000;
    let bytes = random_bytes(2, size);
    for round in 0..30_u64 {
        let mut sim = Sim::new("4+2", 6, 1, 32, round);
        let blob = put(&mut sim, &bytes);
        let mut seed = round;
        let damaged: Vec<usize> =
            (0..6).filter(|shard| (shard + draw(&mut seed, 3)).is_multiple_of(3)).take(2).collect();
        for shard in &damaged {
            let stored = sim.stored(blob.blob, u8::try_from(*shard).unwrap());
            let bytes = &mut stored.borrow_mut().bytes;
            (0..3).for_each(|_| {
                let len = bytes.len();
                bytes[draw(&mut seed, len)] ^= 1 << draw(&mut seed, 8);
            });
        }
        assert_eq!(get_all(&mut sim, blob).unwrap(), bytes, "round {round}");
        for _ in 0..5 {
            let range = some_range(&mut seed, size);
            assert_eq!(
                get(&mut sim, blob, range.clone()).unwrap(),
                slice(&bytes, &range),
                "round {round} {range:?}"
            );
        }
        let reports = sim.cluster.damage.borrow();
        assert!(reports.iter().all(|(shard, kind)| {
            damaged.contains(&usize::from(shard.0)) && *kind == DamageKind::Corrupt
        }));
        assert!(
            damaged.iter().all(|shard| *shard > 3 || reports.iter().any(|(s, _)| usize::from(s.0) == *shard))
        );
    }
}

/// More damage than parity covers, anywhere: the bytes before it are right, then comes an error.
#[test]
fn heavy_damage_gives_right_bytes_or_an_error() {
    let size = 3 * STRIPE + 70_000;
    let bytes = random_bytes(2, size);
    let (mut whole, mut lost) = (0, 0);
    for round in 0..60_u64 {
        let mut sim = Sim::new("4+2", 6, 1, 18, round);
        let blob = put(&mut sim, &bytes);
        let mut seed = round * 31;
        for shard in 0..6 {
            let disk = sim.disk(shard);
            match draw(&mut seed, 12) {
                0 => disk.out.set(true),
                1 => disk.read_error.set(Some(PeerError::Io)),
                2 => disk.read_delay.set(Duration::from_secs(3)),
                3 => disk.shards.borrow_mut().clear(),
                4 => disk.pins_end.set(1),
                _ => {
                    let Some(stored) = disk.shards.borrow().values().next().cloned() else { continue };
                    let bytes = &mut stored.borrow_mut().bytes;
                    let len = bytes.len();
                    (0..draw(&mut seed, 5)).for_each(|_| bytes[draw(&mut seed, len)] ^= 0x10);
                }
            }
        }
        let range = if round % 2 == 0 { 0..size as u64 } else { some_range(&mut seed, size) };
        let (got, end) = sim.run(collect(Rc::clone(&sim.cluster), blob, range.clone(), ReadMemory::Pool));
        sim.settle();
        let expected = slice(&bytes, &range);
        assert_eq!(got, expected[..got.len()], "round {round}");
        assert!(end.is_err() || got.len() == expected.len(), "round {round}: short without an error");
        *if end.is_ok() { &mut whole } else { &mut lost } += 1;
    }
    assert!(whole > 10 && lost > 5, "{whole} whole, {lost} lost: the faults are too mild or too harsh");
}

/// Whole bytes that belong elsewhere: of another blob, and of another place in the same shard.
#[test]
fn misplaced_blocks_are_noticed() {
    let mut sim = Sim::new("4+2", 6, 1, 32, 1);
    let (bytes, others) = (random_bytes(1, STRIPE), random_bytes(2, STRIPE));
    let (blob, other) = (put(&mut sim, &bytes), put(&mut sim, &others));
    sim.stored(blob.blob, 1).borrow_mut().bytes = sim.stored(other.blob, 1).borrow().bytes.clone();
    sim.stored(blob.blob, 2).borrow_mut().bytes.rotate_left(UNIT);
    assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
    let mut reports = sim.cluster.damage.borrow().clone();
    reports.sort();
    assert_eq!(reports, [(ShardIndex(1), DamageKind::Corrupt), (ShardIndex(2), DamageKind::Corrupt)]);
}

/// Verified sources against verified checksums: neither is believed.
#[test]
fn contradictions_are_an_error() {
    let mut sim = Sim::new("4+2", 6, 1, 32, 1);
    let bytes = random_bytes(1, STRIPE);
    let blob = put(&mut sim, &bytes);
    sim.stored(blob.blob, 2).borrow_mut().checksums[0] ^= 1;
    assert_eq!(get(&mut sim, blob, 0..BLOCK as u64).unwrap(), bytes[..BLOCK]);
    assert!(matches!(get_all(&mut sim, blob), Err(ReadError::DataLoss { .. })));
}

#[test]
fn a_shard_of_the_wrong_length_is_damaged() {
    let mut sim = Sim::new("4+2", 6, 1, 32, 1);
    let bytes = random_bytes(1, 2 * STRIPE);
    let blob = put(&mut sim, &bytes);
    sim.stored(blob.blob, 0).borrow_mut().bytes.truncate(BLOCK);
    sim.stored(blob.blob, 3).borrow_mut().checksums.pop();
    assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
    assert_eq!(sim.cluster.damage.borrow().len(), 2);
}

/// A hedge: the parity answers long before the slow shard does, and nobody calls slowness damage.
#[test]
fn a_slow_shard_is_overtaken() {
    let mut sim = Sim::new("4+2", 6, 1, 64, 1);
    let bytes = random_bytes(1, 5 * STRIPE + 5);
    let blob = put(&mut sim, &bytes);
    sim.disk(2).read_delay.set(Duration::from_secs(30));
    let started = sim.cluster.monotonic();
    let cluster = Rc::clone(&sim.cluster);
    let (got, end) = sim.run(collect(cluster, blob, 0..blob.size_bytes, ReadMemory::Pool));
    assert_eq!((got, end), (bytes, Ok(())));
    let elapsed = sim.cluster.monotonic() - started;
    assert!(elapsed < Duration::from_millis(40), "{elapsed:?}");
    assert!(sim.cluster.damage.borrow().is_empty());
    sim.settle();
}

/// Every shard slow: the hedges gain nothing, and the bytes come all the same.
#[test]
fn a_slow_cluster_is_still_right() {
    let mut sim = Sim::new("4+2", 6, 1, 64, 1);
    let bytes = random_bytes(1, 2 * STRIPE + 5);
    let blob = put(&mut sim, &bytes);
    (0..6).for_each(|device| sim.disk(device).read_delay.set(Duration::from_millis(100 + 40 * device)));
    assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
    sim.disk(1).read_error.set(Some(PeerError::Timeout));
    sim.disk(5).read_error.set(Some(PeerError::Io));
    assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
}

#[test]
fn an_ended_pin_is_renewed() {
    let mut sim = Sim::new("4+2", 6, 1, 64, 1);
    let bytes = random_bytes(1, 3 * STRIPE + 5);
    let blob = put(&mut sim, &bytes);
    (0..6).for_each(|device| sim.disk(device).pins_end.set(1));
    assert_eq!(get_all(&mut sim, blob).unwrap(), bytes);
    assert!(sim.cluster.damage.borrow().is_empty());
}

#[test]
fn the_newest_map_is_followed() {
    let mut sim = Sim::new("4+2", 7, 1, 64, 1);
    let bytes = random_bytes(1, STRIPE);
    let blob = put(&mut sim, &bytes);
    let moved = std::mem::take(&mut *sim.disk(0).shards.borrow_mut());
    *sim.disk(6).shards.borrow_mut() = moved;
    let cluster = Rc::clone(&sim.cluster);
    let read = collect(Rc::clone(&cluster), blob, 0..blob.size_bytes, ReadMemory::Pool);
    // The read begins with the old map, and learns of the move while it opens the shard.
    let mut newer = (*cluster.map()).clone();
    newer.placement_groups.get_mut(&blob.pg).unwrap().members[0] = DeviceId(6);
    let (got, end) = sim.run(async move {
        let switch = async {
            *cluster.map.borrow_mut() = Rc::new(newer);
        };
        futures::future::join(read, switch).await.0
    });
    assert_eq!((got, end), (bytes, Ok(())));
    assert!(sim.cluster.damage.borrow().is_empty());
    assert_eq!(sim.disk(6).reads.get(), 1, "not decoded");
}

#[test]
fn readers_and_writers_share_a_small_pool() {
    for (slots, seed) in [(6, 1), (7, 2), (11, 3), (14, 4), (6, 5)] {
        let mut sim = Sim::new("4+2", 6, 6, slots, seed);
        let bytes = random_bytes(1, 3 * STRIPE + 70_000);
        let blobs: Vec<BlobRef> = (0..3).map(|_| put(&mut sim, &bytes)).collect();
        // One device is gone, one errs now and then, one is slow: most stripes need more memory than a piece
        // each.
        sim.disk(1).out.set(true);
        sim.disk(3).read_delay.set(Duration::from_millis(70));
        sim.stored(blobs[0].blob, 0).borrow_mut().bytes[BLOCK + 5] ^= 1;
        sim.stored(blobs[1].blob, 2).borrow_mut().bytes[2 * BLOCK + 5] ^= 1;
        let cluster = Rc::clone(&sim.cluster);
        let size = blobs[0].size_bytes;
        let mut draws = seed;
        let ranges: Vec<Range<u64>> =
            (0..12).map(|i| if i < 6 { 0..size } else { some_range(&mut draws, 1_600_000) }).collect();
        let expected: Vec<Vec<u8>> = ranges.iter().map(|range| slice(&bytes, range)).collect();
        let results = sim.run(async move {
            let reads = ranges.into_iter().enumerate().map(|(index, range)| {
                collect(Rc::clone(&cluster), blobs[index % 3], range, ReadMemory::Pool)
            });
            let writes = (0..4).map(|_| async {
                let mut body = TestBody::new(&cluster, &bytes);
                write_blob(&cluster, Tier::Hot, PartitionId(0), &mut body).await
            });
            futures::future::join(join_all(reads), join_all(writes)).await
        });
        for ((got, end), expected) in results.0.into_iter().zip(expected) {
            assert_eq!(end, Ok(()));
            assert!(got == expected);
        }
        assert!(results.1.iter().all(Result::is_ok));
        sim.settle();
    }
}

/// A consumer that stops polling keeps what it has, and blocks nobody.
#[test]
fn a_stalled_consumer_blocks_nobody() {
    let mut sim = Sim::new("4+2", 6, 1, 3 * 4 + 6, 1);
    let bytes = random_bytes(1, 6 * STRIPE);
    let blob = put(&mut sim, &bytes);
    let stalled = read_range(Rc::clone(&sim.cluster), blob, 0..blob.size_bytes, ReadMemory::Pool);
    let (stalled, piece) = sim.run(async move {
        let mut stalled = Box::pin(stalled);
        let piece = stalled.next().await.unwrap().unwrap();
        (stalled, piece)
    });
    let cluster = Rc::clone(&sim.cluster);
    let reads = (0..3).map(move |_| collect(Rc::clone(&cluster), blob, 0..blob.size_bytes, ReadMemory::Pool));
    for (got, end) in sim.run(join_all(reads)) {
        assert_eq!(end, Ok(()));
        assert!(got == bytes);
    }
    let rest = sim.run(async move {
        let mut rest = piece.to_vec();
        drop(piece);
        let mut stalled = stalled;
        while let Some(piece) = stalled.next().await {
            rest.extend_from_slice(&piece.unwrap());
        }
        rest
    });
    assert!(rest == bytes);
    sim.settle();
}

/// Nor does one that stops polling while it stands in the pool's queue.
#[test]
fn a_stalled_waiter_blocks_nobody() {
    let mut sim = Sim::new("4+2", 6, 1, 12, 1);
    let bytes = random_bytes(1, 2 * STRIPE);
    let blob = put(&mut sim, &bytes);
    let held = sim.cluster.buffers().try_take_many(12).unwrap();
    let waiting = read_range(Rc::clone(&sim.cluster), blob, 0..blob.size_bytes, ReadMemory::Pool);
    let waiting = sim.run(async move {
        let mut waiting = Box::pin(waiting);
        assert!(waiting.next().now_or_never().is_none());
        waiting
    });
    let cluster = Rc::clone(&sim.cluster);
    let read = collect(cluster, blob, 0..blob.size_bytes, ReadMemory::Pool);
    let (got, end) = sim.run(async move {
        let release = async move { drop(held) };
        futures::future::join(read, release).await.0
    });
    assert_eq!(end, Ok(()));
    assert!(got == bytes);
    drop(waiting);
    sim.settle();
}

/// Dropping the stream at any moment gives everything back.
#[test]
fn a_dropped_stream_leaves_nothing() {
    let bytes = random_bytes(1, 4 * STRIPE + 5);
    for step in 0..40 {
        let mut sim = Sim::new("4+2", 6, 1, 20, step);
        let blob = put(&mut sim, &bytes);
        sim.disk(step % 6).out.set(true);
        let cluster = Rc::clone(&sim.cluster);
        sim.run(async move {
            let read = collect(Rc::clone(&cluster), blob, 0..blob.size_bytes, ReadMemory::Pool);
            let patience = cluster.sleep(Duration::from_micros(step * 50));
            futures::future::select(Box::pin(read), std::pin::pin!(patience)).await;
        });
        sim.settle();
    }
}

#[test]
fn random_ranges_of_random_blobs() {
    let mut seed = 11;
    for (round, profile) in
        ["4+2", "2+2", "3+2", "8+3", "1+1", "2+0"].into_iter().cycle().take(24).enumerate()
    {
        let mut sim = Sim::new(profile, 11, 3, 40, round as u64);
        let size = draw(&mut seed, 2_500_000);
        let bytes = random_bytes(round as u64, size);
        let blob = put(&mut sim, &bytes);
        for _ in 0..8 {
            let range = some_range(&mut seed, size);
            assert_eq!(
                get(&mut sim, blob, range.clone()).unwrap(),
                slice(&bytes, &range),
                "{profile} {size} {range:?}"
            );
        }
    }
}
