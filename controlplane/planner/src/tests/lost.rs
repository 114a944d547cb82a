//! Replicas that lost their history, and devices that return.

use quarry_clustermap::{DeviceId, PartitionConfig, PartitionId};

use super::{World, golden};
use crate::Reports;

const A: DeviceId = DeviceId(0xa);
const B: DeviceId = DeviceId(0xb);
const C: DeviceId = DeviceId(0xc);

fn lost(devices: &[(DeviceId, &[u16])]) -> Reports {
    let entry = |(device, partitions): &(DeviceId, &[u16])| {
        (*device, partitions.iter().map(|partition| PartitionId(*partition)).collect())
    };
    Reports { lost: devices.iter().map(entry).collect(), ..Reports::default() }
}

/// Partition 0 has replicas a, b, c; nothing else can join.
fn world() -> World {
    let mut world = World::new("2+2", 3, 4, 1);
    world.step(&[1], &[]);
    let map = world.map.as_mut().unwrap();
    map.partitions[0].replicas = vec![A, B, C];
    map.partitions[0].primary = A;
    world
}

fn partition0(world: &World) -> &PartitionConfig {
    &world.map().partitions[0]
}

#[test]
fn golden_lost_replicas_join_anew() {
    let mut world = World::new("2+1", 4, 3, 1);
    world.step(&[1], &[]);
    let reports = Reports { started: [quarry_clustermap::NodeId(1)].into(), ..lost(&[(A, &[0, 1, 2, 3])]) };
    golden("lost", &world.step_reports(&reports));
    let joined = world.all_joined();
    golden("lost_joined", &world.step(&[], &joined));
}

#[test]
fn a_full_set_does_not_keep_the_lost_one_out() {
    let mut world = world();
    world.step_reports(&lost(&[(A, &[0]), (B, &[1])]));
    let config = partition0(&world);
    assert_eq!((config.primary, &config.replicas, &config.joining), (B, &vec![B, C], &vec![A]));
    // Again, while it joins: what it was sent does not count.
    let epoch = config.epoch;
    let stale = world.all_joined();
    let plan = world.plan_reports(&lost(&[(A, &[0])])).unwrap();
    assert!(plan.reasons.contains(&"dev-000000000000000a lost the history of 1 partitions".to_owned()));
    world.commit(plan);
    let config = partition0(&world);
    assert!(config.epoch > epoch && config.joining == [A]);
    world.step(&[], &stale);
    assert_eq!(partition0(&world).joining, [A]);
    let joined = world.all_joined();
    world.step(&[], &joined);
    assert_eq!(partition0(&world).replicas, [B, C, A]);
    // Whole and lost in one batch: lost.
    world.step_reports(&lost(&[(C, &[0])]));
    let both = Reports { joined: world.all_joined(), ..lost(&[(C, &[0])]) };
    world.step_reports(&both);
    assert_eq!(partition0(&world).joining, [C]);
    // Not a member: nothing to lose.
    let outsider = world.map().devices.keys().copied().find(|id| ![A, B, C].contains(id)).unwrap();
    assert_eq!(world.step_reports(&lost(&[(outsider, &[0]), (A, &[9])])), "");
}

#[test]
fn with_the_others_out_it_waits_for_them() {
    let mut world = world();
    [A, B, C].iter().for_each(|device| world.set_present(device.0, false));
    world.step(&[], &[]);
    assert_eq!(partition0(&world).replicas, [A, B, C], "the last in-sync set is kept");
    world.set_present(A.0, true);
    let plan = world.plan_reports(&Reports { returned: [A].into(), ..lost(&[(A, &[0])]) }).unwrap();
    let waits = "partition-0 is unavailable: none of its in-sync replicas is in; it waits for one of \
                 dev-000000000000000b, dev-000000000000000c";
    assert!(plan.reasons.iter().any(|reason| reason == waits), "{:?}", plan.reasons);
    world.commit(plan);
    let config = partition0(&world);
    assert_eq!((config.primary, &config.replicas, &config.joining), (B, &vec![B, C], &vec![A]));
    world.set_present(C.0, true);
    world.step_reports(&Reports { returned: [C].into(), ..Reports::default() });
    let config = partition0(&world);
    assert_eq!((config.primary, &config.replicas, &config.joining[..1]), (C, &vec![C], &[A][..]));
}

#[test]
fn when_nobody_has_the_history_the_partition_is_marked() {
    let mut world = world();
    world.set_present(C.0, false);
    world.step(&[], &[]);
    let joiners = partition0(&world).joining.clone();
    let plan = world.plan_reports(&lost(&[(A, &[0]), (B, &[0])])).unwrap();
    let text = "partition-0 is unavailable: every in-sync replica lost its history, and no other has it";
    assert!(plan.reasons.iter().any(|reason| reason == text), "{:?}", plan.reasons);
    world.commit(plan);
    let config = partition0(&world).clone();
    assert_eq!((&config.replicas, &config.joining), (&vec![A, B], &joiners));
    assert!(!config.has_history() && config.lost == [A, B].into());
    // Nothing makes it forget that: not a start, not a device that returns, not a joiner that claims to be whole.
    let joined = world.all_joined();
    world.set_present(C.0, true);
    world.step(&[1], &joined);
    assert_eq!(partition0(&world), &config);
}

#[test]
fn a_device_that_was_opened_again_gets_new_epochs() {
    let mut world = world();
    let before = world.map().clone();
    world.step_reports(&Reports { returned: [B].into(), ..Reports::default() });
    for (was, is) in before.partitions.iter().zip(&world.map().partitions) {
        let named = was.members().any(|device| device == B);
        assert_eq!(is.epoch > was.epoch, named);
        assert_eq!((&is.replicas, &is.joining), (&was.replicas, &was.joining));
    }
}
