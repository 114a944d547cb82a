//! Mean time to data loss of a layout, by simulation.
//!
//! Devices die with rate `lambda` each; a dead one is made anew after a time that is exponential with its mean. Data is lost
//! when more members of a group are dead than it has parity. Loss is too rare to wait for, so two standard means are used:
//!
//! - **Regeneration.** The life of the cluster is a row of cycles that begin with all devices alive. So
//!   `MTTDL = E[length of a cycle] / P(a cycle ends in loss)`, and a trial is one cycle.
//! - **Failure biasing.** While something is dead, the next event is a death with probability 1/2 instead of its own, tiny
//!   one, and the trial is weighted by the quotient of the two. The estimate stays unbiased; the weights bring the right size back.
//!
//! The tests hold this against the closed form of one group, and against plain simulation where loss is frequent.
//! Repair takes no notice of how many other members are dead; really, groups with the least redundancy come first: the true
//! time is longer than the one that is told.

use super::Layout;

/// Seconds of a year.
pub const YEAR_S: f64 = 365.25 * 86400.0;
/// Half of the deaths are drawn while something is dead.
const BIAS: f64 = 0.5;

/// How much is simulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trials {
    /// Cycles.
    pub count: u64,
    /// Equal seeds give equal results.
    pub seed: u64,
}

/// The result.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Loss {
    /// Mean time to data loss, years; infinite if no trial lost anything.
    pub mttdl_years: f64,
    /// Ends of the 95 % confidence interval of that.
    pub mttdl_years_low: f64,
    /// The upper end; infinite if the interval of the probability reaches zero.
    pub mttdl_years_high: f64,
    /// Probability to lose anything in a year.
    pub annual_probability: f64,
    /// Trials made, and how many of them ended in a (weighted) loss.
    pub trials: u64,
    /// Those that did.
    pub losses: u64,
    /// Beside it: the closed form of one group alone, over the number of groups. It counts a double death once for each group
    /// that it touches, so it is at most the true value, about equal to it where few groups share more than m devices.
    pub groups_apart_years: f64,
}

/// Closed form for one group of `n` devices of which `m` may be dead: with each death at rate `lambda` and each repair at rate
/// `mu` (per second), the seconds until m+1 are dead. The mean time from `i` dead to `i + 1` is
/// `h(i) = 1/a(i) + b(i)/a(i) h(i-1)` with `a(i) = (n - i) lambda`, `b(i) = i mu`.
pub fn mttdl_of_group_s(n: usize, m: usize, lambda: f64, mu: f64) -> f64 {
    assert!(m < n, "a group has data shards");
    let mut step = 0.0;
    let mut sum = 0.0;
    for dead in 0..=m {
        let deaths = (n - dead) as f64 * lambda;
        step = (1.0 + dead as f64 * mu * step) / deaths;
        sum += step;
    }
    sum
}

/// Splitmix64: small, seeded, good enough to draw events.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[expect(clippy::cast_possible_truncation, reason = "the product is below the count")]
    fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f64) as usize).min(count - 1)
    }
}

/// One cycle: its weighted length in seconds, and the weight of the loss it ended in, 0 for none.
fn cycle(layout: &Layout, lambda: f64, bias: Option<f64>, random: &mut Random) -> (f64, f64) {
    let count = layout.repair_s.len();
    let mut dead: Vec<usize> = Vec::new();
    let (mut weight, mut length) = (1.0, 0.0);
    loop {
        let deaths = (count - dead.len()) as f64 * lambda;
        let repairs: f64 = dead.iter().map(|device| 1.0 / layout.repair_s[*device]).sum();
        length += weight / (deaths + repairs);
        let likely = deaths / (deaths + repairs);
        let drawn = if dead.is_empty() { 1.0 } else { bias.map_or(likely, |bias| bias.max(likely)) };
        if random.unit() >= drawn {
            weight *= (1.0 - likely) / (1.0 - drawn);
            let mut at = random.unit() * repairs;
            let ended = dead.iter().position(|device| {
                at -= 1.0 / layout.repair_s[*device];
                at < 0.0
            });
            dead.swap_remove(ended.unwrap_or(dead.len() - 1));
            if dead.is_empty() {
                return (length, 0.0);
            }
            continue;
        }
        weight *= likely / drawn;
        let device = loop {
            let device = random.below(count);
            if !dead.contains(&device) {
                break device;
            }
        };
        dead.push(device);
        let is_lost = |group: &usize| {
            let (members, parity) = &layout.groups[*group];
            members.iter().filter(|member| dead.contains(member)).count() > *parity
        };
        if layout.of_device[device].iter().any(is_lost) {
            return (length, weight);
        }
    }
}

/// Estimates the loss of a layout whose devices die at rate `lambda` per second.
pub(crate) fn estimate(layout: &Layout, lambda: f64, trials: Trials) -> Loss {
    simulate(layout, lambda, trials, Some(BIAS))
}

/// The same; without a bias: plain simulation.
pub(super) fn simulate(layout: &Layout, lambda: f64, trials: Trials, bias: Option<f64>) -> Loss {
    let mut random = Random(trials.seed);
    let (mut lengths, mut sum, mut squares, mut losses) = (0.0, 0.0, 0.0, 0_u64);
    for _ in 0..trials.count {
        let (length, weight) = cycle(layout, lambda, bias, &mut random);
        lengths += length;
        sum += weight;
        squares += weight * weight;
        losses += u64::from(weight > 0.0);
    }
    let n = trials.count.max(1) as f64;
    let (length, probability) = (lengths / n, sum / n);
    let deviation = ((squares / n - probability * probability).max(0.0) / n).sqrt();
    // Nothing seen: the rule of three for weights of at most one.
    let half = if losses == 0 { 3.0 / n } else { 1.96 * deviation };
    let years = |probability: f64| {
        if probability > 0.0 { length / probability / YEAR_S } else { f64::INFINITY }
    };
    let mttdl_years = years(probability);
    let mean_repair_s = layout.repair_s.iter().sum::<f64>() / layout.repair_s.len().max(1) as f64;
    let rate: f64 = layout
        .groups
        .iter()
        .map(|(members, parity)| 1.0 / mttdl_of_group_s(members.len(), *parity, lambda, 1.0 / mean_repair_s))
        .sum();
    Loss {
        mttdl_years,
        mttdl_years_low: years(probability + half),
        mttdl_years_high: years(probability - half),
        annual_probability: -(-1.0 / mttdl_years).exp_m1(),
        trials: trials.count,
        losses,
        groups_apart_years: 1.0 / rate / YEAR_S,
    }
}
