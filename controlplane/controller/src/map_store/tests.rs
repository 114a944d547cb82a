//! Maps of all sizes through the embedded store, and writers that meet.

use std::collections::BTreeSet;

use quarry_clustermap::{DeviceState, Epoch, Incarnation, PartitionId, PgState, Tier};
use quarry_metastore::{Embedded, VALUE_BYTES_MAX};

use super::*;

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn device(index: u64) -> DeviceId {
    // As long as random ids are in JSON.
    DeviceId(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index + 1) | 1 << 63)
}

/// A map of `nodes` x `devices` with 3 replicas and groups 4+2.
pub(crate) fn large(nodes: u32, devices: u64, partitions: u64, groups: u32) -> ClusterMap {
    let total = u64::from(nodes) * devices;
    let entry = |node| DeviceEntry {
        node: NodeId(node),
        tier: Tier::Hot,
        capacity_bytes: 16 << 40,
        state: DeviceState::In,
        out_since_ms: None,
        replaced: false,
        location: "/dev/disk/by-id/nvme-SAMSUNG_MZWLR15THBLA-00A07_S6DXNE0R700001".to_owned(),
    };
    let partition = |index: u64| {
        let replicas: Vec<DeviceId> = (0..3).map(|r| device((index * 7 + r * 331) % total)).collect();
        PartitionConfig {
            epoch: Epoch(1),
            primary: replicas[0],
            replicas,
            joining: Vec::new(),
            lost: BTreeSet::new(),
            away: BTreeMap::new(),
        }
    };
    let group = |index: u32| PlacementGroup {
        epoch: Epoch(1),
        tier: Tier::Hot,
        profile: "4+2".parse().unwrap(),
        members: (0..6).map(|m| device((u64::from(index) * 13 + m * 331) % total)).collect(),
        state: PgState::Open,
        rebuilding: BTreeMap::new(),
    };
    ClusterMap {
        cluster: ClusterId([7; 16]),
        version: MapVersion(1),
        hot_profile: "4+2".parse().unwrap(),
        nodes: (1..=nodes)
            .map(|id| {
                let (address, rack) = (format!("10.0.0.{id}:7000"), format!("rack-{}", id % 40));
                (NodeId(id), NodeEntry { address, rack, incarnation: Incarnation(1) })
            })
            .collect(),
        devices: (0..total)
            .map(|index| (device(index), entry(1 + u32::try_from(index / devices).unwrap())))
            .collect(),
        partitions: (0..partitions).map(partition).collect(),
        operations: quarry_clustermap::Operations::default(),
        tiering: quarry_clustermap::Tiering::default(),
        placement_groups: (0..groups).map(|index| (PgId(index), group(index))).collect(),
    }
}

/// The next version, with another epoch for everything that a device is in.
fn touched(map: &ClusterMap, device: DeviceId) -> ClusterMap {
    let mut next = ClusterMap { version: map.version.next(), ..map.clone() };
    let epoch = Epoch(next.version.0);
    for config in next.partitions.iter_mut().filter(|config| config.replicas.contains(&device)) {
        config.epoch = epoch;
    }
    for group in next.placement_groups.values_mut().filter(|group| group.members.contains(&device)) {
        (group.epoch, group.state) = (epoch, PgState::Sealed);
    }
    next
}

fn check_limits(staged: &Staged) -> (usize, usize) {
    for transaction in staged.transactions() {
        let operations = (transaction.puts.len() + transaction.deletes.len()).max(transaction.compare.len());
        assert!(operations <= TRANSACTION_OPERATIONS_MAX && transaction.bytes() <= TRANSACTION_BYTES_MAX);
        assert!(transaction.puts.iter().all(|put| put.value.len() <= VALUE_BYTES_MAX / 4));
    }
    let bytes = staged.transactions().map(Transaction::bytes).sum();
    (staged.transactions().count(), bytes)
}

async fn keys(store: &Embedded) -> usize {
    store.keys(LEAF_PREFIX).await.unwrap().len()
}

#[test]
fn a_map_of_a_thousand_nodes_keeps_the_limits_of_etcd() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let store = Embedded::open(directory.path()).unwrap();
        let map = large(1_000, 10, 4_096, 10_000);
        map.validate().unwrap();
        let staged = stage(None, &map, Transaction::default(), 1);
        let (transactions, bytes) = check_limits(&staged);
        assert!(transactions > 2 && bytes > 4 << 20, "{transactions} {bytes}");
        let first = staged.commit(&store).await.unwrap();
        let read = StoredMap::read(&store, None).await.unwrap().unwrap();
        assert_eq!((*read.map == map, keys(&store).await), (true, 63 + 64 + 157));
        // One device: a small part of the map.
        let next = touched(&map, device(17));
        let staged = stage(Some(&first), &next, Transaction::default(), 1);
        let (transactions, bytes) = check_limits(&staged);
        assert!(transactions == 1 && bytes < 512 << 10, "{transactions} {bytes}");
        let second = staged.commit(&store).await.unwrap();
        // Everything at once; what is replaced goes.
        let mut all = ClusterMap { version: next.version.next(), ..next };
        all.partitions.iter_mut().for_each(|config| config.epoch = Epoch(3));
        all.placement_groups.values_mut().for_each(|group| group.epoch = Epoch(3));
        let staged = stage(Some(&second), &all, Transaction::default(), 1);
        assert!(check_limits(&staged).0 > 2);
        staged.commit(&store).await.unwrap();
        let known = StoredMap::read(&store, Some(&read)).await.unwrap().unwrap();
        assert_eq!((*known.map == all, keys(&store).await), (true, 63 + 64 + 157));
    });
}

#[test]
fn of_two_writers_one_wins_and_the_other_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let store = Embedded::open(directory.path()).unwrap();
        let map = large(40, 10, 4_096, 10_000);
        let first = stage(None, &map, Transaction::default(), 1).commit(&store).await.unwrap();
        let mut all = ClusterMap { version: map.version.next(), ..map.clone() };
        all.placement_groups.values_mut().for_each(|group| group.epoch = Epoch(2));
        let loser = stage(Some(&first), &all, Transaction::default(), 2);
        assert!(loser.transactions().count() > 1);
        // The first transactions of the loser are written before the winner commits, the others after.
        store.transact(&loser.ahead[0]).await.unwrap();
        let next = touched(&map, device(3));
        let winner = stage(Some(&first), &next, Transaction::default(), 3).commit(&store).await.unwrap();
        let before = keys(&store).await;
        assert!(matches!(loser.commit(&store).await, Err(MetastoreError::Conflict)));
        let read = StoredMap::read(&store, Some(&Arc::new(first))).await.unwrap().unwrap();
        assert!(*read.map == next && keys(&store).await < before);
        // What a writer left that died between two transactions is swept, and nothing else.
        let died = stage(Some(&winner), &touched(&next, device(5)), Transaction::default(), 4);
        let orphan = Transaction::default().put("leaf/p00001@3.000000000004", b"[]".to_vec());
        store.transact(&orphan).await.unwrap();
        sweep(&store, Some(&winner), &Transaction::default()).await.unwrap();
        assert_eq!(
            (keys(&store).await, store.get("leaf/p00001@3.000000000004").await.unwrap()),
            (284 - 60, None)
        );
        drop(died);
    });
}

#[test]
fn a_head_without_its_leaves_is_damage_and_a_late_activation_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let store = Embedded::open(directory.path()).unwrap();
        let map = large(4, 3, 70, 20);
        let stored = stage(None, &map, Transaction::default(), 1).commit(&store).await.unwrap();
        let late = Transaction::default().expect(MAP_KEY, Some(stored.entry()));
        let next = touched(&map, device(3));
        let second = stage(Some(&stored), &next, Transaction::default(), 1).commit(&store).await.unwrap();
        let late = late.put(&crate::state::activated_key(PartitionId(0)), b"1".to_vec());
        assert!(matches!(store.transact(&late).await, Err(MetastoreError::Conflict)));
        let key = second.leaves["p00001"].key.clone();
        store.transact(&Transaction::default().delete(&key)).await.unwrap();
        let error = StoredMap::read(&store, None).await.unwrap_err();
        assert!(matches!(error, ControllerError::Damaged { .. }), "{error}");
    });
}
