//! What must hold of all histories; the first violation ends a run.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quarry_clustermap::{DeviceId, Epoch, Sequence};

use super::journal::{Rows, apply_rows};
use crate::{Entry, Payload};

#[derive(Default)]
pub(super) struct Checker {
    /// Committed entries as the first replica applied them: identity, and payload without pages.
    agreed: Vec<(Epoch, Bytes)>,
    /// Rows after each of them, and before the first.
    states: Vec<Rows>,
    proposals: BTreeMap<u64, Bytes>,
    acknowledged: BTreeMap<Sequence, u64>,
    refused: BTreeSet<Bytes>,
    acknowledging: BTreeMap<Epoch, DeviceId>,
    pub(super) promoted: u64,
    pub(super) resumed: u64,
}

impl Checker {
    pub(super) fn new() -> Self {
        Self { states: vec![Rows::new()], ..Self::default() }
    }

    pub(super) fn proposed(&mut self, token: u64, payload: Bytes) {
        self.proposals.insert(token, payload);
    }

    /// A replica applies an entry: all replicas apply the same at a sequence.
    pub(super) fn applied(&mut self, device: DeviceId, entry: &Entry) -> Result<(), String> {
        let payload = match Payload::decode(&entry.payload).unwrap() {
            Payload::Backfill(_) => Payload::Noop.encode().unwrap(),
            Payload::Mutations(_) | Payload::Noop => entry.payload.clone(),
        };
        let identity = (entry.epoch, payload);
        let index = usize::try_from(entry.sequence.0 - 1).unwrap();
        if let Some(agreed) = self.agreed.get(index) {
            return if *agreed == identity {
                Ok(())
            } else {
                Err(format!(
                    "{device} applies another entry at {} ({} for {})",
                    entry.sequence, entry.epoch, agreed.0
                ))
            };
        }
        if index != self.agreed.len() {
            return Err(format!("{device} applies {} before it was committed", entry.sequence));
        }
        if self.refused.contains(&identity.1) {
            return Err(format!("{} was refused, and is committed", entry.sequence));
        }
        let mut rows = self.states[index].clone();
        apply_rows(&mut rows, &identity.1);
        self.states.push(rows);
        self.agreed.push(identity);
        Ok(())
    }

    pub(super) fn acknowledged(
        &mut self,
        device: DeviceId,
        epoch: Epoch,
        activated: Option<DeviceId>,
        token: u64,
        sequence: Sequence,
    ) -> Result<(), String> {
        if *self.acknowledging.entry(epoch).or_insert(device) != device {
            return Err(format!("{device} and {} both acknowledge in {epoch}", self.acknowledging[&epoch]));
        }
        if activated != Some(device) {
            return Err(format!("{device} acknowledges in {epoch}, which was activated for {activated:?}"));
        }
        let Some(payload) = self.proposals.get(&token) else { return Ok(()) };
        let committed = sequence.0.checked_sub(1).and_then(|i| self.agreed.get(usize::try_from(i).unwrap()));
        if committed.map(|(_, payload)| payload) != Some(payload) {
            return Err(format!("{sequence} is acknowledged, but something else is committed there"));
        }
        self.acknowledged.insert(sequence, token);
        Ok(())
    }

    pub(super) fn refused(&mut self, token: u64) -> Result<(), String> {
        let Some(payload) = self.proposals.get(&token) else { return Ok(()) };
        self.refused.insert(payload.clone());
        if self.agreed.iter().any(|(_, agreed)| agreed == payload) {
            return Err(format!("proposal {token} is committed, and was refused"));
        }
        Ok(())
    }

    /// A replica that is whole holds exactly the model's rows.
    pub(super) fn whole(&self, device: DeviceId, applied: Sequence, rows: &Rows) -> Result<(), String> {
        match self.states.get(usize::try_from(applied.0).unwrap()) {
            Some(state) if state == rows => Ok(()),
            Some(_) => Err(format!("{device} holds other rows than the model at {applied}")),
            None => Err(format!("{device} is at {applied}, which was never committed")),
        }
    }

    /// A primary starts to serve: everything acknowledged so far is in its rows.
    pub(super) fn serves(&self, device: DeviceId, applied: Sequence, rows: &Rows) -> Result<(), String> {
        match self.acknowledged.last_key_value() {
            Some((newest, _)) if *newest > applied => {
                Err(format!("{device} serves at {applied}, {newest} was acknowledged"))
            }
            _ => self.whole(device, applied, rows),
        }
    }

    pub(super) fn acknowledged_count(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    pub(super) fn committed(&self) -> Sequence {
        Sequence(self.agreed.len() as u64)
    }
}
