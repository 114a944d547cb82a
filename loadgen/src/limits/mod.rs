//! `limits`: what this machine can do without any S3 server, and how close a result comes to it.
//!
//! [`fn@measure`] measures; [`Bounds`] is the result as a file; [`Bounds::judge`] sets the rates of a run against every bound
//! of which it uses something. The largest share names the limiter. Bounds are of one machine: they apply to a
//! server that runs on it, and to the network between the two only over loopback.

mod measure;

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::output::report::RunReport;
use crate::stats::Operation;

pub(crate) use measure::measure;

/// Below this share no bound explains the result.
const SHARE_TELLING: f64 = 0.5;

/// What one machine can do. Rates are per second; absent is what could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    pub(crate) tool: String,
    pub(crate) mode: String,
    pub(crate) cores: u64,
    pub(crate) directory: String,
    /// Whether the file was opened with O_DIRECT; without it the page cache was measured.
    pub(crate) direct: bool,
    pub(crate) write_mib_per_second: f64,
    pub(crate) read_mib_per_second: f64,
    /// 4 KiB at random, each followed by fdatasync, one after the other.
    pub(crate) flushed_writes_per_second: f64,
    pub(crate) flushed_write_p50_ms: f64,
    pub(crate) flushed_write_p99_ms: f64,
    pub(crate) random_reads_4k_per_second: f64,
    /// Copying memory with all cores, bytes copied.
    pub(crate) memory_copy_mib_per_second: f64,
    /// One TCP stream over loopback.
    pub(crate) loopback_mib_per_second: f64,
    pub(crate) loopback_round_trip_us: f64,
    /// Making test content with one core.
    pub(crate) content_mib_per_second: f64,
}

/// How a result stands to the bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bound {
    /// The bound of which most is used.
    pub(crate) limiter: String,
    /// 0 to 1, or above when the bound does not hold for this server (caches, group commit, several devices).
    pub(crate) share: f64,
    /// All shares.
    pub(crate) shares: Vec<(String, f64)>,
    pub(crate) note: String,
}

impl Bounds {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        std::fs::read_to_string(path)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(serde_json::from_str(&text)?))
            .with_context(|| format!("{} is not a result of limits", path.display()))
    }

    /// Sets a result against the bounds.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub(crate) fn judge(&self, report: &RunReport) -> Bound {
        let sum = |wanted: &dyn Fn(Operation) -> bool, of: &dyn Fn(&crate::report::Volume) -> f64| -> f64 {
            report.by_operation.iter().filter(|entry| wanted(*entry.0)).map(|entry| of(entry.1)).sum()
        };
        let writes = sum(&Operation::writes, &|volume| volume.operations_per_second);
        let written = sum(&Operation::writes, &|volume| volume.mib_per_second);
        let read = sum(&|operation| !operation.writes(), &|volume| volume.mib_per_second);
        let mut shares = vec![
            ("device write".to_owned(), written / self.write_mib_per_second),
            ("device read".to_owned(), read / self.read_mib_per_second),
            ("one flush after the other".to_owned(), writes / self.flushed_writes_per_second),
            ("memory copy (each byte once)".to_owned(), (written + read) / self.memory_copy_mib_per_second),
        ];
        if is_loopback(&report.target.endpoint) {
            shares.push(("loopback, one stream".to_owned(), (written + read) / self.loopback_mib_per_second));
        }
        let seconds = report.elapsed_seconds.max(1e-9);
        let client = report.client_cpu_seconds.unwrap_or(0.0);
        shares.push((
            "threads of this client".to_owned(),
            client / seconds / (f64::from(report.threads) * report.clients as f64),
        ));
        if let Some(server) = report.server.as_ref().and_then(|server| server.cpu_seconds) {
            let used = (server + client) / seconds;
            shares.push(("CPU of the machine, client and server".to_owned(), used / self.cores as f64));
        }
        shares.retain(|(_, share)| share.is_finite() && *share > 0.0);
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (limiter, share) = shares.first().cloned().unwrap_or(("nothing measured".to_owned(), 0.0));
        let note = match share {
            share if share > 1.05 => "above the bound: caches, group commit or several devices are at work",
            share if share < SHARE_TELLING => "no measured bound explains it: waiting, or what was asked for",
            _ => "close to the bound",
        };
        Bound { limiter, share, shares, note: note.to_owned() }
    }

    pub(crate) fn table(&self) -> String {
        let kind = if self.direct { "O_DIRECT" } else { "page cache: the file system refuses O_DIRECT" };
        let rows = [
            ("cores", format!("{}", self.cores)),
            ("device write, sequential", format!("{:.0} MiB/s ({kind})", self.write_mib_per_second)),
            ("device read, sequential", format!("{:.0} MiB/s", self.read_mib_per_second)),
            (
                "4 KiB write + fdatasync",
                format!(
                    "{:.0}/s (p50 {:.2} ms, p99 {:.2} ms)",
                    self.flushed_writes_per_second, self.flushed_write_p50_ms, self.flushed_write_p99_ms
                ),
            ),
            ("4 KiB random read", format!("{:.0}/s", self.random_reads_4k_per_second)),
            ("memory copy, all cores", format!("{:.0} MiB/s", self.memory_copy_mib_per_second)),
            ("loopback TCP, one stream", format!("{:.0} MiB/s", self.loopback_mib_per_second)),
            ("loopback round trip", format!("{:.1} us", self.loopback_round_trip_us)),
            ("test content, one core", format!("{:.0} MiB/s", self.content_mib_per_second)),
        ];
        rows.iter().map(|(name, value)| format!("{name:<26} {value}\n")).collect()
    }
}

fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.trim_start_matches("http://");
    ["127.", "localhost", "[::1]"].iter().any(|prefix| host.starts_with(prefix))
}

impl Bound {
    pub(crate) fn lines(&self, line: &mut impl FnMut(String)) {
        line(format!(
            "bound          = {:.0} % of the bound that applies; limiter: {} ({})",
            self.share * 100.0,
            self.limiter,
            self.note
        ));
        let others: Vec<String> = self
            .shares
            .iter()
            .skip(1)
            .map(|(name, share)| format!("{name} {:.0} %", share * 100.0))
            .collect();
        if !others.is_empty() {
            line(format!("               others: {}", others.join(", ")));
        }
    }
}
