use std::{cell::Cell, time::Duration};

use quarry_clustermap::ShardIndex;

use super::*;
use crate::test_cluster::{Sim, TestBody, TestCluster, random_bytes};

const OWNER: PartitionId = PartitionId(3);
const STRIPE: usize = 4 * 128 * 1024;

pub(crate) fn put(sim: &mut Sim, bytes: &[u8]) -> Result<BlobRef, WriteError> {
    let body = TestBody::new(&sim.cluster, bytes);
    put_body(sim, body)
}

fn put_body(sim: &mut Sim, mut body: TestBody) -> Result<BlobRef, WriteError> {
    let cluster = Rc::clone(&sim.cluster);
    sim.run(async move { write_blob(&cluster, Tier::Hot, OWNER, &mut body).await })
}

fn get(sim: &mut Sim, blob: BlobRef) -> Result<Vec<u8>, ReadError> {
    let stream = read_range(Rc::clone(&sim.cluster), blob, 0..blob.size_bytes, ReadMemory::Pool);
    sim.run(async move {
        let mut stream = std::pin::pin!(stream);
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes)
    })
}

#[test]
fn round_trip_of_sizes() {
    for profile in ["4+2", "3+2", "2+1", "1+0", "8+3"] {
        let mut sim = Sim::new(profile, 11, 5, 64, 1);
        for size in
            [0, 1, 4095, 4096, 4097, 40_000, 131_072, 131_073, STRIPE - 1, STRIPE, STRIPE + 1, 1_700_001]
        {
            let bytes = random_bytes(size as u64, size);
            let blob = put(&mut sim, &bytes).unwrap();
            assert_eq!((blob.size_bytes, blob.missing_shards), (size as u64, 0));
            assert_eq!(get(&mut sim, blob).unwrap(), bytes, "{profile} {size}");
            assert_eq!(sim.shards(), if size == 0 { 0 } else { blob.profile.total() });
            let layout = Layout::new(blob.profile, size as u64);
            for shard in (0..blob.profile.total()).filter(|_| size > 0) {
                let stored = sim.stored(blob.blob, shard_index(shard).0);
                assert_eq!(stored.borrow().bytes.len() as u64, layout.shard_len_bytes());
                assert_eq!(stored.borrow().checksums.len(), layout.shard_units());
            }
            let cluster = Rc::clone(&sim.cluster);
            sim.run(async move { free_blob(&cluster, &blob).await }).unwrap();
            sim.settle();
            assert_eq!(sim.shards(), 0);
        }
        assert!(sim.cluster.damage.borrow().is_empty());
    }
}

/// The place of each byte is an on-disk contract: shard by shard within the stripe, zeros after the end.
#[test]
fn bytes_lie_where_the_layout_says() {
    let mut sim = Sim::new("2+1", 3, 1, 16, 2);
    let bytes = random_bytes(5, 2 * 131_072 + 5_000);
    let blob = put(&mut sim, &bytes).unwrap();
    let (first, second) = (sim.stored(blob.blob, 0), sim.stored(blob.blob, 1));
    let (first, second) = (&first.borrow().bytes, &second.borrow().bytes);
    assert_eq!((first.len(), second.len()), (131_072 + 4096, 131_072 + 4096));
    assert_eq!(first[..131_072], bytes[..131_072]);
    assert_eq!(second[..131_072], bytes[131_072..262_144]);
    assert_eq!(first[131_072..], bytes[262_144..266_240]);
    assert_eq!(second[131_072..131_072 + 904], bytes[266_240..]);
    assert!(second[131_072 + 904..].iter().all(|byte| *byte == 0));
}

/// Of two groups that are drawn the one is taken whose worst device costs less.
#[test]
fn costly_devices_get_fewer_blobs() {
    const BLOBS: u32 = 120;
    let on_first = |cost: u64| {
        // Twelve groups of three of twelve devices: a quarter of them has the first.
        let mut sim = Sim::new("2+1", 12, 12, 16, 2);
        let device = *sim.cluster.disks.keys().next().unwrap();
        sim.cluster.disks[&device].write_cost.set(cost);
        for blob in 0..BLOBS {
            put(&mut sim, &random_bytes(blob.into(), 100)).unwrap();
        }
        sim.cluster.disks[&device].shards.borrow().len()
    };
    let (equal, costly) = (on_first(0), on_first(1));
    assert!((15..=45).contains(&equal), "{equal} of {BLOBS} when all cost the same");
    // Only when both draws have it: one in sixteen.
    assert!((1..=15).contains(&costly), "{costly} of {BLOBS} when it costs more");
}

#[test]
fn a_broken_body_leaves_nothing() {
    let bytes = random_bytes(1, 2 * STRIPE + 77);
    let mismatch = BodyError::Mismatch { what: "Content-MD5".to_owned() };
    type Case = (fn(TestBody, BodyError) -> TestBody, fn(&BodyError, &BodyError) -> bool);
    let cases: [Case; 3] = [
        (
            |body, _| {
                let longer = body.len_bytes() + 1;
                body.announcing(longer)
            },
            |e, _| *e == BodyError::Incomplete,
        ),
        (
            |body, _| {
                let less = body.len_bytes() - 1;
                body.announcing(less)
            },
            |e, _| matches!(e, BodyError::Malformed { .. }),
        ),
        (TestBody::failing, |e, mismatch| e == mismatch),
    ];
    for (spoil, expected) in cases {
        let mut sim = Sim::new("4+2", 6, 6, 32, 3);
        let body = spoil(TestBody::new(&sim.cluster, &bytes), mismatch.clone());
        let Err(WriteError::Body(error)) = put_body(&mut sim, body) else { panic!("the body was accepted") };
        assert!(expected(&error, &mismatch), "{error}");
        sim.settle();
        assert_eq!(sim.shards(), 0);
    }
}

/// A caller that goes away at any moment leaves neither shards nor reservations nor buffers behind.
#[test]
fn a_cancelled_write_leaves_nothing() {
    let bytes = random_bytes(1, 2 * STRIPE + 77);
    let mut finished = 0;
    for step in 0..80 {
        let mut sim = Sim::new("4+2", 6, 6, 32, step);
        let cluster = Rc::clone(&sim.cluster);
        let mut body = TestBody::new(&cluster, &bytes);
        let result = sim.run(async move {
            let write = write_blob(&cluster, Tier::Hot, OWNER, &mut body);
            let patience = cluster.sleep(Duration::from_micros(step * 60));
            match futures::future::select(std::pin::pin!(write), std::pin::pin!(patience)).await {
                futures::future::Either::Left((written, _)) => Some(written.unwrap()),
                futures::future::Either::Right(_) => None,
            }
        });
        sim.settle();
        assert_eq!(sim.shards(), if result.is_some() { 6 } else { 0 }, "step {step}");
        finished += u32::from(result.is_some());
    }
    assert!(finished > 0 && finished < 60, "{finished} finished: the steps do not straddle the end");
}

/// A device that fails in the middle, and another whole group: the blob moves there.
#[test]
fn a_blob_is_rewritten_to_a_whole_group() {
    for writes in 0..5 {
        let mut sim = Sim::new("4+2", 12, 12, 64, 4);
        let bytes = random_bytes(9, 4 * STRIPE + 12_345);
        sim.disk(5).writes_left.set(Some(writes));
        sim.edit_map(|map| map.placement_groups.retain(|pg, _| [0, 6].contains(&pg.0)));
        // Both groups, so that the failing device is met whichever is tried first.
        let blobs: Vec<BlobRef> = (0..4).map(|_| put(&mut sim, &bytes).unwrap()).collect();
        sim.settle();
        for blob in &blobs {
            assert_eq!((blob.missing_shards, blob.pg), (0, PgId(6)));
            assert_eq!(get(&mut sim, *blob).unwrap(), bytes);
        }
        assert_eq!(sim.shards(), 4 * 6);
    }
}

#[test]
fn a_blob_stands_short_only_without_another_group() {
    let mut sim = Sim::new("4+2", 6, 6, 64, 5);
    let bytes = random_bytes(9, 3 * STRIPE + 12_345);
    sim.disk(2).writes_left.set(Some(1));
    let blob = put(&mut sim, &bytes).unwrap();
    sim.settle();
    let expected =
        sim.cluster.map().placement_groups[&blob.pg].members.iter().position(|d| d.0 == 2).unwrap();
    assert_eq!(blob.missing_shards, 1 << expected);
    assert_eq!(sim.shards(), 5);
    assert_eq!(get(&mut sim, blob).unwrap(), bytes);
    assert!(sim.cluster.damage.borrow().is_empty(), "what the manifest says is missing is no news");
}

#[test]
fn a_device_that_refuses_reservations() {
    let mut sim = Sim::new("4+2", 7, 7, 64, 6);
    let bytes = random_bytes(9, 1000);
    sim.disk(2).out.set(true);
    for _ in 0..10 {
        let blob = put(&mut sim, &bytes).unwrap();
        assert_eq!(blob.missing_shards, 0, "one group does without the device");
    }
    // The map knows that another is out, too: every group lacks one, and the write is short.
    sim.edit_map(|map| {
        map.devices.get_mut(&DeviceId(3)).unwrap().state = quarry_clustermap::DeviceState::Out;
    });
    let blob = put(&mut sim, &bytes).unwrap();
    assert_eq!(blob.missing_shards.count_ones(), 1);
    assert_eq!(get(&mut sim, blob).unwrap(), bytes);
    sim.settle();
    assert_eq!(sim.shards(), 10 * 6 + 5);
}

/// 4+2 with two gone is below k+1; parity of one, or none, forgives nothing.
#[test]
fn too_few_shards_is_an_error() {
    for (profile, bad, devices) in [("4+2", 2, 6), ("2+1", 1, 3), ("3+0", 1, 3)] {
        let bytes = random_bytes(9, 2_000_000);
        for fail_commit in [false, true] {
            let mut sim = Sim::new(profile, devices, 1, 64, 7);
            for device in 0..bad {
                let disk = sim.disk(device);
                disk.commit_times_out.set(fail_commit);
                disk.writes_left.set((!fail_commit).then_some(1));
            }
            let error = put(&mut sim, &bytes).unwrap_err();
            assert!(matches!(error, WriteError::TooFewShards { .. }), "{error}");
            sim.settle();
            assert_eq!(sim.shards(), 0, "also those whose commit was not answered");
        }
    }
}

#[test]
fn a_commit_without_answer_does_not_count() {
    let mut sim = Sim::new("4+2", 6, 1, 64, 8);
    sim.disk(1).commit_times_out.set(true);
    let bytes = random_bytes(9, 700_000);
    let blob = put(&mut sim, &bytes).unwrap();
    sim.settle();
    assert_eq!(blob.missing_shards, 0b10);
    assert_eq!(get(&mut sim, blob).unwrap(), bytes);
    assert!(sim.shards() >= 5);
}

#[test]
fn full_sealed_and_absent_groups() {
    let mut sim = Sim::new("4+2", 6, 2, 64, 9);
    sim.disk(1).full.set(true);
    assert_eq!(put(&mut sim, b"x").unwrap_err(), WriteError::OutOfSpace);
    sim.disk(1).full.set(false);
    sim.disk(4).stale.borrow_mut().push(PgId(0));
    (0..10).for_each(|_| assert_eq!(put(&mut sim, b"x").unwrap().pg, PgId(1)));
    sim.disk(4).stale.borrow_mut().push(PgId(1));
    assert!(matches!(put(&mut sim, b"x").unwrap_err(), WriteError::TooFewShards { .. }));
    sim.edit_map(|map| map.placement_groups.values_mut().for_each(|group| group.state = PgState::Sealed));
    assert_eq!(put(&mut sim, b"x").unwrap_err(), WriteError::NoGroup);
    assert_eq!(put(&mut sim, b"").unwrap_err(), WriteError::NoGroup);
    sim.settle();
    assert_eq!(sim.shards(), 10 * 6);
}

/// Copies read while they hold a writer's buffers; with a pool of one stripe they still end.
#[test]
fn copies_share_a_pool_of_one_stripe() {
    let mut sim = Sim::new("4+2", 6, 6, 6, 10);
    let bytes = random_bytes(9, 2 * STRIPE + 4321);
    let blob = put(&mut sim, &bytes).unwrap();
    let cluster = Rc::clone(&sim.cluster);
    let copies = sim.run(async move { join_all((0..4).map(|_| copy(&cluster, blob))).await });
    for copy in copies {
        assert_eq!(get(&mut sim, copy.unwrap()).unwrap(), bytes);
    }
    sim.settle();
}

async fn copy(cluster: &Rc<TestCluster>, blob: BlobRef) -> Result<BlobRef, WriteError> {
    let stream = read_range(Rc::clone(cluster), blob, 0..blob.size_bytes, ReadMemory::Heap);
    let mut body = BlobBody { len_bytes: blob.size_bytes, stream: Box::pin(stream) };
    write_blob(cluster, Tier::Hot, OWNER, &mut body).await
}

#[test]
fn parity_is_what_the_codec_says() {
    let mut sim = Sim::new("2+1", 3, 1, 16, 2);
    let blob = put(&mut sim, &random_bytes(8, 300_000)).unwrap();
    let shards: Vec<Vec<u8>> = (0..3).map(|s| sim.stored(blob.blob, s).borrow().bytes.clone()).collect();
    let mut parity = vec![0; shards[0].len()];
    let present = [(ShardIndex(0), shards[0].as_slice()), (ShardIndex(1), shards[1].as_slice())];
    let codec = Codec::portable(blob.profile).unwrap();
    codec.decode(&present, &mut [(ShardIndex(2), &mut parity)]).unwrap();
    assert_eq!(parity, shards[2]);
}

/// A write that takes an hour on one device ends without it, and everything is given back when the device is done.
#[test]
fn a_write_does_not_wait_for_one_slow_device() {
    for (groups, missing, stalled) in [(12, 0, 5), (6, 1, 2)] {
        let mut sim = Sim::new("4+2", groups, u32::try_from(groups).unwrap(), 64, 7);
        let bytes = random_bytes(3, 3 * STRIPE + 12_345);
        sim.disk(stalled).write_delay.set(Duration::from_secs(3600));
        let begun = sim.cluster.monotonic();
        for _ in 0..4 {
            let blob = put(&mut sim, &bytes).unwrap();
            assert!(blob.missing_shards.count_ones() <= missing);
            assert_eq!(get(&mut sim, blob).unwrap(), bytes);
        }
        let took = sim.cluster.monotonic() - begun;
        assert!(took < Duration::from_secs(60), "{took:?}");
        sim.settle();
        assert_eq!(sim.cluster.disks.values().map(|disk| disk.reserved.get()).sum::<usize>(), 0);
        assert_eq!(sim.shards(), 4 * usize::try_from(6 - missing).unwrap());
    }
}

/// Slow, but not beyond the floor, or two more than parity bears: waited for.
#[test]
fn a_write_waits_where_it_must() {
    let mut sim = Sim::new("4+2", 6, 6, 64, 8);
    let bytes = random_bytes(3, STRIPE);
    sim.disk(1).write_delay.set(patience::FLOOR / 2);
    assert_eq!(put(&mut sim, &bytes).unwrap().missing_shards, 0);
    for device in [1, 2] {
        sim.disk(device).write_delay.set(Duration::from_secs(3600));
    }
    let begun = sim.cluster.monotonic();
    let blob = put(&mut sim, &bytes).unwrap();
    assert!(sim.cluster.monotonic() - begun >= Duration::from_secs(3600));
    assert!(blob.missing_shards.count_ones() <= 1);
}

/// Sends a kibibyte per second.
struct Trickle {
    cluster: Rc<TestCluster>,
    len_bytes: u64,
    sent_bytes: u64,
}

impl Body for Trickle {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.sent_bytes == self.len_bytes {
            return None;
        }
        self.cluster.sleep(Duration::from_secs(1)).await;
        self.sent_bytes += 1024;
        Some(Ok(Bytes::from_static(&[7; 1024])))
    }

    fn digests(&mut self) -> BodyDigests {
        BodyDigests::default()
    }
}

/// The pool has room for ten stripes, and twenty times as many senders trickle: others go on.
#[test]
fn bodies_that_trickle_do_not_keep_others_out() {
    let mut sim = Sim::new("4+2", 6, 6, 60, 9);
    let (slow, refused) = (200, Rc::new(Cell::new(0)));
    for _ in 0..slow {
        let (cluster, refused) = (Rc::clone(&sim.cluster), Rc::clone(&refused));
        sim.cluster.spawn(Box::pin(async move {
            let mut body = Trickle { cluster: Rc::clone(&cluster), len_bytes: 64 << 10, sent_bytes: 0 };
            match write_blob(&cluster, Tier::Hot, OWNER, &mut body).await {
                Ok(blob) => assert_eq!(blob.missing_shards, 0),
                Err(WriteError::TooSlow) => refused.set(refused.get() + 1),
                Err(error) => panic!("{error}"),
            }
        }));
    }
    let cluster = Rc::clone(&sim.cluster);
    sim.run(async move { cluster.sleep(Duration::from_secs(3)).await });
    let bytes = random_bytes(4, STRIPE);
    let begun = sim.cluster.monotonic();
    let blob = put(&mut sim, &bytes).unwrap();
    let took = sim.cluster.monotonic() - begun;
    assert!(took < Duration::from_secs(200), "{took:?}");
    let blob = (blob, put(&mut sim, &bytes).unwrap());
    assert_eq!((get(&mut sim, blob.0).unwrap(), get(&mut sim, blob.1).unwrap()), (bytes.clone(), bytes));
    sim.settle();
    let refused = refused.get();
    assert!(refused > slow / 2 && refused < slow, "{refused} of {slow}: only while somebody waits");
    assert_eq!(sim.cluster.disks.values().map(|disk| disk.reserved.get()).sum::<usize>(), 0);
}
