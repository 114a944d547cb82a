//! The host of each replica: carries out its outputs, and brings it what follows.

use bytes::Bytes;
use quarry_clustermap::{DeviceId, Epoch, Sequence};

use super::journal::Op;
use super::world::{Event, Host, PAGE_ROWS, PARTITION, World};
use crate::Row;
use crate::replication::{Envelope, Input, Output, Refusal, Report};

impl World {
    pub(super) fn schedule_host(&mut self, id: DeviceId, usual_ms: u64, host: Host) {
        let (delay, run) = (self.delay(usual_ms), self.device(id).run);
        self.schedule(delay, Event::Host(id, run, host));
    }

    pub(super) fn host(&mut self, id: DeviceId, host: Host) {
        match host {
            Host::Input(input) => self.step(id, input),
            Host::Read(epoch, cursor) => {
                let page_rows = if self.chaos() { PAGE_ROWS.0 } else { PAGE_ROWS.1 };
                let rows = self.device(id).store.newest_rows();
                let mut page = rows.into_iter().skip_while(|(key, _)| Some(key) < cursor.as_ref());
                let row = |(key, value)| Row { key, value: Some(value) };
                let rows: Vec<Row> = page.by_ref().take(page_rows).map(row).collect();
                let next = page.next().map(|(key, _)| key);
                self.step(id, Input::BackfillRows { epoch, rows, next });
            }
            Host::Flush => self.flush(id),
        }
    }

    fn flush(&mut self, id: DeviceId) {
        let pending = self.device(id).store.pending() as u64;
        let count = 1 + self.random.below(pending);
        let done = self.device(id).store.flush(usize::try_from(count).unwrap());
        self.device(id).flushing = count < pending;
        if count < pending {
            self.schedule_host(id, 15, Host::Flush);
        }
        let mut inputs = Vec::new();
        for op in done {
            let persisted = match op {
                Op::Raise { epoch, through } => Input::Persisted { epoch, through },
                Op::Append { epoch, entry, .. } => Input::Persisted { epoch, through: entry.sequence },
                Op::Truncate { epoch, after } => Input::Persisted { epoch, through: after },
                Op::Reset { epoch, .. } => Input::ResetDone { epoch },
            };
            if matches!((inputs.last(), &persisted), (Some(Input::Persisted { .. }), Input::Persisted { .. }))
            {
                inputs.pop();
            }
            inputs.push(persisted);
        }
        inputs.into_iter().for_each(|input| self.step(id, input));
    }

    pub(super) fn step(&mut self, id: DeviceId, input: Input) {
        let now_ms = self.local_ms(id);
        let mut out = Vec::new();
        let Some(replica) = &mut self.device(id).replica else { return };
        replica.step(now_ms, input, &mut out);
        let (epoch, serving) = (replica.epoch(), replica.is_serving_primary(now_ms));
        for output in out {
            self.execute(id, epoch, output);
        }
        if serving {
            self.check_alone(id, epoch);
        }
        let device = self.device(id);
        if serving && device.serving != Some(epoch) {
            device.serving = Some(epoch);
            let device = &self.devices[usize::try_from(id.0).unwrap()];
            let result = self.checker.serves(id, device.store.applied, &device.store.rows);
            self.fail(result);
        }
    }

    /// What leases are to ensure; checked besides what clients see, who are not always there in the right moment.
    fn check_alone(&mut self, id: DeviceId, epoch: Epoch) {
        let other = self.ids().into_iter().find(|other| *other != id && self.is_serving(*other));
        if let Some(other) = other.filter(|_| self.watches_serving) {
            self.fail(Err(format!("{id} serves in {epoch}, and {other} believes to serve too")));
        }
    }

    fn submit(&mut self, id: DeviceId, op: Op) {
        let device = self.device(id);
        device.store.submit(op);
        if !std::mem::replace(&mut device.flushing, true) {
            self.schedule_host(id, 15, Host::Flush);
        }
    }

    fn execute(&mut self, id: DeviceId, epoch: Epoch, output: Output) {
        match output {
            Output::RaiseEpoch { epoch, through } => self.submit(id, Op::Raise { epoch, through }),
            Output::Append { epoch, entry, committed } => {
                self.submit(id, Op::Append { epoch, entry, committed });
            }
            Output::Truncate { epoch, after } => self.submit(id, Op::Truncate { epoch, after }),
            Output::Reset { epoch, base } => {
                self.device(id).whole = None;
                self.submit(id, Op::Reset { epoch, base });
            }
            Output::Apply { sequence, payload } => self.apply(id, sequence, &payload),
            Output::Send { to, message } => {
                let frame = Envelope { partition: PARTITION, from: id, to, message }.encode().unwrap();
                self.send(id, to, frame);
            }
            Output::Resolve { token, result } => self.resolved(id, epoch, token, result),
            Output::Activate { epoch } => {
                let delay = self.delay(20);
                self.schedule(delay, Event::Activate(id, epoch));
            }
            Output::ReadBackfill { epoch, cursor } => self.schedule_host(id, 20, Host::Read(epoch, cursor)),
            Output::Report(report) => self.report(id, report),
        }
    }

    fn resolved(&mut self, id: DeviceId, epoch: Epoch, token: u64, result: Result<Sequence, Refusal>) {
        if !self.open.remove(&token) {
            self.fail(Err(format!("token {token} is answered twice")));
        }
        let checked = match result {
            Ok(sequence) => {
                let activated = self.control.activated.get(&epoch).copied();
                self.checker.acknowledged(id, epoch, activated, token, sequence)
            }
            Err(refusal) if !refusal.is_outcome_unknown() => self.checker.refused(token),
            Err(_) => Ok(()),
        };
        self.fail(checked);
        self.client_resolved(token, result.map(|_| ()));
    }

    fn send(&mut self, from: DeviceId, to: DeviceId, frame: Bytes) {
        if self.cuts.get(&(from, to)).is_some_and(|until| self.now_ms < *until) {
            return;
        }
        let (chaos, percent) = (self.chaos(), self.lost_percent);
        let copies = match self.random.below(100) {
            drawn if chaos && drawn < percent => 0,
            drawn if chaos && drawn < 2 * percent => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay = self.delay(20);
            self.schedule(delay, Event::Deliver(frame.clone()));
        }
    }

    fn apply(&mut self, id: DeviceId, sequence: Sequence, payload: &Bytes) {
        let device = &mut self.devices[usize::try_from(id.0).unwrap()];
        let dense = sequence == device.store.applied.next();
        let entry = device.store.log.entry(sequence).filter(|entry| entry.payload == *payload).cloned();
        device.store.applied = sequence;
        super::journal::apply_rows(&mut device.store.rows, payload);
        let result = match entry {
            Some(entry) if dense => self.checker.applied(id, &entry),
            _ => Err(format!("{id} applies {sequence}, which is not next in its log")),
        };
        self.fail(result);
        self.check_whole(id);
    }

    pub(super) fn check_whole(&mut self, id: DeviceId) {
        let device = &self.devices[usize::try_from(id.0).unwrap()];
        if device.replica.is_some() && device.whole.is_some_and(|whole| device.store.applied >= whole) {
            let result = self.checker.whole(id, device.store.applied, &device.store.rows);
            self.fail(result);
        }
    }

    fn report(&mut self, id: DeviceId, report: Report) {
        if self.control_is_down() || self.now_ms < self.device(id).deaf_until_ms {
            return;
        }
        match report {
            Report::Joined { device, epoch } => {
                if self.joined(id, device, epoch) {
                    self.checker.resumed += u64::from(self.device(device).whole.is_some());
                    self.device(device).whole = Some(self.checker.committed());
                    self.checker.promoted += 1;
                    self.spread_config();
                }
            }
            Report::Lagging { device, epoch } => {
                let up = self.up();
                if epoch == self.control.config.epoch
                    && self.control.evict(device, |d| up.contains(&d), &mut self.random)
                {
                    self.spread_config();
                }
            }
            Report::ReadyToHandOver { epoch } => self.handed_over(id, epoch),
            Report::Outdated { .. } => self.send_config(id),
            Report::NewEpochNeeded { epoch } if epoch == self.control.config.epoch => self.renew(),
            Report::NewEpochNeeded { .. } | Report::NotHandedOver { .. } => {}
        }
    }
}
