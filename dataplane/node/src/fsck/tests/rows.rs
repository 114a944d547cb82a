//! Rows of partitions that contradict each other, or differ between replicas.

use bytes::Bytes;
use futures::executor::block_on;
use quarry_clustermap::{BucketId, Epoch, PartitionId, Sequence, partition_of};
use quarry_partition::{
    BlobRef,
    command::{
        BlobOwner, Command, DecodedRow, EvaluationContext, Framed, Manifest, NullVersion, Segment,
        VERSION_MS_BYTES, VersionId, VersionKind, decode_row, evaluate, is_free_list_row, null_version_row,
    },
};
use quarry_storage::format::rows::{LogRow, encode_log, log_key};

use super::{
    super::{report::Class, rows::ReplicaRows},
    assert_found,
    node::Node,
};

fn is_large(row: &DecodedRow) -> bool {
    matches!(row, DecodedRow::Version { .. }) && matches!(row.segments(), [Segment::Blob(_)])
}

/// A version row with a blob.
struct Large {
    partition: PartitionId,
    key: Bytes,
    value: Bytes,
    bucket: BucketId,
    name: String,
    blob: BlobRef,
}

fn large(node: &Node) -> Large {
    let (partition, key, value) = node.find_row(is_large);
    match decode_row(&key, &value) {
        Ok(DecodedRow::Version { bucket, key: name, manifest }) => {
            let Segment::Blob(blob) = manifest.segments[0] else { panic!("asked for a blob") };
            Large { partition, key, value, bucket, name, blob }
        }
        other => panic!("asked for a version: {other:?}"),
    }
}

/// A row's key for an object of another name of the same length.
fn renamed(key: &[u8], name: &str, other: &str) -> Vec<u8> {
    let at = key.windows(name.len()).position(|bytes| bytes == name.as_bytes()).unwrap();
    [&key[..at], other.as_bytes(), &key[at + name.len()..]].concat()
}

/// Another name of the same length, in a partition that is wanted.
fn name_like(bucket: BucketId, name: &str, wanted: impl Fn(PartitionId) -> bool, node: &Node) -> String {
    let mut names = (0..).map(|number| format!("{number:0width$}", width = name.len()));
    let partition = |name: &str| partition_of(bucket, name.as_bytes(), node.map.partition_count());
    names.find(|name| wanted(partition(name))).expect("there is no end of names")
}

/// The key of a version row of the same partition that is not there.
fn second_key(large: &Large, node: &Node) -> Vec<u8> {
    let name = name_like(large.bucket, &large.name, |partition| partition == large.partition, node);
    renamed(&large.key, &large.name, &name)
}

#[test]
fn a_blob_of_two_versions() {
    let node = Node::new();
    let large = large(&node);
    let second = second_key(&large, &node);
    node.write_rows_everywhere(large.partition, &[(second, Some(large.value.clone()))]);
    let place = format!("blob {}: {p} Live, {p} Live", large.blob.blob, p = large.partition);
    assert_found(&node.fsck(true), &[(Class::DoubleOwnedBlob, 1)], &place);
}

#[test]
fn a_blob_of_a_version_that_is_also_free() {
    let node = Node::new();
    let large = large(&node);
    let store = node.store(node.map.partition(large.partition).primary);
    let view = ReplicaRows::new(&store, large.partition, Sequence(u64::MAX)).unwrap();
    let (bucket, key) = (large.bucket, large.name.clone());
    let version = Some(VersionId::Null);
    let delete =
        Command::Delete { bucket, key, version, request: large.blob.blob, conditions: Default::default() };
    let rows = block_on(evaluate(&view, EvaluationContext::default(), &delete)).unwrap().rows;
    let freed = rows.into_iter().filter(|row| is_free_list_row(&row.key));
    let freed: Vec<_> = freed.map(|row| (row.key, row.value.map(Bytes::from))).collect();
    assert_eq!(freed.len(), 1);
    drop((view, store));
    node.write_rows_everywhere(large.partition, &freed);
    let place = format!("blob {}: {p} Live, {p} Freed", large.blob.blob, p = large.partition);
    assert_found(&node.fsck(true), &[(Class::DoubleOwnedBlob, 1)], &place);
}

/// Each change of one row, on every replica, is one damaged row, at `key`.
fn damaged(node: &Node, partition: PartitionId, key: &[u8], value: Option<Bytes>) {
    node.write_rows_everywhere(partition, &[(key.to_vec(), value)]);
    let place = format!("{partition} row {}", hex::encode(key));
    assert_found(&node.fsck(true), &[(Class::DamagedRow, 1)], &place);
}

#[test]
fn a_row_that_cannot_be_decoded() {
    let node = Node::new();
    let large = large(&node);
    let key = second_key(&large, &node);
    damaged(&node, large.partition, &key, Some("no manifest".into()));
}

#[test]
fn a_version_in_the_wrong_partition() {
    let node = Node::new();
    let inline = |row: &DecodedRow| {
        matches!(row, DecodedRow::Version { .. }) && matches!(row.segments(), [Segment::Inline { .. }])
    };
    let (partition, key, value) = node.find_row(inline);
    let row = decode_row(&key, &value).unwrap();
    let body = row.named_rows(&key).swap_remove(0).key;
    let store = node.store(node.map.partition(partition).primary);
    let bytes = block_on(store.row(partition, &body)).unwrap();
    drop(store);
    let DecodedRow::Version { bucket, key: name, .. } = &row else { panic!("asked for a version") };
    let wrong = name_like(*bucket, name, |other| other != partition, &node);
    let (key, body) = (renamed(&key, name, &wrong), renamed(&body, name, &wrong));
    node.write_rows_everywhere(partition, &[(body, bytes)]);
    damaged(&node, partition, &key, Some(value));
}

#[test]
fn a_body_that_is_gone_shorter_or_nobodys() {
    let body = |row: &DecodedRow| matches!(row, DecodedRow::Body { size_bytes } if *size_bytes > 10);
    let part_body = |row: &DecodedRow| matches!(row, DecodedRow::PartBody { .. });
    for wanted in [&body as &dyn Fn(&DecodedRow) -> bool, &part_body] {
        let node = Node::new();
        let (partition, key, value) = node.find_row(wanted);
        damaged(&node, partition, &key, None);
        let node = Node::new();
        damaged(&node, partition, &key, Some(value.slice(..value.len() - 1)));
        let node = Node::new();
        let mut other = key.to_vec();
        *other.last_mut().unwrap() += 9;
        damaged(&node, partition, &other, Some(value));
    }
}

#[test]
fn a_blob_without_an_owner_row() {
    let node = Node::new();
    let owner = |row: &DecodedRow| matches!(row, DecodedRow::Owner { owner: BlobOwner::Part { .. }, blob } if is_stored(&node, blob));
    let (partition, key, _) = node.find_row(owner);
    node.write_rows_everywhere(partition, &[(key.to_vec(), None)]);
    assert_found(&node.fsck(true), &[(Class::DamagedRow, 1)], "has no owner row");
}

fn is_stored(node: &Node, blob: &quarry_clustermap::BlobId) -> bool {
    node.shards().iter().any(|(_, row)| row.blob == *blob)
}

#[test]
fn replicas_that_differ() {
    let node = Node::new();
    let large = large(&node);
    let (partition, key) = (large.partition, large.key.to_vec());
    let replicas = node.map.partition(partition).replicas.clone();
    let place = format!("{partition} row {}", hex::encode(&key));
    let last = *replicas.last().unwrap();
    node.write_rows(last, partition, &[(key.clone(), None)]);
    let expected = [(Class::ReplicaDivergence, 1)];
    assert_found(&node.fsck(true), &expected, &format!("{place}: {last} lacks it"));
    node.write_rows(last, partition, &[(key, Some("other".into()))]);
    assert_found(&node.fsck(true), &expected, &place);
}

#[test]
fn a_replica_whose_log_ends_early() {
    let node = Node::new();
    let partition = large(&node).partition;
    let device = *node.map.partition(partition).replicas.last().unwrap();
    let log = node.store(device).recovered_log(partition);
    assert!(log.tail.is_empty() && log.applied > Sequence(1), "{log:?}");
    let early = LogRow { epoch: log.epoch, applied: Sequence(log.applied.0 - 1), lost: false };
    node.write(device, |checkpoint| {
        checkpoint.rows.insert(log_key(partition), Some(encode_log(early)));
    });
    let place = format!("{partition} on {device}: its log ends at");
    assert_found(&node.fsck(true), &[(Class::ReplicaDivergence, 1)], &place);
}

/// What mending leaves where it could not keep a partition.
#[test]
fn a_partition_that_was_lost() {
    let node = Node::new();
    let partition = large(&node).partition;
    let lost = LogRow { epoch: Epoch(1), applied: Sequence(0), lost: true };
    let lose = |device| {
        let rows = block_on(node.store(device).rows(partition, &[], None, usize::MAX)).unwrap();
        let gone: Vec<_> = rows.into_iter().map(|(key, _)| (key.to_vec(), None)).collect();
        node.write_rows(device, partition, &gone);
        node.write(device, |checkpoint| {
            checkpoint.rows.insert(log_key(partition), Some(encode_log(lost)));
        });
    };
    let (first, rest) = node.map.partition(partition).replicas.split_first().unwrap();
    lose(*first);
    let place = format!("{partition} on {first}: it was lost");
    assert_found(&node.fsck(true), &[(Class::ReplicaDivergence, 1)], &place);
    rest.iter().copied().for_each(lose);
    let shards = node.shards().iter().filter(|(_, row)| row.owner_partition == partition).count() as u64;
    let expected = [(Class::LostPartition, 1), (Class::UnjudgedShard, shards)];
    assert_found(&node.fsck(true), &expected, &format!("{partition}: "));
}

#[test]
fn a_null_version_below_another_that_no_row_names() {
    let node = Node::new();
    let large = large(&node);
    let Ok(DecodedRow::Version { manifest, .. }) = decode_row(&large.key, &large.value) else { panic!() };
    let last_modified_ms = manifest.last_modified_ms + 1;
    let marker = Manifest {
        size_bytes: 0,
        last_modified_ms,
        parts: 0,
        kind: VersionKind::NamedMarker,
        segments: Vec::new(),
        ..manifest.clone()
    };
    let of_key = &large.key[..large.key.len() - VERSION_MS_BYTES];
    let above = [of_key, &(!last_modified_ms).to_be_bytes()].concat();
    node.write_rows_everywhere(large.partition, &[(above, Some(marker.encode().into()))]);
    let named = null_version_row(&large.key);
    let place = format!("{} row {}", large.partition, hex::encode(&named));
    assert_found(&node.fsck(true), &[(Class::DamagedRow, 1)], &place);
    let null = NullVersion { version_ms: manifest.last_modified_ms };
    node.write_rows_everywhere(large.partition, &[(named, Some(null.encode().into()))]);
    assert_found(&node.fsck(true), &[], "");
}
