//! What goes wrong in a run, beside what the network does to each message.

use quarry_clustermap::{DeviceId, Epoch};

use super::world::{Event, Host, World};
use crate::replication::Input;

impl World {
    /// A device's own monotonic clock.
    pub(super) fn local_ms(&self, id: DeviceId) -> u64 {
        let device = &self.devices[usize::try_from(id.0).unwrap()];
        device.clock_ms + self.now_ms * device.rate / 1000
    }

    /// Whether it believes that it may answer.
    pub(super) fn is_serving(&self, id: DeviceId) -> bool {
        let device = &self.devices[usize::try_from(id.0).unwrap()];
        device.replica.as_ref().is_some_and(|replica| replica.is_serving_primary(self.local_ms(id)))
    }

    pub(super) fn paused_until(&self, id: DeviceId) -> Option<u64> {
        let until_ms = self.devices[usize::try_from(id.0).unwrap()].paused_until_ms;
        (self.now_ms < until_ms).then_some(until_ms)
    }

    pub(super) fn running(&self) -> Vec<DeviceId> {
        self.ids().into_iter().filter(|id| self.paused_until(*id).is_none()).collect()
    }

    pub(super) fn control_is_down(&self) -> bool {
        self.now_ms < self.control_down_until_ms
    }

    pub(super) fn fault(&mut self) {
        if !self.chaos() {
            return;
        }
        let next = 50 + self.random.below(self.fault_ms);
        self.schedule(next, Event::Fault);
        let ids = self.ids();
        let id = *self.random.pick(&ids);
        let primary = self.control.config.primary;
        match self.random.below(100) {
            0..20 => self.crash(id),
            20..24 => ids.into_iter().for_each(|id| self.crash(id)),
            24..36 => self.renew(),
            36..44 => self.suspect(id),
            44..46 => self.kill(id),
            46..52 => self.pause(id),
            52..56 => self.pause(primary),
            56..62 => self.cut_off(id),
            62..68 => self.cut_off(primary),
            68..72 => self.control_down_until_ms = self.now_ms + self.random.below(3_000),
            72..80 => self.ask_to_hand_over(60),
            80..86 => self.cut_off_and_replace(primary),
            _ => self.replace(),
        }
    }

    /// Somebody who is up joins, if members are missing.
    pub(super) fn replace(&mut self) {
        let up: Vec<DeviceId> = self.up().into_iter().collect();
        if !up.is_empty() {
            let id = *self.random.pick(&up);
            if !self.control_is_down() && self.control.join(id) {
                self.spread_config();
            }
        }
    }

    /// The case that leases are for: clients still reach it, nobody else does.
    fn isolate(&mut self, id: DeviceId) {
        let until_ms = self.now_ms + 500 + self.random.below(3_000);
        self.device(id).deaf_until_ms = until_ms;
        self.schedule(until_ms - self.now_ms + 1, Event::SendConfig(id));
        for other in self.ids() {
            self.cuts.insert((id, other), until_ms);
            self.cuts.insert((other, id), until_ms);
        }
    }

    /// Isolates the primary, and perhaps restarts those who might follow it.
    fn cut_off_and_replace(&mut self, id: DeviceId) {
        self.isolate(id);
        if self.random.chance(60) {
            return self.suspect(id);
        }
        for other in self.ids().into_iter().filter(|other| *other != id) {
            let down_ms = 5 + self.random.below(100);
            self.crash_for(other, down_ms);
        }
        let soon = 50 + self.random.below(100);
        self.schedule(soon, Event::Suspect(id));
    }

    /// A node that shuts down, mostly; or one that thinks better of it, or only rebalances.
    pub(super) fn ask_to_hand_over(&mut self, tries: u64) {
        let primary = self.control.config.primary;
        let alone = self.control.config.replicas.len() == 1;
        if tries > 0 && self.chaos() && (alone || !self.is_serving(primary)) {
            return self.schedule(100, Event::HandOver(tries - 1));
        }
        let (soon, run) = (self.random.below(400), self.device(primary).run);
        self.step(primary, Input::HandOver { wanted: true });
        match self.random.below(100) {
            0..40 => self.schedule(soon, Event::ShutDown(primary, run)),
            40..60 => {
                let back = Host::Input(Input::HandOver { wanted: false });
                self.schedule(soon, Event::Host(primary, run, back));
            }
            _ => {}
        }
    }

    /// As SIGSTOP does it: its clock goes on.
    fn pause(&mut self, id: DeviceId) {
        self.device(id).paused_until_ms = self.now_ms + 100 + self.random.below(3_000);
        self.suspect_soon(id);
    }

    /// It hears nothing of the control plane, which believes it gone; perhaps it loses some or all of its peers too, in
    /// one direction or both.
    fn cut_off(&mut self, id: DeviceId) {
        let until_ms = self.now_ms + 300 + self.random.below(3_000);
        self.device(id).deaf_until_ms = until_ms;
        self.schedule(until_ms - self.now_ms + 1, Event::SendConfig(id));
        let (out, back) = (self.random.chance(50), self.random.chance(50));
        for other in self.ids() {
            if self.random.chance(60) {
                if out {
                    self.cuts.insert((id, other), until_ms);
                }
                if back {
                    self.cuts.insert((other, id), until_ms);
                }
            }
        }
        self.suspect_soon(id);
    }

    fn suspect_soon(&mut self, id: DeviceId) {
        if self.random.chance(80) {
            let delay = 10 + self.random.below(600);
            self.schedule(delay, Event::Suspect(id));
        }
    }

    pub(super) fn suspect(&mut self, id: DeviceId) {
        let up = self.up();
        if !self.control_is_down() && self.control.evict(id, |d| up.contains(&d), &mut self.random) {
            self.spread_config();
        }
    }

    pub(super) fn handed_over(&mut self, id: DeviceId, epoch: Epoch) {
        let up = self.up();
        if self.control.hand_over(epoch, |d| up.contains(&d)) {
            if self.chaos() && self.random.chance(30) {
                self.isolate(id);
            }
            self.spread_config();
        }
    }

    /// A primary says that a joiner is whole.
    pub(super) fn joined(&mut self, primary: DeviceId, joiner: DeviceId, epoch: Epoch) -> bool {
        let joined = self.control.joined(joiner, epoch);
        if joined && self.chaos() && self.random.chance(20) {
            self.isolate(primary);
            let soon = 10 + self.random.below(200);
            self.schedule(soon, Event::Suspect(primary));
        }
        joined
    }

    pub(super) fn end_faults(&mut self) {
        self.cuts.clear();
        self.control_down_until_ms = 0;
        for device in &mut self.devices {
            device.paused_until_ms = 0;
            device.deaf_until_ms = 0;
        }
    }
}
