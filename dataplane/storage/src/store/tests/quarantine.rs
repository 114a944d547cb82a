//! Blocks that gave EIO are never handed out again.

use super::*;

/// Blocks 2 and 3 of shard 1 cannot be read, and the store knows.
async fn with_bad_blocks(store: &Store<SimDevice>, device: &SimDevice) -> Extent {
    let row = put_shard(store, 1, 8).await.unwrap();
    let whole = row.extents[0].extent;
    let bad = Extent { start: crate::extent::BlockIndex(whole.start.0 + 2), blocks: 2 };
    let range = bad.start.offset_bytes()..bad.end().offset_bytes();
    device.inject(Fault::Error, When::on(Operation::Read).touching(range.clone()));
    // Whoever writes there again fails.
    device.inject(Fault::Error, When::on(Operation::Write).touching(range));
    let read = store.device().read(whole.start.offset_bytes(), IoBuf::zeroed(8 * BLOCK_BYTES)).await;
    assert!(read.0.is_err());
    store.quarantine(bad.start.offset_bytes(), bad.len_bytes()).await.unwrap();
    bad
}

/// Writes shards until the device is full; a write to the bad blocks would fail.
async fn fill(store: &Store<SimDevice>) {
    for n in 1000.. {
        match put_shard(store, n, if n % 3 == 0 { 8 } else { 1 }).await {
            Ok(_) => {}
            Err(StoreError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    // Ends the one that may be running; it may find no room itself.
    let checkpoint = store.checkpoint().await;
    assert!(matches!(checkpoint, Ok(()) | Err(StoreError::Full { .. })), "{checkpoint:?}");
    check_space(store).await;
}

/// The row that repair writes: the same shard at another place.
async fn repair(store: &Store<SimDevice>) {
    put_shard(store, 1, 8).await.unwrap();
}

#[test]
fn bad_blocks_are_not_used_again() {
    // Before the repair, after it, with and without checkpoints between, and without a restart at all.
    for variant in 0..12 {
        let mut rig = Rig::new(40 + variant);
        let device = rig.device.clone();
        let bad = rig.run(|store| async move {
            let bad = with_bad_blocks(&store, &device).await;
            check_space(&store).await;
            if variant & 1 == 1 {
                store.checkpoint().await.unwrap();
            }
            repair(&store).await;
            if variant & 2 == 2 {
                store.checkpoint().await.unwrap();
            }
            check_space(&store).await;
            bad
        });
        let bytes = bad.len_bytes();
        let free_bytes = rig.store.space().free_bytes;
        let again = match variant / 4 {
            0 => rig,
            1 => {
                let crashed = rig.device.crash(variant);
                let range = bad.start.offset_bytes()..bad.end().offset_bytes();
                crashed.inject(Fault::Error, When::on(Operation::Write).touching(range));
                Rig::open(crashed).unwrap()
            }
            _ => {
                let closed = rig.store.clone();
                rig.run(|_| async move { closed.shutdown().await.unwrap() });
                Rig::open(rig.device.clone()).unwrap()
            }
        };
        let mut rig = again;
        rig.run(|store| async move {
            assert_eq!(store.space().quarantined_bytes, bytes, "variant {variant}");
            if variant / 4 == 0 {
                assert_eq!(store.space().free_bytes, free_bytes);
            }
            check_space(&store).await;
            fill(&store).await;
            let rows = store.shards(None, usize::MAX).await.unwrap();
            let overlaps = |extent: Extent| extent.start < bad.end() && bad.start < extent.end();
            assert!(!rows.iter().flat_map(|row| &row.extents).any(|piece| overlaps(piece.extent)));
            // The index grows from the other end into what is left.
            for n in (1000..1300).step_by(2) {
                free(&store, n).await.unwrap();
            }
            store.checkpoint().await.unwrap();
            check_space(&store).await;
        });
    }
}

#[test]
fn it_is_durable_when_the_call_returns() {
    let mut rig = Rig::new(59);
    let device = rig.device.clone();
    let bad = rig.run(|store| async move { with_bad_blocks(&store, &device).await });
    let known = Rig::open(rig.device.crash_keeping_nothing()).unwrap().store.space().quarantined_bytes;
    assert_eq!(known, bad.len_bytes());
}

#[test]
fn a_power_cut_anywhere_keeps_what_was_acknowledged() {
    let mut rig = Rig::new(60);
    rig.device.set_capture(true);
    let device = rig.device.clone();
    let bad = rig.run(|store| async move {
        let bad = with_bad_blocks(&store, &device).await;
        store.checkpoint().await.unwrap();
        repair(&store).await;
        free(&store, 1).await.unwrap();
        store.checkpoint().await.unwrap();
        bad
    });
    let captures = rig.device.captures();
    let mut kept = 0;
    for (at, capture) in captures.iter().enumerate() {
        for seed in 0..3 {
            let mut rig = Rig::open(capture.crash(seed)).unwrap();
            let known = rig.store.space().quarantined_bytes;
            assert!(known == 0 || known == bad.len_bytes());
            assert!(known > 0 || kept == 0, "capture {at} forgot what an earlier one knew");
            rig.run(|store| async move { check_space(&store).await });
        }
        let known = Rig::open(capture.crash_keeping_nothing()).unwrap().store.space().quarantined_bytes;
        kept += u64::from(known > 0);
    }
    assert!(kept > 3, "{kept} of {} states know the quarantine", captures.len());
}

#[test]
fn mending_keeps_the_quarantine_and_adds_pages_that_cannot_be_read() {
    let mut rig = Rig::new(61);
    let device = rig.device.clone();
    let (bad, page) = rig.run(|store| async move {
        let bad = with_bad_blocks(&store, &device).await;
        for n in 2..200 {
            put_shard(&store, n, 1).await.unwrap();
        }
        repair(&store).await;
        store.checkpoint().await.unwrap();
        let mut leaves = Vec::new();
        let visit = |visit: Visit<'_>| match visit {
            Visit::Page { extent, .. } => leaves.push(extent),
            Visit::Value { .. } => {}
            Visit::Damaged { error, .. } => panic!("{error}"),
        };
        store.0.tree.walk(WalkDepth::Values, visit).await;
        (bad, leaves[1])
    });
    let device = rig.device.crash(3);
    let range = page.start.offset_bytes()..page.end().offset_bytes();
    device.inject(Fault::Error, When::on(Operation::Read).touching(range));
    let open = |device: &SimDevice| {
        let mut pool = LocalPool::new();
        let options = StoreOptions { mend: super::super::Mend::AfterSurvey, ..options(&pool) };
        let store = pool.run_until(Store::open(Rc::new(device.clone()), options)).unwrap();
        Rig { pool, device: device.clone(), store }
    };
    let check = |mut rig: Rig| {
        rig.run(|store| async move {
            let found = store.0.space.free.borrow().quarantined();
            let has = |wanted: Extent| {
                found.iter().any(|run| run.start <= wanted.start && wanted.end() <= run.end())
            };
            assert!(has(page), "{found:?} lacks the page {page:?}");
            assert!(has(bad), "{found:?} lacks {bad:?}");
            check_space(&store).await;
            fill(&store).await;
        });
        rig
    };
    let rig = check(open(&device));
    check(open(&rig.device.crash(9)));
}

#[test]
fn too_many_bad_blocks_are_an_error_of_the_device() {
    let mut rig = Rig::new(62);
    rig.run(|store| async move {
        let row = put_shard(&store, 1, 300).await.unwrap();
        let mut refused = None;
        for extent in row.extents.iter().map(|piece| piece.extent) {
            for block in 0..u64::from(extent.blocks) {
                let offset = extent.start.offset_bytes() + block * BLOCK_BYTES as u64;
                if let Err(error) = store.quarantine(offset + 1, 1).await {
                    refused.get_or_insert((block, error));
                }
            }
        }
        let (block, error) = refused.expect("a limit");
        assert_eq!(block, 256);
        assert!(matches!(error, StoreError::QuarantineFull { .. }), "{error}");
        assert!(free(&store, 1).await.unwrap());
        check_space(&store).await;
        assert_eq!(store.space().quarantined_bytes, 300 * BLOCK_BYTES as u64);
    });
}
