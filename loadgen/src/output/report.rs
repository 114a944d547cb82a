//! The result of `run`: one JSON object with stable field names, or the same as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::audit::AuditReport;
use crate::client::unix_seconds;
use crate::engine::knee::Knee;
use crate::engine::tally::{PhaseTally, Second, Tally, pairs};
use crate::engine::{Measured, Spec};
use crate::expect::Mismatch;
use crate::limits::Bound;
use crate::observe::Observed;
use crate::report::{CLIENT_BUSY_SHARE, Latency, MIB, ServerUsage, Volume, mismatch_line, number};
use crate::stats::{Operation, Timed};
use crate::workload::{Workload, show_bytes};

/// Result of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunReport {
    pub(crate) tool: String,
    pub(crate) tool_version: String,
    pub(crate) mode: String,
    /// `open`, `closed` or `replay`.
    #[serde(rename = "loop")]
    pub(crate) control_loop: String,
    pub(crate) finished_unix_seconds: u64,
    pub(crate) target: TargetInfo,
    pub(crate) workload: Workload,
    /// Operations per second that were offered; None in the closed loop.
    pub(crate) offered_per_second: Option<f64>,
    pub(crate) seed: u64,
    pub(crate) first_version: u64,
    pub(crate) verify: bool,
    pub(crate) retries: u32,
    pub(crate) threads: u8,
    pub(crate) clients: u64,
    pub(crate) elapsed_seconds: f64,
    /// Steady phases and bursts, with what they took to complete: what rates are over.
    pub(crate) measured_seconds: f64,
    #[serde(flatten)]
    pub(crate) volume: Volume,
    pub(crate) by_operation: BTreeMap<Operation, Volume>,
    pub(crate) phases: Vec<PhaseReport>,
    /// From the first request instead of the intended start: what a closed loop would have said.
    pub(crate) service_ms: Latency,
    /// From the intended start to the first request: waiting for a connection of the client.
    pub(crate) start_delay_ms: Latency,
    /// Microseconds and counts of all latencies.
    pub(crate) latency_us_counts: Vec<(u64, u64)>,
    /// Bodies transferred, by the power of two above their size.
    pub(crate) sizes: BTreeMap<u64, u64>,
    pub(crate) series: Vec<SecondReport>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) errors_total: u64,
    pub(crate) failed_operations: u64,
    /// Of those, never begun within the drain time.
    pub(crate) abandoned_operations: u64,
    pub(crate) retries_total: u64,
    pub(crate) mismatches_total: u64,
    pub(crate) mismatches: Vec<Mismatch>,
    pub(crate) client_cpu_seconds: Option<f64>,
    pub(crate) client_cpu_us_per_operation: Option<f64>,
    pub(crate) client_saturated: bool,
    pub(crate) server: Option<ServerUsage>,
    pub(crate) server_flushes: Option<f64>,
    pub(crate) knee: Option<Knee>,
    pub(crate) audit: Option<AuditSummary>,
    pub(crate) bound: Option<Bound>,
    pub(crate) stopped_early: Option<String>,
}

/// What could be found out about the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TargetInfo {
    pub(crate) endpoint: String,
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    /// Server header.
    pub(crate) server: Option<String>,
    /// Erasure profile, by Quarry's cluster map.
    pub(crate) profile: Option<String>,
    /// What is known about when a write is acknowledged.
    pub(crate) durability: String,
    pub(crate) tls: String,
    pub(crate) checksums: String,
}

/// One phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PhaseReport {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    /// Whether it is part of the totals.
    pub(crate) counted: bool,
    pub(crate) operations: u64,
    pub(crate) failed_operations: u64,
    pub(crate) operations_per_second: f64,
    pub(crate) mib_per_second: f64,
    pub(crate) latency_ms: Latency,
}

/// One second, by when operations ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct SecondReport {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

/// Result of the audit after the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AuditSummary {
    pub(crate) acknowledged_writes: u64,
    pub(crate) keys: u64,
    pub(crate) right: u64,
    pub(crate) lost: u64,
    pub(crate) wrong: u64,
    pub(crate) unreadable: u64,
    pub(crate) problems: Vec<Mismatch>,
}

impl AuditSummary {
    pub(crate) fn new(report: &AuditReport) -> Self {
        Self {
            acknowledged_writes: report.acknowledged_writes,
            keys: report.keys,
            right: report.right,
            lost: report.lost,
            wrong: report.wrong,
            unreadable: report.unreadable,
            problems: report.problems.clone(),
        }
    }
}

/// What is known about a run besides its counts.
pub(crate) struct Context<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) clients: u64,
    pub(crate) rate: Option<f64>,
    pub(crate) server_name: Option<String>,
    pub(crate) observed: Observed,
    pub(crate) knee: Option<Knee>,
    pub(crate) audit: Option<AuditSummary>,
}

impl RunReport {
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub(crate) fn new(context: Context<'_>, measured: Measured) -> Self {
        let Context { spec, clients, rate, server_name, observed, knee, audit } = context;
        let Measured { tally, elapsed, client_cpu_seconds, stopped_early } = measured;
        let seconds = measured_seconds(&tally, elapsed.as_secs_f64());
        let span = std::time::Duration::from_secs_f64(seconds);
        let operations = tally.all.latency_us.len();
        let everything: u64 = tally.phases.iter().map(|phase| phase.latency_us.len()).sum();
        let budget = elapsed.as_secs_f64() * f64::from(spec.threads) * clients as f64;
        let server = server_usage(&observed, &tally, everything);
        let target = target_info(spec, server_name, &observed, &tally);
        Self {
            tool: "quarry-loadgen".to_owned(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: "run".to_owned(),
            control_loop: match (&spec.trace, rate) {
                (Some(_), _) => "replay",
                (None, Some(_)) => "open",
                (None, None) => "closed",
            }
            .to_owned(),
            finished_unix_seconds: unix_seconds(),
            target,
            workload: spec.workload.clone(),
            offered_per_second: rate,
            seed: spec.seed,
            first_version: spec.first_version,
            verify: spec.verify,
            retries: spec.retries,
            threads: spec.threads,
            clients,
            elapsed_seconds: elapsed.as_secs_f64(),
            measured_seconds: seconds,
            volume: Volume::new(&tally.all, span),
            by_operation: volumes(&tally.by_operation, span),
            phases: tally
                .phases
                .iter()
                .zip(&tally.counted)
                .map(|(phase, counted)| phase_report(phase, *counted))
                .collect(),
            service_ms: Latency::new(&tally.service_us),
            start_delay_ms: Latency::new(&tally.delay_us),
            latency_us_counts: pairs::of(&tally.all.latency_us),
            sizes: tally.sizes,
            series: tally.series.iter().map(second_report).collect(),
            errors_total: tally.errors.values().sum(),
            errors: tally.errors,
            failed_operations: tally.failed_operations,
            abandoned_operations: tally.abandoned_operations,
            retries_total: tally.retries,
            mismatches_total: tally.mismatches_total,
            mismatches: tally.mismatches,
            client_cpu_seconds,
            client_cpu_us_per_operation: client_cpu_seconds
                .filter(|_| operations > 0)
                .map(|seconds| seconds * 1e6 / everything as f64),
            client_saturated: client_cpu_seconds.is_some_and(|cpu| cpu > CLIENT_BUSY_SHARE * budget),
            server,
            server_flushes: observed.flushes,
            knee,
            audit,
            bound: None,
            stopped_early,
        }
    }
}

/// The time that rates are over: everything but ramps.
fn measured_seconds(tally: &Tally, elapsed: f64) -> f64 {
    let planned: f64 = tally.phases.iter().map(|phase| phase.seconds).sum();
    (tally.counted_seconds() + (elapsed - planned)).max(1e-3)
}

fn volumes(timed: &BTreeMap<Operation, Timed>, span: std::time::Duration) -> BTreeMap<Operation, Volume> {
    timed.iter().map(|(operation, timed)| (*operation, Volume::new(timed, span))).collect()
}

/// CPU time is of the whole run, so it is set against all operations, those of ramps too.
fn server_usage(observed: &Observed, tally: &Tally, operations: u64) -> Option<ServerUsage> {
    let found_by = observed.found_by?;
    let bytes = tally.phases.iter().map(|phase| phase.bytes).sum();
    let (pids, names) = (observed.pids.clone(), observed.names.clone());
    Some(ServerUsage::of(
        pids,
        names,
        found_by,
        observed.cpu_seconds,
        observed.peak_rss_bytes,
        bytes,
        operations,
    ))
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn target_info(spec: &Spec, server: Option<String>, observed: &Observed, tally: &Tally) -> TargetInfo {
    let durability = match observed.flushes {
        Some(flushes) if tally.changes > 0 => format!(
            "{flushes:.0} flushes of all devices together for {} writes and deletions ({:.2} each)",
            tally.changes,
            flushes / tally.changes as f64
        ),
        _ => {
            "unknown: S3 does not say when a write is acknowledged (see --metrics-url, --journal)".to_owned()
        }
    };
    let payload = if spec.sign_payload { "SHA-256 of the body in the signature" } else { "unsigned payload" };
    TargetInfo {
        endpoint: format!("http://{}", spec.endpoint.authority),
        bucket: spec.bucket.clone(),
        prefix: spec.prefix.clone(),
        server,
        profile: observed.profile.clone(),
        durability,
        tls: "none".to_owned(),
        checksums: format!("{payload}; no further checksum headers"),
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn phase_report(phase: &PhaseTally, counted: bool) -> PhaseReport {
    let operations = phase.latency_us.len();
    PhaseReport {
        name: phase.name.clone(),
        seconds: phase.seconds,
        counted,
        operations,
        failed_operations: phase.failed,
        operations_per_second: operations as f64 / phase.seconds,
        mib_per_second: phase.bytes as f64 / MIB / phase.seconds,
        latency_ms: Latency::new(&phase.latency_us),
    }
}

#[allow(clippy::cast_precision_loss, reason = "latencies are below an hour")]
fn second_report(second: &Second) -> SecondReport {
    let histogram: Histogram<u64> = pairs::into(&second.latency_us);
    let quantile = |q| histogram.value_at_quantile(q) as f64 / 1e3;
    SecondReport {
        operations: second.operations,
        bytes: second.bytes,
        errors: second.errors,
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        max_ms: histogram.max() as f64 / 1e3,
    }
}

impl RunReport {
    /// One line that says what was run.
    pub(crate) fn headline(&self) -> String {
        let w = &self.workload;
        let preset = w.preset.map_or(String::new(), |preset| {
            let name = serde_json::to_value(preset).ok().and_then(|name| name.as_str().map(str::to_owned));
            format!("{} ", name.unwrap_or_default())
        });
        let pace = match self.offered_per_second {
            Some(rate) => format!("open loop at {rate:.1}/s, at most {} in flight", w.concurrency),
            None if self.control_loop == "replay" => "replay of a trace".to_owned(),
            None => format!("closed loop of {} workers", w.concurrency),
        };
        let clients = if self.clients > 1 { format!(", {} clients", self.clients) } else { String::new() };
        format!("{preset}{} of {}, {} objects, {}; {pace}{clients}", w.mix, w.size, w.objects, w.popularity)
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string");
        let target = &self.target;
        line(self.headline());
        line(format!(
            "target         {}/{}{} ({}), profile {}, TLS {}, {}",
            target.endpoint,
            target.bucket,
            if target.prefix.is_empty() { String::new() } else { format!("/{}", target.prefix) },
            target.server.as_deref().unwrap_or("unnamed server"),
            target.profile.as_deref().unwrap_or("unknown"),
            target.tls,
            target.checksums
        ));
        line(format!("durability     {}", target.durability));
        if let Some(knee) = &self.knee {
            line(format!(
                "knee           {} (p99 at most {} ms, errors at most {} %; {} steps of {} s)",
                knee.rate.map_or("none".to_owned(), |rate| format!("{rate:.1} operations/s")),
                knee.limits.p99_ms,
                knee.limits.error_share * 100.0,
                knee.steps.len(),
                knee.limits.step.as_secs_f64()
            ));
        }
        line(format!(
            "elapsed        {:.2} s, of which measured {:.2} s",
            self.elapsed_seconds, self.measured_seconds
        ));
        self.latency_lines(&mut line);
        self.outcome_lines(&mut line);
        out
    }

    fn latency_lines(&self, line: &mut impl FnMut(String)) {
        line(format!(
            "{:<12} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "operations", "ops/s", "MiB/s", "p50 ms", "p90", "p99", "p99.9", "p99.99", "max"
        ));
        let row = |name: &str, operations: u64, rate: f64, mib: f64, l: &Latency| {
            format!(
                "{name:<12} {operations:>10} {rate:>10.1} {mib:>9.1} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
                l.p50, l.p90, l.p99, l.p999, l.p9999, l.max
            )
        };
        let volume = |name: &str, v: &Volume| {
            row(name, v.operations, v.operations_per_second, v.mib_per_second, &v.latency_ms)
        };
        for (operation, timed) in &self.by_operation {
            line(volume(operation.name(), timed));
        }
        line(volume("all", &self.volume));
        if self.phases.len() > 1 {
            for (index, phase) in self.phases.iter().enumerate() {
                let name = format!("{} {}{}", index + 1, phase.name, if phase.counted { "" } else { "*" });
                let (rate, mib) = (phase.operations_per_second, phase.mib_per_second);
                line(row(&name, phase.operations, rate, mib, &phase.latency_ms));
            }
            line("             (* not part of the totals)".to_owned());
        }
        if self.control_loop == "closed" {
            line("latency        from when a worker was ready: what a slow answer kept it from sending is not in it".into());
        } else {
            line(format!(
                "latency        from the intended start; from the first request p99 {:.2} ms, p99.9 {:.2} ms; waiting for \
                 a free connection p99 {:.2} ms",
                self.service_ms.p99, self.service_ms.p999, self.start_delay_ms.p99
            ));
        }
    }

    fn outcome_lines(&self, line: &mut impl FnMut(String)) {
        line(format!(
            "errors         {} (failed operations {}, of these never begun {}; retries {})",
            self.errors_total, self.failed_operations, self.abandoned_operations, self.retries_total
        ));
        for (kind, count) in &self.errors {
            line(format!("  {count:>8} x {kind}"));
        }
        line(format!("wrong content  {}", self.mismatches_total));
        for mismatch in &self.mismatches {
            line(format!("  {}", mismatch_line(mismatch)));
        }
        if let Some(audit) = &self.audit {
            line(format!(
                "audit          {} acknowledged writes to {} keys: {} right, {} lost, {} wrong, {} unreadable",
                audit.acknowledged_writes, audit.keys, audit.right, audit.lost, audit.wrong, audit.unreadable
            ));
            audit.problems.iter().for_each(|problem| line(format!("  {}", mismatch_line(problem))));
        }
        line(format!(
            "client CPU     {} s; {} us per operation",
            number(self.client_cpu_seconds),
            number(self.client_cpu_us_per_operation)
        ));
        if self.client_saturated {
            line(
                "WARNING: the client used all its threads: it may be what was measured (see --threads)"
                    .into(),
            );
        }
        match &self.server {
            Some(server) => server.lines(line),
            None => line("server CPU     unknown: not on this machine, or give --server-pid".into()),
        }
        if let Some(bound) = &self.bound {
            bound.lines(line);
        }
        if let Some(reason) = &self.stopped_early {
            line(format!("STOPPED EARLY: {reason}"));
        }
    }

    /// Names and counts of the size histogram.
    pub(crate) fn size_bars(&self) -> Vec<(String, u64)> {
        self.sizes.iter().map(|(size, count)| (format!("≤{}", show_bytes(*size)), *count)).collect()
    }
}
