//! The controller on an embedded metastore: whole life cycles, through the handle alone.

use std::{
    cell::Cell,
    future::Future,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::{join_all, select};
use quarry_clustermap::{
    BucketId, ClusterId, ClusterMap, DOCUMENT_BYTES_MAX, DeviceId, DeviceState, DocumentKind, Epoch, NodeId,
    PartitionId, PgId, PgState, Tier, Versioning,
};
use quarry_metastore::{
    Embedded, Entry, LeaseId, Metastore, MetastoreError, Range, Revision, Transaction, Watch,
};
use quarry_planner::Policy;

use crate::{
    Bucket, BucketState, COMMIT_ATTEMPTS_MAX, Controller, ControllerError, ControllerHandle,
    ControllerOptions, DeviceReport, NodeRegistration, Published, map_store,
};

const NODE: NodeId = NodeId(1);

thread_local! {
    /// The controller runs on the thread of its test.
    static NOW_MS: Cell<u64> = const { Cell::new(1_000) };
}

fn options() -> ControllerOptions {
    let policy = Policy {
        cluster: ClusterId([7; 16]),
        hot_profile: "4+2".parse().unwrap(),
        cold_profile: None,
        partition_count: 256,
        rebuild_after_ms: 10_000,
        groups_per_device: 1,
    };
    ControllerOptions { policy, clock_ms: || NOW_MS.get() }
}

fn registration(found: impl Fn(u64) -> bool) -> NodeRegistration {
    let device = |id| DeviceReport { found: found(id), ..device_report(id, None) };
    let devices = (1..=6).map(device).collect();
    NodeRegistration { node: NODE, address: String::new(), rack: String::new(), devices }
}

/// Runs a controller on `metastore` beside a test that uses its handle.
fn with<M: Metastore, F: Future<Output = ()>>(metastore: M, test: impl FnOnce(ControllerHandle) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (controller, handle) = Controller::new(metastore, options());
    let both = async {
        let running = std::pin::pin!(controller.run());
        let test = std::pin::pin!(test(handle.clone()));
        match select(test, running).await {
            // The controller stops, and lets go of the metastore, when the last handle is dropped.
            futures::future::Either::Left(((), running)) => {
                drop(handle);
                running.await;
            }
            futures::future::Either::Right(_) => panic!("the controller stopped while it had a handle"),
        }
    };
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), both).await.expect("the test hangs")
    });
}

fn open(directory: &Path) -> Embedded {
    Embedded::open(directory).unwrap()
}

fn open_profiles(map: &ClusterMap) -> Vec<String> {
    let mut profiles: Vec<String> =
        map.open_groups(Tier::Hot).map(|(_, group)| group.profile.to_string()).collect();
    profiles.dedup();
    profiles
}

fn joiners(map: &ClusterMap) -> Vec<(PartitionId, Epoch, DeviceId)> {
    let partitions = map.partitions.iter().enumerate();
    partitions
        .flat_map(|(index, config)| {
            let partition = PartitionId(u16::try_from(index).unwrap());
            config.joining.iter().map(move |device| (partition, config.epoch, *device))
        })
        .collect()
}

async fn report_all_joined(handle: &ControllerHandle, map: &ClusterMap) -> Arc<ClusterMap> {
    let reports =
        joiners(map).into_iter().map(|(partition, epoch, device)| handle.joined(partition, epoch, device));
    let answers: Vec<Published> = join_all(reports).await.into_iter().collect::<Result<_, _>>().unwrap();
    answers.last().unwrap().map.clone()
}

#[test]
fn first_start_restart_and_lost_devices() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        let updates = handle.subscribe().await.unwrap();
        let registered = handle.register_node(registration(|_| true)).await.unwrap();
        let map = registered.published.map;
        assert_eq!((registered.incarnation.0, map.version.0, map.partitions.len()), (1, 1, 256));
        assert_eq!(open_profiles(&map), ["4+2"]);
        assert_eq!(updates.recv().await.unwrap().map, map);
    });
    with(open(directory.path()), |handle| async move {
        let updates = handle.subscribe().await.unwrap();
        assert_eq!(updates.recv().await.unwrap().map.version.0, 1, "what was committed before the restart");
        // Device 3 is missing at this start.
        let registered = handle.register_node(registration(|id| id != 3)).await.unwrap();
        let map = registered.published.map;
        assert_eq!((registered.incarnation.0, map.version.0), (2, 2));
        assert_eq!(map.devices[&DeviceId(3)].state, DeviceState::Out);
        assert!(map.partitions.iter().all(|config| config.epoch.0 == 2 && config.members().count() == 3));
        assert_eq!(open_profiles(&map), ["3+2"]);
        let map = report_all_joined(&handle, &map).await;
        assert_eq!(map.version.0, 3, "all reports make one map version");
        assert!(map.partitions.iter().all(|config| config.joining.is_empty() && config.replicas.len() == 3));
        let map = handle.device_failed(DeviceId(5), "EIO on flush".to_owned()).await.unwrap().map;
        assert_eq!(open_profiles(&map), ["2+2"]);
        let again = handle.device_failed(DeviceId(5), "EIO on flush".to_owned()).await.unwrap().map;
        assert_eq!(again.version, map.version, "repeating a report changes nothing");
        assert_eq!(updates.recv().await.unwrap().map.version, map.version, "only the newest state waits");
    });
    with(open(directory.path()), |handle| async move {
        let map = handle.register_node(registration(|_| true)).await.unwrap().published.map;
        assert_eq!(open_profiles(&map), ["4+2"]);
        assert!(map.devices.values().all(|device| device.state == DeviceState::In));
    });
}

#[test]
fn a_device_that_is_not_listed_is_missing_and_an_unknown_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        let unknown = handle.device_failed(DeviceId(99), "gone".to_owned()).await;
        assert!(
            matches!(unknown, Err(ControllerError::UnknownDevice { device: DeviceId(99) })),
            "{unknown:?}"
        );
        let mut none = registration(|_| true);
        none.devices.truncate(2);
        let refused = handle.register_node(none.clone()).await;
        assert!(matches!(refused, Err(ControllerError::Plan(_))), "{refused:?}");
        handle.register_node(registration(|_| true)).await.unwrap();
        let map = handle.register_node(none).await.unwrap().published.map;
        assert_eq!(map.devices.values().filter(|device| device.state == DeviceState::In).count(), 2);
    });
}

#[test]
fn two_runs_of_a_node_never_share_an_incarnation() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        let both = join_all([1, 2].map(|_| handle.register_node(registration(|_| true)))).await;
        assert_eq!(both[0].as_ref().unwrap().incarnation.0, 1);
        assert!(matches!(both[1], Err(ControllerError::RegisteredTwice { node: NODE })));
        assert_eq!(handle.register_node(registration(|_| true)).await.unwrap().incarnation.0, 2);
    });
}

#[test]
fn activation_is_recorded_for_the_current_epoch_only() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        assert!(matches!(handle.activate(PartitionId(0), Epoch(1)).await, Err(ControllerError::NoMap)));
        handle.register_node(registration(|_| true)).await.unwrap();
        let all = (0..256).map(|partition| handle.activate(PartitionId(partition), Epoch(1)));
        assert!(join_all(all).await.iter().all(Result::is_ok));
        handle.activate(PartitionId(0), Epoch(1)).await.unwrap();
        handle.register_node(registration(|_| true)).await.unwrap();
        let late = handle.activate(PartitionId(0), Epoch(1)).await.unwrap_err();
        assert_eq!(late.to_string(), "partition-0 is at epoch-2, epoch-1 cannot be activated");
        handle.activate(PartitionId(0), Epoch(2)).await.unwrap();
        let unknown = handle.activate(PartitionId(256), Epoch(2)).await;
        assert!(matches!(unknown, Err(ControllerError::UnknownPartition { .. })));
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let stored = runtime.block_on(open(directory.path()).range("activated/")).unwrap().entries;
    let epochs: Vec<u64> = stored.iter().map(|entry| serde_json::from_slice(&entry.value).unwrap()).collect();
    assert_eq!((epochs.len(), epochs[0], epochs[255]), (256, 2, 1));
}

#[test]
fn bucket_life_cycle() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        let refused = handle.create_bucket("Photos", 5).await.unwrap_err();
        assert_eq!(refused.to_string(), "a bucket name has only a-z, 0-9, '.' and '-', not 'P'");
        let bucket = handle.create_bucket("photos", 5).await.unwrap();
        assert_eq!((bucket.id.0, bucket.created_ms, bucket.state), (1, 5, BucketState::Active));
        assert!(matches!(handle.create_bucket("photos", 6).await, Err(ControllerError::BucketExists { .. })));
        assert!(matches!(
            handle.remove_bucket("photos", bucket.id).await,
            Err(ControllerError::BucketNotMarked { .. })
        ));
        assert_eq!(handle.mark_bucket_deleting("photos").await.unwrap().state, BucketState::Deleting);
        assert_eq!(handle.unmark_bucket("photos", bucket.id).await.unwrap().state, BucketState::Active);
        handle.mark_bucket_deleting("photos").await.unwrap();
        assert_eq!(handle.remove_bucket("photos", bucket.id).await.unwrap().id, bucket.id);
        assert!(matches!(
            handle.mark_bucket_deleting("photos").await,
            Err(ControllerError::NoSuchBucket { .. })
        ));
    });
    with(open(directory.path()), |handle| async move {
        let again = handle.create_bucket("photos", 7).await.unwrap();
        assert_eq!(again.id.0, 2, "an id is never given twice");
        let late = handle.unmark_bucket("photos", BucketId(1)).await;
        assert!(matches!(late, Err(ControllerError::NoSuchBucket { .. })));
        // More than one transaction holds, and each caller gets its own answer.
        let names: Vec<String> = (0..300).map(|i| format!("bucket-{:03}", i % 299)).collect();
        let answers = join_all(names.iter().map(|name| handle.create_bucket(name, 8))).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 299);
        let published = handle.register_node(registration(|_| true)).await.unwrap().published;
        assert_eq!(published.buckets.by_name.len(), 300);
        assert!(published.buckets.revision < 20, "changes are committed together");
    });
}

#[test]
fn bucket_configuration() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        let bucket = handle.create_bucket("photos", 5).await.unwrap();
        let id = bucket.id;
        let tag =
            |text: &str| handle.set_bucket_document("photos", id, DocumentKind::Tagging, Some(text.into()));
        let tagged = tag("[]").await.unwrap();
        assert!(tagged.revision > bucket.revision);
        assert_eq!(tag("[]").await.unwrap(), tagged, "what is set already makes no revision");
        let versioned = handle.set_versioning("photos", id, Versioning::Enabled).await.unwrap();
        assert_eq!(versioned.config.document(DocumentKind::Tagging), Some("[]"));
        let back = handle.set_versioning("photos", id, Versioning::Unversioned).await;
        assert!(matches!(back, Err(ControllerError::VersioningStays { .. })), "{back:?}");
        let other = handle.set_versioning("photos", BucketId(9), Versioning::Suspended).await;
        assert!(matches!(other, Err(ControllerError::NoSuchBucket { .. })), "{other:?}");
        let long = tag(&"x".repeat(DOCUMENT_BYTES_MAX + 1)).await;
        assert!(matches!(long, Err(ControllerError::ConfigurationTooLarge { .. })), "{long:?}");
        // Four times the longest document fits; escaped, three of them do not.
        let kinds = [DocumentKind::Cors, DocumentKind::Website, DocumentKind::Lifecycle];
        let quotes = kinds.map(|kind| {
            handle.set_bucket_document("photos", id, kind, Some("\"".repeat(DOCUMENT_BYTES_MAX)))
        });
        let answers = join_all(quotes).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        assert!(matches!(answers[2], Err(ControllerError::ConfigurationTooLarge { .. })));
    });
    with(open(directory.path()), |handle| async move {
        let bucket = handle.mark_bucket_deleting("photos").await.unwrap();
        assert_eq!(bucket.config.versioning, Versioning::Enabled);
        assert_eq!(bucket.config.documents.len(), 2);
        let removed =
            handle.set_bucket_document("photos", bucket.id, DocumentKind::Cors, None).await.unwrap();
        assert_eq!(removed.config.document(DocumentKind::Cors), None);
    });
}

#[test]
fn many_long_documents_take_several_transactions() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        let names: Vec<String> = (0..20).map(|i| format!("bucket-{i}")).collect();
        let buckets = join_all(names.iter().map(|name| handle.create_bucket(name, 1))).await;
        let text = "x".repeat(DOCUMENT_BYTES_MAX);
        let set = names.iter().zip(&buckets).map(|(name, bucket)| {
            let id = bucket.as_ref().unwrap().id;
            handle.set_bucket_document(name, id, DocumentKind::Policy, Some(text.clone()))
        });
        let set: Vec<_> = join_all(set).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(set[0].revision, set[3].revision);
        assert_eq!(set.last().unwrap().revision - set[0].revision, 4, "five documents exceed a transaction");
    });
}

#[test]
fn a_bucket_of_an_older_release_has_no_configuration() {
    let bucket: Bucket = serde_json::from_str(r#"{"id": 3, "created_ms": 4, "state": "active"}"#).unwrap();
    assert_eq!((bucket.revision, bucket.config.versioning), (0, Versioning::Unversioned));
    let again = serde_json::to_string(&bucket).unwrap();
    assert_eq!(
        again,
        r#"{"id":3,"created_ms":4,"state":"active","revision":0,"config":{"versioning":"unversioned"}}"#
    );
}

fn device_report(id: u64, replaces: Option<u64>) -> DeviceReport {
    DeviceReport {
        device: DeviceId(id),
        tier: Tier::Hot,
        capacity_bytes: 1 << 30,
        location: format!("d{id}"),
        found: true,
        replaces: replaces.map(DeviceId),
        lost_partitions: Vec::new(),
    }
}

fn moving(map: &ClusterMap) -> Vec<(PgId, Epoch)> {
    let groups = map.placement_groups.iter().filter(|(_, group)| group.state == PgState::Moving);
    groups.map(|(pg, group)| (*pg, group.epoch)).collect()
}

#[test]
fn a_replaced_device_leaves_when_its_groups_are_whole_and_may_come_back_as_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        handle.register_node(registration(|_| true)).await.unwrap();
    });
    with(open(directory.path()), |handle| async move {
        let mut with_seven = registration(|id| id != 3);
        with_seven.devices.push(device_report(7, Some(3)));
        let map = handle.register_node(with_seven.clone()).await.unwrap().published.map;
        assert_eq!((moving(&map).len(), map.devices.len()), (6, 7));
        assert_eq!(open_profiles(&map), ["4+2"], "other groups take new blobs meanwhile");
        // Another start, with the same request: nothing more to replace, but work starts over.
        let map = handle.register_node(with_seven).await.unwrap().published.map;
        let at_first: Vec<_> = moving(&map);
        assert!(at_first.iter().all(|(_, epoch)| epoch.0 == 3));
        let late = handle.group_moved(at_first[0].0, Epoch(2)).await.unwrap().map;
        assert_eq!(moving(&late), at_first);
        let reports = at_first.iter().map(|(pg, epoch)| handle.group_moved(*pg, *epoch));
        let map = join_all(reports).await.pop().unwrap().unwrap().map;
        assert_eq!(moving(&map), []);
        assert!(!map.devices.contains_key(&DeviceId(3)));
        let gone = handle.device_returned(DeviceId(3), Vec::new()).await;
        assert!(matches!(gone, Err(ControllerError::UnknownDevice { .. })), "{gone:?}");
        let mut all = registration(|_| true);
        all.devices.push(device_report(7, None));
        let map = handle.register_node(all).await.unwrap().published.map;
        assert_eq!(map.devices[&DeviceId(3)].state, DeviceState::In);
        // It gets its share: new groups, and positions of others, a few at a time.
        let used = map.placement_groups.values().any(|group| group.members.contains(&DeviceId(3)));
        assert!(used && !open_profiles(&map).is_empty());
    });
}

#[test]
fn time_alone_replaces_a_device() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        assert!(matches!(handle.tick().await, Err(ControllerError::NoMap)));
        let mut seven = registration(|_| true);
        seven.devices.push(device_report(7, None));
        handle.register_node(seven).await.unwrap();
        let map = handle.device_failed(DeviceId(2), "EIO".to_owned()).await.unwrap().map;
        assert_eq!(map.devices[&DeviceId(2)].out_since_ms, Some(1_000));
        NOW_MS.set(10_999);
        assert_eq!(handle.tick().await.unwrap().map.version, map.version);
        NOW_MS.set(11_000);
        let map = handle.tick().await.unwrap().map;
        assert!(!moving(&map).is_empty());
        assert_eq!(handle.tick().await.unwrap().map.version, map.version);
        // It returns: its places are its own again, and its partitions start anew.
        let map = handle.device_returned(DeviceId(2), Vec::new()).await.unwrap().map;
        assert!(map.is_in(DeviceId(2)));
        let groups = map.placement_groups.values().filter(|group| group.state == PgState::Moving);
        assert!(groups.clone().count() > 0 && groups.into_iter().all(|group| group.epoch.0 == map.version.0));
        let config = map.partitions.iter().find(|config| config.members().any(|id| id == DeviceId(2)));
        assert!(config.is_none_or(|config| config.epoch.0 == map.version.0));
    });
}

#[test]
fn a_partition_whose_history_is_lost_is_never_activated() {
    let directory = tempfile::tempdir().unwrap();
    with(open(directory.path()), |handle| async move {
        let map = handle.register_node(registration(|_| true)).await.unwrap().published.map;
        let replicas = map.partitions[0].replicas.clone();
        let mut start = registration(|_| true);
        for report in start.devices.iter_mut().filter(|report| replicas[1..].contains(&report.device)) {
            report.lost_partitions = vec![PartitionId(0)];
        }
        let map = handle.register_node(start).await.unwrap().published.map;
        assert_eq!((&map.partitions[0].replicas[..], &map.partitions[0].joining[..]), replicas.split_at(1));
        handle.activate(PartitionId(0), map.partitions[0].epoch).await.unwrap();
        let map = handle.replicas_lost(replicas[0], vec![PartitionId(0)]).await.unwrap().map;
        assert!(!map.partitions[0].has_history());
        let refused = handle.activate(PartitionId(0), map.partitions[0].epoch).await;
        assert!(matches!(refused, Err(ControllerError::HistoryLost { .. })), "{refused:?}");
        let unknown = handle.replicas_lost(DeviceId(99), vec![PartitionId(0)]).await;
        assert!(matches!(unknown, Err(ControllerError::UnknownDevice { .. })));
    });
}

/// As 0.1.0 wrote it: device 3 is out, its group sealed.
const OLD_MAP: &str = r#"{
    "cluster": [7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7], "version": 5,
    "hot_profile": {"data_shards": 4, "parity_shards": 2},
    "nodes": {"1": {"address": "", "rack": "", "incarnation": 4}},
    "devices": {
        "1": {"node": 1, "tier": "hot", "capacity_bytes": 9, "state": "in", "location": "d1"},
        "2": {"node": 1, "tier": "hot", "capacity_bytes": 9, "state": "in", "location": "d2"},
        "3": {"node": 1, "tier": "hot", "capacity_bytes": 9, "state": "out", "location": "d3"}
    },
    "partitions": [{"epoch": 5, "primary": 1, "replicas": [1, 2], "joining": []}],
    "placement_groups": {"0": {"epoch": 5, "tier": "hot", "profile": {"data_shards": 2, "parity_shards": 1},
        "members": [1, 2, 3], "state": "sealed"}}
}"#;

#[test]
fn a_map_of_before_replacements_loads() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let old = map_store::stage(None, &serde_json::from_str(OLD_MAP).unwrap(), Transaction::default(), 1);
    runtime.block_on(old.commit(&open(directory.path()))).unwrap();
    with(open(directory.path()), |handle| async move {
        let updates = handle.subscribe().await.unwrap();
        let map = updates.recv().await.unwrap().map;
        assert_eq!((map.version.0, map.devices[&DeviceId(3)].out_since_ms), (5, None));
        let map = handle.tick().await.unwrap().map;
        assert_eq!(map.devices[&DeviceId(3)].out_since_ms, Some(1_000), "counted from when it is first seen");
        let group = &map.placement_groups[&PgId(0)];
        assert_eq!((group.state, group.rebuilding.len()), (PgState::Sealed, 0));
        assert!(map.partitions[0].has_history());
        // What is written now is read again.
        let mut start = registration(|id| id < 3);
        start.devices.push(device_report(7, Some(3)));
        let map = handle.register_node(start).await.unwrap().published.map;
        assert_eq!(map.placement_groups[&PgId(0)].rebuilding, [(2, DeviceId(3))].into());
        assert_eq!(handle.tick().await.unwrap().map, map);
    });
}

/// Lets another writer change every compared key before the first `conflicts` transactions.
struct Interfering {
    store: Embedded,
    conflicts: AtomicUsize,
}

impl Metastore for Interfering {
    async fn transact(&self, transaction: &Transaction) -> Result<Revision, MetastoreError> {
        let left = self.conflicts.load(Ordering::Relaxed);
        if left > 0 {
            self.conflicts.store(left - 1, Ordering::Relaxed);
            for (key, _) in &transaction.compare {
                let entry = self.store.get(key).await?;
                let value = entry.as_ref().map(|entry| entry.value.clone());
                let other = if key == "buckets" && value.is_none() {
                    Some(br#"{"revision":1,"last_id":4}"#.to_vec())
                } else {
                    value
                };
                if let Some(value) = other {
                    self.store.transact(&Transaction::default().put(key, value)).await?;
                }
            }
        }
        self.store.transact(transaction).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, MetastoreError> {
        self.store.get(key).await
    }

    async fn range(&self, prefix: &str) -> Result<Range, MetastoreError> {
        self.store.range(prefix).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetastoreError> {
        self.store.watch(prefix, from).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetastoreError> {
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        self.store.revoke_lease(lease).await
    }
}

#[test]
fn conflicts_are_retried_on_what_the_other_writer_left() {
    let directory = tempfile::tempdir().unwrap();
    let interfering = Interfering { store: open(directory.path()), conflicts: AtomicUsize::new(3) };
    with(interfering, |handle| async move {
        assert_eq!(
            handle.create_bucket("photos", 5).await.unwrap().id.0,
            5,
            "the other writer gave ids up to 4"
        );
    });
    with(open(directory.path()), |handle| async move {
        handle.register_node(registration(|_| true)).await.unwrap();
    });
    let interfering = Interfering { store: open(directory.path()), conflicts: AtomicUsize::new(3) };
    with(interfering, |handle| async move {
        assert_eq!(handle.register_node(registration(|_| true)).await.unwrap().published.map.version.0, 2);
    });
    let endless =
        Interfering { store: open(directory.path()), conflicts: AtomicUsize::new(COMMIT_ATTEMPTS_MAX) };
    with(endless, |handle| async move {
        let gave_up = handle.register_node(registration(|_| true)).await.unwrap_err();
        assert!(matches!(gave_up, ControllerError::Contention) && gave_up.is_retryable());
        assert_eq!(handle.register_node(registration(|_| true)).await.unwrap().published.map.version.0, 3);
    });
}

#[test]
fn a_damaged_map_is_named_and_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let broken = Transaction::default().put("map", b"{}".to_vec());
    runtime.block_on(open(directory.path()).transact(&broken)).unwrap();
    with(open(directory.path()), |handle| async move {
        let error = handle.register_node(registration(|_| true)).await.unwrap_err();
        assert!(matches!(&error, ControllerError::Damaged { key, .. } if key == "map"), "{error}");
    });
    let map = runtime.block_on(open(directory.path()).get("map")).unwrap().unwrap();
    assert_eq!(map.value, b"{}");
}

#[test]
fn users_keys_and_policies_live_across_restarts_and_are_published() {
    use quarry_identity::{AccessKey, Change, Secret, UserError};
    let directory = tempfile::tempdir().unwrap();
    let key = AccessKey {
        user: "alice".into(),
        secret: Secret::new("alicesecret".into()),
        enabled: true,
        created_ms: 2,
    };
    let create = Change::CreateUser { name: "alice".into(), now_ms: 1 };
    with(open(directory.path()), |handle| async move {
        handle.register_node(registration(|_| true)).await.unwrap();
        let published = handle.subscribe().await.unwrap();
        assert_eq!(published.recv().await.unwrap().users.revision, 0);
        handle.change_users(create.clone()).await.unwrap();
        let again = handle.change_users(create).await;
        assert!(matches!(again, Err(ControllerError::User(UserError::Exists { .. }))));
        handle.change_users(Change::CreateKey { id: "AK1".into(), key }).await.unwrap();
        let attach = Change::Attach { policy: "readonly".into(), user: "alice".into() };
        let table = handle.change_users(attach.clone()).await.unwrap();
        assert_eq!(table.revision, 3);
        assert_eq!(handle.change_users(attach).await.unwrap().revision, 3, "nothing has changed");
        let newest = published.recv().await.unwrap();
        assert_eq!(newest.users, table);
    });
    with(open(directory.path()), |handle| async move {
        let published = handle.subscribe().await.unwrap();
        let users = published.recv().await.unwrap().users;
        assert_eq!((users.revision, users.keys["AK1"].secret.reveal()), (3, "alicesecret"));
        assert_eq!(users.policies_of("alice").count(), 1);
        let table = handle.change_users(Change::DeleteUser { name: "alice".into() }).await.unwrap();
        assert!(table.users.is_empty() && table.keys.is_empty());
    });
    with(open(directory.path()), |handle| async move {
        let published = handle.subscribe().await.unwrap();
        assert!(published.recv().await.unwrap().users.keys.is_empty(), "the key went with its user");
    });
}
