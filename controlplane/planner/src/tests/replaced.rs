//! Devices that are replaced, and groups that move.

use quarry_clustermap::{DeviceId, DeviceState, Epoch, JobKind, NodeId, PgId, PgState, PlacementGroup};

use super::{World, device, golden};
use crate::{DeviceObservation, GroupMoved, REBUILD_AFTER_MS, Reports};

fn count(world: &World, state: PgState) -> usize {
    world.map().placement_groups.values().filter(|group| group.state == state).count()
}

fn state_of(world: &World, pg: u32) -> (PgState, u64) {
    let group = &world.map().placement_groups[&PgId(pg)];
    (group.state, group.epoch.0)
}

fn moved(pg: u32, epoch: u64) -> Reports {
    Reports { moved: vec![GroupMoved { pg: PgId(pg), epoch: Epoch(epoch) }], ..Reports::default() }
}

fn returned(device: u64) -> Reports {
    Reports { returned: [DeviceId(device)].into(), ..Reports::default() }
}

/// 2+1 on a, b, c, d; a is out and its time is up.
fn world_with_a_gone() -> World {
    let mut world = World::new("2+1", 4, 4, 1);
    world.step(&[1], &[]);
    world.set_present(0xa, false);
    world.step(&[], &[]);
    let joined = world.all_joined();
    world.step(&[], &joined);
    world
}

#[test]
fn golden_a_new_device_takes_the_place_of_one_that_is_out() {
    let mut world = World::new("2+1", 4, 3, 1);
    world.step(&[1], &[]);
    // One registration: the old one is missing, the new one is there.
    world.set_present(0xa, false);
    world.add_replacing(0xf, 0xa);
    let plan = world.plan(&[1], &[]).unwrap();
    assert!(
        plan.reasons
            .contains(&"dev-000000000000000f replaces dev-000000000000000a in 3 placement groups".to_owned())
    );
    golden("replaced_named", &world.commit(plan));
    assert_eq!(world.step(&[], &[]), "");
    let reports = Reports { joined: world.all_joined(), ..world.all_moved() };
    golden("replaced_whole", &world.step_reports(&reports));
    assert_eq!(world.step_reports(&reports), "", "late reports change nothing");
    // The old device is found again: an unknown device with an old id.
    world.set_present(0xa, true);
    golden("replaced_returned", &world.step(&[1], &[]));
    assert_eq!(world.map().devices[&DeviceId(0xa)].state, DeviceState::In);
}

#[test]
fn golden_a_device_that_is_out_for_long_is_replaced_by_others() {
    let mut world = world_with_a_gone();
    assert_eq!(world.step_after(REBUILD_AFTER_MS - 1), "", "it may still return");
    golden("replaced_due", &world.step_after(1));
    assert_eq!(world.step_after(1), "", "each position is given once");
    // Another epoch, another group, a group that is not moving: all ignored.
    let (PgState::Moving, epoch) = state_of(&world, 0) else { panic!("pg-0 had the lost device") };
    for reports in [moved(0, epoch - 1), moved(0, epoch + 1), moved(1, 1), moved(99, epoch)] {
        assert_eq!(world.step_reports(&reports), "");
    }
    let before = world.all_moved();
    world.step(&[1], &[]);
    assert_eq!(
        state_of(&world, 0),
        (PgState::Moving, epoch + 1),
        "a start leaves it moving, and work starts over"
    );
    assert_eq!(world.step_reports(&before), "");
    let all = world.all_moved();
    golden("replaced_due_whole", &world.step_reports(&all));
}

#[test]
fn the_last_whole_holder_takes_its_place_back() {
    let mut world = world_with_a_gone();
    world.step_after(REBUILD_AFTER_MS);
    let before = world.map().placement_groups[&PgId(0)].clone();
    assert_eq!((before.members[0], before.rebuilding[&0]), (DeviceId(0xd), DeviceId(0xa)));
    assert!(world.map().devices[&DeviceId(0xa)].replaced, "it stays: its groups are not whole without it");
    world.set_present(0xa, true);
    world.step_reports(&returned(0xa));
    let group = &world.map().placement_groups[&PgId(0)];
    assert_eq!((group.state, group.members[0]), (PgState::Moving, DeviceId(0xa)));
    assert_eq!(group.rebuilding[&0], DeviceId(0xa), "what was freed or written without it is settled first");
    assert!(group.epoch > before.epoch);
    let late = moved(0, before.epoch.0);
    assert_eq!(world.step_reports(&late), "", "the report for the other member came too late");
    let all = world.all_moved();
    world.step_reports(&all);
    assert_eq!(state_of(&world, 0).0, PgState::Open);
}

#[test]
fn a_member_that_fails_while_it_is_filled_is_replaced_in_turn() {
    let mut world = World::new("2+1", 4, 5, 1);
    world.step(&[1], &[]);
    let pg0 = |world: &World| world.map().placement_groups[&PgId(0)].clone();
    let first = pg0(&world).members[0];
    world.set_present(first.0, false);
    world.step(&[], &[]);
    world.step_after(REBUILD_AFTER_MS);
    let second = pg0(&world).members[0];
    world.set_present(second.0, false);
    world.step(&[], &[]);
    assert_eq!(pg0(&world).members[0], second, "it may return");
    let epoch = pg0(&world).epoch;
    // It returns: what it holds of the shards it was given is not known.
    world.set_present(second.0, true);
    world.step_reports(&returned(second.0));
    assert!(pg0(&world).epoch > epoch && pg0(&world).members[0] == second);
    world.set_present(second.0, false);
    world.step(&[], &[]);
    world.step_after(REBUILD_AFTER_MS);
    let third = pg0(&world);
    assert!(![first, second].contains(&third.members[0]));
    assert_eq!(third.rebuilding[&0], first, "the second never was whole");
    assert!(world.map().devices.contains_key(&first));
    let all = world.all_moved();
    world.step_reports(&all);
    for gone in [first, second] {
        let names = |group: &PlacementGroup| {
            group.members.contains(&gone) || group.rebuilding.values().any(|former| *former == gone)
        };
        let named = world.map().placement_groups.values().any(names);
        assert_eq!(world.map().devices.contains_key(&gone), named);
    }
}

#[test]
fn a_group_that_lost_more_than_parity_waits_for_its_devices() {
    let mut world = World::new("2+1", 4, 6, 1);
    world.step(&[1], &[]);
    let members = world.map().placement_groups[&PgId(0)].members.clone();
    world.set_present(members[0].0, false);
    world.set_present(members[1].0, false);
    world.step(&[], &[]);
    world.now_ms += REBUILD_AFTER_MS;
    let plan = world.plan(&[], &[]).unwrap();
    let waits = plan.reasons.iter().filter(|reason| reason.contains("lost more than parity covers")).count();
    assert_eq!(waits, 2, "once for each device: {:?}", plan.reasons);
    world.commit(plan);
    assert_eq!(world.map().placement_groups[&PgId(0)].members, members);
    assert!(count(&world, PgState::Moving) > 0, "groups that lost one go on");
    // The owner knows better: the device will not return.
    world.add_replacing(0xff, members[0].0);
    world.step(&[], &[]);
    let group = &world.map().placement_groups[&PgId(0)];
    assert_eq!((group.state, group.members[0]), (PgState::Moving, DeviceId(0xff)));
    // The other one returns, and the last whole holder of a position may still do so as well.
    world.set_present(members[0].0, true);
    world.step(&[1], &[]);
    assert_eq!(world.map().placement_groups[&PgId(0)].members[0], members[0]);
}

#[test]
fn without_a_device_to_take_them_the_reason_is_given_once() {
    let mut world = World::new("2+1", 4, 3, 1);
    world.step(&[1], &[]);
    world.set_present(0xa, false);
    world.step(&[], &[]);
    world.now_ms += REBUILD_AFTER_MS;
    let plan = world.plan(&[], &[]).unwrap();
    let text = "dev-000000000000000a is out for long: 3 placement groups wait for a device: every one that is in is a \
                member";
    assert_eq!(plan.reasons.iter().filter(|reason| *reason == text).count(), 1, "{:?}", plan.reasons);
    assert!(plan.map.is_none());
    // Any new device of the tier will do.
    world.inventory.devices.insert(DeviceId(0xf), device(1));
    world.step(&[], &[]);
    assert_eq!(count(&world, PgState::Moving), 3);
}

#[test]
fn a_device_that_is_in_or_unknown_is_not_replaced() {
    let mut world = World::new("2+1", 4, 3, 1);
    world.step(&[1], &[]);
    world.map.as_mut().unwrap().operations.paused.insert(JobKind::Rebalance);
    for old in [0xa, 0xdead] {
        world.add_replacing(0xf, old);
        let plan = world.plan(&[], &[]).unwrap();
        assert!(plan.reasons.iter().any(|reason| reason.contains("cannot replace")), "{:?}", plan.reasons);
        world.commit(plan);
        assert_eq!(count(&world, PgState::Moving), 0);
        assert!(world.map().devices.values().all(|entry| !entry.replaced));
    }
}

#[test]
fn replacements_keep_domains_apart_and_spread_by_capacity() {
    for wide in [1, 8] {
        // Three nodes for three shards: only the devices d, 10 and 13 of the same node may follow a.
        let mut world = World::new("2+1", 4, 10, 3);
        world.inventory.devices.get_mut(&DeviceId(0x13)).unwrap().capacity_bytes = wide << 30;
        world.step(&[1], &[]);
        world.set_present(0xa, false);
        world.step(&[], &[]);
        let lost =
            world.map().placement_groups.values().filter(|group| group.members.contains(&DeviceId(0xa)));
        let lost = lost.count();
        world.step_after(REBUILD_AFTER_MS);
        let (mut held, mut gained) = ([0; 3], [0; 3]);
        for group in world.map().placement_groups.values() {
            let nodes: std::collections::BTreeSet<NodeId> =
                group.members.iter().map(|device| world.map().devices[device].node).collect();
            assert_eq!(nodes.len(), 3, "two members on one node: {group:?}");
            for (at, device) in [0xd, 0x10, 0x13].into_iter().enumerate() {
                held[at] += usize::from(group.members.contains(&DeviceId(device)));
                let filled = |position: &u8| group.members[usize::from(*position)] == DeviceId(device);
                gained[at] += usize::from(group.rebuilding.keys().any(filled));
            }
        }
        assert_eq!(gained.iter().sum::<usize>(), lost);
        if wide == 1 {
            assert!(held.iter().max().unwrap() - held.iter().min().unwrap() <= 1, "{held:?} {gained:?}");
        } else {
            assert_eq!(gained[2], lost, "the widest device takes most: {held:?} {gained:?}");
        }
    }
}

#[test]
fn a_device_out_in_an_old_map_counts_from_now() {
    let mut world = world_with_a_gone();
    let out = world.map.as_mut().unwrap().devices.get_mut(&DeviceId(0xa)).unwrap();
    out.out_since_ms = None;
    world.now_ms = 50 * REBUILD_AFTER_MS;
    world.step(&[], &[]);
    assert_eq!(world.map().devices[&DeviceId(0xa)].out_since_ms, Some(50 * REBUILD_AFTER_MS));
    assert_eq!(count(&world, PgState::Moving), 0);
    world.now_ms = 0;
    assert_eq!(world.step(&[], &[]), "", "a clock that steps back replaces nobody");
}

#[test]
fn a_replacement_of_another_tier_is_refused() {
    let mut world = world_with_a_gone();
    let cold =
        DeviceObservation { tier: quarry_clustermap::Tier::Cold, replaces: Some(DeviceId(0xa)), ..device(1) };
    world.inventory.devices.insert(DeviceId(0xf), cold);
    world.step(&[], &[]);
    world.step_after(REBUILD_AFTER_MS);
    assert!(world.map().placement_groups.values().all(|group| !group.members.contains(&DeviceId(0xf))));
}

#[test]
fn a_replaced_device_stays_while_a_partition_waits_for_it() {
    let mut world = World::new("2+1", 1, 4, 1);
    world.step(&[1], &[]);
    let only = DeviceId(0xa);
    let config = &mut world.map.as_mut().unwrap().partitions[0];
    (config.primary, config.replicas) = (only, vec![only]);
    world.set_present(only.0, false);
    world.add_replacing(0xf, only.0);
    world.step(&[], &[]);
    let all = world.all_moved();
    world.step_reports(&all);
    assert!(world.map().placement_groups.values().all(|group| !group.members.contains(&only)));
    assert!(world.map().devices[&only].replaced, "nobody else has the history");
    world.set_present(only.0, true);
    world.step_reports(&returned(only.0));
    assert_eq!(world.map().partitions[0].primary, only);
}
