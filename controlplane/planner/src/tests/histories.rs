//! Random histories: whatever happens, every plan keeps the rules, and no group is called whole that is not.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
    test_runner::TestCaseError,
};
use quarry_clustermap::{
    ClusterMap, DeviceId, DeviceState, Epoch, NodeId, PartitionConfig, PartitionId, PgId, PgState,
    PlacementGroup, Tier,
};

use super::{World, device};
use crate::{GroupMoved, Intent, Joined, REBUILD_AFTER_MS, Reports, devices_staying};

const PARTITIONS: u16 = 24;

/// What may happen to a cluster between two plans.
#[derive(Clone, Debug)]
enum Happening {
    Toggle(u64),
    /// An operator drains a device, or takes that back.
    Drain(u64, bool),
    Start(u32),
    Add(u64),
    Replace {
        new: u64,
        old: u64,
    },
    /// A device is opened again, its store mended: every replica that the mask selects, and each shard of a move, is lost.
    Mend(u64, u32),
    Lose(u64, u32),
    Join,
    StaleJoin(u16, u64),
    /// Repair works on the moving groups whose id has this remainder by 3; what it is done with is reported later.
    Work(u32),
    Deliver,
    StaleMove(u32, u64),
    Pass(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    let id = || (0_u64..12).prop_map(|i| 0xa + i);
    prop_oneof![
        6 => id().prop_map(Happening::Toggle),
        2 => (id(), any::<bool>()).prop_map(|(id, on)| Happening::Drain(id, on)),
        1 => (1_u32..4).prop_map(Happening::Start),
        1 => id().prop_map(Happening::Add),
        3 => (id(), id()).prop_map(|(new, old)| Happening::Replace { new, old }),
        2 => (id(), any::<u32>()).prop_map(|(id, mask)| Happening::Mend(id, mask)),
        2 => (id(), any::<u32>()).prop_map(|(id, mask)| Happening::Lose(id, mask)),
        3 => Just(Happening::Join),
        1 => (0..PARTITIONS, id()).prop_map(|(p, id)| Happening::StaleJoin(p, id)),
        3 => (0_u32..3).prop_map(Happening::Work),
        3 => Just(Happening::Deliver),
        1 => (0_u32..30, 0_u64..30).prop_map(|(pg, epoch)| Happening::StaleMove(pg, epoch)),
        4 => (0_u64..2 * REBUILD_AFTER_MS).prop_map(Happening::Pass),
    ]
}

/// A cluster, and what is really on its devices.
struct History {
    world: World,
    /// Devices that hold all shards of a position.
    whole: BTreeSet<(PgId, u8, DeviceId)>,
    /// Made at the epoch they carry, not yet delivered.
    pending: Vec<GroupMoved>,
}

impl History {
    fn happen(&mut self, happened: Happening, reports: &mut Reports) {
        let devices = &mut self.world.inventory.devices;
        match happened {
            Happening::Toggle(id) => {
                if let Some(seen) = devices.get_mut(&DeviceId(id)) {
                    seen.present = !seen.present;
                }
            }
            Happening::Drain(id, on) => {
                let device = DeviceId(id);
                reports.intents.push(if on {
                    Intent::DrainDevice(device)
                } else {
                    Intent::UndrainDevice(device)
                });
            }
            Happening::Start(node) => reports.started.extend([NodeId(node)]),
            Happening::Add(id) => {
                devices.entry(DeviceId(id)).or_insert_with(|| device(1));
            }
            Happening::Replace { new, old } => {
                let seen = devices.entry(DeviceId(new)).or_insert_with(|| device(1));
                seen.replaces = Some(DeviceId(old));
            }
            Happening::Mend(id, mask) => {
                if let Some(seen) = devices.get_mut(&DeviceId(id)) {
                    seen.present = true;
                    reports.returned.insert(DeviceId(id));
                    self.lose(id, mask, reports);
                    self.wipe_moves(DeviceId(id));
                }
            }
            Happening::Lose(id, mask) => self.lose(id, mask, reports),
            Happening::Join => reports.joined = self.world.all_joined(),
            Happening::StaleJoin(partition, id) => {
                let (partition, device) = (PartitionId(partition), DeviceId(id));
                reports.joined.push(Joined { partition, epoch: Epoch(1), device });
            }
            Happening::Work(third) => self.work(third),
            Happening::Deliver => reports.moved.append(&mut self.pending),
            // An epoch that is over: nobody reports one that is yet to come.
            Happening::StaleMove(pg, epoch) => {
                let known = self.world.map().placement_groups.get(&PgId(pg));
                if known.is_none_or(|group| group.epoch.0 > epoch) {
                    reports.moved.push(GroupMoved { pg: PgId(pg), epoch: Epoch(epoch) });
                }
            }
            Happening::Pass(ms) => self.world.now_ms += ms,
        }
    }

    fn lose(&self, id: u64, mask: u32, reports: &mut Reports) {
        let partitions = (0..PARTITIONS).filter(|partition| mask >> partition & 1 == 1).map(PartitionId);
        reports.lost.entry(DeviceId(id)).or_default().extend(partitions);
    }

    /// Damage to shards that are settled is found by a scrub; those of a move in progress have nobody else to miss them.
    fn wipe_moves(&mut self, device: DeviceId) {
        let groups = &self.world.map().placement_groups;
        self.whole.retain(|(pg, position, holder)| {
            *holder != device || !groups[pg].rebuilding.contains_key(position)
        });
    }

    fn work(&mut self, third: u32) {
        let map = self.world.map();
        for (pg, group) in map.placement_groups.iter().filter(|(pg, _)| pg.0 % 3 == third) {
            let targets = group.rebuilding.keys().map(|at| (*pg, *at, group.members[usize::from(*at)]));
            let targets: Vec<_> = targets.collect();
            let sources = group.members.len() - group.positions_not_whole(map);
            let reachable = targets.iter().all(|(_, _, device)| map.is_in(*device));
            let possible =
                targets.iter().all(|target| self.whole.contains(target)) || sources >= group.profile.data();
            if group.state == PgState::Moving && reachable && possible {
                self.whole.extend(targets);
                self.pending.push(GroupMoved { pg: *pg, epoch: group.epoch });
            }
        }
    }

    /// After a commit: new groups are empty, so their members are whole.
    fn settle(&mut self, old: Option<&ClusterMap>) -> Result<(), TestCaseError> {
        for (pg, group) in &self.world.map().placement_groups {
            let is_new = old.is_none_or(|map| !map.placement_groups.contains_key(pg));
            for (position, member) in (0_u8..).zip(&group.members) {
                if is_new {
                    self.whole.insert((*pg, position, *member));
                }
                let whole = self.whole.contains(&(*pg, position, *member));
                prop_assert!(whole || group.rebuilding.contains_key(&position), "{} {:?}", pg, group);
            }
        }
        Ok(())
    }
}

fn check_partition(
    (was, is): (&PartitionConfig, &PartitionConfig),
    partition: PartitionId,
    new: &ClusterMap,
    reports: &Reports,
) -> Result<(), TestCaseError> {
    let wanted = new.hot_profile.metadata_replicas();
    // One that waits for a replica is trimmed when that is in.
    let waits = !is.replicas.iter().any(|device| new.is_in(*device));
    let moves = (is.replicas.len(), is.joining.len()) == (wanted, 1);
    prop_assert!(is.members().count() <= wanted || moves || waits);
    prop_assert!(was == is || is.epoch.0 == new.version.0, "{} changed without an epoch", partition);
    let said_lost =
        |device: &DeviceId| reports.lost.get(device).is_some_and(|lost| lost.contains(&partition));
    for device in &is.replicas {
        let report = Joined { partition, epoch: was.epoch, device: *device };
        let entered = reports.joined.contains(&report) && was.joining.contains(device);
        prop_assert!(was.replicas.contains(device) || entered, "{} entered {}", device, partition);
        prop_assert!(!said_lost(device) || is.lost.contains(device), "{} lost {}", device, partition);
    }
    for device in was.replicas.iter().filter(|device| !is.replicas.contains(device)) {
        let others_in = is.replicas.iter().any(|other| new.is_in(*other));
        let full = is.replicas.len() == wanted;
        prop_assert!(said_lost(device) || full || !new.is_in(*device) && others_in, "{} dropped", device);
    }
    for device in is.members().filter(|device| was.members().any(|member| member == *device)) {
        prop_assert!(!said_lost(&device) || is.epoch > was.epoch);
    }
    prop_assert!(was.lost.is_subset(&is.lost), "{} forgot that its history is lost", partition);
    if is.has_history() && is.replicas.iter().any(|device| new.is_in(*device)) {
        prop_assert!(is.members().all(|device| new.is_in(device)), "{} has a member out", partition);
        prop_assert!(new.is_in(is.primary));
    }
    Ok(())
}

fn check_group(
    (was, is): (&PlacementGroup, &PlacementGroup),
    pg: PgId,
    (old, new): (&ClusterMap, &ClusterMap),
    reports: &Reports,
) -> Result<(), TestCaseError> {
    prop_assert!(was == is || is.epoch.0 == new.version.0, "{} changed without an epoch", pg);
    let reported = reports.moved.contains(&GroupMoved { pg, epoch: was.epoch });
    let done = was.state == PgState::Moving && reported;
    let kept = was.rebuilding.iter().all(|(position, former)| is.rebuilding.get(position) == Some(former));
    prop_assert!(kept || done, "{} forgot a position", pg);
    // Not kept as it is, nor ended, if the move has to start over.
    prop_assert!(!done || is.epoch > was.epoch);
    let before = if kept { was.rebuilding.clone() } else { BTreeMap::new() };
    for (position, (old_member, member)) in (0_u8..).zip(was.members.iter().zip(&is.members)) {
        let listed = is.rebuilding.get(&position);
        if old_member != member {
            let former = before.get(&position).unwrap_or(old_member);
            prop_assert_eq!((is.state, listed), (PgState::Moving, Some(former)));
            let read_on = former == old_member;
            prop_assert!(
                !new.is_in(*old_member) || read_on || member == former,
                "{} lost a member that is in",
                pg
            );
        }
        // Never less redundancy: what could be read can be read as long as its device is in.
        let whole = |group: &PlacementGroup, map: &ClusterMap| {
            let former = group.rebuilding.get(&position);
            former.or(group.members.get(usize::from(position))).copied().filter(|device| map.is_in(*device))
        };
        let was_whole = whole(was, old);
        prop_assert!(
            was_whole.is_none_or(|device| whole(is, new).is_some() || !new.is_in(device)),
            "{} position {}",
            pg,
            position
        );
    }
    Ok(())
}

/// What every step keeps, whatever happened.
fn check_step(old: &ClusterMap, new: &ClusterMap, reports: &Reports) -> Result<(), TestCaseError> {
    prop_assert_eq!(new.validate(), Ok(()));
    prop_assert_eq!(new.version, old.version.next());
    for (index, pair) in (0..).zip(old.partitions.iter().zip(&new.partitions)) {
        check_partition(pair, PartitionId(index), new, reports)?;
    }
    for (id, was) in &old.placement_groups {
        check_group((was, &new.placement_groups[id]), *id, (old, new), reports)?;
    }
    for group in new.placement_groups.values().filter(|group| group.state == PgState::Open) {
        prop_assert!(group.rebuilding.is_empty() && group.members.iter().all(|device| new.is_in(*device)));
    }
    let groups = new.placement_groups.values();
    let named: BTreeSet<DeviceId> = groups
        .flat_map(|group| group.members.iter().chain(group.rebuilding.values()).copied())
        .chain(new.partitions.iter().flat_map(|config| config.members()))
        .collect();
    for (id, entry) in &new.devices {
        prop_assert_eq!(entry.out_since_ms.is_some(), entry.state == DeviceState::Out);
        prop_assert!(!entry.replaced || entry.state == DeviceState::Out && named.contains(id));
    }
    prop_assert!(named.iter().all(|device| new.devices.contains_key(device)));
    let present = devices_staying(new, Tier::Hot).len();
    // Groups that move between devices that are in are open again soon.
    let soon = |group: &&PlacementGroup| {
        group.state != PgState::Sealed
            && group.members.iter().chain(group.rebuilding.values()).all(|device| new.is_in(*device))
    };
    let open = new.placement_groups.values().filter(soon).count();
    let enough = present >= new.hot_profile.parity() + 2;
    prop_assert!(
        if enough {
            open >= present && new.open_groups(Tier::Hot).count() > 0
        } else {
            new.open_groups(Tier::Hot).count() == 0
        },
        "{} open with {} devices",
        open,
        present
    );
    let used: BTreeSet<DeviceId> =
        new.placement_groups.values().filter(soon).flat_map(|group| group.members.iter().copied()).collect();
    // A move may take a device's last place in a group that is open: it gets others when it is over.
    let moves = new.placement_groups.values().any(|group| group.formers_in(new).next().is_some());
    let staying = devices_staying(new, Tier::Hot);
    prop_assert!(
        !enough || moves || staying.iter().all(|device| used.contains(device)),
        "a device takes no new blobs"
    );
    Ok(())
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_history_of_plans_keeps_the_rules(
        profile in prop_oneof![Just("4+2"), Just("2+1"), Just("3+3")],
        nodes in 1_u32..9,
        happenings in proptest::collection::vec(proptest::collection::vec(happening(), 1..4), 1..32),
    ) {
        let mut world = World::new(profile, PARTITIONS, 8, nodes);
        world.step(&[], &[]);
        let mut history = History { world, whole: BTreeSet::new(), pending: Vec::new() };
        history.settle(None)?;
        for together in happenings {
            let mut reports = Reports::default();
            together.into_iter().for_each(|happened| history.happen(happened, &mut reports));
            let world = &mut history.world;
            let old = world.map().clone();
            let plan = world.plan_reports(&reports).unwrap();
            prop_assert_eq!(&plan, &world.plan_reports(&reports).unwrap());
            if let Some(new) = &plan.map {
                check_step(&old, new, &reports)?;
            }
            world.commit(plan);
            // With so few devices left that those to be emptied are needed again, a second plan may follow at once.
            let drains = world.map().devices.keys().any(|device| world.map().is_leaving(*device));
            let rest = world.plan(&[], &[]).unwrap();
            let more = rest.map.as_ref().map(|next| crate::MapDiff::new(world.map.as_ref(), next).to_string());
            prop_assert!(drains || more.is_none(), "a plan leaves this to do: {:?}", more);
            history.settle(Some(&old))?;
        }
    }
}
