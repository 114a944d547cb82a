//! Two devices of 4+2 fail while clients work: reads and listings go on at once, writes as soon as the map is new.

use std::{rc::Rc, time::Duration};

use quarry_clustermap::ErasureProfile;
use quarry_object::api::{ApiError, ObjectStore};
use quarry_storage::device::{Fault, Operation, SimDevice, When};

use super::{
    Doing, Random,
    clients::{self, BUCKET, LARGE_BYTES, Mix},
    crash, executor,
    history::{Content, History},
    machine::{Limits, Machine, Node, NodeParts, device_id},
    seeds, verify,
};
use crate::platform::Timer;

const MIX: Mix = Mix { clients: 3, keys_per_client: 4, operations_per_client: 8 };
/// Turns of the executor, after the start of the second half of the work, within which the devices fail.
const FAIL_WITHIN_TURNS: u64 = 600;

/// The device fails while other tasks work.
fn fail_soon(machine: &Machine, node: &Node, device: usize, random: &Random) {
    let (device, after) = (machine.devices.all()[device].clone(), random.below(FAIL_WITHIN_TURNS));
    (node.spawn())(Box::pin(async move {
        executor::turns(after).await;
        device.inject(Fault::Error, When::any());
    }));
}

/// Puts until the map is without the devices; then puts succeed, with the profile that is left.
async fn put_until_out(node: &Rc<NodeParts>, history: &History, lost: [usize; 2], seed: u64) {
    const ATTEMPTS: usize = 100;
    let random = Random::new(seed);
    for attempt in 0..ATTEMPTS {
        let content = Rc::new(Content::new(&random, LARGE_BYTES));
        let put = clients::put(node, "probe", &content);
        let result = history.note("probe", Some(Rc::clone(&content)), put).await;
        let out = lost.iter().all(|device| !node.map().is_in(device_id(*device)));
        match result {
            Ok(()) if out => return,
            Ok(()) | Err(ApiError::Unavailable { .. } | ApiError::Internal { .. }) => {}
            Err(error) => panic!("attempt {attempt}: {error}"),
        }
        node.timer.sleep(Duration::from_millis(100)).await;
    }
    panic!("the devices are not out, or no write succeeds without them");
}

fn lose(lost: [usize; 2], seed: u64) {
    let machine = Machine::new("4+2", Limits::ROOMY, seed);
    let mut node = machine.start();
    node.run(|node| async move { node.objects.create_bucket(BUCKET).await.unwrap() });
    let history = Rc::new(History::default());
    let noted = Rc::clone(&history);
    let errors = node.run(move |node| clients::run(node, noted, MIX, seed));
    assert!(errors.is_empty(), "{errors:?}");

    let random = Random::new(seed);
    lost.iter().for_each(|device| fail_soon(&machine, &node, *device, &random));
    let noted = Rc::clone(&history);
    let errors = node.run(move |node| clients::run(node, noted, MIX, seed + 1));
    for error in errors {
        assert!(matches!(error, ApiError::Unavailable { .. } | ApiError::Internal { .. }), "{error}");
    }
    let noted = Rc::clone(&history);
    let observed = node.run(move |node| async move {
        verify::check_keys(&node, &noted.allowed_now()).await;
        put_until_out(&node, &noted, lost, seed).await;
        node.wait_until_serving().await;
        let map = node.map();
        let fallback: ErasureProfile = "2+2".parse().unwrap();
        assert!(map.open_groups(quarry_clustermap::Tier::Hot).all(|(_, group)| group.profile == fallback));
        verify::check_keys(&node, &noted.allowed_now()).await
    });

    let devices = machine.devices.all().iter().map(SimDevice::crash_keeping_nothing).collect();
    let mut restarted = machine.with(devices, node.metastore(), seed);
    drop(node);
    restarted.missing = lost.to_vec();
    let mut node = restarted.start();
    let noted = Rc::clone(&history);
    node.run(move |node| async move {
        assert!(
            verify::check_keys(&node, &noted.allowed_now()).await == observed,
            "the restart changed something"
        );
        verify::check_owners(&node).await;
        put_until_out(&node, &noted, lost, seed + 2).await;
    });
}

#[test]
fn any_two_devices_may_fail() {
    for seed in seeds(1) {
        for first in 0..6 {
            for second in first + 1..6 {
                let _doing = Doing(format!("losing devices {first} and {second}, seed {seed}"));
                lose([first, second], seed * 100 + first as u64 * 10 + second as u64);
            }
        }
    }
}

/// The power fails while two devices do: what was acknowledged is on the others.
fn lose_and_cut(lost: [usize; 2], seed: u64) {
    let machine = Machine::new("4+2", Limits::TIGHT, seed);
    let mut node = machine.start();
    node.run(|node| async move { node.objects.create_bucket(BUCKET).await.unwrap() });
    let history = Rc::new(History::default());
    let random = Random::new(seed);
    lost.iter().for_each(|device| fail_soon(&machine, &node, *device, &random));
    crash::work_until_killed(&machine, &mut node, &history, MIX, seed, random.below(2 * FAIL_WITHIN_TURNS));
    let mut machine = crash::after_kill(machine, node, true, seed);
    machine.missing = lost.to_vec();
    let mut node = machine.start();
    node.run(move |node| async move {
        history.settle(&verify::check_keys(&node, &history.allowed_now()).await);
        verify::check_owners(&node).await;
        put_until_out(&node, &history, lost, seed).await;
        verify::check_keys(&node, &history.allowed_now()).await;
    });
}

#[test]
fn any_two_devices_may_fail_with_the_power() {
    for seed in seeds(1) {
        for first in 0..6 {
            for second in first + 1..6 {
                let _doing = Doing(format!("losing devices {first}, {second} and power, seed {seed}"));
                lose_and_cut([first, second], seed * 100 + first as u64 * 10 + second as u64);
            }
        }
    }
}

/// Metadata and data on a device that answers no read come from the others, also when nothing is written.
#[test]
fn a_device_that_cannot_be_read_stops_nothing() {
    for seed in seeds(1) {
        for device in 0..6 {
            let _doing = Doing(format!("device {device} cannot be read, seed {seed}"));
            let machine = Machine::new("4+2", Limits::TIGHT, seed);
            let mut node = machine.start();
            node.run(|node| async move { node.objects.create_bucket(BUCKET).await.unwrap() });
            let history = Rc::new(History::default());
            let noted = Rc::clone(&history);
            let errors = node.run(move |node| clients::run(node, noted, MIX, seed));
            assert!(errors.is_empty(), "{errors:?}");
            let metastore = node.shutdown();
            // A new node has nothing cached.
            let machine = machine.with(machine.devices.all().to_vec(), metastore, seed);
            let mut node = machine.start();
            machine.devices.all()[device].inject(Fault::Error, When::on(Operation::Read));
            node.run(move |node| async move {
                verify::check_keys(&node, &history.allowed_now()).await;
            });
        }
    }
}
