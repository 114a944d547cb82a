//! The result: one JSON object with stable field names, or the same as a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::expect::Mismatch;
use crate::process::FoundBy;
use crate::stats::{Operation, Stats, Timed};

pub(crate) const MIB: f64 = 1_048_576.0;
pub(crate) const GIB: f64 = 1_073_741_824.0;
/// Above this share of its threads' time the client itself may be what is measured.
pub(crate) const CLIENT_BUSY_SHARE: f64 = 0.9;

/// Result of a load run.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) tool: &'static str,
    pub(crate) tool_version: &'static str,
    pub(crate) mode: &'static str,
    /// `closed`: each worker waits for an answer before its next request.
    #[serde(rename = "loop")]
    pub(crate) control_loop: &'static str,
    #[serde(flatten)]
    pub(crate) workload: Workload,
    #[serde(flatten)]
    pub(crate) volume: Volume,
    pub(crate) elapsed_seconds: f64,
    pub(crate) by_operation: BTreeMap<Operation, Volume>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) errors_total: u64,
    pub(crate) failed_operations: u64,
    pub(crate) retries: u64,
    pub(crate) mismatches_total: u64,
    pub(crate) mismatches: Vec<Mismatch>,
    pub(crate) longest_gap_seconds: f64,
    pub(crate) client_cpu_seconds: Option<f64>,
    pub(crate) client_saturated: bool,
    pub(crate) server: Option<ServerUsage>,
    pub(crate) stopped_early: Option<String>,
}

/// What was asked for.
#[derive(Serialize)]
pub(crate) struct Workload {
    pub(crate) endpoint: String,
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    /// None when objects were taken as they are.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) part_bytes: Option<u64>,
    pub(crate) objects: u64,
    pub(crate) concurrency: usize,
    pub(crate) threads: u8,
    pub(crate) duration_seconds: f64,
    pub(crate) payload: &'static str,
    pub(crate) verify: &'static str,
    pub(crate) seed: u64,
    pub(crate) first_version: u64,
}

/// Successful operations.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) operations_per_second: f64,
    pub(crate) mib_per_second: f64,
    pub(crate) latency_ms: Latency,
}

/// Quantiles of the latency of successful operations, with all their attempts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    #[serde(default)]
    pub(crate) p9999: f64,
    pub(crate) max: f64,
}

/// What the server's processes used in the measured phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServerUsage {
    pub(crate) pids: Vec<u32>,
    pub(crate) names: Vec<String>,
    pub(crate) found_by: FoundBy,
    /// None when a process ended during the run.
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) cpu_seconds_per_gib: Option<f64>,
    pub(crate) cpu_seconds_per_1000_operations: Option<f64>,
    /// High-water mark since the process started, not only of this run.
    pub(crate) peak_rss_bytes: Option<u64>,
}

impl Volume {
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub(crate) fn new(timed: &Timed, elapsed: Duration) -> Self {
        let operations = timed.latency_us.len();
        let seconds = elapsed.as_secs_f64().max(1e-9);
        Self {
            operations,
            bytes: timed.bytes,
            operations_per_second: operations as f64 / seconds,
            mib_per_second: timed.bytes as f64 / MIB / seconds,
            latency_ms: Latency::new(&timed.latency_us),
        }
    }
}

impl Latency {
    #[allow(clippy::cast_precision_loss, reason = "at most an hour in microseconds")]
    pub(crate) fn new(histogram: &Histogram<u64>) -> Self {
        let quantile = |q| histogram.value_at_quantile(q) as f64 / 1e3;
        Self {
            mean: histogram.mean() / 1e3,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            p9999: quantile(0.9999),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

impl ServerUsage {
    pub(crate) fn new(
        pids: Vec<u32>,
        names: Vec<String>,
        found_by: FoundBy,
        cpu_seconds: Option<f64>,
        peak_rss_bytes: Option<u64>,
        all: &Timed,
    ) -> Self {
        Self::of(pids, names, found_by, cpu_seconds, peak_rss_bytes, all.bytes, all.latency_us.len())
    }

    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub(crate) fn of(
        pids: Vec<u32>,
        names: Vec<String>,
        found_by: FoundBy,
        cpu_seconds: Option<f64>,
        peak_rss_bytes: Option<u64>,
        bytes: u64,
        operations: u64,
    ) -> Self {
        let per = |count: f64| cpu_seconds.filter(|_| count > 0.0).map(|seconds| seconds / count);
        Self {
            pids,
            names,
            found_by,
            cpu_seconds,
            cpu_seconds_per_gib: per(bytes as f64 / GIB),
            cpu_seconds_per_1000_operations: per(operations as f64 / 1000.0),
            peak_rss_bytes,
        }
    }
}

impl Report {
    pub(crate) fn new(
        mode: &'static str,
        workload: Workload,
        stats: Stats,
        elapsed: Duration,
        client_cpu_seconds: Option<f64>,
        server: Option<ServerUsage>,
        stopped_early: Option<String>,
    ) -> Self {
        let budget = elapsed.as_secs_f64() * f64::from(workload.threads);
        let by_operation =
            stats.by_operation.iter().map(|(name, timed)| (*name, Volume::new(timed, elapsed))).collect();
        Self {
            tool: "quarry-loadgen",
            tool_version: env!("CARGO_PKG_VERSION"),
            mode,
            control_loop: "closed",
            workload,
            volume: Volume::new(&stats.all, elapsed),
            elapsed_seconds: elapsed.as_secs_f64(),
            by_operation,
            errors_total: stats.errors.values().sum(),
            errors: stats.errors,
            failed_operations: stats.failed_operations,
            retries: stats.retries,
            mismatches_total: stats.mismatches_total,
            mismatches: stats.mismatches,
            longest_gap_seconds: stats.longest_gap.as_secs_f64(),
            client_cpu_seconds,
            client_saturated: client_cpu_seconds.is_some_and(|cpu| cpu > CLIENT_BUSY_SHARE * budget),
            server,
            stopped_early,
        }
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let w = &self.workload;
        let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string");
        line(format!(
            "{} of {} objects ({}), {} workers, closed loop, {}/{}, payload {}, verify {}",
            self.mode,
            w.objects,
            w.size_bytes.map_or("any size".to_owned(), |bytes| format!("{bytes} B")),
            w.concurrency,
            w.endpoint,
            w.bucket,
            w.payload,
            w.verify
        ));
        line(format!("elapsed        {:.2} s", self.elapsed_seconds));
        line(format!(
            "{:<10} {:>10} {:>11} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "operations", "ops/s", "MiB/s", "p50 ms", "p90", "p99", "p99.9", "max"
        ));
        for (operation, volume) in &self.by_operation {
            line(volume.row(&format!("{operation:?}").to_lowercase()));
        }
        line(self.volume.row("all"));
        line(format!(
            "errors         {} (failed operations {}, retries {}, longest gap {:.2} s)",
            self.errors_total, self.failed_operations, self.retries, self.longest_gap_seconds
        ));
        for (kind, count) in &self.errors {
            line(format!("  {count:>8} x {kind}"));
        }
        line(format!("wrong content  {}", self.mismatches_total));
        for mismatch in &self.mismatches {
            line(format!("  {}", mismatch_line(mismatch)));
        }
        line(format!("client CPU     {} s", number(self.client_cpu_seconds)));
        if self.client_saturated {
            line(
                "WARNING: the client used all its threads: it may be what was measured (see --threads)"
                    .into(),
            );
        }
        match &self.server {
            Some(server) => server.lines(&mut line),
            None => line("server CPU     unknown: not on this machine, or give --server-pid".into()),
        }
        if let Some(reason) = &self.stopped_early {
            line(format!("STOPPED EARLY: {reason}"));
        }
        out
    }
}

impl Volume {
    fn row(&self, name: &str) -> String {
        let latency = &self.latency_ms;
        format!(
            "{name:<10} {:>10} {:>11.1} {:>11.1} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
            self.operations,
            self.operations_per_second,
            self.mib_per_second,
            latency.p50,
            latency.p90,
            latency.p99,
            latency.p999,
            latency.max
        )
    }
}

impl ServerUsage {
    pub(crate) fn lines(&self, line: &mut impl FnMut(String)) {
        let how = match self.found_by {
            FoundBy::ServerPidFlag => "given by --server-pid",
            FoundBy::ListeningPort => "found by the listening port",
            FoundBy::Metrics => "by its metrics",
        };
        line(format!(
            "server CPU     {} s; {} s per GiB; {} s per 1,000 operations ({} {:?}, {how})",
            number(self.cpu_seconds),
            number(self.cpu_seconds_per_gib),
            number(self.cpu_seconds_per_1000_operations),
            self.names.join(" "),
            self.pids
        ));
        let peak = self.peak_rss_bytes.map_or("unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        line(format!("server peak    {peak} resident, since its start"));
    }
}

/// One mismatch in words.
pub(crate) fn mismatch_line(mismatch: &Mismatch) -> String {
    let Mismatch { key, offset_bytes, expected, found } = mismatch;
    format!("{key} at byte {offset_bytes}: expected {expected}, found {found}")
}

pub(crate) fn number(value: Option<f64>) -> String {
    value.map_or("unknown".to_owned(), |value| format!("{value:.3}"))
}
