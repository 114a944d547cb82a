use std::cell::Cell;

use quarry_clustermap::{DeviceId, DeviceState, ShardIndex, Tier};
use quarry_partition::BlobRef;

use super::*;
use crate::{
    cluster::DamageKind,
    test_cluster::{Sim, TestBody, TestCluster, random_bytes},
    writer::write_blob,
};

const OWNER: PartitionId = PartitionId(3);

/// Answers what a test wants, and counts.
#[derive(Default)]
struct Answer {
    ownership: Cell<Option<Ownership>>,
}

impl Owners for &Answer {
    async fn ownership(&self, owner: PartitionId, _: BlobId) -> Option<Ownership> {
        assert_eq!(owner, OWNER);
        self.ownership.get()
    }
}

fn stored(len: usize, seed: u64) -> (Sim, BlobRef) {
    let mut sim = Sim::new("4+2", 6, 1, 60, seed);
    let cluster = Rc::clone(&sim.cluster);
    let mut body = TestBody::new(&cluster, &random_bytes(seed, len));
    let blob = sim.run(async move { write_blob(&cluster, Tier::Hot, OWNER, &mut body).await }).unwrap();
    sim.cluster.disks.values().for_each(|disk| disk.may_replace.set(true));
    sim.settle();
    (sim, blob)
}

fn name(blob: &BlobRef, shard: u8) -> ShardName {
    ShardName { pg: blob.pg, blob: blob.blob, shard: ShardIndex(shard) }
}

fn repair(
    sim: &mut Sim,
    blob: &BlobRef,
    shard: u8,
    ownership: Option<Ownership>,
) -> Result<Repaired, RepairError> {
    let (cluster, suspect) =
        (Rc::clone(&sim.cluster), Suspect { name: name(blob, shard), owner: Some(OWNER) });
    let result = sim.run(async move {
        let answer = Answer { ownership: Cell::new(ownership) };
        repair_shard::<TestCluster>(&cluster, &&answer, &Budget::new(u64::MAX), suspect).await
    });
    sim.settle();
    result
}

fn remove(sim: &Sim, blob: &BlobRef, shard: u8) {
    let key = (blob.pg, blob.blob, ShardIndex(shard));
    let holders = sim.cluster.disks.values().filter(|disk| disk.shards.borrow_mut().remove(&key).is_some());
    assert_eq!(holders.count(), 1);
}

fn bytes_of(sim: &Sim, blob: &BlobRef, shard: u8) -> (Vec<u8>, Vec<u32>) {
    let stored = sim.stored(blob.blob, shard);
    let stored = stored.borrow();
    (stored.bytes.clone(), stored.checksums.clone())
}

#[test]
fn a_missing_or_damaged_shard_comes_back_as_it_was() {
    for (seed, len) in [(1, 10), (2, 4096 * 4), (3, 700_000), (4, 4 * 131_072 * 3 + 5)] {
        let (mut sim, blob) = stored(len, seed);
        for shard in 0..6 {
            let before = bytes_of(&sim, &blob, shard);
            assert_eq!(repair(&mut sim, &blob, shard, Some(Ownership::Live)), Ok(Repaired::Healthy));
            remove(&sim, &blob, shard);
            // Two others are damaged at the same time: one missing in all, two corrupt would be one too many.
            let other = (shard + 1) % 6;
            sim.stored(blob.blob, other).borrow_mut().bytes[7] ^= 16;
            let rebuilt = Repaired::Rebuilt { bytes: before.0.len() as u64 };
            assert_eq!(repair(&mut sim, &blob, shard, Some(Ownership::Live)), Ok(rebuilt));
            assert_eq!(bytes_of(&sim, &blob, shard), before, "{len} bytes, shard {shard}");
            assert_eq!(repair(&mut sim, &blob, other, Some(Ownership::Live)), Ok(rebuilt));
            assert_eq!(repair(&mut sim, &blob, other, Some(Ownership::Live)), Ok(Repaired::Healthy));
        }
    }
}

#[test]
fn damage_of_a_source_is_reported_and_another_taken() {
    let (mut sim, blob) = stored(700_000, 5);
    remove(&sim, &blob, 5);
    sim.stored(blob.blob, 0).borrow_mut().bytes[140_000] ^= 1;
    assert!(matches!(repair(&mut sim, &blob, 5, Some(Ownership::Live)), Ok(Repaired::Rebuilt { .. })));
    assert_eq!(*sim.cluster.damage.borrow(), [(ShardIndex(0), DamageKind::Corrupt)]);
}

#[test]
fn too_few_sources_are_a_loss_only_if_none_can_come_back() {
    let (mut sim, blob) = stored(100_000, 6);
    for shard in [0, 1, 2] {
        remove(&sim, &blob, shard);
    }
    let lost = RepairError::Lost { present: 3, needed: 4 };
    assert_eq!(repair(&mut sim, &blob, 0, Some(Ownership::Live)), Err(lost));
    let (mut sim, blob) = stored(100_000, 7);
    remove(&sim, &blob, 0);
    remove(&sim, &blob, 1);
    sim.disk(2).out.set(true);
    assert_eq!(repair(&mut sim, &blob, 0, Some(Ownership::Live)), Err(RepairError::Unavailable));
    sim.disk(2).out.set(false);
    assert!(matches!(repair(&mut sim, &blob, 0, Some(Ownership::Live)), Ok(Repaired::Rebuilt { .. })));
}

#[test]
fn a_blob_that_is_being_freed_stays_gone() {
    let (mut sim, blob) = stored(100_000, 8);
    remove(&sim, &blob, 4);
    assert_eq!(repair(&mut sim, &blob, 4, Some(Ownership::Gone)), Ok(Repaired::Gone));
    assert_eq!(repair(&mut sim, &blob, 4, None), Err(RepairError::Unavailable));
    assert_eq!(sim.shards(), 5, "nothing was stored");
    // Others go too: that is no loss.
    (0..3).for_each(|shard| remove(&sim, &blob, shard));
    assert_eq!(repair(&mut sim, &blob, 4, Some(Ownership::Gone)), Ok(Repaired::Gone));
    assert_eq!(repair(&mut sim, &blob, 4, Some(Ownership::Pending)), Ok(Repaired::Gone));
    assert_eq!(repair(&mut sim, &blob, 4, None), Err(RepairError::Unavailable));
    let lost = RepairError::Lost { present: 2, needed: 4 };
    assert_eq!(repair(&mut sim, &blob, 4, Some(Ownership::Live)), Err(lost));
}

#[test]
fn a_full_or_absent_target_changes_nothing() {
    let (mut sim, blob) = stored(100_000, 9);
    remove(&sim, &blob, 3);
    sim.disk(3).full.set(true);
    assert_eq!(repair(&mut sim, &blob, 3, Some(Ownership::Live)), Err(RepairError::Full));
    sim.edit_map(|map| map.devices.get_mut(&DeviceId(3)).unwrap().state = DeviceState::Out);
    assert_eq!(repair(&mut sim, &blob, 3, Some(Ownership::Live)), Err(RepairError::DeviceOut));
    assert_eq!(sim.shards(), 5);
}

#[test]
fn a_copy_of_another_time_is_replaced_though_its_checksums_fit() {
    let (mut sim, blob) = stored(700_000, 11);
    let before = bytes_of(&sim, &blob, 2);
    let cut = before.0.len() - 4096;
    let stored = sim.stored(blob.blob, 2);
    stored.borrow_mut().bytes.truncate(cut);
    let checksums = unit_checksums(blob.blob, ShardIndex(2), 0, &before.0[..cut]).collect();
    stored.borrow_mut().checksums = checksums;
    assert!(matches!(repair(&mut sim, &blob, 2, Some(Ownership::Live)), Ok(Repaired::Rebuilt { .. })));
    assert_eq!(bytes_of(&sim, &blob, 2), before);
}

#[test]
fn checksums_of_the_damaged_copy_must_agree() {
    let (mut sim, blob) = stored(100_000, 10);
    let stored = sim.stored(blob.blob, 1);
    stored.borrow_mut().bytes[0] ^= 1;
    stored.borrow_mut().checksums[0] ^= 1;
    assert_eq!(repair(&mut sim, &blob, 1, Some(Ownership::Live)), Err(RepairError::Contradiction));
}

#[test]
fn the_budget_makes_work_wait() {
    let mut sim = Sim::new("4+2", 6, 1, 60, 1);
    let cluster = Rc::clone(&sim.cluster);
    let took = sim.run(async move {
        let (budget, began) = (Budget::new(1_000_000), cluster.monotonic());
        for _ in 0..10 {
            budget.spend(&*cluster, 1_000_000).await;
        }
        cluster.monotonic() - began
    });
    assert!((8.5..=9.0).contains(&took.as_secs_f64()), "{took:?}");
}
