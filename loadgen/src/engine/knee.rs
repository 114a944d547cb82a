//! The highest rate that is served well: doubled until a limit breaks, then narrowed down by halves of the interval.
//!
//! Every step is an open loop of its own length, so a rate that cannot be served shows as growing latency instead of as
//! fewer requests. A step breaks when p99 or the share of failures is above its limit, or when less than 95 % of the
//! rate was answered.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Engine;
use crate::workload::Phases;

/// Share of the offered operations that has to be answered.
const ANSWERED_SHARE_MIN: f64 = 0.95;
/// The search ends when the rates on both sides of the knee differ by less than this share.
const PRECISION: f64 = 0.05;
const STEPS_MAX: usize = 40;
/// Pause after a step that broke, for the server to work off what is left.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// Fewer operations than this say nothing: a step at a low rate takes longer.
const STEP_OPERATIONS_MIN: f64 = 10.0;
/// The search downwards ends at this part of the first rate.
const LOWEST_PART: f64 = 16.0;

/// What breaks a step.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) p99_ms: f64,
    /// Failed operations of all, 0 to 1.
    pub(crate) error_share: f64,
    pub(crate) step: Duration,
    pub(crate) first_rate: f64,
}

/// One rate that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) rate: f64,
    pub(crate) answered_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) error_share: f64,
    /// Which limit broke; None when all held.
    pub(crate) broke: Option<String>,
}

/// Result of the search.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Knee {
    pub(crate) limits: Limits,
    /// The highest rate at which all limits held; None when even the lowest that was tried broke one.
    pub(crate) rate: Option<f64>,
    pub(crate) steps: Vec<Step>,
}

/// The next rate to try, from the highest that held and the lowest that broke; None when they are close enough.
pub(crate) fn next_rate(first: f64, held: Option<f64>, broke: Option<f64>) -> Option<f64> {
    match (held, broke) {
        (None, None) => Some(first),
        (Some(held), None) => Some(held * 2.0),
        (None, Some(broke)) if broke <= first / LOWEST_PART => None,
        (None, Some(broke)) => Some(broke / 2.0),
        (Some(held), Some(broke)) if broke - held <= held * PRECISION => None,
        (Some(held), Some(broke)) => Some(f64::midpoint(held, broke)),
    }
}

/// Searches, telling `note` about every step.
pub(crate) async fn search(engine: &mut Engine, limits: Limits, mut note: impl FnMut(&Step)) -> Result<Knee> {
    let (mut held, mut broke) = (None, None);
    let mut steps: Vec<Step> = Vec::new();
    while let Some(rate) = next_rate(limits.first_rate, held, broke).filter(|_| steps.len() < STEPS_MAX) {
        let step = try_rate(engine, limits, rate).await?;
        note(&step);
        match step.broke {
            None => held = Some(rate),
            Some(_) => {
                broke = Some(rate);
                tokio::time::sleep(SETTLE_MAX.min(limits.step)).await;
            }
        }
        steps.push(step);
        if engine.shared.stopped_early().is_some() {
            break;
        }
    }
    Ok(Knee { limits, rate: held, steps })
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
async fn try_rate(engine: &mut Engine, limits: Limits, rate: f64) -> Result<Step> {
    let length = limits.step.max(Duration::from_secs_f64(STEP_OPERATIONS_MIN / rate));
    let phases = Phases::steady(false, length);
    let measured = engine.measure(Some(rate), &phases).await?;
    let tally = &measured.tally;
    let (answered, failed) = (tally.all.latency_us.len(), tally.failed_operations);
    let quantile = |q| tally.all.latency_us.value_at_quantile(q) as f64 / 1e3;
    let mut step = Step {
        rate,
        answered_per_second: answered as f64 / measured.elapsed.as_secs_f64().max(length.as_secs_f64()),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        error_share: failed as f64 / ((answered + failed).max(1)) as f64,
        broke: None,
    };
    let offered = (answered + failed) as f64 / length.as_secs_f64();
    step.broke = match () {
        () if answered == 0 => Some("rate".to_owned()),
        () if step.error_share > limits.error_share => Some("errors".to_owned()),
        () if step.p99_ms > limits.p99_ms => Some("p99".to_owned()),
        () if step.answered_per_second < ANSWERED_SHARE_MIN * offered => Some("rate".to_owned()),
        () => None,
    };
    Ok(step)
}

#[cfg(test)]
mod tests {
    use super::next_rate;

    /// Rates tried until the end, and the highest that held, for a server with a knee.
    fn search(first: f64, knee: f64) -> (usize, Option<f64>) {
        let (mut held, mut broke, mut steps) = (None, None, 0);
        while let Some(rate) = next_rate(first, held, broke) {
            steps += 1;
            if rate <= knee { held = Some(rate) } else { broke = Some(rate) }
        }
        (steps, held)
    }

    #[test]
    fn the_knee_is_found_from_both_sides() {
        for first in [60.0, 100.0, 5_000.0] {
            let (steps, held) = search(first, 777.0);
            assert!(held.unwrap() <= 777.0 && held.unwrap() > 777.0 * 0.95, "{held:?}");
            assert!(steps < 20, "{steps}");
        }
        assert_eq!(search(100.0, 0.0).1, None);
    }
}
