//! Space and ring at their limits.

use super::*;

fn held(store: &Store<SimDevice>) -> u64 {
    store.space().free_bytes
}

#[test]
fn freed_extents_wait_for_the_last_pin_and_the_checkpoint() {
    let mut rig = Rig::new(20);
    rig.run(|store| async move {
        let before = held(&store);
        put_shard(&store, 1, 10).await.unwrap();
        let pins = [store.pin(PG, blob(1), ShardIndex(0)), store.pin(PG, blob(1), ShardIndex(0))];
        assert!(free(&store, 1).await.unwrap());
        assert_eq!(get_shard(&store, 1).await, None, "unreachable at once");
        assert_eq!(held(&store), before - 10 * 4096);
        let [first, last] = pins;
        drop(first);
        assert_eq!(held(&store), before - 10 * 4096);
        drop(last);
        assert_eq!(held(&store), before);
    });
    rig.device.set_stalled(false);
    rig.run(|store| async move {
        put_shard(&store, 2, 10).await.unwrap();
        store.checkpoint().await.unwrap();
        let before = held(&store);
        let (checkpoint, freed_meanwhile) = futures::join!(store.checkpoint(), async {
            // The checkpoint begins at once when the writer runs; this free's batch comes after its freeze.
            store.append(Epoch(1), entry(PARTITION, 1, 0, "a=1")).await.unwrap();
            let running = store.0.checkpoint_running();
            free(&store, 2).await.unwrap();
            running && store.0.checkpoint_running() && held(&store) <= before
        });
        checkpoint.unwrap();
        assert!(freed_meanwhile, "freed after the freeze: not reusable before the checkpoint is durable");
        check_space(&store).await;
    });
}

#[test]
fn replaced_pages_are_not_reused_before_the_superblock_is_durable() {
    let mut rig = Rig::new(21);
    rig.run(|store| async move {
        for round in 1..=12_u64 {
            let payload = (0..20).map(|n| format!("k{n}={}", "v".repeat(100))).collect::<Vec<_>>().join(",");
            store.append(Epoch(1), entry(PARTITION, round, round - 1, &payload)).await.unwrap();
            store.apply(PARTITION, Sequence(round), decode(payload.as_bytes()).unwrap());
            store.checkpoint().await.unwrap();
            check_space(&store).await;
        }
    });
    // Whatever a checkpoint wrote before its superblock was durable, the one before it is whole.
    rig.device.set_capture(true);
    rig.run(|store| async move {
        store.append(Epoch(1), entry(PARTITION, 13, 12, "k1=new")).await.unwrap();
        store.apply(PARTITION, Sequence(13), decode(b"k1=new").unwrap());
        store.checkpoint().await.unwrap();
    });
    for capture in rig.device.captures() {
        for seed in 0..8 {
            Rig::open(capture.crash(seed)).unwrap().run(|store| async move {
                assert_eq!(store.rows(PARTITION, b"", None, 100).await.unwrap().len(), 20);
                check_space(&store).await;
            });
        }
    }
}

#[test]
fn the_ring_wraps_around_many_times() {
    let mut rig = Rig::new(22);
    rig.run(|store| async move {
        let value = "v".repeat(9000);
        for sequence in 1..=200_u64 {
            let payload = format!("k{}={value}{sequence}", sequence % 10);
            store.append(Epoch(1), entry(PARTITION, sequence, sequence - 1, &payload)).await.unwrap();
            store.apply(PARTITION, Sequence(sequence), decode(payload.as_bytes()).unwrap());
        }
        store.checkpoint().await.unwrap();
        assert!(store.stats().load().checkpoints > 5);
        check_space(&store).await;
    });
    rig.reopen_after_crash(5).run(|store| async move {
        let log = store.recovered_log(PARTITION);
        assert_eq!(log.applied.0 + log.tail.len() as u64, 200);
        let newest = store.row(PARTITION, b"k9").await.unwrap().unwrap();
        assert!(newest.ends_with(b"199"));
        check_space(&store).await;
    });
}

#[test]
fn uncommitted_entries_cannot_pin_or_fill_the_ring() {
    let mut rig = Rig::new(23);
    rig.run(|store| async move {
        let big = format!("big={}", "v".repeat(10_000));
        // A stuck partition: its entries are never applied. It stops at its limit, the others go on.
        let stuck = (1..=20).map(|sequence| store.append(Epoch(1), entry(PartitionId(1), sequence, 0, &big)));
        let stuck = join_all(stuck);
        let others = async {
            for sequence in 1..=100_u64 {
                store.put_local("local", Bytes::from(vec![1; 3000])).await.unwrap();
                put_shard(&store, sequence, 1).await.unwrap();
                assert!(free(&store, sequence).await.unwrap());
            }
            // At last the partition's entries are committed, and everything that waited gets through.
            for sequence in 1..=20 {
                loop {
                    let log = store.recovered_log(PartitionId(1));
                    if log.tail.iter().any(|entry| entry.sequence == Sequence(sequence)) {
                        break;
                    }
                    store.put_local("tick", Bytes::new()).await.unwrap();
                }
                store.apply(PartitionId(1), Sequence(sequence), decode(big.as_bytes()).unwrap());
            }
        };
        let (results, ()) = futures::join!(stuck, others);
        results.into_iter().for_each(Result::unwrap);
        store.checkpoint().await.unwrap();
        assert!(store.stats().load().checkpoints > 2);
        check_space(&store).await;
    });
}

#[test]
fn a_full_device_still_frees() {
    let mut rig = Rig::new(24);
    rig.run(|store| async move {
        let mut stored = 0;
        let full = loop {
            match put_shard(&store, stored, 8).await {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, StoreError::Full { .. }), "{full}");
        store.checkpoint().await.unwrap();
        for sequence in 1..=20 {
            store.append(Epoch(1), entry(PARTITION, sequence, 0, "gone")).await.unwrap();
            store.apply(PARTITION, Sequence(sequence), decode(b"gone").unwrap());
        }
        for n in 0..stored {
            assert!(free(&store, n).await.unwrap());
            if n % 16 == 0 {
                store.checkpoint().await.unwrap();
            }
        }
        check_space(&store).await;
        let usage = store.space();
        assert!(usage.free_bytes > usage.capacity_bytes - (64 << 10) - 4096 * 8, "{usage:?}");
        put_shard(&store, 1, 8).await.unwrap();
    });
}

#[test]
fn releasing_and_replacing_leak_nothing() {
    let mut rig = Rig::new(25);
    rig.run(|store| async move {
        let extents = store.reserve(100_000).unwrap();
        store.release(extents);
        put_shard(&store, 1, 30).await.unwrap();
        let (a, b) = futures::join!(put_shard(&store, 1, 7), put_shard(&store, 1, 9));
        a.and(b).unwrap();
        let (a, b) = futures::join!(free(&store, 1), free(&store, 1));
        assert!(a.unwrap() != b.unwrap(), "freed once");
        let mut commit = Box::pin(put_shard(&store, 2, 3));
        assert!(futures::poll!(&mut commit).is_pending());
        let extents = store.reserve(4096).unwrap();
        let invalid = ShardRow { len_bytes: 1, ..row(3, 1, &extents) };
        assert!(matches!(store.commit_shard(invalid).await, Err(StoreError::InvalidShard { .. })));
        commit.await.unwrap();
        check_space(&store).await;
    });
}

/// Takes all but so many blocks, as if shards lay there.
fn fill_up(store: &Store<SimDevice>, leave_blocks: u64) -> Vec<Extent> {
    let mut free = store.0.space.free.borrow_mut();
    let blocks = free.free_blocks() - leave_blocks;
    free.allocate_fragmented(blocks, 1 << 16, 1).unwrap()
}

#[test]
fn a_checkpoint_without_room_is_given_up_and_comes_later() {
    let mut rig = Rig::new(26);
    rig.run(|store| async move {
        let put = |sequence: u64, payload: String| {
            let store = store.clone();
            async move {
                store.append(Epoch(1), entry(PARTITION, sequence, sequence - 1, &payload)).await.unwrap();
                store.apply(PARTITION, Sequence(sequence), decode(payload.as_bytes()).unwrap());
            }
        };
        let keys = |value: &str| (0..12).map(|n| format!("k{n}={value}")).collect::<Vec<_>>().join(",");
        put(1, format!("{},gone=1", keys("old"))).await;
        put_shard(&store, 1, 20).await.unwrap();
        store.checkpoint().await.unwrap();
        store.append(Epoch(1), entry(PartitionId(5), 1, 0, "tail=1")).await.unwrap();
        let (mut given_up, mut sequence) = (0, 1);
        for leave_blocks in 0..12 {
            // Wiped and written again, so that both kinds of changes of a frozen layer come back.
            store.reset(PARTITION, Epoch(1), Sequence(sequence)).await.unwrap();
            sequence += 1;
            let long = "v".repeat(if leave_blocks % 2 == 0 { 20 } else { 2000 });
            put(sequence, format!("{},long={long}", keys("newer"))).await;
            let taken = fill_up(&store, leave_blocks);
            let before = held(&store);
            let written = store.checkpoint().await;
            assert_eq!(store.state(), StoreState::Serving);
            match written {
                Ok(()) => {}
                Err(StoreError::Full { .. }) => {
                    assert_eq!(held(&store), before, "everything was given back");
                    given_up += 1;
                }
                Err(error) => panic!("{error}"),
            }
            assert!(store.rows(PARTITION, b"", None, 100).await.unwrap().len() == 13);
            assert_eq!(store.row(PARTITION, b"k3").await.unwrap().unwrap(), "newer");
            sequence += 1;
            put(sequence, "k3,long".into()).await;
            assert_eq!(store.rows(PARTITION, b"", None, 100).await.unwrap().len(), 11, "deletes work");
            taken.into_iter().for_each(|extent| store.0.space.free.borrow_mut().free(extent));
        }
        assert!((6..12).contains(&given_up), "{given_up} checkpoints were given up");
        assert_eq!(store.recovered_log(PartitionId(5)).tail.len(), 1);
    });
    rig.reopen_after_crash(1).run(|store| async move {
        // Nothing tells that the last entry was committed.
        assert_eq!(store.rows(PARTITION, b"", None, 100).await.unwrap().len(), 13);
        assert_eq!(store.recovered_log(PARTITION).tail.len(), 1);
    });
    rig.run(|store| async move {
        store.checkpoint().await.unwrap();
        assert_eq!(store.rows(PARTITION, b"", None, 100).await.unwrap().len(), 11);
        check_space(&store).await;
    });
}

#[test]
fn a_given_up_checkpoint_begins_by_itself_after_a_delete() {
    let mut rig = Rig::new(27);
    rig.run(|store| async move {
        for n in 0..4 {
            put_shard(&store, n, 40).await.unwrap();
        }
        store.checkpoint().await.unwrap();
        let _taken = fill_up(&store, 0);
        let begun = store.stats().load().checkpoints;
        // Half the ring, which asks for a checkpoint that cannot be.
        for n in 0..40 {
            let entry = entry(PARTITION, n + 1, n, &format!("k={}", "v".repeat(3500)));
            store.append(Epoch(1), entry).await.unwrap();
            store.apply(PARTITION, Sequence(n + 1), vec![]);
        }
        assert_eq!(store.stats().load().checkpoints, begun);
        assert!(store.0.checkpoints_begun.get() < 10, "no endless attempts");
        assert_eq!(store.state(), StoreState::Serving);
        for n in 0..4 {
            assert!(free(&store, n).await.unwrap());
        }
        store.raise_pg_epoch(PgId(9), Epoch(1)).await.unwrap();
        store.0.wait_until(|inner| !inner.checkpoint_running()).await;
        assert!(store.stats().load().checkpoints > begun, "written once there was room");
    });
}

/// A checkpoint may find room for its pages and none for its free map: then the pages are given back.
#[test]
fn a_checkpoint_without_room_for_its_free_map_leaks_nothing() {
    let mut rig = Rig::new(31);
    rig.run(|store| async move {
        let mut refused_by_map = 0;
        for keep in 0..24_u32 {
            let sequence = u64::from(keep) + 1;
            store.append(Epoch(1), entry(PARTITION, sequence, sequence - 1, "k=v")).await.unwrap();
            store.apply(PARTITION, Sequence(sequence), decode(b"k=v").unwrap());
            // All but `keep` blocks are taken for a while.
            let taken: Vec<Extent> = {
                let mut free = store.0.space.free.borrow_mut();
                let kept = (keep > 0).then(|| free.allocate_low(keep).unwrap());
                let runs: Vec<_> = free.runs().collect();
                let whole = |(start, blocks)| Extent { start, blocks: u32::try_from(blocks).unwrap() };
                let taken: Vec<Extent> = runs.into_iter().map(whole).collect();
                taken.iter().for_each(|&extent| free.reserve_exact(extent).unwrap());
                kept.into_iter().for_each(|extent| free.free(extent));
                taken
            };
            let result = store.checkpoint().await;
            taken.into_iter().for_each(|extent| store.0.space.free.borrow_mut().free(extent));
            match result {
                // Only the free map's own refusal says nothing of the reserve.
                Err(StoreError::Full { reserve_bytes: 0, .. }) => refused_by_map += 1,
                Ok(()) | Err(StoreError::Full { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            check_space(&store).await;
        }
        assert!(refused_by_map > 0, "the free map always found room");
    });
}

#[test]
fn a_forged_place_of_the_free_map_asks_for_no_memory() {
    let rig = Rig::new(32);
    let mut superblock = rig.store.0.superblock.borrow().clone();
    let data = superblock.data;
    let whole = Extent { start: data.start, blocks: u32::try_from(data.blocks).unwrap() };
    superblock.free_map.extents = vec![whole; 64];
    rig.device.clear_events();
    let read = futures::executor::block_on(super::super::read_free_map(&rig.device, &superblock));
    assert!(matches!(read, Err(StoreError::FreeMapDamaged { .. })), "{read:?}");
    assert!(!rig.device.events().iter().any(|event| matches!(event, Event::Read { .. })));
}
