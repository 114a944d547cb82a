//! Power cuts of the whole machine at flush boundaries of a recorded workload: all devices lose what they may lose at
//! the same moment, a new node starts on what is left, and everything acknowledged is there.
//!
//! A normal run tries a sample of the boundaries, each with one way to lose what was unflushed. `QUARRY_CRASH_FULL=1` tries
//! every boundary of one seed in every way ([`Loss`]).

use std::{cell::RefCell, panic::AssertUnwindSafe, rc::Rc};

use quarry_object::api::ObjectStore;
use quarry_storage::device::{BLOCK_BYTES, Capture, SECTOR_BYTES, SimDevice};
use quarry_storage::index::PAGE_BYTES;

use super::{
    Doing, Random,
    clients::{self, BUCKET, Mix},
    executor,
    history::History,
    is_long_run,
    machine::{Limits, Machine, MetastoreImage, Node},
    seeds, tiers, verify,
};

/// Power cuts tried per seed in a normal run, spread over the whole workload.
const CUTS_PER_SEED: usize = 24;
/// What becomes of the unflushed writes of a device.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Everything,
    Nothing,
    /// Each write is torn in units of so many bytes, a random half of them survives.
    Torn(usize),
    /// The oldest is lost, what was written after it is not.
    Oldest,
    /// Only the newest survives.
    AllButNewest,
    /// A random subset in random order.
    Random,
}

impl Loss {
    const ALL: [Self; 7] = [
        Self::Everything,
        Self::Nothing,
        Self::Torn(SECTOR_BYTES),
        Self::Random,
        Self::Oldest,
        Self::Torn(BLOCK_BYTES),
        Self::AllButNewest,
    ];

    fn survivor(self, capture: &Capture, seed: u64) -> SimDevice {
        let newest = capture.unflushed().len().saturating_sub(1);
        match self {
            Self::Everything => capture.crash_keeping_nothing(),
            Self::Nothing => capture.crash_keeping_everything(),
            Self::Torn(unit_bytes) => capture.crash_torn(unit_bytes, seed),
            Self::Oldest => capture.crash_keeping(|number| number > 0),
            Self::AllButNewest => capture.crash_keeping(|number| number == newest),
            Self::Random => capture.crash(seed),
        }
    }
}

fn is_full() -> bool {
    std::env::var_os("QUARRY_CRASH_FULL").is_some()
}

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
    let moves = machine.cold_profile.is_some();
    let errors = node.run(move |node| async move {
        let work = clients::run(Rc::clone(&node), noted, mix, seed);
        if moves { tiers::while_versions_move(node, seed, work).await } else { work.await }
    });
    assert!(errors.is_empty(), "on devices that work every call succeeds: {errors:?}");
    machine.devices.set_on_flush(None);
    (cuts.take(), history)
}

fn survive(machine: &Machine, cut: &Cut, number: usize, loss: Loss, history: &Rc<History>) {
    let seed = machine.seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
    let lose = |(index, capture): (usize, &Capture)| {
        loss.survivor(capture, seed.wrapping_mul(31).wrapping_add(index as u64))
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
    survive_all_of(&Machine::new(profile, Limits::TIGHT, seed), profile, mix);
}

fn survive_all_of(machine: &Machine, profile: &str, mix: Mix) {
    let seed = machine.seed;
    let (cuts, history) = record(machine, mix);
    check_boundaries(&cuts, machine.limits);
    let step = if is_long_run() || is_full() { 1 } else { cuts.len().div_ceil(CUTS_PER_SEED) };
    let sample = cuts.iter().enumerate().skip(usize::try_from(seed).unwrap() % step).step_by(step);
    for (nth, (number, cut)) in sample.enumerate() {
        let losses = if is_full() { &Loss::ALL[..] } else { &Loss::ALL[nth % Loss::ALL.len()..][..1] };
        for &loss in losses {
            let _doing =
                Doing(format!("power cut {number} of {}, {loss:?}, {profile}, seed {seed}", cuts.len()));
            survive(machine, cut, number, loss, &history);
        }
    }
    if is_full() {
        println!("{profile}, seed {seed}: {} boundaries, {} ways each", cuts.len(), Loss::ALL.len());
    }
}

/// Offset and length of every unflushed write of a device.
type Unflushed = Vec<(u64, usize)>;

/// The workload reaches what it is for: boundaries at which checkpoints are in progress beside clients.
fn check_boundaries(cuts: &[Cut], limits: Limits) {
    let journal_end = 2 * BLOCK_BYTES as u64 + limits.journal_bytes;
    let writes = |cut: &Cut| cut.captures.iter().map(Capture::unflushed).collect::<Vec<_>>();
    let some = |what: &str, wanted: &dyn Fn(&[Unflushed]) -> bool| {
        assert!(cuts.iter().any(|cut| wanted(&writes(cut))), "no boundary with {what}");
    };
    some("a superblock unflushed", &|devices| {
        devices.iter().flatten().any(|(at, _)| *at < 2 * BLOCK_BYTES as u64)
    });
    some("a batch and an index page unflushed on one device", &|devices| {
        devices.iter().any(|writes| {
            writes.iter().any(|(at, _)| (2 * BLOCK_BYTES as u64..journal_end).contains(at))
                && writes.iter().any(|(at, len)| *at >= journal_end && *len == PAGE_BYTES)
        })
    });
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

/// Versions go up and down between tiers while clients write, read and delete them.
#[test]
fn moves_between_tiers_survive_a_power_cut() {
    for seed in seeds(2) {
        let machine = Machine::with_tiers("2+1", Some("1+1"), Limits::TIGHT, seed);
        survive_all_of(
            &machine,
            "2+1 and 1+1",
            Mix { clients: 2, keys_per_client: 3, operations_per_client: 12 },
        );
    }
}

/// Lets clients work for so many turns, then stops everything where it is.
pub(super) fn work_until_killed(
    machine: &Machine,
    node: &mut Node,
    history: &Rc<History>,
    mix: Mix,
    seed: u64,
    turns: u64,
) {
    let (noted, clients_of) = (Rc::clone(history), Rc::clone(&node.parts));
    (node.spawn())(Box::pin(async move {
        clients::run(clients_of, noted, mix, seed).await;
    }));
    let devices = Rc::clone(&machine.devices);
    node.run(move |_| async move {
        executor::turns(turns).await;
        devices.set_frozen(true);
    });
}

/// The machine as the next node finds it: after a power cut, or as the killed process left it, caches included.
pub(super) fn after_kill(machine: Machine, node: Node, power_cut: bool, seed: u64) -> Machine {
    let metastore = node.metastore();
    drop(node);
    let survivor = |(index, device): (usize, &SimDevice)| {
        if power_cut {
            device.crash(seed.wrapping_mul(31).wrapping_add(index as u64))
        } else {
            device.clone()
        }
    };
    let devices = machine.devices.all().iter().enumerate().map(survivor).collect();
    machine.with(devices, metastore, seed)
}

fn live_many_lives(profile: &str, seed: u64) {
    const LIVES: u64 = 6;
    const TURNS_MAX: u64 = 1200;
    let mix = Mix { clients: 3, keys_per_client: 3, operations_per_client: 12 };
    let random = Random::new(seed);
    let mut machine = Machine::new(profile, Limits::TIGHT, seed);
    let mut node = machine.start();
    node.run(|node| async move { node.objects.create_bucket(BUCKET).await.unwrap() });
    let history = Rc::new(History::default());
    for life in 0..LIVES {
        let (turns, power_cut) = (random.below(TURNS_MAX), random.below(2) == 0);
        let _doing =
            Doing(format!("life {life} of {turns} turns, power cut: {power_cut}, {profile}, seed {seed}"));
        work_until_killed(&machine, &mut node, &history, mix, random.next(), turns);
        machine = after_kill(machine, node, power_cut, random.next());
        node = machine.start();
        let noted = Rc::clone(&history);
        node.run(move |node| async move {
            noted.settle(&verify::check_keys(&node, &noted.allowed_now()).await);
            verify::check_owners(&node).await;
        });
    }
    let (keys, uploads) = (history.allowed_now().into_keys().collect(), history.uploads());
    node.run(move |node| verify::delete_everything(node, keys, uploads));
    node.shutdown();
    machine.devices.all().iter().for_each(verify::check_free_map);
}

#[test]
fn many_lives_lose_nothing() {
    for seed in seeds(3) {
        live_many_lives("4+2", seed);
        live_many_lives("1+0", seed);
    }
}

/// The proof that these tests see what they are for.
#[test]
fn a_device_that_does_not_flush_is_noticed() {
    let machine = Machine::new("4+2", Limits::TIGHT, 5);
    machine.devices.all()[3].set_skip_flush(true);
    let (cuts, history) = record(&machine, Mix { clients: 1, keys_per_client: 3, operations_per_client: 6 });
    // A cut that loses everything unflushed, near the end.
    let number = cuts.len() - 1;
    let survived = std::panic::catch_unwind(AssertUnwindSafe(|| {
        survive(&machine, &cuts[number], number, Loss::Everything, &history)
    }));
    assert!(survived.is_err(), "nobody noticed");
}
