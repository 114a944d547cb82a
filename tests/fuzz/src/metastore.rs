//! The embedded metastore's file, and the JSON of the controller in it.

use std::{cell::OnceCell, collections::BTreeMap, fs};

use base64::{Engine, engine::general_purpose::STANDARD};
use quarry_clustermap::{
    BucketConfig, ClusterId, ClusterMap, DeviceEntry, DeviceId, DeviceState, DocumentKind, Epoch,
    ErasureProfile, Incarnation, MapVersion, NodeEntry, NodeId, PartitionConfig, PgId, PgState,
    PlacementGroup, Tier, Versioning,
};
use quarry_controller::{Bucket, BucketState, check_bucket_name};
use quarry_metastore::Embedded;
use serde_json::json;
use tempfile::TempDir;

use crate::{Random, Target};

const HEADER_BYTES: usize = 24;

thread_local! {
    static DIRECTORY: OnceCell<TempDir> = const { OnceCell::new() };
}

/// The decoder is private to its crate: it is reached as in production, by opening a directory.
pub(crate) const FILE: Target = Target {
    name: "metastore-file",
    sample: |random| {
        let entries: BTreeMap<String, serde_json::Value> = random
            .list(5, |random| {
                let value =
                    json!({ "revision": random.below(9), "value": STANDARD.encode(random.bytes(60)) });
                (random.text(12), value)
            })
            .into_iter()
            .collect();
        let content = json!({ "revision": 9, "entries": entries }).to_string();
        let mut bytes = b"QRYMETA\n\0\0\0\x01".to_vec();
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend_from_slice(content.as_bytes());
        let whole = bytes.clone();
        seal_file(&mut bytes, &whole);
        bytes
    },
    seal: seal_file,
    decode: |bytes| {
        DIRECTORY.with(|directory| {
            let directory = directory.get_or_init(|| tempfile::tempdir().expect("a temporary directory"));
            fs::write(directory.path().join("metastore"), bytes).expect("the file can be written");
            Embedded::open(directory.path()).is_ok()
        })
    },
    factor: 24,
    constant: 32 << 10,
};

/// The cluster map, the activated epochs and a bucket: what the controller parses.
pub(crate) const JSON: Target = Target {
    name: "metastore-json",
    sample: |random| match random.below(6) {
        0 => serde_json::to_vec(&random.list(9, |random| Epoch(random.number()))).expect("plain numbers"),
        1 => serde_json::to_vec(&Bucket {
            id: quarry_clustermap::BucketId(random.number()),
            created_ms: random.number(),
            state: if random.one_in(2) { BucketState::Active } else { BucketState::Deleting },
            revision: random.number(),
            config: config(random).into(),
        })
        .expect("plain data"),
        _ => serde_json::to_vec(&map(random)).expect("plain data"),
    },
    seal: |_, _| {},
    decode: |bytes| {
        if let Ok(name) = std::str::from_utf8(bytes) {
            std::hint::black_box(check_bucket_name(name).is_ok());
        }
        let other = serde_json::from_slice::<Vec<Epoch>>(bytes).is_ok()
            || serde_json::from_slice::<Bucket>(bytes).is_ok();
        let Ok(map) = serde_json::from_slice::<ClusterMap>(bytes) else { return other };
        if map.validate().is_err() {
            return false;
        }
        use_map(&map);
        true
    },
    factor: 64,
    constant: 16 << 10,
};

fn config(random: &mut Random) -> BucketConfig {
    let versionings = [Versioning::Unversioned, Versioning::Enabled, Versioning::Suspended];
    let kinds = [DocumentKind::Tagging, DocumentKind::Cors, DocumentKind::Lifecycle, DocumentKind::Policy];
    let documents = random.list(kinds.len(), |random| random.below(kinds.len()));
    BucketConfig {
        versioning: versionings[random.below(versionings.len())],
        documents: documents.into_iter().map(|at| (kinds[at], format!("{{\"at\":{at}}}"))).collect(),
    }
}

/// What every core does with a map that was found valid.
fn use_map(map: &ClusterMap) {
    let groups: usize = [Tier::Hot, Tier::Cold].into_iter().map(|tier| map.open_groups(tier).count()).sum();
    for group in map.placement_groups.values() {
        let ErasureProfile { data_shards, parity_shards } = group.profile;
        assert!(
            ErasureProfile::new(data_shards, parity_shards).is_ok(),
            "a profile out of range was accepted"
        );
        assert_eq!(group.members.len(), group.profile.total());
    }
    std::hint::black_box((groups, map.partition_count(), map.hot_profile.metadata_replicas()));
    let again = serde_json::to_vec(map).expect("a map can be written");
    assert_eq!(serde_json::from_slice::<ClusterMap>(&again).expect("what was written can be read"), *map);
}

fn seal_file(bytes: &mut Vec<u8>, whole: &[u8]) {
    bytes.resize(bytes.len().max(HEADER_BYTES), 0);
    bytes[..12].copy_from_slice(&whole[..12]);
    let content = (bytes.len() - HEADER_BYTES) as u64;
    bytes[16..24].copy_from_slice(&content.to_be_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_be_bytes());
}

fn map(random: &mut Random) -> ClusterMap {
    let profile = ErasureProfile::new(2, 1).expect("a profile");
    let device = |random: &mut Random| DeviceEntry {
        node: NodeId(1),
        tier: Tier::Hot,
        capacity_bytes: random.number(),
        state: if random.one_in(4) { DeviceState::Out } else { DeviceState::In },
        out_since_ms: random.maybe(|random| random.number()),
        replaced: random.one_in(8),
        location: random.text(10),
    };
    let node = NodeEntry { address: random.text(6), rack: String::new(), incarnation: Incarnation(3) };
    let members: Vec<DeviceId> = (1..=3).map(DeviceId).collect();
    let partition = |random: &mut Random| PartitionConfig {
        epoch: Epoch(random.any() >> 40),
        primary: members[0],
        replicas: members[..2].to_vec(),
        joining: random.maybe(|_| members[2]).into_iter().collect(),
        lost: Default::default(),
        away: Default::default(),
    };
    let group = |random: &mut Random| {
        let rebuilding: BTreeMap<u8, DeviceId> = random.maybe(|_| (1, members[0])).into_iter().collect();
        PlacementGroup {
            epoch: Epoch(random.any() >> 40),
            tier: Tier::Hot,
            profile,
            members: members.clone(),
            state: if rebuilding.is_empty() { PgState::Open } else { PgState::Moving },
            rebuilding,
        }
    };
    ClusterMap {
        cluster: ClusterId(random.array()),
        version: MapVersion(random.any() >> 8),
        hot_profile: profile,
        nodes: BTreeMap::from([(NodeId(1), node)]),
        devices: members.iter().map(|id| (*id, device(random))).collect(),
        partitions: random.list(5, partition),
        operations: quarry_clustermap::Operations::default(),
        tiering: quarry_clustermap::Tiering::default(),
        placement_groups: (0..3).map(|id| (PgId(id), group(random))).collect(),
    }
}
