//! shards -> extents: everything in use and the free map are disjoint and cover the data area. Pure.

use std::{fmt, ops::Range};

use quarry_storage::extent::Extent;

use super::report::{Class, Findings};

/// What an extent is used for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Purpose {
    Shard,
    IndexPage,
    IndexValue,
    FreeMap,
    /// The medium failed to read it, and nobody uses it.
    Quarantine,
}

/// An extent in use: 16 bytes each, for one device at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Used {
    pub(super) extent: Extent,
    pub(super) purpose: Purpose,
}

const _: () = assert!(size_of::<Used>() <= 24);

/// A run of blocks, either in use or free.
struct Run {
    start: u64,
    end: u64,
    used: Option<Purpose>,
}

struct Blocks(u64, u64);

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {} to {}", self.0, self.1 - 1)
    }
}

/// Judges one device, called `name`. `whole`: everything in use is known, so what nobody claims has leaked.
pub(super) fn judge(
    name: &str,
    area: Range<u64>,
    used: impl IntoIterator<Item = Used>,
    free: impl IntoIterator<Item = (u64, u64)>,
    whole: bool,
    findings: &mut Findings,
) {
    let used = used.into_iter().map(|Used { extent, purpose }| Run {
        start: extent.start.0,
        end: extent.end().0,
        used: Some(purpose),
    });
    let free = free.into_iter().map(|(start, blocks)| Run { start, end: start + blocks, used: None });
    let mut runs: Vec<Run> = used.chain(free).collect();
    runs.sort_unstable_by_key(|run| (run.start, run.end));
    let (mut used_to, mut free_to) = (area.start, area.start);
    for Run { start, end, used } in runs {
        let covered_to = used_to.max(free_to);
        if whole && start > covered_to && covered_to < area.end {
            findings
                .add(Class::LeakedExtent, || format!("{name}: {}", Blocks(covered_to, start.min(area.end))));
        }
        let overlap = |to: u64| Blocks(start, end.min(to));
        match used {
            Some(purpose) => {
                if start < area.start || end > area.end {
                    let what =
                        || format!("{name}: {} ({purpose:?}) outside the data area", Blocks(start, end));
                    findings.add(Class::DoubleUsedExtent, what);
                } else if start < used_to {
                    findings.add(Class::DoubleUsedExtent, || {
                        format!("{name}: {} ({purpose:?})", overlap(used_to))
                    });
                }
                if start < free_to && end > area.start {
                    findings.add(Class::FreeButUsedExtent, || {
                        format!("{name}: {} ({purpose:?})", overlap(free_to))
                    });
                }
                used_to = used_to.max(end);
            }
            None => {
                if start < used_to {
                    findings.add(Class::FreeButUsedExtent, || format!("{name}: {}", overlap(used_to)));
                }
                free_to = free_to.max(end);
            }
        }
    }
    let covered_to = used_to.max(free_to);
    if whole && covered_to < area.end {
        findings.add(Class::LeakedExtent, || format!("{name}: {}", Blocks(covered_to, area.end)));
    }
}

#[cfg(test)]
mod tests {
    use quarry_storage::extent::BlockIndex;

    use super::*;

    fn used(start: u64, blocks: u32) -> Used {
        Used { extent: Extent { start: BlockIndex(start), blocks }, purpose: Purpose::Shard }
    }

    fn judged(used: &[Used], free: &[(u64, u64)], whole: bool) -> Vec<(Class, u64)> {
        let mut findings = Findings::default();
        judge("dev", 10..100, used.iter().copied(), free.iter().copied(), whole, &mut findings);
        findings.counts()
    }

    #[test]
    fn exact_cover_is_clean_in_any_order() {
        assert_eq!(judged(&[used(90, 10), used(10, 5)], &[(15, 75)], true), []);
        assert_eq!(judged(&[], &[(10, 90)], true), []);
    }

    #[test]
    fn each_planted_fault_has_its_class() {
        let leaked = vec![(Class::LeakedExtent, 1)];
        assert_eq!(judged(&[used(11, 5)], &[(16, 84)], true), leaked, "at the start");
        assert_eq!(judged(&[used(10, 5)], &[(16, 84)], true), leaked, "in the middle");
        assert_eq!(judged(&[used(10, 5)], &[(15, 84)], true), leaked, "at the end");
        assert_eq!(judged(&[], &[], true), leaked, "everything");
        assert_eq!(judged(&[used(10, 5)], &[(16, 84)], false), [], "unknown use is no leak");
        assert_eq!(judged(&[used(10, 5), used(14, 6)], &[(20, 80)], true), [(Class::DoubleUsedExtent, 1)]);
        assert_eq!(judged(&[used(10, 5), used(10, 5)], &[(15, 85)], true), [(Class::DoubleUsedExtent, 1)]);
        assert_eq!(judged(&[used(2, 5)], &[(10, 90)], true), [(Class::DoubleUsedExtent, 1)], "outside");
        let free_but_used = vec![(Class::FreeButUsedExtent, 1)];
        assert_eq!(judged(&[used(10, 5)], &[(10, 90)], true), free_but_used);
        assert_eq!(judged(&[used(10, 5)], &[(14, 86)], true), free_but_used);
        assert_eq!(judged(&[used(40, 5)], &[(10, 90)], true), free_but_used);
    }
}
