//! Devices come and are drained: golden plans, and what holds for random clusters.

use std::collections::BTreeMap;

use proptest::{
    prelude::{Just, prop_assert, prop_assume, prop_oneof, proptest},
    test_runner::TestCaseError,
};
use quarry_clustermap::{ClusterMap, DeviceId, JobKind, NodeId, PgState, Tier};

use super::{World, device, golden};
use crate::{Intent, IntentError, Move, NodeObservation, REBUILD_AFTER_MS, Reports, forecast};

impl World {
    fn ask(&mut self, intent: Intent) -> String {
        intent.check(self.map()).unwrap();
        self.step_reports(&Reports { intents: vec![intent], ..Reports::default() })
    }

    fn add(&mut self, id: u64, node: u32, capacity_bytes: u64) {
        let seen = NodeObservation { address: String::new(), rack: String::new() };
        self.inventory.nodes.entry(NodeId(node)).or_insert(seen);
        let mut seen = device(node);
        seen.capacity_bytes = capacity_bytes;
        self.inventory.devices.insert(DeviceId(id), seen);
    }

    /// Plans until nothing is left to do, each move done at once: the moves.
    fn settle(&mut self, mut check: impl FnMut(&ClusterMap)) -> Vec<Move> {
        let mut moves = Vec::new();
        for _ in 0..5_000 {
            let reports = Reports { joined: self.all_joined(), ..self.all_moved() };
            let plan = self.plan_reports(&reports).unwrap();
            if plan.map.is_none() {
                return moves;
            }
            moves.extend(plan.moves.clone());
            self.commit(plan);
            check(self.map());
        }
        panic!("the plans do not come to an end");
    }
}

fn held(map: &ClusterMap) -> BTreeMap<DeviceId, f64> {
    let mut held: BTreeMap<DeviceId, f64> = map.devices.keys().map(|device| (*device, 0.0)).collect();
    for device in map.placement_groups.values().flat_map(|group| &group.members) {
        *held.get_mut(device).unwrap() += 1.0;
    }
    held
}

#[test]
fn golden_a_device_is_added_and_drained() {
    let mut world = World::new("2+1", 6, 4, 1);
    world.step(&[1], &[]);
    world.add(0xe, 1, 1 << 30);
    golden("added", &world.step(&[], &[]));
    let reports = Reports { joined: world.all_joined(), ..world.all_moved() };
    golden("added_moved", &world.step_reports(&reports));
    world.settle(|_| ());
    golden("drained", &world.ask(Intent::DrainDevice(DeviceId(0xb))));
    world.settle(|_| ());
    assert_eq!(world.map().uses_of(DeviceId(0xb)), 0);
    golden("removed", &world.ask(Intent::RemoveDevice(DeviceId(0xb))));
}

#[test]
fn a_dead_node_of_six_is_made_up_for_by_the_others() {
    for (profile, nodes, wanted, per_node) in
        [("4+2", 6, "4+2", 2), ("3+2", 5, "3+2", 2), ("2+1", 3, "2+1", 2)]
    {
        let mut world = World::new(profile, 64, u64::from(nodes) * 2, nodes);
        world.policy.groups_per_device = 4;
        world.step(&[], &[]);
        for id in world.inventory.devices.clone().into_iter().filter(|(_, seen)| seen.node == NodeId(2)) {
            world.set_present(id.0.0, false);
        }
        world.step(&[], &[]);
        let open = world.open_profiles();
        assert_eq!(
            open.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [wanted],
            "{profile} on {nodes} nodes"
        );
        world.step_after(REBUILD_AFTER_MS);
        world.settle(|_| ());
        let map = world.map();
        for (pg, group) in &map.placement_groups {
            assert_eq!((group.positions_not_whole(map), group.state), (0, PgState::Open), "{profile} {pg}");
            let mut on: BTreeMap<NodeId, usize> = BTreeMap::new();
            group.members.iter().for_each(|device| *on.entry(map.devices[device].node).or_default() += 1);
            assert!(on.values().all(|count| *count <= per_node), "{profile} {pg} {on:?}");
        }
        assert!(
            map.partitions.iter().all(|config| config.replicas.len() == map.hot_profile.metadata_replicas())
        );
        assert_eq!(
            map.devices.len(),
            usize::try_from(nodes).unwrap() * 2 - 2,
            "the dead devices have left the map"
        );
    }
}

#[test]
fn too_few_nodes_open_a_narrower_profile_of_which_one_node_may_be_lost() {
    let mut world = World::new("4+2", 16, 6, 3);
    world.step(&[], &[]);
    assert_eq!(world.open_profiles(), ["4+2".parse().unwrap()].into());
    world.set_present(0xa, false);
    world.set_present(0xd, false);
    world.step(&[], &[]);
    assert_eq!(world.open_profiles(), ["2+2".parse().unwrap()].into(), "two on each of two nodes");
}

#[test]
fn what_is_in_use_is_not_removed_and_what_is_paused_begins_nothing() {
    let mut world = World::new("2+1", 16, 6, 3);
    world.step(&[], &[]);
    let id = DeviceId(0xa);
    assert_eq!(Intent::RemoveDevice(id).check(world.map()), Err(IntentError::InUse(id)));
    world.ask(Intent::Pause(JobKind::Drain));
    world.ask(Intent::DrainNode(NodeId(1)));
    let uses = world.map().uses_of(id);
    assert_eq!(
        Intent::RemoveNode(NodeId(1)).check(world.map()),
        Err(IntentError::NotEmpty { device: id, uses })
    );
    let before = world.map().clone();
    world.settle(|_| ());
    assert_eq!(world.map().placement_groups, before.placement_groups);
    let told = forecast(&world.policy, world.map(), &[Intent::Resume(JobKind::Drain)], 0).unwrap();
    assert_eq!(told.stuck, 0, "{told:?}");
    let moves = {
        let first = world
            .plan_reports(&Reports { intents: vec![Intent::Resume(JobKind::Drain)], ..Reports::default() });
        let first = first.unwrap();
        let begun = first.moves.clone();
        world.commit(first);
        [begun, world.settle(|_| ())].concat()
    };
    assert_eq!(moves.len(), told.positions + told.replicas, "the forecast is what happens");
    world.ask(Intent::RemoveNode(NodeId(1)));
    assert!(world.map().devices.values().all(|entry| entry.node != NodeId(1)));
    assert!(world.map().operations.removed_nodes.contains(&NodeId(1)));
    assert_eq!(Intent::AddNode(NodeId(2)).check(world.map()), Err(IntentError::NotRemoved(NodeId(2))));
    world.ask(Intent::AddNode(NodeId(1)));
    assert!(world.map().operations.removed_nodes.is_empty());
}

/// Every position can be read, and no partition has fewer replicas than it should.
fn check_redundancy(map: &ClusterMap) {
    for group in map.placement_groups.values() {
        assert_eq!(group.positions_not_whole(map), 0);
    }
    assert!(map.partitions.iter().all(|config| config.replicas.len() >= map.hot_profile.metadata_replicas()));
    assert!(map.open_groups(Tier::Hot).count() > 0);
}

/// Within 2 % of its part by capacity, or two positions: moves are of one, and a group takes no device twice.
fn check_balance(map: &ClusterMap) -> Result<(), TestCaseError> {
    let held = held(map);
    let total: f64 = held.values().sum();
    let capacity: f64 = map.devices.values().map(|entry| entry.capacity_bytes as f64).sum();
    for (device, held) in held {
        let share = total * map.devices[&device].capacity_bytes as f64 / capacity;
        prop_assert!(
            (held - share).abs() <= (share * 0.02).max(2.0),
            "{} holds {} of {}",
            device,
            held,
            share
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_new_device_takes_its_share_with_few_moves(
        profile in prop_oneof![Just("4+2"), Just("2+1"), Just("3+2")],
        capacities in proptest::collection::vec(2_u64..5, 7..14),
        added in 2_u64..5,
    ) {
        let mut world = World::new(profile, 32, 0, 1);
        world.policy.groups_per_device = crate::groups_per_device(world.policy.hot_profile);
        for (at, capacity) in (0_u32..).zip(&capacities) {
            world.add(0xa + u64::from(at), at + 1, capacity << 30);
        }
        let all = capacities.iter().sum::<u64>();
        let width = world.policy.hot_profile.total() as u64;
        // A group takes no device twice, so none can hold more than one part in so many as a group has.
        prop_assume!(capacities.iter().all(|capacity| capacity * width <= all) && added * width <= all + added);
        world.step(&[], &[]);
        world.settle(check_redundancy);
        check_balance(world.map())?;
        let old = world.map().clone();
        world.add(0x100, 100, added << 30);
        let first = world.plan(&[], &[]).unwrap();
        // New groups are empty: what they hold need not be moved.
        let with_new = {
            let mut map = first.map.clone().unwrap();
            map.placement_groups.extend(old.placement_groups.clone());
            map
        };
        let before = held(&with_new);
        let mut moves = first.moves.clone();
        world.commit(first);
        moves.extend(world.settle(check_redundancy));
        check_balance(world.map())?;
        let total: f64 = before.values().sum();
        let share = total * added as f64 / (all + added) as f64;
        let least = (share - before[&DeviceId(0x100)]).max(0.0);
        let moved = moves.iter().filter(|step| matches!(step, Move::Rebuild { .. })).count() as f64;
        // One position more for each of the two ways in which shares are rounded.
        prop_assert!(moved <= least * 1.1 + 2.0, "{} moved, {} needed", moved, least);
    }
}
