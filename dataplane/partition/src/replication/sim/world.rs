//! The event loop of a run, and what happens to devices and the configuration.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quarry_clustermap::{DeviceId, Epoch, PartitionConfig, PartitionId, Sequence};

use super::checker::Checker;
use super::clients::{ClientEvent, Clients};
use super::control::Control;
use super::journal::Store;
use super::random::Random;
use crate::replication::defects::Defects;
use crate::replication::tail::Keep;
use crate::replication::{Envelope, Input, LeaseTimes, Replica};
use crate::{Payload, RecoveredLog, Row};

pub(super) const PARTITION: PartitionId = PartitionId(7);
const CHAOS_MS: u64 = 12_000;
const HEALED_MS: u64 = 14_000;
const TICK_MS: u64 = 40;
/// Rows of a page: small enough to be interrupted, and after healing large enough to come to an end.
pub(super) const PAGE_ROWS: (usize, usize) = (3, 60);

pub(super) enum Event {
    Tick,
    Fault,
    Propose,
    Deliver(Bytes),
    /// To one run of one device.
    Host(DeviceId, u64, Host),
    Activate(DeviceId, Epoch),
    Detect(DeviceId),
    Restart(DeviceId),
    /// Ends one run of it.
    ShutDown(DeviceId, u64),
    /// The control plane believes that it is gone, rightly or not.
    Suspect(DeviceId),
    SendConfig(DeviceId),
    /// The control plane looks for a replacement.
    Replace,
    /// The primary is asked to hand over, when it serves; so many more attempts.
    HandOver(u64),
    Client(ClientEvent),
}

pub(super) enum Host {
    Input(Input),
    Flush,
    Read(Epoch, Option<Vec<u8>>),
}

pub(super) struct Device {
    pub(super) replica: Option<Replica>,
    pub(super) store: Store,
    /// Counts restarts: what was scheduled for an earlier run is dropped.
    pub(super) run: u64,
    /// Its clock: where it began, and per mille of true time.
    pub(super) clock_ms: u64,
    pub(super) rate: u64,
    pub(super) paused_until_ms: u64,
    /// Until then it hears nothing of the control plane.
    pub(super) deaf_until_ms: u64,
    pub(super) flushing: bool,
    dead: bool,
    /// Holds all rows once it has applied this: began empty with the partition, or was promoted.
    pub(super) whole: Option<Sequence>,
    pub(super) serving: Option<Epoch>,
}

/// What a clean run did; shows that runs are not idle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::replication) struct Outcome {
    pub(in crate::replication) acknowledged: u64,
    pub(in crate::replication) committed: u64,
    pub(in crate::replication) epochs: u64,
    pub(in crate::replication) crashes: u64,
    pub(in crate::replication) promoted: u64,
    /// Of these, joiners that were not wiped.
    pub(in crate::replication) resumed: u64,
    /// Operations of clients.
    pub(in crate::replication) answered: u64,
    pub(in crate::replication) handed_over: u64,
    /// Ticks of the faulty part at which somebody served.
    pub(in crate::replication) serving_ticks: u64,
}

pub(super) struct World {
    pub(super) now_ms: u64,
    pub(super) random: Random,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    pub(super) devices: Vec<Device>,
    pub(super) control: Control,
    pub(super) clients: Clients,
    pub(super) lease_times: LeaseTimes,
    /// Longest pause between faults, per cent of messages lost, per cent of everything much too late: some runs are
    /// calmer than others.
    pub(super) fault_ms: u64,
    pub(super) lost_percent: u64,
    late_percent: u64,
    /// Messages from the first to the second are lost until then.
    pub(super) cuts: BTreeMap<(DeviceId, DeviceId), u64>,
    pub(super) control_down_until_ms: u64,
    pub(super) checker: Checker,
    defects: Defects,
    /// What replicas keep of what is committed.
    keep: (Keep, Keep),
    /// Whether two who serve at once are a violation by themselves.
    pub(super) watches_serving: bool,
    min_copies: usize,
    next_token: u64,
    pub(super) open: BTreeSet<u64>,
    crashes: u64,
    serving_ticks: u64,
    violation: Option<String>,
}

/// Runs one seed; the error is the first violation.
pub(in crate::replication) fn run(seed: u64, defects: Defects) -> Result<Outcome, String> {
    World::new(seed, defects).run()
}

/// The same, judged by the entries and by what clients see alone.
pub(in crate::replication) fn run_unwatched(seed: u64, defects: Defects) -> Result<Outcome, String> {
    let mut world = World::new(seed, defects);
    world.watches_serving = false;
    world.run()
}

impl World {
    fn run(mut self) -> Result<Outcome, String> {
        self.spread_config();
        for time in (0..CHAOS_MS + HEALED_MS).step_by(usize::try_from(TICK_MS).unwrap()) {
            self.schedule_at(time, Event::Tick);
        }
        self.start_clients();
        self.schedule_at(50, Event::Propose);
        self.schedule_at(300, Event::Fault);
        let mut healed = false;
        while let Some(((time, _), event)) = self.events.pop_first() {
            if time > CHAOS_MS && !healed {
                healed = true;
                self.heal();
            }
            if time > CHAOS_MS + HEALED_MS {
                break;
            }
            self.now_ms = time;
            self.handle(event);
            if let Some(violation) = self.violation.take() {
                return Err(format!("at {time} ms: {violation}"));
            }
        }
        self.finish()
    }

    fn new(seed: u64, defects: Defects) -> Self {
        let mut random = Random::new(seed);
        let grant_ms = 300 + random.below(1_500);
        let fault_ms = *random.pick(&[400, 900, 2_500, 6_000]);
        let (lost_percent, late_percent) = *random.pick(&[(10, 5), (10, 1), (2, 1), (1, 5)]);
        let device_count = 3 + random.below(3);
        let copies = usize::try_from(2 + random.below(2)).unwrap();
        let keep = |entries| Keep { entries, bytes: usize::MAX };
        let mut of_keep = Random::new(seed ^ 0x6b65_6570);
        let keep = (keep(*of_keep.pick(&[2, 16, 64])), keep(*of_keep.pick(&[8, 64, 4_096])));
        let mut world = Self {
            now_ms: 0,
            random,
            events: BTreeMap::new(),
            scheduled: 0,
            devices: Vec::new(),
            control: Control::new(copies),
            clients: Clients::default(),
            lease_times: LeaseTimes::new(grant_ms),
            fault_ms,
            lost_percent,
            late_percent,
            cuts: BTreeMap::new(),
            control_down_until_ms: 0,
            checker: Checker::new(),
            defects,
            keep,
            watches_serving: true,
            min_copies: 2,
            next_token: 1,
            open: BTreeSet::new(),
            crashes: 0,
            serving_ticks: 0,
            violation: None,
        };
        for id in 0..device_count {
            let replica = world.new_replica(DeviceId(id), RecoveredLog::default());
            let whole = world.control.is_member(DeviceId(id)).then_some(Sequence(0));
            let clock_ms = 1 + world.random.below(100_000);
            let rates = [955, 1045, 955 + world.random.below(91)];
            let rate = *world.random.pick(&rates);
            world.devices.push(Device {
                replica: Some(replica),
                store: Store::default(),
                run: 0,
                clock_ms,
                rate,
                paused_until_ms: 0,
                deaf_until_ms: 0,
                flushing: false,
                dead: false,
                whole,
                serving: None,
            });
        }
        world
    }

    fn new_replica(&self, id: DeviceId, log: RecoveredLog) -> Replica {
        let mut replica = Replica::recover(PARTITION, id, self.min_copies, log, Some(self.lease_times));
        replica.defects = self.defects;
        replica.keep = self.keep;
        replica
    }

    fn schedule_at(&mut self, time_ms: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((time_ms, self.scheduled), event);
    }

    pub(super) fn schedule(&mut self, delay_ms: u64, event: Event) {
        self.schedule_at(self.now_ms + delay_ms, event);
    }

    pub(super) fn chaos(&self) -> bool {
        self.now_ms < CHAOS_MS
    }

    pub(super) fn delay(&mut self, usual_ms: u64) -> u64 {
        if self.chaos() && self.random.chance(self.late_percent) {
            return self.random.below(2_000);
        }
        1 + self.random.below(usual_ms)
    }

    pub(super) fn device(&mut self, id: DeviceId) -> &mut Device {
        &mut self.devices[usize::try_from(id.0).unwrap()]
    }

    pub(super) fn ids(&self) -> Vec<DeviceId> {
        (0..self.devices.len() as u64).map(DeviceId).collect()
    }

    pub(super) fn up(&self) -> BTreeSet<DeviceId> {
        let up = |id: &DeviceId| self.devices[usize::try_from(id.0).unwrap()].replica.is_some();
        let dead = |id: &DeviceId| self.devices[usize::try_from(id.0).unwrap()].dead;
        self.ids().into_iter().filter(|id| up(id) && !dead(id)).collect()
    }

    pub(super) fn fail(&mut self, result: Result<(), String>) {
        if let Err(violation) = result {
            self.violation.get_or_insert(violation);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick => {
                self.running().into_iter().for_each(|id| self.step(id, Input::Tick));
                let served = self.chaos() && self.ids().into_iter().any(|id| self.is_serving(id));
                self.serving_ticks += u64::from(served);
            }
            Event::Fault => self.fault(),
            Event::Propose => self.propose(),
            Event::Deliver(frame) => {
                let Envelope { from, to, message, .. } = Envelope::decode(&frame).unwrap();
                if let Some(until) = self.paused_until(to) {
                    return self.schedule_at(until, Event::Deliver(frame));
                }
                self.step(to, Input::Receive { from, message });
            }
            Event::Host(id, run, host) => {
                if let Some(until) = self.paused_until(id) {
                    return self.schedule_at(until, Event::Host(id, run, host));
                }
                if self.device(id).run == run && self.device(id).replica.is_some() {
                    self.host(id, host);
                }
            }
            Event::Activate(id, epoch) => {
                if !self.control_is_down() && self.control.activate(id, epoch) {
                    self.schedule_host(id, 20, Host::Input(Input::Activated { epoch }));
                }
            }
            Event::Detect(id) => {
                let up = self.up();
                if self.control_is_down() {
                    return self.schedule(500, Event::Detect(id));
                }
                if !up.contains(&id) && self.control.evict(id, |d| up.contains(&d), &mut self.random) {
                    self.spread_config();
                }
            }
            Event::Restart(id) => self.restart(id),
            Event::ShutDown(id, run) => {
                if self.device(id).run == run {
                    self.crash(id);
                }
            }
            Event::Suspect(id) => self.suspect(id),
            Event::SendConfig(id) => self.send_config(id),
            Event::Replace => self.replace(),
            Event::HandOver(tries) => self.ask_to_hand_over(tries),
            Event::Client(event) => {
                if let ClientEvent::Arrive(_, id) | ClientEvent::Look(_, id, ..) = &event
                    && let Some(until) = self.paused_until(*id)
                {
                    return self.schedule_at(until, Event::Client(event));
                }
                self.client_event(event);
            }
        }
    }

    pub(super) fn renew(&mut self) {
        if self.control_is_down() {
            return;
        }
        let up = self.up();
        self.control.renew(|d| up.contains(&d), &mut self.random);
        self.spread_config();
    }

    pub(super) fn send_config(&mut self, id: DeviceId) {
        if self.now_ms < self.device(id).deaf_until_ms {
            return;
        }
        let config: PartitionConfig = self.control.config.clone();
        self.schedule_host(id, 40, Host::Input(Input::Configure(config)));
    }

    pub(super) fn spread_config(&mut self) {
        for id in self.ids() {
            self.send_config(id);
        }
        let soon = 1 + self.random.below(1_500);
        self.schedule(soon, Event::Replace);
    }

    pub(super) fn new_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.open.insert(token);
        token
    }

    fn propose(&mut self) {
        let usual = if self.random.chance(30) { 3 } else { 120 };
        let next = 1 + self.random.below(usual);
        self.schedule(next, Event::Propose);
        let up: Vec<DeviceId> = self.up().into_iter().collect();
        if up.is_empty() {
            return;
        }
        let id = if self.random.chance(20) { *self.random.pick(&up) } else { self.control.config.primary };
        if self.device(id).replica.is_none() {
            return;
        }
        let token = self.new_token();
        if self.random.chance(10) {
            self.step(id, Input::Barrier { token });
            return;
        }
        let key = vec![220 + u8::try_from(self.random.below(12)).unwrap()];
        let value = self.random.chance(70).then(|| token.to_le_bytes().to_vec());
        let stamp = Row { key: vec![200], value: Some(token.to_le_bytes().to_vec()) };
        let payload = Payload::Mutations(vec![Row { key, value }, stamp]).encode().unwrap();
        self.checker.proposed(token, payload.clone());
        self.step(id, Input::Propose { token, payload });
    }

    pub(super) fn crash(&mut self, id: DeviceId) {
        let down_ms = 20 + self.random.below(2_500);
        self.crash_for(id, down_ms);
    }

    pub(super) fn crash_for(&mut self, id: DeviceId, down_ms: u64) {
        let device = self.device(id);
        if device.replica.take().is_none() {
            return;
        }
        device.run += 1;
        device.flushing = false;
        device.serving = None;
        self.crashes += 1;
        let detect_ms = 100 + self.random.below(1_500);
        self.schedule(down_ms, Event::Restart(id));
        self.schedule(detect_ms, Event::Detect(id));
    }

    fn restart(&mut self, id: DeviceId) {
        if self.device(id).replica.is_some() || self.device(id).dead {
            return;
        }
        let pending = self.device(id).store.pending() as u64;
        let kept = usize::try_from(self.random.below(pending + 1)).unwrap();
        let log = self.device(id).store.crash(kept);
        let replica = self.new_replica(id, log);
        self.device(id).replica = Some(replica);
        self.check_whole(id);
        // Mostly the control plane notices; sometimes the replica has to say that it needs a new epoch.
        if self.control.is_member(id) && !self.control_is_down() && self.random.chance(70) {
            self.renew();
        } else {
            self.send_config(id);
        }
    }

    /// The device fails for good; at most one does, and never the last in-sync one.
    pub(super) fn kill(&mut self, id: DeviceId) {
        let another = self.control.config.replicas.iter().any(|replica| *replica != id);
        if !another || self.devices.iter().any(|device| device.dead) || !self.up().contains(&id) {
            return;
        }
        self.device(id).dead = true;
        self.step(id, Input::PersistFailed);
        self.schedule(500, Event::Detect(id));
    }

    fn heal(&mut self) {
        self.now_ms = CHAOS_MS + 1;
        self.end_faults();
        for id in self.ids() {
            self.restart(id);
            if self.device(id).dead {
                self.schedule(1, Event::Detect(id));
            }
        }
        for (delay, id) in self.ids().into_iter().enumerate() {
            let run = self.device(id).run;
            let config = self.control.config.clone();
            self.schedule(500 + delay as u64, Event::Host(id, run, Host::Input(Input::Configure(config))));
        }
    }

    fn finish(mut self) -> Result<Outcome, String> {
        let config = self.control.config.clone();
        self.check_histories()?;
        let local_ms = self.local_ms(config.primary);
        let before = self.checker.acknowledged_count();
        let primary = self.device(config.primary);
        let serving = primary.replica.as_ref().is_some_and(|replica| replica.is_serving_primary(local_ms));
        if !serving {
            return Err(format!("healed, but {} does not serve {}", config.primary, config.epoch));
        }
        let committed = self.checker.committed();
        for id in config.replicas.iter().copied() {
            let device = self.device(id);
            if committed.0 > device.store.applied.0 + 200 {
                return Err(format!("{id} does not follow: {} of {committed}", device.store.applied));
            }
            let device = &self.devices[usize::try_from(id.0).unwrap()];
            self.checker.whole(id, device.store.applied, &device.store.rows)?;
        }
        Ok(Outcome {
            acknowledged: before,
            committed: committed.0,
            epochs: config.epoch.0,
            crashes: self.crashes,
            promoted: self.checker.promoted,
            resumed: self.checker.resumed,
            answered: self.clients.answered,
            handed_over: self.control.handed_over,
            serving_ticks: self.serving_ticks,
        })
    }
}
