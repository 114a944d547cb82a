//! Which versions move between tiers: pure, like the planner of maps.
//!
//! Promoted is what was read often lately; demoted what was not read for longest and least, when the hot tier is above
//! its high watermark (down to the low one), or when something that is read twice as often needs the room.
//!
//! Invariants of every plan (properties in the tests):
//! - no version moves within its cool-down, and none stands in a plan twice;
//! - carried out in its order, a plan never brings the hot tier above its high watermark, or higher than it was;
//! - it moves at most as many bytes as it was allowed to.

use quarry_clustermap::{Tier, TierPolicy};

/// A version that could move.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate<T> {
    /// Whatever names it.
    pub id: T,
    /// Where it lies.
    pub tier: Tier,
    /// Its bytes.
    pub size_bytes: u64,
    /// Decayed.
    pub reads_per_hour: f64,
    /// When it was read or written last, as far as anybody knows; Unix milliseconds.
    pub used_ms: u64,
    /// When it was moved last; Unix milliseconds.
    pub moved_ms: Option<u64>,
}

/// The part of the hot tier that a plan is made for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fill {
    /// Device bytes.
    pub capacity_bytes: u64,
    /// Device bytes.
    pub used_bytes: u64,
    /// Device bytes for each byte of a version: (k+m)/k.
    pub overhead: f64,
}

/// A version and where it goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TierMove<T> {
    /// Of the candidate.
    pub id: T,
    /// Where it goes.
    pub to: Tier,
    /// Its bytes.
    pub size_bytes: u64,
}

/// How much more often something must be read than what makes room for it.
const ROOM_FACTOR: f64 = 2.0;

struct Planning<T> {
    fill: Fill,
    used_bytes: f64,
    bytes_left: u64,
    moves: Vec<TierMove<T>>,
}

impl<T: Clone> Planning<T> {
    fn percent(&self, percent: u8) -> f64 {
        bytes(self.fill.capacity_bytes) * f64::from(percent) / 100.0
    }

    fn needs(&self, candidate: &Candidate<T>) -> f64 {
        bytes(candidate.size_bytes) * self.fill.overhead
    }

    /// False: the plan may move no more.
    fn add(&mut self, candidate: &Candidate<T>, to: Tier) -> bool {
        let Some(left) = self.bytes_left.checked_sub(candidate.size_bytes) else { return false };
        self.bytes_left = left;
        let needs = self.needs(candidate);
        self.used_bytes += if to == Tier::Hot { needs } else { -needs };
        self.moves.push(TierMove { id: candidate.id.clone(), to, size_bytes: candidate.size_bytes });
        true
    }
}

#[allow(clippy::cast_precision_loss, reason = "watermarks are percents")]
fn bytes(value: u64) -> f64 {
    value as f64
}

/// Makes a plan of at most `bytes_max` bytes; the order of its moves counts. A policy that is off is planned as if it were
/// on: whether to act is the caller's.
#[must_use]
pub fn plan_tiers<T: Clone + Ord>(
    candidates: &[Candidate<T>],
    policy: &TierPolicy,
    fill: Fill,
    bytes_max: u64,
    now_ms: u64,
) -> Vec<TierMove<T>> {
    let rested = |candidate: &&Candidate<T>| {
        let since = candidate.moved_ms.map(|moved_ms| now_ms.saturating_sub(moved_ms));
        candidate.size_bytes >= policy.size_bytes_min
            && since.is_none_or(|since_ms| since_ms >= policy.cool_down_s.saturating_mul(1000))
    };
    let idle = |candidate: &&Candidate<T>| {
        now_ms.saturating_sub(candidate.used_ms) >= policy.idle_s.saturating_mul(1000)
    };
    let of_tier = |tier| candidates.iter().filter(move |candidate| candidate.tier == tier).filter(rested);
    let mut victims: Vec<&Candidate<T>> = of_tier(Tier::Hot).filter(idle).collect();
    victims.sort_by(|a, b| {
        let rates = a.reads_per_hour.total_cmp(&b.reads_per_hour);
        rates.then(a.used_ms.cmp(&b.used_ms)).then_with(|| a.id.cmp(&b.id))
    });
    let often = f64::from(policy.promote_reads_per_hour);
    let mut wanted: Vec<&Candidate<T>> =
        of_tier(Tier::Cold).filter(|candidate| candidate.reads_per_hour >= often).collect();
    wanted.sort_by(|a, b| b.reads_per_hour.total_cmp(&a.reads_per_hour).then_with(|| a.id.cmp(&b.id)));

    let used_bytes = bytes(fill.used_bytes);
    let mut plan = Planning { fill, used_bytes, bytes_left: bytes_max, moves: Vec::new() };
    let (high, low) = (plan.percent(policy.high_percent), plan.percent(policy.low_percent));
    let mut victims = victims.into_iter().peekable();
    if plan.used_bytes > high {
        while plan.used_bytes > low {
            let Some(victim) = victims.next() else { break };
            if !plan.add(victim, Tier::Cold) {
                return plan.moves;
            }
        }
    }
    for candidate in wanted {
        let room = |plan: &Planning<T>| plan.used_bytes + plan.needs(candidate) <= high;
        while !room(&plan) {
            let less =
                |victim: &&Candidate<T>| victim.reads_per_hour * ROOM_FACTOR <= candidate.reads_per_hour;
            let Some(victim) = victims.next_if(less) else { break };
            if !plan.add(victim, Tier::Cold) {
                return plan.moves;
            }
        }
        if room(&plan) && !plan.add(candidate, Tier::Hot) {
            break;
        }
    }
    plan.moves
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const NOW_MS: u64 = 1_000 * HOUR_MS;

    fn policy() -> TierPolicy {
        TierPolicy { size_bytes_min: 10, idle_s: 3600, cool_down_s: 7200, ..TierPolicy::default() }
    }

    fn candidate(id: u32, tier: Tier, reads_per_hour: f64) -> Candidate<u32> {
        Candidate { id, tier, size_bytes: 100, reads_per_hour, used_ms: NOW_MS - 2 * HOUR_MS, moved_ms: None }
    }

    fn fill(used_bytes: u64) -> Fill {
        Fill { capacity_bytes: 1500, used_bytes, overhead: 1.5 }
    }

    fn moves(candidates: &[Candidate<u32>], used_bytes: u64) -> Vec<(u32, Tier)> {
        let plan = plan_tiers(candidates, &policy(), fill(used_bytes), u64::MAX, NOW_MS);
        plan.into_iter().map(|one| (one.id, one.to)).collect()
    }

    #[test]
    fn above_the_high_watermark_the_least_read_goes_down_to_the_low_one() {
        let hot: Vec<_> = (0_u32..8).map(|id| candidate(id, Tier::Hot, f64::from(8 - id))).collect();
        assert_eq!(moves(&hot, 1200), [], "80 percent is not above 80 percent");
        let demoted = moves(&hot, 1300);
        // 1300 - 2 * 150 is the first that is not above 1050.
        assert_eq!(demoted, [(7, Tier::Cold), (6, Tier::Cold)]);
    }

    #[test]
    fn what_is_read_often_comes_back_and_takes_the_room_of_what_is_not() {
        let cold = [candidate(1, Tier::Cold, 5.0), candidate(2, Tier::Cold, 3.9)];
        assert_eq!(moves(&cold, 0), [(1, Tier::Hot)], "4 reads an hour are often");
        let all = [cold[0].clone(), candidate(3, Tier::Hot, 2.5), candidate(4, Tier::Hot, 2.6)];
        assert_eq!(moves(&all, 1190), [(3, Tier::Cold), (1, Tier::Hot)]);
        let busy = [cold[0].clone(), candidate(4, Tier::Hot, 2.6)];
        assert_eq!(moves(&busy, 1190), [], "no room, and nothing that is read half as often");
        let recent = Candidate { used_ms: NOW_MS - HOUR_MS + 1, ..candidate(3, Tier::Hot, 0.0) };
        assert_eq!(moves(&[cold[0].clone(), recent], 1190), [], "it was read within the hour");
    }

    #[test]
    fn nothing_moves_in_its_cool_down_and_small_versions_never() {
        let moved = Candidate { moved_ms: Some(NOW_MS - 7_199_999), ..candidate(1, Tier::Cold, 9.0) };
        assert_eq!(moves(std::slice::from_ref(&moved), 0), []);
        let rested = Candidate { moved_ms: Some(NOW_MS - 7_200_000), ..moved };
        assert_eq!(moves(&[rested], 0), [(1, Tier::Hot)]);
        assert_eq!(moves(&[Candidate { size_bytes: 9, ..candidate(1, Tier::Cold, 9.0) }], 0), []);
    }

    fn any_candidate(id: u32) -> impl Strategy<Value = Candidate<u32>> {
        let moved = prop::option::of(NOW_MS - 4 * HOUR_MS..NOW_MS);
        (any::<bool>(), 0_u64..400, 0.0..20.0_f64, NOW_MS - 4 * HOUR_MS..NOW_MS, moved).prop_map(
            move |(is_hot, size_bytes, reads_per_hour, used_ms, moved_ms)| Candidate {
                id,
                tier: if is_hot { Tier::Hot } else { Tier::Cold },
                size_bytes,
                reads_per_hour,
                used_ms,
                moved_ms,
            },
        )
    }

    fn all() -> impl Strategy<Value = Vec<Candidate<u32>>> {
        (0_u32..40).prop_flat_map(|count| (0..count).map(any_candidate).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn plans_keep_what_they_promise(candidates in all(), used_bytes in 0_u64..1500, bytes_max in 0_u64..6000) {
            let (policy, fill) = (policy(), fill(used_bytes));
            let plan = plan_tiers(&candidates, &policy, fill, bytes_max, NOW_MS);
            prop_assert_eq!(&plan, &plan_tiers(&candidates, &policy, fill, bytes_max, NOW_MS));
            let ids: BTreeSet<u32> = plan.iter().map(|one| one.id).collect();
            prop_assert_eq!(ids.len(), plan.len());
            prop_assert!(plan.iter().map(|one| one.size_bytes).sum::<u64>() <= bytes_max);
            let (mut used, high) = (used_bytes as f64, 1200.0);
            let limit = used.max(high);
            for one in &plan {
                let candidate = &candidates[one.id as usize];
                prop_assert!(candidate.tier != one.to && candidate.size_bytes >= 10);
                prop_assert!(candidate.moved_ms.is_none_or(|moved_ms| NOW_MS - moved_ms >= 2 * HOUR_MS));
                let needs = candidate.size_bytes as f64 * 1.5;
                if one.to == Tier::Hot {
                    prop_assert!(candidate.reads_per_hour >= 4.0);
                    used += needs;
                    prop_assert!(used <= limit.min(high) + 1e-6, "{} is promoted beyond the watermark", one.id);
                } else {
                    prop_assert!(NOW_MS - candidate.used_ms >= HOUR_MS);
                    used -= needs;
                }
            }
        }
    }
}
