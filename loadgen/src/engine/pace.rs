//! When operations begin.
//!
//! Open loop: a thread of its own works through the schedule and hands every operation over when it is due; its waking up
//! is not rounded to the millisecond of an asynchronous timer. An operation that is due while all connections are
//! busy waits in the queue, and its latency counts from when it was due. Closed loop: a worker takes the next number
//! when it is ready, if its own turn has come in a ramp.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, TrySendError};

use crate::trace::Trace;
use crate::workload::dice::Dice;
use crate::workload::{Arrivals, Phases};

/// Operations that may wait for a connection; what is due beyond that is given up.
const BACKLOG_MAX: usize = 1_000_000;
/// Longest sleep without looking whether the run was stopped.
const SLEEP_MAX: Duration = Duration::from_millis(200);

/// One operation of the open loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) number: u64,
    pub(crate) due: Instant,
}

/// The times of an open loop, relative to its start.
pub(crate) enum Schedule {
    Rate {
        rate: f64,
        arrivals: Arrivals,
        phases: Phases,
        dice: Dice,
        work: f64,
    },
    /// The operations of a trace, at a speed.
    Trace {
        trace: Arc<Trace>,
        speed: f64,
        next: usize,
        phases: Phases,
    },
}

impl Schedule {
    pub(crate) fn rate(rate: f64, arrivals: Arrivals, phases: Phases, dice: Dice) -> Self {
        Self::Rate { rate, arrivals, phases, dice, work: 0.0 }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        match self {
            Self::Rate { rate, arrivals, phases, dice, work } => {
                let due = phases.time_of(*work)?;
                let gap = match arrivals {
                    Arrivals::Constant => 1.0,
                    Arrivals::Poisson => dice.exponential(),
                };
                *work += gap / *rate;
                Some(due)
            }
            Self::Trace { trace, speed, next, phases } => {
                let at = Duration::from_micros(trace.operations.get(*next)?.at_us).div_f64(*speed);
                *next += 1;
                (at <= phases.total()).then_some(at)
            }
        }
    }
}

/// Starts the thread that hands out the operations from `first` on, beginning now. It ends with the schedule or the run.
pub(crate) fn start(
    schedule: Schedule,
    first: u64,
    begin: Instant,
    stop: Arc<AtomicBool>,
) -> (Receiver<Ticket>, std::thread::JoinHandle<u64>) {
    let (sender, receiver) = async_channel::bounded(BACKLOG_MAX);
    let thread = std::thread::spawn(move || hand_out(schedule, first, begin, &stop, &sender));
    (receiver, thread)
}

/// Returns how many operations found the queue full.
fn hand_out(
    schedule: Schedule,
    first: u64,
    begin: Instant,
    stop: &AtomicBool,
    sender: &Sender<Ticket>,
) -> u64 {
    let mut given_up = 0;
    for (number, after) in (first..).zip(schedule) {
        let due = begin + after;
        while let Some(wait) = due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
            if stop.load(Ordering::Relaxed) {
                return given_up;
            }
            std::thread::sleep(wait.min(SLEEP_MAX));
        }
        match sender.try_send(Ticket { number, due }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => given_up += 1,
            Err(TrySendError::Closed(_)) => return given_up,
        }
    }
    given_up
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Schedule, start};
    use crate::workload::Arrivals;
    use crate::workload::dice::Dice;

    fn schedule(arrivals: Arrivals, phases: &str) -> Vec<Duration> {
        Schedule::rate(100.0, arrivals, phases.parse().unwrap(), Dice::new(1, 0, 0)).collect()
    }

    #[test]
    fn the_rate_is_that_of_the_phase() {
        let constant = schedule(Arrivals::Constant, "ramp:10s,steady:10s,burst:2s:x3");
        let between =
            |from: u64, to: u64| constant.iter().filter(|at| (from..to).contains(&at.as_secs())).count();
        assert!((498..=502).contains(&between(0, 10)));
        assert!((120..=130).contains(&between(0, 5)), "a ramp begins slowly: {}", between(0, 5));
        assert!((999..=1001).contains(&between(10, 20)));
        assert!((598..=602).contains(&between(20, 22)));
        assert!(constant.is_sorted());
        let poisson = schedule(Arrivals::Poisson, "steady:100s");
        assert!((9_600..10_400).contains(&poisson.len()), "{}", poisson.len());
        // Independent arrivals: the gaps scatter as much as their mean.
        let gaps: Vec<f64> = poisson.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.1);
    }

    #[test]
    fn operations_are_handed_out_when_due_and_not_before() {
        let begin = Instant::now();
        let times =
            Schedule::rate(200.0, Arrivals::Constant, "steady:300ms".parse().unwrap(), Dice::new(1, 0, 0));
        let (tickets, thread) = start(times, 7, begin, Default::default());
        let mut number = 7;
        while let Ok(ticket) = tickets.recv_blocking() {
            assert_eq!(ticket.number, number);
            assert!(Instant::now() >= ticket.due, "never early");
            number += 1;
        }
        assert_eq!((number, thread.join().unwrap()), (67, 0));
        assert!(begin.elapsed() >= Duration::from_millis(290));
    }
}
