//! Shards that are not there, not right, or nobody's; and devices.

use std::fs;

use quarry_clustermap::{BlobId, DeviceState, Epoch, Incarnation, PartitionId, ShardIndex, WriterCounter};
use quarry_storage::store::ShardRow;

use super::{
    super::{blobs::name, report::Class},
    assert_found,
    node::{Node, stranger},
};

fn unknown(of: &ShardRow, incarnation: Incarnation) -> BlobId {
    BlobId { incarnation, counter: WriterCounter(1 << 40), ..of.blob }
}

#[test]
fn a_missing_shard() {
    let node = Node::new();
    let (device, row) = node.stripe().swap_remove(2);
    node.write(device, |checkpoint| checkpoint.remove_shard(&row));
    let place =
        format!("{} blob {} of {}: shard 2 is not on {device}", row.pg, row.blob, row.owner_partition);
    assert_found(&node.fsck(true), &[(Class::MissingShard, 1), (Class::Degraded, 1)], &place);
}

#[test]
fn a_manifest_without_shards() {
    let node = Node::new();
    for (device, row) in &node.stripe()[1..4] {
        node.write(*device, |checkpoint| checkpoint.remove_shard(row));
    }
    let expected = [(Class::ManifestWithoutShards, 1), (Class::MissingShard, 3)];
    assert_found(&node.fsck(true), &expected, "3 of 6 shards, 4 needed");
}

#[test]
fn an_extra_shard_and_one_that_is_collected() {
    let node = Node::new();
    let (device, row) = node.stripe().swap_remove(0);
    let now = node.map.nodes[&row.blob.writer].incarnation;
    let old = stranger(&row, unknown(&row, now));
    node.write(device, |checkpoint| checkpoint.add_shard(old.clone()));
    let place = format!("{} on {device}: {} says Unknown", name(&old), old.owner_partition);
    assert_found(&node.fsck(true), &[(Class::PendingCollection, 1)], &place);
    let node = Node::new();
    let never = stranger(&row, unknown(&row, Incarnation(now.0 + 1)));
    node.write(device, |checkpoint| checkpoint.add_shard(never.clone()));
    assert_found(&node.fsck(true), &[(Class::ExtraShard, 1)], &name(&never));
    let node = Node::new();
    let nowhere = ShardRow { owner_partition: PartitionId(node.map.partition_count()), ..old };
    node.write(device, |checkpoint| checkpoint.add_shard(nowhere.clone()));
    assert_found(&node.fsck(true), &[(Class::ExtraShard, 1)], "does not exist");
}

#[test]
fn a_shard_on_another_device_or_under_another_position() {
    let node = Node::new();
    let stripe = node.stripe();
    let ((device, row), other) = (&stripe[1], stripe[4].0);
    node.write(other, |checkpoint| checkpoint.add_shard(row.clone()));
    let place = format!("{} is on {other}, belongs on {device}", name(row));
    assert_found(&node.fsck(false), &[(Class::MisplacedShard, 1)], &place);
    let node = Node::new();
    let beyond = ShardRow { shard: ShardIndex(6), ..row.clone() };
    node.write(*device, |checkpoint| checkpoint.add_shard(beyond.clone()));
    let place = format!("{} is on {device}, belongs on nowhere", name(&beyond));
    assert_found(&node.fsck(false), &[(Class::MisplacedShard, 1)], &place);
}

#[test]
fn a_shard_of_another_owner_epoch_or_length() {
    let planted = |change: fn(&mut ShardRow, &Node)| {
        let node = Node::new();
        let (device, mut row) = node.stripe().swap_remove(5);
        change(&mut row, &node);
        node.write(device, |checkpoint| checkpoint.set_shard(&row));
        (node.fsck(true), format!("{} on {device}: ", name(&row)))
    };
    let wrong = (Class::WrongGeneration, 1);
    let (report, place) = planted(|row, node| {
        row.owner_partition = PartitionId((row.owner_partition.0 + 1) % node.map.partition_count());
    });
    assert_found(&report, &[wrong], &(place + "of part"));
    let (report, place) =
        planted(|row, node| row.epoch = Epoch(node.map.placement_groups[&row.pg].epoch.0 + 1));
    assert_found(&report, &[wrong], &place);
    let (report, place) = planted(|row, _| {
        let piece = row.extents.last_mut().unwrap();
        (row.len_bytes, piece.len_bytes) = (row.len_bytes - 1, piece.len_bytes - 1);
    });
    // Its bytes cannot be used: it counts as missing; and its last unit has lost a byte.
    let also = [(Class::MissingShard, 1), (Class::Degraded, 1), (Class::CorruptUnit, 1)];
    assert_found(&report, &[&[wrong][..], &also].concat(), &place);
}

#[test]
fn a_corrupt_unit() {
    let node = Node::new();
    let (device, row) = node.stripe().swap_remove(3);
    node.flip(device, row.extents[0].extent.start.offset_bytes() + 32 * 1024 + 5);
    assert_found(&node.fsck(false), &[], "");
    let place = format!("{} on {device}: bytes from 32768", name(&row));
    assert_found(&node.fsck(true), &[(Class::CorruptUnit, 1)], &place);
}

#[test]
fn a_device_without_superblocks() {
    let mut node = Node::new();
    let (device, _) = node.stripe().swap_remove(0);
    let blobs = node.fsck(false).totals.blobs;
    node.flip_superblocks(device);
    let degraded = (Class::Degraded, blobs);
    assert_found(&node.fsck(true), &[(Class::DamagedDevice, 1), degraded], &device.to_string());
    let mut map = node.map.clone();
    let entry = map.devices.get_mut(&device).unwrap();
    (entry.state, entry.out_since_ms) = (DeviceState::Out, Some(0));
    node.put_map(map);
    assert_found(&node.fsck(true), &[(Class::MissingDevice, 1), degraded], &device.to_string());
}

#[test]
fn missing_devices() {
    let node = Node::new();
    let report = node.fsck(false);
    let (blobs, partitions) = (report.totals.blobs, u64::from(node.map.partition_count()));
    let devices: Vec<_> = node.map.devices.keys().copied().collect();
    let lose = |number: usize| fs::remove_file(node.path(devices[number])).unwrap();
    lose(0);
    let expected = [(Class::MissingDevice, 1), (Class::Degraded, blobs)];
    assert_found(&node.fsck(true), &expected, &format!("{} at", devices[0]));
    lose(1);
    assert_found(&node.fsck(true), &[(Class::MissingDevice, 2), (Class::Degraded, blobs)], "not found");
    lose(2);
    let report = node.fsck(true);
    let lost = report.errors.get(&Class::LostPartition).copied().unwrap_or_default();
    assert_eq!(report.totals.partitions + lost, partitions, "{report}");
    assert_eq!(report.errors[&Class::ManifestWithoutShards], report.totals.blobs, "{report}");
}
