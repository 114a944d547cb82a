//! Places that are kept for those that may be back soon.

use std::collections::BTreeSet;

use quarry_clustermap::{ClusterMap, DeviceId, PartitionConfig, PartitionId};

use super::{World, device, golden};
use crate::{ALONE_MS, Accusation, DeviceObservation, Intent, Lagging, PLACE_KEPT_MS, Reports, SETTLE_MS};

const A: DeviceId = DeviceId(0xa);
const B: DeviceId = DeviceId(0xb);

fn world() -> World {
    let mut world = World::new("4+2", 12, 6, 6);
    world.step(&[1], &[]);
    world
}

fn joining(map: &ClusterMap) -> Vec<DeviceId> {
    map.partitions.iter().flat_map(|config| config.joining.clone()).collect()
}

fn members(map: &ClusterMap) -> Vec<BTreeSet<DeviceId>> {
    map.partitions.iter().map(|config| config.members().collect()).collect()
}

#[test]
fn golden_a_node_is_away_and_returns() {
    let mut world = world();
    let before = members(world.map());
    world.set_present(0xa, false);
    golden("away", &world.step(&[], &[]));
    assert_eq!(joining(world.map()), []);
    assert_eq!(world.step_after(PLACE_KEPT_MS - 1), "", "its places are kept");
    world.set_present(0xa, true);
    world.step(&[1], &[]);
    assert_eq!(joining(world.map()), [], "its peers have to find it first");
    golden("away_returned", &world.step_after(SETTLE_MS));
    assert_eq!(members(world.map()), before, "as it was");
    assert!(world.map().partitions.iter().all(|config| config.away.is_empty()));
}

#[test]
fn who_is_away_for_too_long_is_made_up_for() {
    let mut world = world();
    world.set_present(0xa, false);
    world.step(&[], &[]);
    world.step_after(PLACE_KEPT_MS);
    let joined = joining(world.map());
    assert!(!joined.is_empty() && !joined.contains(&A));
    assert!(world.map().partitions.iter().all(|config| config.members().count() == 3));
}

/// A node that is there without the device will not bring it back.
#[test]
fn a_device_that_fails_alone_is_made_up_for_at_once() {
    let mut world = World::new("4+2", 12, 6, 3);
    world.step(&[1], &[]);
    world.set_present(0xa, false);
    world.step(&[], &[]);
    assert!(world.map().partitions.iter().all(|config| config.members().count() == 3));
    // The other device of its node follows: nobody is left who could say more.
    world.set_present(0xd, false);
    world.step(&[], &[]);
    let kept = world.map().partitions.iter().flat_map(|config| config.away.keys().copied());
    assert_eq!(kept.collect::<BTreeSet<_>>(), [DeviceId(0xd)].into());
}

/// With two of three gone, one copy is not enough to wait with.
#[test]
fn two_copies_are_made_up_for_at_once() {
    let mut world = world();
    let of_both = |config: &&PartitionConfig| config.replicas.contains(&A) && config.replicas.contains(&B);
    let both = world.map().partitions.iter().filter(of_both).count();
    assert!(both > 0);
    world.set_present(0xa, false);
    world.step(&[], &[]);
    world.set_present(0xb, false);
    world.step(&[], &[]);
    assert_eq!(joining(world.map()).len(), both);
    let config = world.map().partitions.iter().find(|config| !config.joining.is_empty()).unwrap();
    assert_eq!((config.replicas.len(), config.joining.len(), config.away.len()), (1, 1, 1));
    assert!(world.map().partitions.iter().all(|config| config.members().count() >= 2));
}

#[test]
fn whoever_is_not_to_return_is_made_up_for_at_once() {
    let mut drained = world();
    drained.set_present(0xa, false);
    drained.step(&[], &[]);
    let intents = vec![Intent::DrainDevice(A)];
    drained.step_reports(&Reports { intents, ..Reports::default() });
    let mut replaced = world();
    replaced.set_present(0xa, false);
    replaced.step(&[], &[]);
    // On another node: its own is still away.
    let seen = DeviceObservation { replaces: Some(A), ..device(2) };
    replaced.inventory.devices.insert(DeviceId(0x20), seen);
    replaced.step(&[], &[]);
    for world in [drained, replaced] {
        assert!(world.map().partitions.iter().all(|config| config.away.is_empty()));
        assert!(world.map().partitions.iter().all(|config| config.members().count() == 3));
    }
}

/// It would lag again: its node has another device that does not.
#[test]
fn a_slow_device_is_made_up_for_while_its_node_is_well() {
    let mut world = World::new("4+2", 12, 6, 3);
    world.step(&[1], &[]);
    let mut reports = Reports::default();
    for (index, config) in world.map().partitions.iter().enumerate() {
        if config.primary != A && config.replicas.contains(&A) {
            let (partition, epoch) = (PartitionId(u16::try_from(index).unwrap()), config.epoch);
            reports.lagging.push(Lagging { partition, epoch, by: config.primary, device: A });
            let by = world.map().devices[&config.primary].node;
            reports.accused.push(Accusation { by, of: A, first_ms: ALONE_MS, last_ms: 0 });
        }
    }
    world.step_reports(&reports);
    let kept = world.map().partitions.iter().filter(|config| config.away.contains_key(&A)).count();
    assert!(kept > 0 && world.map().is_in(A));
    reports.lagging.clear();
    assert_eq!(world.step_reports(&reports), "", "nobody knows yet whether its node follows");
    world.now_ms += ALONE_MS;
    world.step_reports(&reports);
    assert!(world.map().partitions.iter().all(|config| config.away.is_empty()));
    assert_eq!(joining(world.map()).len(), kept);
}

#[test]
fn whoever_was_cut_off_waits_until_nothing_is_held_against_it() {
    let mut world = world();
    let mut reports = Reports::default();
    let others = || (2..=6).map(quarry_clustermap::NodeId);
    reports.accused.extend(others().map(|by| Accusation { by, of: A, first_ms: 0, last_ms: 0 }));
    for (index, config) in world.map().partitions.iter().enumerate() {
        if config.primary != A && config.replicas.contains(&A) {
            let (partition, epoch) = (PartitionId(u16::try_from(index).unwrap()), config.epoch);
            reports.lagging.push(Lagging { partition, epoch, by: config.primary, device: A });
        }
    }
    world.step_reports(&reports);
    let partitions = (0_u16..).map(PartitionId).zip(&world.map().partitions);
    let left: BTreeSet<_> =
        partitions.filter(|(_, config)| config.away.contains_key(&A)).map(|(id, _)| (id, A)).collect();
    reports.lagging.clear();
    world.now_ms += SETTLE_MS;
    assert_eq!(world.step_reports(&reports), "", "the others remember that it was silent");
    let avoid = Reports { avoid: left.clone(), ..Reports::default() };
    assert_eq!(world.step_reports(&avoid), "", "it is not chosen again where it lagged");
    world.step_reports(&Reports::default());
    assert_eq!(joining(world.map()).len(), left.len());
}
