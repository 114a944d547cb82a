//! What was moved between tiers, by what asked for it.

use std::sync::atomic::{AtomicU64, Ordering};

use quarry_clustermap::Tier;
use quarry_meter::page::Page;
use quarry_object::tier::Moved;

use super::families;

/// What asked for a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moves {
    /// A lifecycle rule.
    Transition,
    /// The class of the version, which it had before.
    Class,
    /// The automatic policy.
    Policy,
}

const REASONS: [(Moves, &str); 3] =
    [(Moves::Transition, "transition"), (Moves::Class, "class"), (Moves::Policy, "policy")];
const TARGETS: [(Option<Tier>, &str); 3] =
    [(Some(Tier::Hot), "hot"), (Some(Tier::Cold), "cold"), (None, "same")];

#[derive(Default)]
struct Count {
    versions: AtomicU64,
    bytes: AtomicU64,
}

/// By reason and target.
#[derive(Default)]
pub(super) struct MoveCounts([[Count; TARGETS.len()]; REASONS.len()]);

impl MoveCounts {
    pub(super) fn add(&self, why: Moves, tier: Option<Tier>, moved: Moved) {
        let reason = REASONS.iter().position(|(reason, _)| *reason == why).expect("all are listed");
        let target = TARGETS.iter().position(|(target, _)| *target == tier).expect("all are listed");
        let count = &self.0[reason][target];
        count.versions.fetch_add(1, Ordering::Relaxed);
        count.bytes.fetch_add(moved.bytes, Ordering::Relaxed);
    }

    pub(super) fn collect(&self, page: &mut Page) {
        for ((_, reason), targets) in REASONS.iter().zip(&self.0) {
            for ((_, tier), count) in TARGETS.iter().zip(targets) {
                let labels = [("reason", *reason), ("tier", *tier)];
                page.count(&families::TIER_MOVES, &labels, count.versions.load(Ordering::Relaxed));
                page.count(&families::TIER_BYTES, &labels, count.bytes.load(Ordering::Relaxed));
            }
        }
    }
}
