//! Blocks that are not handed out again, because the medium failed to read them.
//!
//! A quarantined block that somebody uses stays his; what of it is given back is idle from then on: neither free
//! nor in use. The persisted image knows nothing of it (idle blocks are free there), so replay needs no exception;
//! the list is kept beside it, and taken up after replay.

use std::collections::BTreeMap;

use super::{BlockIndex, Extent, FreeMap};

/// Disjoint runs of blocks that do not touch: start -> end.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub(super) struct Runs(BTreeMap<u64, u64>);

impl Runs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn blocks(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Adds `from..to`, which may overlap what is there.
    fn insert(&mut self, from: u64, to: u64) {
        let (mut from, mut to) = (from, to);
        while let Some((&start, &end)) = self.0.range(..=to).next_back().filter(|(_, end)| **end >= from) {
            self.0.remove(&start);
            (from, to) = (from.min(start), to.max(end));
        }
        self.0.insert(from, to);
    }

    /// What of `from..to` is there.
    pub(super) fn within(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let before = self.0.range(..from).next_back().map(|(start, end)| (*start, *end));
        let rest = self.0.range(from..to).map(|(start, end)| (*start, *end));
        let cut = before.into_iter().chain(rest).map(|(start, end)| (start.max(from), end.min(to)));
        cut.filter(|(start, end)| start < end).collect()
    }

    fn extents(&self) -> Vec<Extent> {
        self.0.iter().flat_map(|(&start, &end)| split(start, end)).collect()
    }
}

/// `from..to` as extents, whose lengths have 32 bits.
fn split(from: u64, to: u64) -> impl Iterator<Item = Extent> {
    let step = u64::from(u32::MAX);
    let starts = (from..to).step_by(usize::try_from(step).expect("64-bit addresses"));
    starts.map(move |start| Extent {
        start: BlockIndex(start),
        blocks: u32::try_from((to - start).min(step)).expect("cut to 32 bits"),
    })
}

impl FreeMap {
    /// Keeps an extent from being handed out from now on, whoever has it now; what lies outside the area is ignored.
    pub fn quarantine(&mut self, extent: Extent) {
        let end = extent.start.0.saturating_add(extent.blocks.into()).min(self.area.end);
        let start = extent.start.0.max(self.area.start);
        if start >= end {
            return;
        }
        self.quarantined.insert(start, end);
        let before = self.runs.range(..start).next_back().map(|(&start, &len)| (start, len));
        let rest = self.runs.range(start..end).map(|(&start, &len)| (start, len));
        let free: Vec<_> = before.into_iter().chain(rest).collect();
        for (run, len) in free {
            self.make_idle(run.max(start), (run + len).min(end));
        }
    }

    /// Takes what is quarantined out of `from..to`, which has just become free.
    pub(super) fn withhold(&mut self, from: u64, to: u64) {
        for (start, end) in self.quarantined.within(from, to) {
            self.make_idle(start, end);
        }
    }

    fn make_idle(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        for extent in split(from, to) {
            self.reserve_exact(extent).expect("the caller found it free");
        }
        self.idle.insert(from, to);
    }

    /// The map without its quarantine: what is idle is free. This is what is persisted.
    #[must_use]
    pub fn without_quarantine(mut self) -> Self {
        self.quarantined = Runs::default();
        for extent in std::mem::take(&mut self.idle).extents() {
            self.free(extent);
        }
        self
    }

    /// Everything in quarantine, in order, whether somebody still uses it or not.
    pub fn quarantined(&self) -> Vec<Extent> {
        self.quarantined.extents()
    }

    /// What of the quarantine nobody uses, in order.
    pub fn idle(&self) -> Vec<Extent> {
        self.idle.extents()
    }

    /// Number of blocks in quarantine.
    pub fn quarantined_blocks(&self) -> u64 {
        self.quarantined.blocks()
    }
}
