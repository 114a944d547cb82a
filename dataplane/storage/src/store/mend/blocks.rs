//! Who uses which blocks after mending.

use std::ops::Range;

use crate::extent::{BlockIndex, Extent, FreeMap};

/// See the [module](self).
pub(super) struct Blocks {
    /// What nobody uses.
    pub(super) free: FreeMap,
    /// What only the old state uses.
    pub(super) retired: Vec<Extent>,
}

impl Blocks {
    pub(super) fn of(
        area: Range<BlockIndex>,
        shards: Vec<Extent>,
        tree: Vec<Extent>,
        old: &[Extent],
    ) -> Self {
        let mut used = shards;
        used.extend(tree);
        let later = FreeMap::without(area.clone(), &mut used);
        used.extend_from_slice(old);
        let free = FreeMap::without(area, &mut used);
        let retired = difference(&later, &free);
        Self { free, retired }
    }
}

/// What is free in `map` and not in `part`, all of whose free blocks are free in `map` too.
fn difference(map: &FreeMap, part: &FreeMap) -> Vec<Extent> {
    let mut found = Vec::new();
    let mut push = |mut from: u64, to: u64| {
        while from < to {
            let blocks = u32::try_from(to - from).unwrap_or(u32::MAX);
            found.push(Extent { start: BlockIndex(from), blocks });
            from += u64::from(blocks);
        }
    };
    let mut parts = part.runs().peekable();
    for (BlockIndex(start), blocks) in map.runs() {
        let (mut from, end) = (start, start + blocks);
        while let Some((BlockIndex(inner), blocks)) = parts.next_if(|(inner, _)| inner.0 < end) {
            push(from, inner);
            from = inner + blocks;
        }
        push(from, end);
    }
    found
}
