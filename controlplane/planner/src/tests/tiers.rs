//! Devices of two tiers: groups of each, with profiles of their own; metadata on hot alone.

use quarry_clustermap::TierPolicy;

use super::*;
use crate::Intent;

/// Six hot devices 0xa.., and `cold` cold ones 0x50...
fn world(cold: u64, cold_profile: Option<&str>) -> World {
    let mut world = World::new("4+2", 16, 6, 1);
    for number in 0..cold {
        let observed = DeviceObservation { tier: Tier::Cold, ..device(1) };
        world.inventory.devices.insert(DeviceId(0x50 + number), observed);
    }
    world.policy.cold_profile = cold_profile.map(|profile| profile.parse().unwrap());
    world.step(&[], &[]);
    world
}

fn profiles(map: &ClusterMap, tier: Tier) -> BTreeSet<String> {
    map.open_groups(tier).map(|(_, group)| group.profile.to_string()).collect()
}

#[test]
fn each_tier_has_groups_of_its_own_devices_and_profile() {
    let world = world(4, Some("3+1"));
    let map = world.map();
    assert_eq!(profiles(map, Tier::Hot), ["4+2".to_owned()].into());
    assert_eq!(profiles(map, Tier::Cold), ["3+1".to_owned()].into());
    for group in map.placement_groups.values() {
        assert!(group.members.iter().all(|device| map.devices[device].tier == group.tier));
    }
    let cold: BTreeSet<DeviceId> =
        map.open_groups(Tier::Cold).flat_map(|(_, group)| group.members.clone()).collect();
    assert_eq!(cold.len(), 4, "every cold device is used");
    assert!(map.open_groups(Tier::Cold).count() >= 4);
    let metadata = map.partitions.iter().flat_map(|config| config.members().collect::<Vec<_>>());
    assert!(metadata.into_iter().all(|device| map.devices[&device].tier == Tier::Hot));
}

#[test]
fn too_few_cold_devices_open_a_fallback_or_nothing_and_hot_does_not_care() {
    let mut world = world(4, Some("3+1"));
    let hot = profiles(world.map(), Tier::Hot);
    for (out, expected) in [(0x50, Some("2+1")), (0x51, None)] {
        world.set_present(out, false);
        world.step(&[], &[]);
        let expected: BTreeSet<String> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(profiles(world.map(), Tier::Cold), expected);
        assert_eq!(profiles(world.map(), Tier::Hot), hot);
    }
    world.set_present(0x50, true);
    world.set_present(0x51, true);
    world.step(&[], &[]);
    assert_eq!(profiles(world.map(), Tier::Cold), ["3+1".to_owned()].into());
}

#[test]
fn without_cold_devices_there_is_no_cold_tier() {
    let world = world(0, Some("3+1"));
    assert!(world.map().placement_groups.values().all(|group| group.tier == Tier::Hot));
    let plain = World::new("4+2", 16, 6, 1);
    assert_eq!(plain.policy.cold_profile, None);
}

#[test]
fn a_device_in_use_stays_in_its_tier() {
    let mut world = world(4, None);
    for (device, tier) in [(0xa, Tier::Cold), (0x50, Tier::Hot)] {
        world.inventory.devices.get_mut(&DeviceId(device)).unwrap().tier = tier;
    }
    world.step(&[], &[]);
    assert_eq!(world.map().devices[&DeviceId(0xa)].tier, Tier::Hot);
    assert_eq!(world.map().devices[&DeviceId(0x50)].tier, Tier::Cold);
}

#[test]
fn operators_set_profile_and_policy() {
    let mut world = world(4, None);
    assert_eq!(
        profiles(world.map(), Tier::Cold),
        ["2+2".to_owned()].into(),
        "the hot profile, as far as it goes"
    );
    let policy = TierPolicy { enabled: true, ..TierPolicy::default() };
    let profile = Intent::ColdProfile("3+1".parse().unwrap());
    let intents = vec![profile, Intent::TierPolicy(policy)];
    assert!(intents.iter().all(|intent| intent.check(world.map()).is_ok()));
    let bad = Intent::TierPolicy(TierPolicy { low_percent: 99, ..policy });
    assert!(bad.check(world.map()).is_err());
    world.step_reports(&Reports { intents, ..Reports::default() });
    assert_eq!(profiles(world.map(), Tier::Cold), ["3+1".to_owned()].into());
    assert!(world.map().tiering.policy.enabled);
    world.set_present(0xb, false);
    world.step(&[], &[]);
    assert!(world.map().tiering.policy.enabled, "it stays as it was set");
}

#[test]
fn two_cold_devices_mirror() {
    let mut world = World::new("2+1", 8, 3, 1);
    for number in 0..2 {
        let observed = DeviceObservation { tier: Tier::Cold, ..device(1) };
        world.inventory.devices.insert(DeviceId(0x50 + number), observed);
    }
    world.policy.cold_profile = Some("1+1".parse().unwrap());
    world.step(&[1], &[]);
    assert_eq!(profiles(world.map(), Tier::Cold), ["1+1".to_owned()].into());
    world.step(&[1], &[]);
    assert_eq!(profiles(world.map(), Tier::Cold), ["1+1".to_owned()].into());
}
