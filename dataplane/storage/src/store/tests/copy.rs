//! The copy of the cluster's tables: old or new after a crash, and read from a device that nobody runs.

use super::*;

fn content(seed: u8, len: usize) -> Vec<u8> {
    (0..251_u8).cycle().take(len).map(|byte| byte ^ seed).collect()
}

#[test]
fn the_newest_copy_outlives_crashes_checkpoints_and_shorter_ones() {
    let mut rig = Rig::new(77);
    assert_eq!(rig.run(|store| async move { store.kept_copy().await.unwrap() }), None);
    for (number, len) in [200_000, 100, 0, 65_536, 131_073].into_iter().enumerate() {
        let wanted = content(u8::try_from(number).unwrap(), len);
        let kept = wanted.clone();
        rig.run(|store| async move {
            store.keep_copy(&kept).await.unwrap();
            if number % 2 == 0 {
                store.checkpoint().await.unwrap();
            }
        });
        rig = rig.reopen_after_crash(number as u64);
        let found = rig.run(|store| async move { store.kept_copy().await.unwrap() });
        assert_eq!(found.as_deref(), Some(&wanted[..]), "{len} bytes");
        rig.run(|store| async move { check_space(&store).await });
    }
}

#[test]
fn what_is_kept_already_is_not_written_again() {
    let mut rig = Rig::new(78);
    let written = |rig: &mut Rig| {
        rig.run(|store| async move {
            store.keep_copy(&content(1, 70_000)).await.unwrap();
            store.stats().load().batches
        })
    };
    let first = written(&mut rig);
    assert_eq!(written(&mut rig), first);
}

#[test]
fn a_copy_that_is_too_long_is_refused_and_a_torn_one_is_the_old_one() {
    let mut rig = Rig::new(79);
    rig.run(|store| async move {
        let huge = vec![0; crate::store::COPY_BYTES_MAX + 1];
        assert!(matches!(store.keep_copy(&huge).await, Err(StoreError::RecordTooLarge { .. })));
        store.keep_copy(&content(1, 70_000)).await.unwrap();
        // As far as a crash lets a second one come.
        store.put_local("quarry.copy.1.0000", bytes::Bytes::from(content(2, 10_000))).await.unwrap();
        assert_eq!(store.kept_copy().await.unwrap().unwrap(), content(1, 70_000));
        store.put_local("quarry.copy.0.0001", bytes::Bytes::from_static(b"x")).await.unwrap();
        assert!(matches!(store.kept_copy().await, Err(StoreError::Index { .. })));
        store.keep_copy(&content(3, 10)).await.unwrap();
        assert_eq!(store.kept_copy().await.unwrap().unwrap(), content(3, 10));
    });
}
