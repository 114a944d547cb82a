//! What must hold of a node that serves: every key as the history allows, on every device of its groups, byte for
//! byte; the listing the same as the reads; no shard without an owner; and all space back when all is deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use quarry_clustermap::{BlobId, PartitionId, ShardIndex, partition_of};
use quarry_object::{
    api::{ApiError, Conditions, ListEntry, ListRequest, ObjectStore, RangeRequest, Selector},
    checksum,
    metadata::Metadata,
};
use quarry_partition::{
    BlobRef,
    command::{BlobStatus, Command, Lookup, Manifest, Reply, Segment},
};
use quarry_storage::{
    device::{Device, DeviceError, IoBuf, SimDevice},
    index::WalkDepth,
    inspect,
    store::{ShardRow, StoreState},
};

use super::{clients::BUCKET, history::State, machine::NodeParts};
use crate::platform::Timer;

/// What each key holds.
pub(super) type Observed = BTreeMap<String, Option<Bytes>>;

/// Reads every key and compares it with what it may hold; checks listing and shards.
pub(super) async fn check_keys(node: &Rc<NodeParts>, allowed: &BTreeMap<String, Vec<State>>) -> Observed {
    let mut observed = Observed::new();
    for (key, states) in allowed {
        let found = read(node, key, None).await;
        check_state(key, states, found.as_ref());
        if let Some((bytes, _)) = &found {
            check_range(node, key, bytes).await;
            check_blobs(node, key).await;
        }
        observed.insert(key.clone(), found.map(|(bytes, _)| bytes));
    }
    check_listing(node, &observed).await;
    observed
}

/// Reads every key: what shards are whole does not matter.
pub(super) async fn read_keys(node: &Rc<NodeParts>, allowed: &BTreeMap<String, Vec<State>>) {
    for (key, states) in allowed {
        check_state(key, states, read(node, key, None).await.as_ref());
    }
}

/// Whether what was read is one of the states that are allowed.
pub(super) fn check_state(key: &str, states: &[State], found: Option<&(Bytes, String)>) {
    let fits = |state: &State| match (state, found) {
        (None, None) => true,
        (Some(content), Some((bytes, etag))) => {
            content.bytes == bytes && (content.etag.is_empty() || content.etag == *etag)
        }
        _ => false,
    };
    let shown = found.map(|(bytes, etag)| (bytes.len(), etag));
    assert!(states.iter().any(fits), "{key} holds {shown:?}, allowed is {states:?}");
}

/// A whole object or a range of it, with its ETag.
pub(super) async fn read(
    node: &Rc<NodeParts>,
    key: &str,
    range: Option<RangeRequest>,
) -> Option<(Bytes, String)> {
    let selector = Selector { range, ..Selector::default() };
    let mut content = match node.objects.get_object(BUCKET, key, selector, Conditions::default()).await {
        Ok(content) => content,
        Err(ApiError::NoSuchKey) => return None,
        Err(error) => panic!("{key} cannot be read: {error}"),
    };
    let mut bytes = Vec::new();
    while let Some(piece) = content.stream.next().await {
        bytes.extend_from_slice(&piece.unwrap_or_else(|error| panic!("{key} cannot be read on: {error}")));
    }
    assert_eq!(bytes.len() as u64, content.range.1, "{key} is cut short");
    Some((bytes.into(), content.info.etag))
}

async fn check_range(node: &Rc<NodeParts>, key: &str, bytes: &Bytes) {
    if bytes.len() < 3 {
        return;
    }
    let (first, last) = (bytes.len() / 3, bytes.len() * 2 / 3);
    let range = RangeRequest::Inclusive { first: first as u64, last: last as u64 };
    let (part, _) = read(node, key, Some(range)).await.expect("it was there just now");
    assert!(part == bytes[first..=last], "{key}: bytes {first} to {last} differ");
}

/// Pages of a few keys each.
async fn check_listing(node: &Rc<NodeParts>, observed: &Observed) {
    let present =
        observed.iter().filter_map(|(key, bytes)| Some((key.clone(), bytes.as_ref()?.len() as u64)));
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let request = ListRequest { prefix: String::new(), delimiter: None, after, max_keys: 3 };
        let page = node.objects.list_objects(BUCKET, request).await.unwrap();
        after = page.entries.last().map(|entry| entry.name().to_owned());
        listed.extend(page.entries.into_iter().map(|entry| match entry {
            ListEntry::Object(info) => (info.key, info.size_bytes),
            other => panic!("an unexpected entry {other:?}"),
        }));
        if !page.truncated {
            break;
        }
    }
    assert_eq!(listed, present.collect::<Vec<_>>(), "the listing differs from the reads");
}

pub(super) async fn manifest(node: &Rc<NodeParts>, key: &str) -> Manifest {
    let bucket = node.cluster.bucket(BUCKET).unwrap().id;
    let partition = partition_of(bucket, key.as_bytes(), node.map().partition_count());
    let get = Command::Get(Lookup::newest(bucket, key));
    match node.cluster.execute(partition, get).await {
        Ok(Reply::Object { manifest, .. }) => manifest,
        other => panic!("{key} has no manifest: {other:?}"),
    }
}

/// Every shard that the manifest promises stands whole on its device: reading would decode around a lost one.
async fn check_blobs(node: &Rc<NodeParts>, key: &str) {
    for segment in manifest(node, key).await.segments {
        if let Segment::Blob(blob) = segment {
            check_blob(node, key, &blob).await;
        }
    }
}

async fn check_blob(node: &Rc<NodeParts>, key: &str, blob: &BlobRef) {
    let map = node.map();
    let members = map.placement_groups[&blob.pg].members.clone();
    for (index, member) in (0_u8..).zip(members) {
        if blob.missing_shards & (1 << index) != 0 || !map.is_in(member) {
            continue;
        }
        let name = format!("{key}: shard {index} of {} on {member}", blob.blob);
        let Some((_, device)) = node.host.devices().find(|(id, _)| *id == member) else {
            panic!("{name}: the device is in, but not served");
        };
        let row = match device.store.shard(blob.pg, blob.blob, ShardIndex(index)).await {
            Ok(row) => row,
            // It has just failed, and the map does not say so yet.
            Err(_) if matches!(device.store.state(), StoreState::Failed(_)) => continue,
            Err(error) => panic!("{name}: {error}"),
        };
        let row = row.unwrap_or_else(|| panic!("{name} is missing"));
        check_bytes(&**device.store.device(), &row, &name).await;
    }
}

async fn check_bytes(device: &impl Device, row: &ShardRow, name: &str) {
    let mut bytes = Vec::new();
    for piece in &row.extents {
        let buf = IoBuf::zeroed(usize::try_from(piece.extent.len_bytes()).unwrap());
        let (result, buf) = device.read(piece.extent.start.offset_bytes(), buf).await;
        match result {
            Ok(()) => {}
            // Only where a test makes a device fail.
            Err(DeviceError::Io { .. }) => return,
            Err(error) => panic!("{name}: {error}"),
        }
        bytes.extend_from_slice(&buf[..piece.len_bytes as usize]);
    }
    let checksums: Vec<u32> = row.extents.iter().flat_map(|piece| piece.checksums.clone()).collect();
    assert!(checksum::verify(row.blob, row.shard, 0, &bytes, &checksums), "{name} is damaged");
}

async fn all_shards(node: &Rc<NodeParts>) -> Vec<ShardRow> {
    let map = node.map();
    let mut rows = Vec::new();
    for (id, device) in node.host.devices() {
        if map.is_in(id) {
            rows.extend(device.store.shards(None, usize::MAX).await.unwrap());
        }
    }
    rows
}

/// After the collector and the freer: every shard left belongs to a manifest or a part. While a device is out, what is
/// on its groups stays on the free lists: it may come back.
pub(super) async fn check_owners(node: &Rc<NodeParts>) {
    node.wait_until_collected().await;
    let map = node.map();
    let whole = map.devices.keys().all(|device| map.is_in(*device));
    if whole {
        wait_until_freed(node).await;
    }
    let owners: BTreeSet<(PartitionId, BlobId)> =
        all_shards(node).await.iter().map(|row| (row.owner_partition, row.blob)).collect();
    for (partition, blob) in owners {
        let status = node.cluster.execute(partition, Command::BlobStatus { blob }).await;
        let owned = match status {
            Ok(Reply::Blob(BlobStatus::Live)) => true,
            Ok(Reply::Blob(BlobStatus::Freed)) => !whole,
            _ => false,
        };
        assert!(owned, "{blob} has shards, but is {status:?}");
    }
}

/// Waits until no partition has anything left to free.
async fn wait_until_freed(node: &Rc<NodeParts>) {
    for _ in 0..200 {
        let lists = node.host.primaries().into_iter().map(|partition| async move {
            match partition.execute(&Command::FreeListNext { after: None, limit: 1 }).await {
                Ok(Reply::Blobs { blobs, .. }) => blobs.is_empty(),
                other => panic!("no free list: {other:?}"),
            }
        });
        if join_all(lists).await.into_iter().all(|empty| empty) {
            return;
        }
        node.timer.sleep(Duration::from_millis(100)).await;
    }
    panic!("the free lists do not become empty");
}

/// Deletes every key and aborts every upload; no shard may be left.
pub(super) async fn delete_everything(
    node: Rc<NodeParts>,
    keys: Vec<String>,
    uploads: Vec<(String, String)>,
) {
    for key in keys {
        node.objects.delete_object(BUCKET, &key, None, Conditions::default()).await.unwrap();
    }
    for (key, upload) in uploads {
        match node.objects.abort_upload(BUCKET, &key, &upload).await {
            Ok(()) | Err(ApiError::NoSuchUpload) => {}
            Err(error) => panic!("{upload} cannot be aborted: {error}"),
        }
    }
    wait_until_freed(&node).await;
    let left: Vec<_> = all_shards(&node).await.into_iter().map(|row| row.key()).collect();
    assert!(left.is_empty(), "shards are left of deleted objects: {left:?}");
    // Replicas learn with the next tick that what they hold is committed.
    node.timer.sleep(Duration::from_secs(1)).await;
}

/// Of a device that holds no shards and was shut down: what is not free is the index and the free map itself.
pub(super) fn check_free_map(device: &SimDevice) {
    const PAGE_BLOCKS: u64 = 4;
    let report = futures::executor::block_on(inspect::inspect(&Rc::new(device.clone()), WalkDepth::Values));
    let superblock = report.superblock.unwrap();
    let index = report.index.unwrap().unwrap();
    assert_eq!((index.shards, index.values), (0, 0), "something is left in the index");
    let own: u64 = superblock.free_map.extents.iter().map(|extent| u64::from(extent.blocks)).sum();
    let free = report.free_map.unwrap().unwrap().free_blocks;
    assert_eq!(
        free + index.pages * PAGE_BLOCKS + own,
        superblock.data.blocks,
        "blocks are free and used, or neither"
    );
}
