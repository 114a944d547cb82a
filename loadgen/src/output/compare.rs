//! Two results side by side: ratios, and every setting in which they differ, because then a ratio says less.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::report::RunReport;
use crate::report::Volume;

/// One number of both results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) base: f64,
    pub(crate) other: f64,
    /// other / base; None when the base is 0.
    pub(crate) ratio: Option<f64>,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
}

/// A comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) rows: Vec<Row>,
    /// Settings that differ: name, base, other.
    pub(crate) differences: Vec<(String, String, String)>,
    /// Why the results may not be compared at all.
    pub(crate) warnings: Vec<String>,
}

/// Reads a result of `run --out`.
pub(crate) fn load(path: &Path) -> Result<RunReport> {
    std::fs::read_to_string(path)
        .map_err(anyhow::Error::from)
        .and_then(|text| Ok(serde_json::from_str(&text)?))
        .with_context(|| format!("{} is not a result of run", path.display()))
}

pub(crate) fn compare(base: &RunReport, other: &RunReport) -> Comparison {
    let mut rows = volume("all", &base.volume, &other.volume);
    for (operation, volume_of_base) in &base.by_operation {
        if let Some(volume_of_other) = other.by_operation.get(operation)
            && base.by_operation.len() > 1
        {
            rows.extend(volume(operation.name(), volume_of_base, volume_of_other));
        }
    }
    let server = |report: &RunReport| report.server.clone();
    if let (Some(base), Some(other)) = (server(base), server(other)) {
        let pairs = [
            ("server CPU s/GiB", base.cpu_seconds_per_gib, other.cpu_seconds_per_gib),
            (
                "server CPU s/1,000 op.",
                base.cpu_seconds_per_1000_operations,
                other.cpu_seconds_per_1000_operations,
            ),
        ];
        let both = pairs.into_iter().filter_map(|(name, base, other)| Some((name, base?, other?)));
        rows.extend(both.map(|(name, base, other)| row(name.to_owned(), base, other, false)));
    }
    if let (Some(base), Some(other)) = (base.client_cpu_us_per_operation, other.client_cpu_us_per_operation) {
        rows.push(row("client CPU us/op.".to_owned(), base, other, false));
    }
    let knees = [base, other].map(|report| report.knee.as_ref().and_then(|knee| knee.rate));
    if let [Some(base), Some(other)] = knees {
        rows.push(row("knee /s".to_owned(), base, other, true));
    }
    Comparison { rows, differences: differences(base, other), warnings: warnings(base, other) }
}

fn row(name: String, base: f64, other: f64, more_is_better: bool) -> Row {
    Row { name, base, other, ratio: (base != 0.0).then(|| other / base), more_is_better }
}

fn volume(name: &str, base: &Volume, other: &Volume) -> Vec<Row> {
    let (l, m) = (&base.latency_ms, &other.latency_ms);
    let mut rows =
        vec![row(format!("{name} ops/s"), base.operations_per_second, other.operations_per_second, true)];
    if base.bytes + other.bytes > 0 {
        rows.push(row(format!("{name} MiB/s"), base.mib_per_second, other.mib_per_second, true));
    }
    let quantiles = [("p50", l.p50, m.p50), ("p99", l.p99, m.p99), ("p99.9", l.p999, m.p999)];
    rows.extend(
        quantiles.map(|(quantile, base, other)| row(format!("{name} {quantile} ms"), base, other, false)),
    );
    rows
}

/// One setting of a result.
type Field = fn(&RunReport) -> String;

/// What was asked for and is not the same. Where to is expected to differ.
fn differences(base: &RunReport, other: &RunReport) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let mut differ = |name: &str, base: String, other: String| {
        if base != other {
            found.push((name.to_owned(), base, other));
        }
    };
    let settings = |report: &RunReport| serde_json::to_value(&report.workload).unwrap_or_default();
    let (settings_of_base, settings_of_other) = (settings(base), settings(other));
    for (name, value) in settings_of_base.as_object().into_iter().flatten() {
        let text = |value: Option<&serde_json::Value>| match value {
            None | Some(serde_json::Value::Null) => "none".to_owned(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        differ(name, text(Some(value)), text(settings_of_other.get(name)));
    }
    let report_fields: [(&str, Field); 9] = [
        ("loop", |r| r.control_loop.clone()),
        ("seed", |r| r.seed.to_string()),
        ("verify", |r| r.verify.to_string()),
        ("retries", |r| r.retries.to_string()),
        ("clients", |r| r.clients.to_string()),
        ("threads", |r| r.threads.to_string()),
        ("checksums", |r| r.target.checksums.clone()),
        ("tls", |r| r.target.tls.clone()),
        ("tool version", |r| r.tool_version.clone()),
    ];
    for (name, field) in report_fields {
        differ(name, field(base), field(other));
    }
    let profile = |r: &RunReport| r.target.profile.clone().unwrap_or_else(|| "unknown".to_owned());
    differ("profile", profile(base), profile(other));
    found
}

fn warnings(base: &RunReport, other: &RunReport) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, report) in [("the first", base), ("the second", other)] {
        let mut warn = |wrong: bool, text: String| {
            if wrong {
                warnings.push(format!("{name} result {text}"));
            }
        };
        warn(report.client_saturated, "was limited by its client".to_owned());
        warn(report.stopped_early.is_some(), "stopped early".to_owned());
        warn(report.failed_operations > 0, format!("has {} failed operations", report.failed_operations));
        warn(report.mismatches_total > 0, format!("has {} wrong contents", report.mismatches_total));
    }
    warnings
}

impl Comparison {
    pub(crate) fn table(&self) -> String {
        let mut out = format!("{:<26} {:>12} {:>12} {:>8}\n", "", "first", "second", "ratio");
        for Row { name, base, other, ratio, more_is_better } in &self.rows {
            let verdict = match ratio {
                Some(ratio) if (0.98..=1.02).contains(ratio) => "",
                Some(ratio) if (*ratio > 1.0) == *more_is_better => "  better",
                Some(_) => "  worse",
                None => "",
            };
            let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x"));
            writeln!(out, "{name:<26} {base:>12.3} {other:>12.3} {ratio:>8}{verdict}")
                .expect("writing to a string");
        }
        if !self.differences.is_empty() {
            out.push_str("NOTE: the settings differ, so the ratios are not of the servers alone:\n");
            for (name, base, other) in &self.differences {
                writeln!(out, "  {name}: {base} | {other}").expect("writing to a string");
            }
        }
        self.warnings.iter().for_each(|warning| {
            writeln!(out, "WARNING: {warning}").expect("writing to a string");
        });
        out
    }
}
