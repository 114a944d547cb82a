//! Rows that were proposed and are not committed yet: the next command of the partition must see them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use quarry_clustermap::Sequence;
use quarry_partition::Row;

/// A proposed value (`None`: removed) and the entry that it belongs to.
type Pending = (Sequence, Option<Bytes>);

/// Proposed rows of one partition. Bounded by what the state machine admits in flight.
#[derive(Default)]
pub(crate) struct Proposed {
    rows: BTreeMap<Bytes, Pending>,
    entries: VecDeque<(Sequence, Vec<Bytes>)>,
}

impl Proposed {
    /// Adds the rows of a new entry; its sequence is above all others here.
    pub(crate) fn insert(&mut self, sequence: Sequence, rows: Vec<Row>) {
        assert!(self.entries.back().is_none_or(|(last, _)| *last < sequence), "entries come in order");
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let key = Bytes::from(row.key);
            keys.push(key.clone());
            self.rows.insert(key, (sequence, row.value.map(Bytes::from)));
        }
        self.entries.push_back((sequence, keys));
    }

    /// Drops entries that are committed: the store has their rows now.
    pub(crate) fn forget_through(&mut self, sequence: Sequence) {
        while self.entries.front().is_some_and(|(first, _)| *first <= sequence) {
            let (entry, keys) = self.entries.pop_front().expect("just seen");
            for key in keys {
                // A later entry may have proposed the row again: then that value stays.
                if self.rows.get(&key).is_some_and(|(of, _)| *of == entry) {
                    self.rows.remove(&key);
                }
            }
        }
    }

    /// Drops entries that were rolled back. Earlier values of their rows come from entries that stay only if those
    /// are kept too, so everything is dropped: a rollback means this replica proposes nothing now.
    pub(crate) fn forget_after(&mut self, sequence: Sequence) {
        if self.entries.back().is_some_and(|(last, _)| *last > sequence) {
            self.rows.clear();
            self.entries.clear();
        }
    }

    /// The proposed state of a row: `None` if no proposal touches it.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.rows.get(key).map(|(_, value)| value.clone())
    }

    /// Proposed rows in a range, in order.
    pub(crate) fn range(&self, from: &[u8], to: &[u8]) -> Vec<(Bytes, Option<Bytes>)> {
        if from >= to {
            return Vec::new();
        }
        let bounds = (std::ops::Bound::Included(from), std::ops::Bound::Excluded(to));
        self.rows.range::<[u8], _>(bounds).map(|(key, (_, value))| (key.clone(), value.clone())).collect()
    }

    /// Whether nothing is pending.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, value: Option<&str>) -> Row {
        Row { key: key.into(), value: value.map(Into::into) }
    }

    #[test]
    fn the_latest_proposal_stands_until_it_is_committed() {
        let mut proposed = Proposed::default();
        proposed.insert(Sequence(1), vec![row("a", Some("1")), row("b", Some("1"))]);
        proposed.insert(Sequence(2), vec![row("a", None)]);
        proposed.forget_through(Sequence(1));
        assert_eq!(proposed.get(b"a"), Some(None));
        assert_eq!(proposed.get(b"b"), None);
        assert_eq!(proposed.range(b"a", b"z").len(), 1);
        proposed.forget_through(Sequence(2));
        assert!(proposed.is_empty());
    }

    #[test]
    fn a_rollback_drops_everything() {
        let mut proposed = Proposed::default();
        proposed.insert(Sequence(5), vec![row("a", Some("1"))]);
        proposed.forget_after(Sequence(5));
        assert!(!proposed.is_empty());
        proposed.forget_after(Sequence(4));
        assert!(proposed.is_empty());
    }
}
