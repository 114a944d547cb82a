//! A device as a replica sees it: a journal with flush boundaries whose unflushed suffix a crash may tear off, and
//! rows that are rebuilt from it.

use std::collections::{BTreeMap, VecDeque};

use quarry_clustermap::{Epoch, Sequence};

use crate::{Entry, Payload, RecoveredLog};

pub(super) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) fn apply_rows(rows: &mut Rows, payload: &[u8]) {
    for row in Payload::decode(payload).unwrap().rows() {
        match &row.value {
            Some(value) => rows.insert(row.key.clone(), value.clone()),
            None => rows.remove(&row.key),
        };
    }
}

#[derive(Clone)]
pub(super) enum Op {
    Raise { epoch: Epoch, through: Sequence },
    Append { epoch: Epoch, entry: Entry, committed: Sequence },
    Truncate { epoch: Epoch, after: Sequence },
    Reset { epoch: Epoch, base: Sequence },
}

/// What the log looks like after some operations.
#[derive(Clone, Default)]
pub(super) struct Log {
    pub(super) epoch: Epoch,
    pub(super) base: Sequence,
    pub(super) entries: Vec<Entry>,
    committed: Sequence,
}

impl Log {
    pub(super) fn entry(&self, sequence: Sequence) -> Option<&Entry> {
        sequence
            .0
            .checked_sub(self.base.0 + 1)
            .and_then(|index| self.entries.get(usize::try_from(index).unwrap()))
    }

    fn last(&self) -> Sequence {
        Sequence(self.base.0 + self.entries.len() as u64)
    }

    pub(super) fn execute(&mut self, op: &Op) {
        match op {
            Op::Raise { epoch, .. } => self.epoch = self.epoch.max(*epoch),
            Op::Append { epoch, entry, committed } => {
                assert_eq!(entry.sequence, self.last().next(), "the journal gets a dense log");
                self.epoch = self.epoch.max(*epoch);
                self.committed = self.committed.max(*committed);
                self.entries.push(entry.clone());
            }
            Op::Truncate { after, .. } => {
                assert!(*after >= self.committed, "committed entries are never truncated");
                self.entries.truncate(usize::try_from(after.0 - self.base.0).unwrap());
            }
            Op::Reset { base, .. } => {
                self.entries.clear();
                self.base = *base;
                self.committed = *base;
            }
        }
    }
}

/// Journal and rows of one device.
#[derive(Clone, Default)]
pub(super) struct Store {
    durable: Log,
    pending: VecDeque<Op>,
    /// The log with everything pending.
    pub(super) log: Log,
    pub(super) rows: Rows,
    pub(super) applied: Sequence,
}

impl Store {
    pub(super) fn submit(&mut self, op: Op) {
        self.log.execute(&op);
        if let Op::Reset { base, .. } = op {
            self.rows.clear();
            self.applied = base;
        }
        self.pending.push_back(op);
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes the first `count` pending operations durable and returns them.
    pub(super) fn flush(&mut self, count: usize) -> Vec<Op> {
        let done: Vec<Op> = self.pending.drain(..count).collect();
        done.iter().for_each(|op| self.durable.execute(op));
        done
    }

    /// Loses all but the first `kept` pending operations; rows are replayed.
    pub(super) fn crash(&mut self, kept: usize) -> RecoveredLog {
        self.flush(kept);
        self.pending.clear();
        self.log = self.durable.clone();
        self.applied = self.durable.committed.min(self.durable.last());
        self.rows.clear();
        let (mut tail, mut rows) = (Vec::new(), Rows::new());
        for entry in &self.durable.entries {
            if entry.sequence <= self.applied {
                apply_rows(&mut rows, &entry.payload);
            } else {
                tail.push(entry.clone());
            }
        }
        self.rows = rows;
        RecoveredLog { epoch: self.durable.epoch, applied: self.applied, tail }
    }

    /// Rows with every entry of the log, committed or not: what the next proposal is evaluated against.
    pub(super) fn newest_rows(&self) -> Rows {
        let mut rows = self.rows.clone();
        for entry in self.log.entries.iter().filter(|entry| entry.sequence > self.applied) {
            apply_rows(&mut rows, &entry.payload);
        }
        rows
    }
}
