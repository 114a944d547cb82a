//! Power cuts of the whole machine at flush boundaries of a recorded workload: all devices lose what they may lose at
//! the same moment, a new node starts on what is left, and everything acknowledged is there.

use std::{cell::RefCell, rc::Rc};

use quarry_object::api::ObjectStore;
use quarry_storage::device::{Capture, SimDevice};

use super::{
    Doing,
    clients::{self, BUCKET, Mix},
    history::History,
    is_long_run,
    machine::{Limits, Machine, MetastoreImage},
    seeds, verify,
};

/// Power cuts tried per seed in a normal run, spread over the whole workload.
const CUTS_PER_SEED: usize = 40;
/// One cut in so many is followed by a second one that loses everything not flushed.
const SECOND_CUT_EVERY: usize = 3;

/// The machine at one moment.
struct Cut {
    captures: Vec<Capture>,
    metastore: MetastoreImage,
    moment: u64,
}

/// Runs the workload and takes every flush boundary of every device down.
fn record(machine: &Machine, mix: Mix) -> (Vec<Cut>, Rc<History>) {
    let mut node = machine.start();
    node.run(|node| async move { node.objects.create_bucket(BUCKET).await.unwrap() });
    let history = Rc::new(History::default());
    let cuts = Rc::new(RefCell::new(Vec::new()));
    let take = {
        // Weak, or the devices would hold themselves.
        let (devices, cuts, history) =
            (Rc::downgrade(&machine.devices), Rc::clone(&cuts), Rc::clone(&history));
        let metastore = node.metastore_reader();
        move || {
            let Some(devices) = devices.upgrade() else { return };
            let captures = devices.all().iter().map(SimDevice::capture).collect();
            let cut = Cut { captures, metastore: metastore(), moment: history.next_moment() };
            cuts.borrow_mut().push(cut);
        }
    };
    machine.devices.set_on_flush(Some(Rc::new(take)));
    let (seed, noted) = (machine.seed, Rc::clone(&history));
    let errors = node.run(move |node| clients::run(node, noted, mix, seed));
    assert!(errors.is_empty(), "on devices that work every call succeeds: {errors:?}");
    machine.devices.set_on_flush(None);
    (cuts.take(), history)
}

fn survive(machine: &Machine, cut: &Cut, number: usize, history: &Rc<History>) {
    let seed = machine.seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
    let lose = |(index, capture): (usize, &Capture)| match number % 8 {
        0 => capture.crash_keeping_nothing(),
        1 => capture.crash_keeping_everything(),
        _ => capture.crash(seed.wrapping_mul(31).wrapping_add(index as u64)),
    };
    let devices: Vec<SimDevice> = cut.captures.iter().enumerate().map(lose).collect();
    let mut machine = machine.with(devices, cut.metastore.clone(), seed);
    let mut node = machine.start();
    let allowed = history.allowed(cut.moment);
    let observed = node.run(move |node| async move {
        let observed = verify::check_keys(&node, &allowed).await;
        verify::check_owners(&node).await;
        observed
    });
    if number.is_multiple_of(SECOND_CUT_EVERY) {
        // What was seen once stays: nothing was served that was not durable.
        let devices = machine.devices.all().iter().map(SimDevice::crash_keeping_nothing).collect();
        machine = machine.with(devices, node.metastore(), seed);
        node = machine.start();
        let (before, allowed) = (observed.clone(), history.allowed(cut.moment));
        node.run(move |node| async move {
            assert!(
                verify::check_keys(&node, &allowed).await == before,
                "a second power cut changed what is read"
            );
            verify::check_owners(&node).await;
        });
    }
    let (keys, uploads) = (observed.into_keys().collect(), history.uploads());
    node.run(move |node| verify::delete_everything(node, keys, uploads));
    node.shutdown();
    machine.devices.all().iter().for_each(verify::check_free_map);
}

fn survive_all(profile: &str, seed: u64, mix: Mix) {
    let machine = Machine::new(profile, Limits::TIGHT, seed);
    let (cuts, history) = record(&machine, mix);
    let step = if is_long_run() { 1 } else { cuts.len().div_ceil(CUTS_PER_SEED) };
    for (number, cut) in cuts.iter().enumerate().skip(usize::try_from(seed).unwrap() % step).step_by(step) {
        let _doing = Doing(format!("power cut {number} of {}, {profile}, seed {seed}", cuts.len()));
        survive(&machine, cut, number, &history);
    }
}

#[test]
fn every_acknowledged_change_survives_a_power_cut() {
    for seed in seeds(3) {
        survive_all("4+2", seed, Mix { clients: 3, keys_per_client: 3, operations_per_client: 14 });
    }
}

#[test]
fn one_device_without_redundancy_survives_a_power_cut() {
    for seed in seeds(2) {
        survive_all("1+0", seed, Mix { clients: 3, keys_per_client: 3, operations_per_client: 14 });
    }
}
