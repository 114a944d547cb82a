//! Nodes that are cut off from others: whose word counts, and who leads then.

use std::collections::BTreeSet;

use quarry_clustermap::{ClusterMap, DeviceId, NodeId, PartitionId};

use super::{World, golden};
use crate::{ALONE_MS, Accusation, Lagging, Reports, SHUNNED_MS};

const NEW_MS: u64 = 0;

fn node(map: &ClusterMap, device: DeviceId) -> NodeId {
    map.devices[&device].node
}

/// What primaries say while messages between some nodes do not come back; the dead say nothing.
fn said(map: &ClusterMap, broken: impl Fn(u32, u32) -> bool, dead: &[u32], first_ms: u64) -> Reports {
    let mut reports = Reports::default();
    let mut accused = BTreeSet::new();
    for (index, config) in map.partitions.iter().enumerate() {
        let partition = PartitionId(u16::try_from(index).unwrap());
        let mut say = |by: DeviceId, device: DeviceId| {
            if !dead.contains(&node(map, by).0) {
                reports.lagging.push(Lagging { partition, epoch: config.epoch, by, device });
                accused.insert(Accusation { by: node(map, by), of: device, first_ms, last_ms: 0 });
            }
        };
        for device in config.members().filter(|device| *device != config.primary) {
            let (leader, member) = (node(map, config.primary).0, node(map, device).0);
            let unheard = dead.contains(&leader) || broken(leader, member);
            if unheard || dead.contains(&member) || broken(member, leader) {
                say(config.primary, device);
            }
            // One that is cut off inward hears nothing, and one that is cut off outward is not heard.
            if unheard {
                say(device, config.primary);
            }
        }
    }
    reports.accused = accused.into_iter().collect();
    reports
}

fn world(profile: &str, partitions: u16, devices: u64, nodes: u32) -> World {
    let mut world = World::new(profile, partitions, devices, nodes);
    world.step(&[1], &[]);
    world
}

fn members_on(map: &ClusterMap, of: u32) -> usize {
    map.partitions.iter().flat_map(|config| config.members()).filter(|id| node(map, *id).0 == of).count()
}

fn in_sync_is_kept(old: &ClusterMap, new: &ClusterMap) {
    for (was, is) in old.partitions.iter().zip(&new.partitions) {
        assert!(was.replicas.contains(&is.primary), "whoever leads was in sync");
        assert!(is.replicas.iter().all(|device| was.replicas.contains(device)));
    }
}

#[test]
fn golden_a_node_is_cut_off_from_all_others() {
    let mut world = world("4+2", 12, 5, 5);
    let reports = said(world.map(), |from, to| (from == 2) != (to == 2), &[], NEW_MS);
    let before = world.map().clone();
    golden("cut_off", &world.step_reports(&reports));
    in_sync_is_kept(&before, world.map());
    assert_eq!(members_on(world.map(), 2), 0);
    // It joins nothing as long as it is remembered.
    let mut later = Reports { accused: reports.accused, ..Reports::default() };
    later.accused.iter_mut().for_each(|word| word.last_ms = SHUNNED_MS);
    assert_eq!(world.step_reports(&later), "");
}

/// One direction is as good as both: what is asked or what is answered is lost.
#[test]
fn every_cut_of_one_node_takes_its_lead_and_nobody_elses() {
    for (devices, nodes) in [(3, 3), (6, 3), (4, 4), (12, 6)] {
        for alone in 1..=nodes {
            let mut world = world("4+2", 64, devices, nodes);
            let before = world.map().clone();
            // The first to speak is the one that is cut off: it is not believed.
            let mut own = said(&before, |from, _| from == alone, &[], NEW_MS);
            own.lagging.retain(|report| node(&before, report.by).0 == alone);
            own.accused.retain(|word| word.by.0 == alone);
            assert_eq!(world.step_reports(&own), "", "{nodes} nodes");
            let all = said(world.map(), |from, _| from == alone, &[], NEW_MS);
            world.step_reports(&all);
            in_sync_is_kept(&before, world.map());
            let led =
                world.map().partitions.iter().filter(|config| node(world.map(), config.primary).0 == alone);
            assert_eq!(led.count(), 0, "{nodes} nodes");
            for (was, is) in before.partitions.iter().zip(&world.map().partitions) {
                let lost = was.replicas.iter().filter(|device| !is.replicas.contains(device));
                assert!(lost.copied().all(|device| node(&before, device).0 == alone), "{was:?} {is:?}");
            }
        }
    }
}

/// The dead accuse nobody, so nobody hands them a partition, however loudly the primary complains.
#[test]
fn dead_backups_never_inherit() {
    for (devices, nodes) in [(3, 3), (6, 6), (12, 6)] {
        let mut world = world("4+2", 64, devices, nodes);
        let before = world.map().clone();
        let reports = said(&before, |_, _| false, &[1, 2], ALONE_MS);
        world.step_reports(&reports);
        in_sync_is_kept(&before, world.map());
        for (was, is) in before.partitions.iter().zip(&world.map().partitions) {
            assert!(was.primary == is.primary || ![1, 2].contains(&node(&before, is.primary).0));
        }
    }
}

#[test]
fn of_two_halves_each_goes_on_where_it_has_most_replicas() {
    let mut world = world("4+2", 64, 6, 6);
    let half = |id: u32| id <= 3;
    let mut reports = said(world.map(), |from, to| half(from) != half(to), &[], ALONE_MS);
    let before = world.map().clone();
    let mut steps = 0;
    while !world.step_reports(&reports).is_empty() {
        let old = std::mem::take(&mut reports.accused);
        reports = said(world.map(), |from, to| half(from) != half(to), &[], ALONE_MS);
        reports.accused.extend(old);
        reports.accused.sort_unstable();
        reports.accused.dedup();
        steps += 1;
        assert!(steps < 10, "it does not end");
    }
    for (was, is) in before.partitions.iter().zip(&world.map().partitions) {
        let sides =
            |replicas: &[DeviceId]| replicas.iter().filter(|device| half(node(&before, **device).0)).count();
        let left = if sides(&was.replicas) >= 2 { is.replicas.len() } else { 0 };
        assert_eq!(sides(&is.replicas), left, "{was:?} {is:?}");
    }
}

#[test]
fn the_last_backup_leaves_on_one_word_only_when_it_has_stood() {
    let mut world = world("2+1", 8, 4, 2);
    let before = world.map().clone();
    let young = said(&before, |_, _| true, &[], ALONE_MS - 1);
    assert_eq!(world.step_reports(&young), "");
    let of_first = |reports: &mut Reports| {
        reports
            .lagging
            .retain(|report| report.by == before.partitions[usize::from(report.partition.0)].primary);
        reports.lagging.truncate(1);
        let accuser = node(&before, reports.lagging[0].by);
        reports.accused.retain(|word| word.by == accuser);
    };
    let mut old = said(&before, |_, _| true, &[], ALONE_MS);
    of_first(&mut old);
    assert_ne!(world.step_reports(&old), "");
    let partition = usize::from(old.lagging[0].partition.0);
    assert_eq!(world.map().partitions[partition].replicas, [before.partitions[partition].primary]);
}

/// One device that is slow does not take the other one of its node along.
#[test]
fn a_slow_device_leads_nothing_and_its_neighbour_goes_on() {
    let mut world = world("4+2", 64, 12, 6);
    let slow = DeviceId(0xa);
    let mut reports = said(world.map(), |_, to| to == 1, &[], NEW_MS);
    reports.lagging.retain(|report| report.device == slow);
    reports.accused.retain(|word| word.of == slow);
    let before = world.map().clone();
    world.step_reports(&reports);
    assert!(world.map().partitions.iter().all(|config| config.primary != slow));
    let leads = |map: &ClusterMap| {
        map.partitions
            .iter()
            .filter(|config| config.primary != slow && node(map, config.primary).0 == 1)
            .count()
    };
    assert!(leads(world.map()) >= leads(&before));
}

/// All are slow, so nobody is to blame: nothing is handed over.
#[test]
fn when_everybody_complains_of_everybody_no_one_is_cut_off() {
    let mut world = world("4+2", 64, 6, 6);
    let before = world.map().clone();
    let reports = said(&before, |_, _| true, &[], NEW_MS);
    world.step_reports(&reports);
    in_sync_is_kept(&before, world.map());
    assert!(world.map().partitions.iter().all(|config| !config.replicas.is_empty()));
}
