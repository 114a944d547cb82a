//! One conformance suite for both stores, then what is particular to each.

mod embedded;
mod etcd;

use std::{collections::BTreeMap, future::Future, time::Duration};

use crate::{
    Entry, Expected, KEY_BYTES_MAX, Metastore, MetastoreError, Revision, TRANSACTION_OPERATIONS_MAX,
    Transaction, VALUE_BYTES_MAX, Watch, WatchEvent,
};

/// Runs a test on a runtime like the control plane's.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs")
    })
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::default().put(key, value.as_bytes().to_vec())
}

async fn value(store: &impl Metastore, key: &str) -> Option<String> {
    Some(String::from_utf8(store.get(key).await.unwrap()?.value).unwrap())
}

async fn next(watch: &mut Watch) -> WatchEvent {
    tokio::time::timeout(Duration::from_secs(15), watch.next())
        .await
        .expect("an event is due")
        .expect("still open")
}

/// Every rule of the trait, on an empty store.
async fn conforms(store: &impl Metastore) {
    transactions(store).await;
    limits(store).await;
    ranges(store).await;
    watches(store).await;
    leases(store).await;
}

async fn transactions(store: &impl Metastore) {
    assert_eq!(store.get("a").await.unwrap(), None);
    let absent = put("a", "1").expect("a", None);
    let first = store.transact(&absent).await.unwrap();
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!(entry, Entry { key: "a".to_owned(), value: b"1".to_vec(), revision: first });
    assert!(matches!(store.transact(&absent).await, Err(MetastoreError::Conflict)));

    let swap = put("a", "2").expect("a", Some(&entry)).put("b", b"2".to_vec());
    let second = store.transact(&swap).await.unwrap();
    assert_ne!(first, second);
    assert!(matches!(store.transact(&swap).await, Err(MetastoreError::Conflict)));
    // Whole or not at all: "a" matches, "missing" does not.
    let entry = store.get("a").await.unwrap();
    let mut half = put("a", "3").expect("a", entry.as_ref()).delete("b");
    half.compare.push(("missing".to_owned(), Expected::At(second)));
    assert!(matches!(store.transact(&half).await, Err(MetastoreError::Conflict)));
    assert_eq!(
        (value(store, "a").await.unwrap(), value(store, "b").await.unwrap()),
        ("2".into(), "2".into())
    );

    let delete = Transaction::default().expect("b", store.get("b").await.unwrap().as_ref()).delete("b");
    store.transact(&delete.delete("never-there")).await.unwrap();
    assert_eq!(value(store, "b").await, None);
    // A key made again is another one, though its value is the same.
    store.transact(&put("b", "2")).await.unwrap();
    assert_ne!(store.get("b").await.unwrap().unwrap().revision, second);
}

async fn limits(store: &impl Metastore) {
    let many = |count: usize| {
        (0..count).fold(Transaction::default(), |t, i| t.put(&format!("many/{i:03}"), vec![0]))
    };
    store.transact(&many(TRANSACTION_OPERATIONS_MAX)).await.unwrap();
    let refused = store.transact(&many(TRANSACTION_OPERATIONS_MAX + 1)).await;
    assert!(matches!(refused, Err(MetastoreError::TooManyOperations { operations: 129 })), "{refused:?}");
    let refused = store.transact(&put("twice", "1").delete("twice")).await;
    assert!(matches!(refused, Err(MetastoreError::ChangedTwice { .. })), "{refused:?}");
    for bytes in [0, KEY_BYTES_MAX + 1] {
        let refused = store.transact(&put(&"k".repeat(bytes), "1")).await;
        assert!(matches!(refused, Err(MetastoreError::KeyLength { .. })), "{refused:?}");
    }
    let big = |bytes: usize| Transaction::default().put("big", vec![7; bytes]);
    store.transact(&big(VALUE_BYTES_MAX)).await.unwrap();
    assert_eq!(store.get("big").await.unwrap().unwrap().value.len(), VALUE_BYTES_MAX);
    assert!(matches!(
        store.transact(&big(VALUE_BYTES_MAX + 1)).await,
        Err(MetastoreError::ValueTooLarge { .. })
    ));
    store.transact(&Transaction::default().delete("big")).await.unwrap();
    let refused = store.transact(&big(VALUE_BYTES_MAX).put("more", vec![7; 80_000])).await;
    assert!(matches!(refused, Err(MetastoreError::TransactionTooLarge { .. })), "{refused:?}");
}

async fn ranges(store: &impl Metastore) {
    for key in ["r/b", "r/a", "r/a/x", "r", "s"] {
        store.transact(&put(key, key)).await.unwrap();
    }
    let range = store.range("r/").await.unwrap();
    let keys: Vec<&str> = range.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["r/a", "r/a/x", "r/b"]);
    assert_eq!(store.keys("r/").await.unwrap(), keys);
    assert!(store.range("nothing/").await.unwrap().entries.is_empty());
    assert!(store.range("").await.unwrap().entries.len() > 5);
}

async fn watches(store: &impl Metastore) {
    let from = store.range("w/").await.unwrap().revision;
    let mut watch = store.watch("w/", from).await.unwrap();
    store.transact(&put("other", "1")).await.unwrap();
    let revision = store.transact(&put("w/a", "1").put("w/b", b"2".to_vec())).await.unwrap();
    let entry =
        |key: &str, value: &str| Entry { key: key.to_owned(), value: value.as_bytes().to_vec(), revision };
    let mut both = [next(&mut watch).await, next(&mut watch).await];
    both.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(both, [WatchEvent::Put(entry("w/a", "1")), WatchEvent::Put(entry("w/b", "2"))]);
    let deleted = store.transact(&Transaction::default().delete("w/a")).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Deleted { key: "w/a".to_owned(), revision: deleted });
    follows_from_the_past(store, from).await;
}

/// A watch from an older revision ends in the same state, by single events or by a snapshot.
async fn follows_from_the_past(store: &impl Metastore, from: Revision) {
    let mut watch = store.watch("w/", from).await.unwrap();
    store.transact(&put("w/end", "1")).await.unwrap();
    let mut seen = BTreeMap::new();
    while !seen.contains_key("w/end") {
        match next(&mut watch).await {
            WatchEvent::Put(entry) => drop(seen.insert(entry.key, entry.value)),
            WatchEvent::Deleted { key, .. } => drop(seen.remove(&key)),
            WatchEvent::Snapshot(range) => {
                seen = range.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
            }
        }
    }
    let expected =
        [("w/b", "2"), ("w/end", "1")].map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()));
    assert_eq!(seen, BTreeMap::from(expected));
}

async fn leases(store: &impl Metastore) {
    let lease = store.grant_lease(Duration::from_secs(1)).await.unwrap();
    let kept = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    assert_ne!(lease, kept);
    store.transact(&Transaction::default().put_leased("l/a", b"1".to_vec(), lease)).await.unwrap();
    let put = Transaction::default().put_leased("l/b", b"1".to_vec(), kept).expect("l/b", None);
    let from = store.transact(&put).await.unwrap();
    assert!(matches!(store.transact(&put).await, Err(MetastoreError::Conflict)));
    store.keep_alive(lease).await.unwrap();
    assert_eq!(value(store, "l/a").await.unwrap(), "1");
    let mut watch = store.watch("l/", from).await.unwrap();
    assert!(
        matches!(next(&mut watch).await, WatchEvent::Deleted { key, .. } if key == "l/a"),
        "the lease ran out"
    );
    assert_eq!((value(store, "l/a").await, value(store, "l/b").await), (None, Some("1".to_owned())));
    assert!(matches!(store.keep_alive(lease).await, Err(MetastoreError::LeaseLost)));
    assert!(matches!(store.revoke_lease(lease).await, Err(MetastoreError::LeaseLost)));
    let late = Transaction::default().put_leased("l/a", b"1".to_vec(), lease);
    assert!(matches!(store.transact(&late).await, Err(MetastoreError::LeaseLost)));
    store.keep_alive(kept).await.unwrap();
    store.revoke_lease(kept).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Deleted { key, .. } if key == "l/b"));
    assert_eq!(value(store, "l/b").await, None);
}
