//! Golden plans, and the properties that every plan has.

mod away;
mod cut;
mod grow;
mod histories;
mod lost;
mod replaced;
mod tiers;

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{
    ClusterId, ClusterMap, DeviceId, ErasureProfile, NodeId, PartitionId, PgState, Tier,
};

use crate::{
    DeviceObservation, GroupMoved, Inventory, Joined, MapDiff, Move, NodeObservation, Plan, PlanError,
    PlanInput, Policy, REBUILD_AFTER_MS, Reports, plan,
};

fn policy(profile: &str, partition_count: u16) -> Policy {
    Policy {
        cluster: ClusterId([7; 16]),
        hot_profile: profile.parse().unwrap(),
        cold_profile: None,
        partition_count,
        rebuild_after_ms: REBUILD_AFTER_MS,
        groups_per_device: 1,
    }
}

fn device(node: u32) -> DeviceObservation {
    DeviceObservation {
        node: NodeId(node),
        tier: Tier::Hot,
        capacity_bytes: 1 << 30,
        location: "d".to_owned(),
        present: true,
        replaces: None,
    }
}

/// Devices 0xa, 0xb, ... spread over `nodes` nodes in turn.
fn inventory(devices: u64, nodes: u32) -> Inventory {
    let node = |id| (NodeId(id), NodeObservation { address: String::new(), rack: String::new() });
    let on = |i: u64| (DeviceId(0xa + i), device(u32::try_from(i).unwrap() % nodes + 1));
    Inventory { nodes: (1..=nodes).map(node).collect(), devices: (0..devices).map(on).collect() }
}

/// A cluster of its own for a test: policy, inventory, and the committed map.
struct World {
    policy: Policy,
    inventory: Inventory,
    map: Option<ClusterMap>,
    now_ms: u64,
}

impl World {
    fn new(profile: &str, partition_count: u16, devices: u64, nodes: u32) -> Self {
        let (policy, inventory) = (policy(profile, partition_count), inventory(devices, nodes));
        Self { policy, inventory, map: None, now_ms: 0 }
    }

    fn plan(&self, started: &[u32], joined: &[Joined]) -> Result<Plan, PlanError> {
        let started = started.iter().map(|node| NodeId(*node)).collect();
        self.plan_reports(&Reports { started, joined: joined.to_vec(), ..Reports::default() })
    }

    fn plan_reports(&self, reports: &Reports) -> Result<Plan, PlanError> {
        plan(&PlanInput {
            policy: &self.policy,
            inventory: &self.inventory,
            map: self.map.as_ref(),
            reports,
            now_ms: self.now_ms,
        })
    }

    /// Plans, commits, and returns the diff.
    fn step(&mut self, started: &[u32], joined: &[Joined]) -> String {
        self.commit(self.plan(started, joined).unwrap())
    }

    fn step_reports(&mut self, reports: &Reports) -> String {
        self.commit(self.plan_reports(reports).unwrap())
    }

    /// Only time passes.
    fn step_after(&mut self, passed_ms: u64) -> String {
        self.now_ms += passed_ms;
        self.step(&[], &[])
    }

    fn commit(&mut self, plan: Plan) -> String {
        // What was told at a registration is not told again.
        self.inventory.devices.values_mut().for_each(|seen| seen.replaces = None);
        let Some(next) = plan.map else { return String::new() };
        let diff = MapDiff::new(self.map.as_ref(), &next).to_string();
        self.map = Some(next);
        diff
    }

    /// A new device, put in the place of another.
    fn add_replacing(&mut self, new: u64, old: u64) {
        let seen = DeviceObservation { replaces: Some(DeviceId(old)), ..device(1) };
        self.inventory.devices.insert(DeviceId(new), seen);
    }

    /// Reports for every group that is moving.
    fn all_moved(&self) -> Reports {
        let moving = self.map().placement_groups.iter().filter(|(_, group)| group.state == PgState::Moving);
        let moved = moving.map(|(pg, group)| GroupMoved { pg: *pg, epoch: group.epoch }).collect();
        Reports { moved, ..Reports::default() }
    }

    fn map(&self) -> &ClusterMap {
        self.map.as_ref().unwrap()
    }

    fn set_present(&mut self, device: u64, present: bool) {
        self.inventory.devices.get_mut(&DeviceId(device)).unwrap().present = present;
    }

    /// Reports for every joiner of the map.
    fn all_joined(&self) -> Vec<Joined> {
        let partitions = self.map().partitions.iter().enumerate();
        let reports = partitions.flat_map(|(index, config)| {
            let partition = PartitionId(u16::try_from(index).unwrap());
            config.joining.iter().map(move |device| Joined {
                partition,
                epoch: config.epoch,
                device: *device,
            })
        });
        reports.collect()
    }

    fn open_profiles(&self) -> BTreeSet<ErasureProfile> {
        self.map().open_groups(Tier::Hot).map(|(_, group)| group.profile).collect()
    }
}

/// Most and least of a count per device, and the mean.
fn spread(devices: &BTreeSet<DeviceId>, counted: impl Iterator<Item = DeviceId>) -> (f64, f64, f64) {
    let mut counts: BTreeMap<DeviceId, f64> = devices.iter().map(|id| (*id, 0.0)).collect();
    let mut total = 0.0;
    for device in counted {
        *counts.get_mut(&device).unwrap() += 1.0;
        total += 1.0;
    }
    let least = counts.values().copied().fold(f64::MAX, f64::min);
    let most = counts.values().copied().fold(0.0, f64::max);
    (least, most, total / f64::from(u32::try_from(counts.len()).unwrap()))
}

fn assert_balanced((least, most, mean): (f64, f64, f64), what: &str) {
    let slack = (mean * 0.02).max(1.0);
    assert!(most <= mean + slack && least >= mean - slack, "{what}: {least}..{most} around {mean}");
}

/// Compares with `golden/NAME.txt`; `QUARRY_BLESS=1` accepts what is there now.
fn golden(name: &str, text: &str) {
    let path = format!("{}/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("QUARRY_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(&path).unwrap_or_default(),
        "{name} differs from its golden file"
    );
}

#[test]
fn golden_first_map() {
    let mut world = World::new("2+1", 4, 3, 1);
    golden("first", &world.step(&[1], &[]));
    assert_eq!(world.step(&[], &[]), "", "nothing more to do");
}

#[test]
fn golden_device_lost_joined_and_returned() {
    let mut world = World::new("2+1", 4, 4, 1);
    world.step(&[1], &[]);
    world.set_present(0xa, false);
    golden("device_lost", &world.step(&[], &[]));
    let joined = world.all_joined();
    golden("joined", &world.step(&[], &joined));
    assert_eq!(world.step(&[], &joined), "", "late reports change nothing");
    world.set_present(0xa, true);
    golden("device_returned", &world.step(&[1], &[]));
}

#[test]
fn first_map_is_balanced_and_keeps_domains_apart() {
    for (profile, devices, nodes) in
        [("4+2", 6, 1), ("4+2", 7, 1), ("2+1", 3, 1), ("4+2", 18, 9), ("8+3", 24, 12), ("1+0", 1, 1)]
    {
        let mut world = World::new(profile, 256, devices, nodes);
        world.step(&[], &[]);
        let map = world.map();
        let all: BTreeSet<DeviceId> = map.devices.keys().copied().collect();
        assert_balanced(spread(&all, map.partitions.iter().map(|config| config.primary)), "primaries");
        assert_balanced(spread(&all, map.partitions.iter().flat_map(|config| config.members())), "members");
        let groups: Vec<_> = map.open_groups(Tier::Hot).map(|(_, group)| group).collect();
        assert!(groups.len() >= all.len(), "{} groups on {} devices", groups.len(), all.len());
        for position in 0..map.hot_profile.total() {
            let at: BTreeSet<DeviceId> = groups.iter().map(|group| group.members[position]).collect();
            if nodes == 1 {
                assert_eq!(at, all, "every device holds shard {position}");
            }
        }
        assert_balanced(
            spread(&all, groups.iter().flat_map(|group| group.members.iter().copied())),
            "shards",
        );
        if nodes > 1 {
            let sets = map.partitions.iter().map(|config| config.members().collect::<Vec<_>>());
            for members in sets.chain(groups.iter().map(|group| group.members.clone())) {
                let nodes: BTreeSet<NodeId> = members.iter().map(|device| map.devices[device].node).collect();
                assert_eq!(nodes.len(), members.len(), "two members on one node");
            }
        }
    }
}

#[test]
fn a_lost_primary_is_followed_by_the_next_in_sync_and_its_load_spreads() {
    let mut world = World::new("4+2", 256, 6, 1);
    world.step(&[1], &[]);
    let before = world.map().clone();
    world.set_present(0xa, false);
    let plan = world.plan(&[], &[]).unwrap();
    let after = plan.map.unwrap();
    for (old, new) in before.partitions.iter().zip(&after.partitions) {
        if !old.members().any(|device| device == DeviceId(0xa)) {
            assert_eq!(old, new, "movement is minimal");
            continue;
        }
        assert_eq!(new.epoch.0, after.version.0);
        let rest: Vec<DeviceId> =
            old.replicas.iter().copied().filter(|device| *device != DeviceId(0xa)).collect();
        assert_eq!(new.replicas, rest);
        assert_eq!(new.primary, if old.primary == DeviceId(0xa) { rest[0] } else { old.primary });
        assert_eq!(new.joining.len(), 1);
    }
    let left: BTreeSet<DeviceId> = (0xb..=0xf).map(DeviceId).collect();
    assert_balanced(spread(&left, after.partitions.iter().flat_map(|config| config.members())), "members");
    let (least, most, mean) = spread(&left, after.partitions.iter().map(|config| config.primary));
    assert!(least > mean * 0.8 && most < mean * 1.2, "primaries {least}..{most} around {mean}");
    let joins = plan.moves.iter().filter(|step| matches!(step, Move::Join { .. })).count();
    assert_eq!(joins, after.partitions.iter().map(|config| config.joining.len()).sum::<usize>());
}

#[test]
fn fallback_profiles_open_and_close() {
    let mut world = World::new("4+2", 16, 6, 1);
    world.step(&[1], &[]);
    let open =
        |world: &World| world.open_profiles().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(open(&world), "4+2");
    for (lost, profile) in [(0xf, "3+2"), (0xe, "2+2"), (0xd, ""), (0xc, "")] {
        world.set_present(lost, false);
        world.step(&[], &[]);
        assert_eq!(open(&world), profile, "without {lost:x}");
        for (id, group) in &world.map().placement_groups {
            let whole = group.members.iter().all(|device| world.map().is_in(*device));
            assert!(whole || group.state == PgState::Sealed, "{id}");
        }
    }
    let groups = world.map().placement_groups.len();
    for (back, profile) in [(0xc, ""), (0xd, "2+2"), (0xe, "3+2"), (0xf, "4+2")] {
        world.set_present(back, true);
        world.step(&[1], &[]);
        assert_eq!(open(&world), profile, "with {back:x} again");
    }
    assert_eq!(world.map().placement_groups.len(), groups, "groups are opened again, not made anew");
}

#[test]
fn profiles_without_parity_need_only_their_data_devices() {
    for (profile, devices, open) in [("1+0", 1, 1), ("2+0", 2, 2), ("1+2", 3, 3)] {
        let mut world = World::new(profile, 8, devices, 1);
        world.step(&[1], &[]);
        assert_eq!(world.map().open_groups(Tier::Hot).count(), open, "{profile}");
    }
}

#[test]
fn the_last_in_sync_replica_is_never_dropped() {
    let mut world = World::new("2+1", 8, 3, 1);
    world.step(&[1], &[]);
    world.set_present(0xa, false);
    world.step(&[], &[]);
    let before = world.map().clone();
    world.set_present(0xb, false);
    world.set_present(0xc, false);
    let plan = world.plan(&[], &[]).unwrap();
    assert!(
        plan.reasons.iter().any(|reason| reason.contains("partition-0 is unavailable")),
        "{:?}",
        plan.reasons
    );
    world.map = plan.map;
    assert_eq!(world.map().partitions, before.partitions, "unavailable partitions keep their members");
    // 0xa is back first, but others acknowledged without it.
    world.set_present(0xa, true);
    world.step(&[1], &[]);
    let listed = |config: &quarry_clustermap::PartitionConfig| config.replicas.contains(&DeviceId(0xa));
    assert!(!world.map().partitions.iter().any(listed));
    world.set_present(0xb, true);
    world.set_present(0xc, true);
    world.step(&[1], &[]);
    for config in &world.map().partitions {
        assert!(config.members().count() == 2 || (config.replicas.len(), config.joining.len()) == (2, 1));
        assert!(!config.replicas.contains(&DeviceId(0xa)));
    }
}

#[test]
fn a_device_that_stayed_in_sync_returns_as_it_was() {
    let mut world = World::new("2+1", 8, 3, 1);
    world.step(&[1], &[]);
    let all = [0xa, 0xb, 0xc];
    all.iter().for_each(|device| world.set_present(*device, false));
    world.step(&[], &[]);
    all.iter().for_each(|device| world.set_present(*device, true));
    world.step(&[1], &[]);
    for config in &world.map().partitions {
        assert_eq!((config.replicas.len(), config.joining.len()), (2, 0));
        assert_eq!(config.epoch.0, world.map().version.0, "the node has started");
    }
}

#[test]
fn a_started_node_gets_an_incarnation_and_its_partitions_an_epoch() {
    let mut world = World::new("1+1", 64, 6, 3);
    world.step(&[1, 2, 3], &[]);
    assert!(world.map().nodes.values().all(|node| node.incarnation.0 == 1));
    let before = world.map().clone();
    world.step(&[2], &[]);
    assert_eq!(world.map().nodes[&NodeId(2)].incarnation.0, 2);
    for (old, new) in before.partitions.iter().zip(&world.map().partitions) {
        let on_node = old.members().any(|device| before.devices[&device].node == NodeId(2));
        assert_eq!(new.epoch.0, if on_node { world.map().version.0 } else { old.epoch.0 });
        assert_eq!((new.primary, &new.replicas), (old.primary, &old.replicas));
    }
}

#[test]
fn refusals() {
    let too_few = World::new("4+2", 8, 2, 1).plan(&[], &[]).unwrap_err();
    assert_eq!(too_few.to_string(), "2 hot devices are present, metadata under profile 4+2 needs 3");
    assert_eq!(World::new("4+2", 0, 6, 1).plan(&[], &[]).unwrap_err(), PlanError::NoPartitions);
    let mut world = World::new("1+0", 8, 1, 1);
    world.step(&[], &[]);
    world.policy.cluster = ClusterId([8; 16]);
    assert!(matches!(world.plan(&[], &[]), Err(PlanError::OtherCluster { .. })));
    world.inventory.nodes.clear();
    world.policy.cluster = ClusterId([7; 16]);
    assert!(matches!(world.plan(&[], &[]), Err(PlanError::UnknownNode { .. })));
}
