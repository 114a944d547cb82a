//! Progress on stderr: a few lines that are drawn over on a terminal, else one line each second.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::{Engine, Shared};
use crate::report::MIB;
use crate::workload::Phases;

const TICK: Duration = Duration::from_millis(250);
/// Seconds in the picture of the throughput.
const HISTORY: usize = 50;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A view that ends when it is dropped. It runs on a thread of its own, so that a busy client still shows something.
pub(crate) struct View {
    end: Arc<AtomicBool>,
    measuring: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is shown.
struct Snapshot {
    elapsed: f64,
    total: f64,
    phase: String,
    in_flight: u64,
    operations: u64,
    failed: u64,
    wrong: u64,
    /// Operations of each whole second, and MiB of the last one.
    rates: Vec<u64>,
    mib: f64,
    /// p50, p99 and largest latency of the newest second, in ms.
    latency: [f64; 3],
    errors: Vec<(String, u64)>,
}

impl View {
    pub(crate) fn start(engine: &Engine) -> Self {
        let (shared, phases) = (Arc::clone(&engine.shared), engine.spec.workload.phases.clone());
        let (end, measuring) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let flags = (Arc::clone(&end), Arc::clone(&measuring));
        let thread = std::thread::spawn(move || show(&shared, &phases, &flags.0, &flags.1));
        Self { end, measuring, thread: Some(thread) }
    }

    /// The measured phases begin.
    pub(crate) fn measuring(&self) {
        self.measuring.store(true, Ordering::Relaxed);
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A view that failed has shown less; the result is what counts.
            let _ = thread.join();
        }
    }
}

fn show(shared: &Shared, phases: &Phases, end: &AtomicBool, measuring: &AtomicBool) {
    let terminal = std::io::stderr().is_terminal();
    let objects = shared.workload.objects;
    let (mut drawn, mut last_line) = (0, Instant::now());
    while !end.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
        let due = terminal || last_line.elapsed() >= Duration::from_secs(1);
        if !due || end.load(Ordering::Relaxed) {
            continue;
        }
        last_line = Instant::now();
        if measuring.load(Ordering::Relaxed) {
            let now = snapshot(shared, phases);
            match terminal {
                true => drawn = draw(&now.lines(), drawn),
                false => eprintln!("{}", now.line()),
            }
        } else if phases.prepare && shared.prepared() < objects {
            let text = format!("preparing {} of {objects} objects", shared.prepared());
            match terminal {
                true => drawn = draw(&[text], drawn),
                false => eprintln!("{text}"),
            }
        } else if drawn > 0 {
            drawn = draw(&[], drawn);
        }
    }
    if drawn > 0 {
        draw(&[], drawn);
    }
}

/// Draws over the last picture of `before` lines; returns how many lines there are now.
fn draw(lines: &[String], before: usize) -> usize {
    let mut text = String::new();
    if before > 0 {
        write!(text, "\x1b[{before}A\r\x1b[J").expect("writing to a string");
    }
    lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
    // A terminal that is gone takes no picture.
    let _ = std::io::stderr().write_all(text.as_bytes());
    lines.len()
}

#[allow(clippy::cast_precision_loss, reason = "for the eye")]
fn snapshot(shared: &Shared, phases: &Phases) -> Snapshot {
    let elapsed = shared.since_begin(Instant::now());
    let (phase, factor) = phases.at(elapsed);
    let tally = shared.tally();
    let (newest, latencies) = tally.newest_second();
    let whole = tally.series.len().saturating_sub(1);
    let rates = tally.series[whole.saturating_sub(HISTORY)..whole].iter().map(|second| second.operations);
    let bytes = tally.series[..whole].last().map_or(newest.bytes, |second| second.bytes);
    let quantile = |q| latencies.value_at_quantile(q) as f64 / 1e3;
    let mut errors: Vec<_> = tally.errors.iter().map(|(kind, count)| (kind.clone(), *count)).collect();
    errors.sort_by_key(|error| std::cmp::Reverse(error.1));
    errors.truncate(3);
    Snapshot {
        elapsed: elapsed.as_secs_f64(),
        total: phases.total().as_secs_f64(),
        phase: format!("{} x{factor:.2}", phases.measured[phase].name()),
        in_flight: shared.in_flight(),
        operations: tally.series.iter().map(|second| second.operations).sum(),
        failed: tally.failed_operations,
        wrong: tally.mismatches_total,
        rates: rates.collect(),
        mib: bytes as f64 / MIB,
        latency: [quantile(0.5), quantile(0.99), latencies.max() as f64 / 1e3],
        errors,
    }
}

impl Snapshot {
    fn line(&self) -> String {
        let [p50, p99, max] = self.latency;
        format!(
            "{:>6.1}/{:.0} s {}: {} ops/s, {:.1} MiB/s, p50 {p50:.2} p99 {p99:.2} max {max:.2} ms, {} in flight, \
             {} failed, {} wrong",
            self.elapsed,
            self.total,
            self.phase,
            self.rates.last().unwrap_or(&self.operations),
            self.mib,
            self.in_flight,
            self.failed,
            self.wrong
        )
    }

    #[allow(clippy::cast_possible_truncation, reason = "clamped")]
    #[allow(clippy::cast_sign_loss, reason = "clamped")]
    fn lines(&self) -> Vec<String> {
        const WIDTH: usize = 40;
        let share = (self.elapsed / self.total).clamp(0.0, 1.0);
        let full = (share * WIDTH as f64) as usize;
        let [p50, p99, max] = self.latency;
        let errors: Vec<String> =
            self.errors.iter().map(|(kind, count)| format!("{count} x {kind}")).collect();
        vec![
            format!(
                "[{}{}] {:>5.1} of {:.0} s  {}",
                "#".repeat(full),
                "-".repeat(WIDTH - full),
                self.elapsed,
                self.total,
                self.phase
            ),
            format!(
                "{:>8} ops/s  {:>8.1} MiB/s  {:>6} in flight  {} operations",
                self.rates.last().unwrap_or(&0),
                self.mib,
                self.in_flight,
                self.operations
            ),
            format!("latency p50 {p50:.2}  p99 {p99:.2}  max {max:.2} ms (this second)"),
            spark(&self.rates),
            format!("{} failed, {} wrong content  {}", self.failed, self.wrong, errors.join(", ")),
        ]
    }
}

/// A row of bars, the highest for the largest value.
fn spark(values: &[u64]) -> String {
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let top = BARS.len() as u64 - 1;
    values.iter().map(|value| BARS[usize::try_from(value * top / most).unwrap_or(0)]).collect()
}

#[cfg(test)]
mod tests {
    use super::{Snapshot, spark};

    #[test]
    fn pictures_fit() {
        assert_eq!(spark(&[0, 1, 50, 100]), "▁▁▄█");
        assert_eq!(spark(&[]), "");
        let now = Snapshot {
            elapsed: 99.0,
            total: 10.0,
            phase: "steady x1.00".into(),
            in_flight: 3,
            operations: 12,
            failed: 1,
            wrong: 0,
            rates: vec![5, 7],
            mib: 1.5,
            latency: [1.0, 2.0, 3.0],
            errors: vec![("timeout".into(), 1)],
        };
        assert!(now.lines()[0].starts_with(&format!("[{}]", "#".repeat(40))));
        assert!(now.line().contains("7 ops/s") && now.lines()[4].contains("1 x timeout"));
    }
}
