//! What can be read of a tree, and which keys cannot.

use std::collections::BTreeSet;

use quarry_clustermap::PartitionId;

use super::super::StoreError;
use super::super::core::Core;
use super::shards::Groups;
use crate::device::Device;
use crate::extent::{BlockIndex, Extent};
use crate::format::{FormatError, rows};
use crate::index::{Damage, IndexError, KeyRange, Row, Seen, Tree, WalkDepth};

/// Keys that are gone.
pub(super) struct Lost {
    pub(super) keys: KeyRange,
    /// The page they were in; `None` if it is one row.
    pub(super) page: Option<BlockIndex>,
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Survey {
    pub(super) damages: Vec<Lost>,
    /// Epochs, logs and marks.
    pub(super) core: Core,
    /// Pages and values, also damaged ones.
    pub(super) used: Vec<Extent>,
    /// Pages and values that the device did not read.
    pub(super) unreadable: Vec<Extent>,
    /// As shard rows name them.
    pub(super) shard_extents: Vec<Extent>,
    /// Rows that could be read.
    pub(super) rows: u64,
    /// Partitions that have rows.
    partitions: BTreeSet<PartitionId>,
    groups: Groups,
    refusal: Option<StoreError>,
}

impl Survey {
    /// Reads and verifies all of the tree; `collect` says whether extents are wanted.
    pub(super) async fn of<D: Device>(tree: &Tree<D>, collect: bool) -> Result<Self, StoreError> {
        let mut survey = Self::default();
        let visit = |seen: Seen<'_>| match seen {
            Seen::Page { extent, .. } => {
                if collect {
                    survey.used.push(extent);
                }
            }
            Seen::Row(row) => survey.row(&row, collect),
            Seen::Damaged { extent, error, keys, is_page } => {
                survey.damaged(extent, &error);
                survey.damages.push(Lost { keys, page: is_page.then_some(extent.start) });
            }
        };
        tree.walk_step(&[], WalkDepth::Values, u64::MAX, visit).await;
        survey.groups.close();
        for key in survey.groups.take_broken() {
            survey.damages.push(Lost { keys: KeyRange::only(&key), page: None });
        }
        match survey.refusal.take() {
            Some(refusal) => Err(refusal),
            None => Ok(survey),
        }
    }

    fn damaged(&mut self, extent: Extent, error: &IndexError) {
        self.used.push(extent);
        match error {
            IndexError::Damaged { what: Damage::Version, .. } => self.refusal = Some(error.clone().into()),
            IndexError::Device(error) if error.unreadable().is_some() => self.unreadable.push(extent),
            _ => {}
        }
    }

    fn row(&mut self, row: &Row<'_>, collect: bool) {
        self.rows += 1;
        if let Some((extent, _)) = row.out_of_line().filter(|_| collect) {
            self.used.push(extent);
        }
        let key = row.key();
        let value = row.value().unwrap_or_default();
        if let Err(error) = self.check(&key, value, collect) {
            if let FormatError::Version { .. } = error {
                self.refusal = Some(StoreError::BadRow { table: key[0], reason: error.to_string() });
            }
            self.damages.push(Lost { keys: KeyRange::only(&key), page: None });
        }
    }

    fn check(&mut self, key: &[u8], value: &[u8], collect: bool) -> Result<(), FormatError> {
        match key.first() {
            Some(&rows::TABLE_SHARDS) => {
                let malformed = FormatError::Field { what: "shard row", field: "key" };
                let (shard, n) = rows::parse_shard_key(key).ok_or(malformed)?;
                let piece = rows::decode_shard(value)?;
                if collect {
                    self.shard_extents.push(piece.extent.into());
                }
                self.groups.push(shard, n, piece);
                self.groups.whole.clear();
            }
            Some(&(rows::TABLE_PG_EPOCHS | rows::TABLE_LOGS | rows::TABLE_LOST)) => {
                self.core.load_row(key, value)?;
            }
            _ => self.partitions.extend(rows::partition_of_key(key)),
        }
        Ok(())
    }

    /// Declares lost what the damage may have taken of partitions; returns whether shards may be missing too.
    pub(super) fn lose(&self, core: &mut Core) -> bool {
        let mut incomplete = false;
        let mut lost = BTreeSet::new();
        for Lost { keys, .. } in &self.damages {
            incomplete |= keys.overlaps(&[rows::TABLE_SHARDS], &[rows::TABLE_LOGS])
                || keys.overlaps(&[rows::TABLE_LOCAL], &[rows::TABLE_LOCAL + 1]);
            let marks_lost = keys.overlaps(&[rows::TABLE_LOST], &[rows::TABLE_LOST + 1]);
            let range =
                if marks_lost { Some((PartitionId(0), PartitionId(u16::MAX))) } else { logs_in(keys) };
            if let Some((first, last)) = range {
                let known = core.lost_ranges.entry(first).or_insert(last);
                *known = last.max(*known);
            }
            let touched = |partition: &PartitionId| {
                keys.overlaps(&rows::partition_key(*partition, &[]), &rows::partition_end(*partition))
            };
            lost.extend(core.logs.keys().copied().filter(touched));
        }
        let unknown = |partition: &PartitionId| !core.logs.contains_key(partition);
        lost.extend(self.partitions.iter().copied().filter(unknown));
        lost.into_iter().for_each(|partition| core.lose(partition));
        incomplete
    }
}

/// First and last partition whose log's row would lie in the range.
fn logs_in(keys: &KeyRange) -> Option<(PartitionId, PartitionId)> {
    if !keys.overlaps(&[rows::TABLE_LOGS], &[rows::TABLE_LOGS + 1]) {
        return None;
    }
    let all = 0..=u16::MAX;
    let at_least = |key: &[u8]| all.clone().find(|&n| rows::log_key(PartitionId(n))[..] >= *key);
    let first = at_least(&keys.from)?;
    let after = keys.to.as_ref().and_then(|to| at_least(to));
    let last = match after {
        Some(after) => after.checked_sub(1)?,
        None => u16::MAX,
    };
    (first <= last).then_some((PartitionId(first), PartitionId(last)))
}
