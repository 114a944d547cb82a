//! Rows that are committed but not yet in the index: an active layer that takes changes, and at most one
//! frozen layer that a checkpoint is writing to the index.
//!
//! Invariants: a layer hides what lies below it, row by row (`None` is a deletion) or for a whole wiped
//! partition; a frozen layer never changes.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;

use bytes::Bytes;
use quarry_clustermap::PartitionId;

use crate::format::rows;

/// Memory that one row costs beside its bytes, roughly: keeps many tiny rows from passing as free.
const ROW_OVERHEAD_BYTES: usize = 128;

/// One layer.
#[derive(Default, Debug)]
pub(super) struct Layer {
    rows: BTreeMap<Bytes, Option<Bytes>>,
    wiped: BTreeSet<PartitionId>,
    bytes: usize,
    edits: u64,
}

impl Layer {
    /// The layer that takes changes once this one is frozen.
    pub(super) fn next(&self) -> Self {
        Self { edits: self.edits + 1, ..Self::default() }
    }

    /// Grows with every change of this layer, and from a layer to the next.
    pub(super) fn edits(&self) -> u64 {
        self.edits
    }

    pub(super) fn rows(&self) -> &BTreeMap<Bytes, Option<Bytes>> {
        &self.rows
    }

    pub(super) fn wiped(&self) -> &BTreeSet<PartitionId> {
        &self.wiped
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        let cost = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        self.edits += 1;
        self.bytes += key.len() + cost(&value) + ROW_OVERHEAD_BYTES;
        let key_bytes = key.len();
        if let Some(old) = self.rows.insert(key, value) {
            self.bytes -= key_bytes + cost(&old) + ROW_OVERHEAD_BYTES;
        }
    }

    /// Removes every row of a partition, here and below.
    pub(super) fn wipe(&mut self, partition: PartitionId) {
        self.edits += 1;
        let (from, to) = (rows::partition_key(partition, &[]), rows::partition_end(partition));
        let keys: Vec<Bytes> = self.rows.range(from..to).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let value = self.rows.remove(&key).flatten();
            self.bytes -= key.len() + value.map_or(0, |value| value.len()) + ROW_OVERHEAD_BYTES;
        }
        self.wiped.insert(partition);
    }

    /// Takes in what lies below this layer.
    pub(super) fn absorb(&mut self, below: &Layer) {
        self.edits += 1;
        for (key, value) in &below.rows {
            if !self.rows.contains_key(key) && !self.hides(key) {
                self.put(key.clone(), value.clone());
            }
        }
        self.wiped.extend(&below.wiped);
    }

    /// What this layer says about a key; `None` means: look below.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        match self.rows.get(key) {
            Some(value) => Some(value.clone()),
            None => self.hides(key).then_some(None),
        }
    }

    /// Whether what lies below is wiped.
    pub(super) fn hides(&self, key: &[u8]) -> bool {
        rows::partition_of_key(key).is_some_and(|partition| self.wiped.contains(&partition))
    }

    fn range<'a>(&'a self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Row<'a>> {
        use std::ops::Bound::{Excluded, Included};
        let range = (from < to).then(|| self.rows.range::<[u8], _>((Included(from), Excluded(to))));
        range.into_iter().flatten().map(|(key, value)| (key, value.as_ref()))
    }
}

type Row<'a> = (&'a Bytes, Option<&'a Bytes>);

/// The first row of both layers that lies in `from..to`: its key, and its value if it is not a deletion.
pub(super) fn first(
    active: &Layer,
    frozen: Option<&Layer>,
    from: &[u8],
    to: &[u8],
) -> Option<(Bytes, Option<Bytes>)> {
    let top = active.range(from, to).next();
    let middle = frozen.and_then(|frozen| frozen.range(from, to).find(|(key, _)| !active.hides(key)));
    let (key, value) = match (top, middle) {
        (Some(top), Some(middle)) => {
            if top.0 <= middle.0 {
                top
            } else {
                middle
            }
        }
        (top, middle) => top.or(middle)?,
    };
    Some((key.clone(), value.cloned()))
}

/// Merges the layers over rows of the index that lie in `from..to`; at most `limit` live rows, ascending.
pub(super) fn merge(
    active: &Layer,
    frozen: Option<&Layer>,
    index: &[(Bytes, Bytes)],
    (from, to): (&[u8], &[u8]),
    limit: usize,
) -> Vec<(Bytes, Bytes)> {
    let empty = Layer::default();
    let frozen = frozen.unwrap_or(&empty);
    let mut top = active.range(from, to).peekable();
    let mut middle = frozen.range(from, to).filter(|(key, _)| !active.hides(key)).peekable();
    let mut bottom = index
        .iter()
        .map(|(key, value)| (key, Some(value)))
        .filter(|(key, _)| !active.hides(key) && !frozen.hides(key))
        .peekable();
    let mut merged = Vec::new();
    while merged.len() < limit {
        let heads = [peek_key(&mut top), peek_key(&mut middle), peek_key(&mut bottom)];
        let Some(key) = heads.into_iter().flatten().min().cloned() else { break };
        let newest = [take(&mut top, &key), take(&mut middle, &key), take(&mut bottom, &key)];
        if let Some(Some(value)) = newest.into_iter().flatten().next() {
            merged.push((key, value.clone()));
        }
    }
    merged
}

fn peek_key<'a>(rows: &mut Peekable<impl Iterator<Item = Row<'a>>>) -> Option<&'a Bytes> {
    rows.peek().map(|&(key, _)| key)
}

fn take<'a>(rows: &mut Peekable<impl Iterator<Item = Row<'a>>>, key: &Bytes) -> Option<Option<&'a Bytes>> {
    rows.next_if(|(head, _)| *head == key).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn row(partition: u16, key: &str) -> Bytes {
        rows::partition_key(PartitionId(partition), key.as_bytes())
    }

    #[test]
    fn upper_layers_hide_lower_ones() {
        let (mut active, mut frozen) = (Layer::default(), Layer::default());
        active.put(row(1, "a"), None);
        active.put(row(1, "c"), Some(bytes("active")));
        frozen.put(row(1, "a"), Some(bytes("frozen")));
        frozen.put(row(1, "b"), Some(bytes("frozen")));
        frozen.put(row(1, "d"), None);
        let index: Vec<_> = ["a", "c", "d", "e"].iter().map(|key| (row(1, key), bytes("index"))).collect();
        let (from, to) = (row(1, ""), rows::partition_end(PartitionId(1)));
        let merged = merge(&active, Some(&frozen), &index, (&from, &to), 10);
        let expected = vec![
            (row(1, "b"), bytes("frozen")),
            (row(1, "c"), bytes("active")),
            (row(1, "e"), bytes("index")),
        ];
        assert_eq!(merged, expected);
        assert_eq!(merge(&active, Some(&frozen), &index, (&from, &to), 1), expected[..1]);
        assert!(merge(&active, None, &[], (&to, &from), 1).is_empty(), "an inverted range is empty");
    }

    #[test]
    fn wiping_hides_everything_older_and_accounts_for_bytes() {
        let (mut active, mut frozen) = (Layer::default(), Layer::default());
        frozen.put(row(1, "a"), Some(bytes("old")));
        active.put(row(1, "b"), Some(bytes("old")));
        active.put(row(2, "x"), Some(bytes("other")));
        let other = active.bytes();
        active.wipe(PartitionId(1));
        assert!(active.bytes() < other);
        active.put(row(1, "c"), Some(bytes("new")));
        let index = [(row(1, "i"), bytes("old")), (row(2, "y"), bytes("other"))];
        let merged = merge(&active, Some(&frozen), &index, (&[0x10], &[0x11]), 10);
        let keys: Vec<_> = merged.into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [row(1, "c"), row(2, "x"), row(2, "y")]);
        assert_eq!(active.get(&row(1, "i")), Some(None));
        assert_eq!(active.get(&row(2, "y")), None);
        active.put(row(1, "c"), None);
        active.put(row(1, "c"), Some(bytes("new")));
        assert_eq!(active.rows().len(), 2);
    }
}
