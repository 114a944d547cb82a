//! The embedded store: conformance, restart, damage, failing writes.

use std::fs;

use super::{conforms, put, run, value};
use crate::{DamageError, Embedded, Metastore, MetastoreError, Transaction, WATCH_EVENTS_MAX, WatchEvent};

#[test]
fn embedded_conforms() {
    let directory = tempfile::tempdir().unwrap();
    run(conforms(&Embedded::open(directory.path()).unwrap()));
}

#[test]
fn a_restart_keeps_everything_but_leased_keys() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let store = Embedded::open(directory.path()).unwrap();
        store.transact(&put("a", "1")).await.unwrap();
        let lease = store.grant_lease(std::time::Duration::from_secs(60)).await.unwrap();
        let both = Transaction::default().put("b", vec![0, 255]).put_leased("c", vec![1], lease);
        store.transact(&both).await.unwrap();
        let before = store.get("a").await.unwrap();
        drop(store);
        let store = Embedded::open(directory.path()).unwrap();
        assert_eq!(store.get("a").await.unwrap(), before);
        assert_eq!(store.get("b").await.unwrap().unwrap().value, [0, 255]);
        assert_eq!(value(&store, "c").await, None);
        store.transact(&put("a", "2").expect("a", before.as_ref())).await.unwrap();
    });
}

#[test]
fn only_one_process_opens_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    assert!(matches!(Embedded::open(directory.path()), Err(MetastoreError::Locked { .. })));
    drop(store);
    Embedded::open(directory.path()).unwrap();
}

#[test]
fn a_damaged_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metastore");
    run(async {
        let store = Embedded::open(directory.path()).unwrap();
        store.transact(&put("a", "1")).await.unwrap();
    });
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = Embedded::open(directory.path()).unwrap_err();
    assert!(
        matches!(&error, MetastoreError::Damaged { damage: DamageError::Checksum { .. }, path: named } if *named == path),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_crash_before_the_rename_leaves_the_old_state() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let store = Embedded::open(directory.path()).unwrap();
        store.transact(&put("a", "1")).await.unwrap();
        drop(store);
        fs::write(directory.path().join("metastore.new"), b"half a file").unwrap();
        let store = Embedded::open(directory.path()).unwrap();
        assert_eq!(value(&store, "a").await.unwrap(), "1");
        store.transact(&put("a", "2")).await.unwrap();
    });
}

#[test]
fn a_write_that_fails_changes_nothing_and_an_unsure_one_stops_the_store() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let store = Embedded::open(directory.path()).unwrap();
        store.transact(&put("a", "1")).await.unwrap();
        // The temporary file cannot be created where a directory stands.
        let temporary = directory.path().join("metastore.new");
        fs::create_dir(&temporary).unwrap();
        let refused = store.transact(&put("a", "2")).await;
        assert!(matches!(refused, Err(MetastoreError::Io { operation: "writing", .. })), "{refused:?}");
        assert_eq!(value(&store, "a").await.unwrap(), "1");
        fs::remove_dir(&temporary).unwrap();
        store.transact(&put("a", "3")).await.unwrap();
        // Nor can it be renamed over one.
        let file = directory.path().join("metastore");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let failed = store.transact(&put("a", "4")).await;
        assert!(matches!(failed, Err(MetastoreError::Io { operation: "replacing", .. })), "{failed:?}");
        assert!(matches!(store.get("a").await, Err(MetastoreError::Failed)));
    });
}

#[test]
fn a_slow_watcher_loses_its_watch() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let store = Embedded::open(directory.path()).unwrap();
        let from = store.range("").await.unwrap().revision;
        let mut watch = store.watch("", from).await.unwrap();
        for batch in 0..=WATCH_EVENTS_MAX / 100 {
            let many = (0..100).fold(Transaction::default(), |t, i| t.put(&format!("{batch}/{i}"), vec![]));
            store.transact(&many).await.unwrap();
        }
        let mut events = 0;
        while let Some(WatchEvent::Put(_)) = watch.next().await {
            events += 1;
        }
        assert_eq!(events, WATCH_EVENTS_MAX);
    });
}
