//! The result as one HTML page that needs nothing else: styles and plots are within it, there is no script.

use super::plot::{Axis, Curve, bars, curves, escape, show};
use super::report::{RunReport, SecondReport};
use crate::report::{Latency, MIB, mismatch_line, number};

const STYLE: &str = include_str!("page.css");

/// The page.
pub(crate) fn page(report: &RunReport) -> String {
    let title = format!("quarry-loadgen: {}", report.headline());
    let sections = [
        summary(report),
        section("Operations", operations(report)),
        section("Latency", latency_plot(report)),
        section("Throughput by second", throughput_plot(report)),
        section("Latency by second", seconds_plot(report)),
        section("Failed attempts by second", errors(report)),
        section("Sizes of bodies", sizes(report)),
        knee(report),
        wrong(report),
        section("Settings", settings(report)),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>{}</title><style>{STYLE}</style></head><body><main><h1>{}</h1>{}</main></body></html>\n",
        escape(&title),
        escape(&report.headline()),
        sections.concat()
    )
}

fn section(title: &str, body: String) -> String {
    if body.is_empty() { body } else { format!("<section><h2>{}</h2>{body}</section>", escape(title)) }
}

fn summary(report: &RunReport) -> String {
    let target = &report.target;
    let tile = |name: &str, value: String, unit: &str| {
        format!(
            "<div class=\"tile\"><b>{}</b><i>{}</i><span>{}</span></div>",
            escape(&value),
            escape(unit),
            escape(name)
        )
    };
    let all = &report.volume;
    let server = report.server.as_ref();
    let tiles = [
        tile("operations", show(all.operations_per_second), "/s"),
        tile("throughput", show(all.mib_per_second), "MiB/s"),
        tile("p50", show(all.latency_ms.p50), "ms"),
        tile("p99", show(all.latency_ms.p99), "ms"),
        tile("p99.9", show(all.latency_ms.p999), "ms"),
        tile("failed", report.failed_operations.to_string(), "operations"),
        tile("wrong", report.mismatches_total.to_string(), "contents"),
        tile("server CPU", number(server.and_then(|s| s.cpu_seconds_per_gib)), "s/GiB"),
        tile("server CPU", number(server.and_then(|s| s.cpu_seconds_per_1000_operations)), "s/1,000 op."),
    ];
    let mut notes = vec![format!(
        "{}/{} ({}), profile {}, TLS {}, {}. Durability: {}.",
        target.endpoint,
        target.bucket,
        target.server.as_deref().unwrap_or("unnamed server"),
        target.profile.as_deref().unwrap_or("unknown"),
        target.tls,
        target.checksums,
        target.durability
    )];
    notes.push(match report.control_loop.as_str() {
        "closed" => {
            "Closed loop: a slow server is asked less often, and pauses hide in the latency.".to_owned()
        }
        _ => "Open loop: latency counts from the intended start, so waiting for a slow server is part of it."
            .to_owned(),
    });
    if let Some(bound) = &report.bound {
        notes.push(format!(
            "= {:.0} % of the bound that applies; limiter: {} ({}).",
            bound.share * 100.0,
            bound.limiter,
            bound.note
        ));
    }
    if report.client_saturated {
        notes.push("Warning: the client used all its threads; it may be what was measured.".to_owned());
    }
    if let Some(reason) = &report.stopped_early {
        notes.push(format!("Stopped early: {reason}."));
    }
    let notes: String = notes.iter().map(|note| format!("<p>{}</p>", escape(note))).collect();
    format!("<div class=\"tiles\">{}</div>{notes}", tiles.concat())
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
        cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let body: String = rows
        .iter()
        .map(|row| format!("<tr>{}</tr>", cells("td", &mut row.iter().map(String::as_str))))
        .collect();
    let head = cells("th", &mut head.iter().copied());
    format!("<div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")
}

fn operations(report: &RunReport) -> String {
    let row = |name: String, operations: u64, rate: f64, mib: f64, l: &Latency| -> Vec<String> {
        let mut row = vec![name, operations.to_string(), show(rate), show(mib)];
        row.extend([l.mean, l.p50, l.p90, l.p99, l.p999, l.p9999, l.max].map(|ms| format!("{ms:.2}")));
        row
    };
    let mut rows: Vec<Vec<String>> = report
        .by_operation
        .iter()
        .map(|(operation, v)| {
            let name = operation.name().to_owned();
            row(name, v.operations, v.operations_per_second, v.mib_per_second, &v.latency_ms)
        })
        .collect();
    let all = &report.volume;
    rows.push(row(
        "all".into(),
        all.operations,
        all.operations_per_second,
        all.mib_per_second,
        &all.latency_ms,
    ));
    for (index, phase) in report.phases.iter().enumerate().filter(|_| report.phases.len() > 1) {
        let note = if phase.counted { "" } else { " (not in the totals)" };
        let name = format!("phase {}: {}{note}", index + 1, phase.name);
        let (rate, mib) = (phase.operations_per_second, phase.mib_per_second);
        rows.push(row(name, phase.operations, rate, mib, &phase.latency_ms));
    }
    let head = ["", "operations", "per s", "MiB/s", "mean ms", "p50", "p90", "p99", "p99.9", "p99.99", "max"];
    table(&head, &rows)
}

/// Latency against the share of operations that are slower, both logarithmic.
#[allow(clippy::cast_precision_loss, reason = "counts and latencies are far below 2^53")]
fn latency_plot(report: &RunReport) -> String {
    let total: u64 = report.latency_us_counts.iter().map(|entry| entry.1).sum();
    if total == 0 {
        return String::new();
    }
    let mut below = 0;
    let mut points = Vec::new();
    for (value_us, count) in &report.latency_us_counts {
        // Every value stands where it begins: at 0 the fastest, at the right end the slowest.
        points.push((-((total - below) as f64 / total as f64).log10(), *value_us as f64 / 1e3));
        below += count;
    }
    let last = points.last().map_or(0.0, |point| point.0).ceil().max(1.0);
    let mut marks = vec![(0.0, "fastest".to_owned()), (0.301, "p50".to_owned())];
    let names = ["p90", "p99", "p99.9", "p99.99", "p99.999"];
    marks.extend(
        (1u8..)
            .zip(names)
            .map(|(nines, name)| (f64::from(nines), name.to_owned()))
            .take_while(|mark| mark.0 <= last),
    );
    let x =
        Axis { label: "share of operations that are faster".into(), marks, from: 0.0, to: last, log: false };
    let y = Axis::over("ms", points.iter().map(|point| point.1), true);
    curves(&x, &y, &[Curve { name: "latency of all operations".into(), points }])
}

fn by_second(report: &RunReport, value: impl Fn(&SecondReport) -> f64) -> Vec<(f64, f64)> {
    (0u32..).zip(&report.series).map(|(second, entry)| (f64::from(second), value(entry))).collect()
}

fn seconds_axis(report: &RunReport) -> Axis {
    let last = u32::try_from(report.series.len().saturating_sub(1)).unwrap_or(u32::MAX);
    Axis::over("seconds", std::iter::once(f64::from(last).max(1.0)), false)
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds of a run")]
fn throughput_plot(report: &RunReport) -> String {
    let plot = |name: &str, mut points: Vec<(f64, f64)>| {
        // The last second is rarely a whole one, and would look like a collapse.
        points.truncate((report.elapsed_seconds as usize).max(1));
        let y = Axis::over(name, points.iter().map(|point| point.1), false);
        curves(&seconds_axis(report), &y, &[Curve { name: name.to_owned(), points }])
    };
    let operations = plot("operations per second", by_second(report, |second| second.operations as f64));
    if report.volume.bytes == 0 {
        return operations;
    }
    operations + &plot("MiB per second", by_second(report, |second| second.bytes as f64 / MIB))
}

fn seconds_plot(report: &RunReport) -> String {
    let of = |name: &str, value: fn(&SecondReport) -> f64| Curve {
        name: name.to_owned(),
        points: by_second(report, value),
    };
    let plots = [of("p50", |s| s.p50_ms), of("p99", |s| s.p99_ms), of("max", |s| s.max_ms)];
    let y = Axis::over("ms", plots.iter().flat_map(|curve| curve.points.iter().map(|point| point.1)), true);
    curves(&seconds_axis(report), &y, &plots)
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn errors(report: &RunReport) -> String {
    if report.errors_total == 0 {
        return "<p>None.</p>".to_owned();
    }
    let rows: Vec<Vec<String>> =
        report.errors.iter().map(|(kind, count)| vec![kind.clone(), count.to_string()]).collect();
    let points = by_second(report, |second| second.errors as f64);
    let y = Axis::over("failed attempts", points.iter().map(|point| point.1), false);
    curves(&seconds_axis(report), &y, &[Curve { name: "failed attempts".into(), points }])
        + &table(&["kind", "attempts"], &rows)
}

fn sizes(report: &RunReport) -> String {
    let sizes = report.size_bars();
    if sizes.is_empty() { String::new() } else { bars("bodies", &sizes) }
}

fn knee(report: &RunReport) -> String {
    let Some(knee) = &report.knee else { return String::new() };
    let mut steps = knee.steps.clone();
    steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let points: Vec<(f64, f64)> = steps.iter().map(|step| (step.rate, step.p99_ms)).collect();
    let x = Axis::over("operations per second offered", points.iter().map(|point| point.0), false);
    let y = Axis::over("p99, ms", points.iter().map(|point| point.1), true);
    let rows: Vec<Vec<String>> = steps
        .iter()
        .map(|step| {
            let numbers =
                [step.rate, step.answered_per_second, step.p50_ms, step.p99_ms, step.error_share * 100.0];
            let mut row: Vec<String> = numbers.map(show).into();
            row.push(step.broke.as_ref().map_or("holds".to_owned(), |limit| format!("breaks {limit}")));
            row
        })
        .collect();
    let head = ["offered /s", "answered /s", "p50 ms", "p99 ms", "failed %", ""];
    let text = knee
        .rate
        .map_or("No rate held the limits.".to_owned(), |rate| format!("Knee: {} per second.", show(rate)));
    let plot = curves(&x, &y, &[Curve { name: "p99 from the intended start".into(), points }]);
    section("Search for the knee", format!("<p>{}</p>{plot}{}", escape(&text), table(&head, &rows)))
}

fn wrong(report: &RunReport) -> String {
    let audit = report.audit.as_ref();
    let found = report.mismatches.iter().chain(audit.iter().flat_map(|audit| &audit.problems));
    let rows: Vec<Vec<String>> = found.map(|mismatch| vec![mismatch_line(mismatch)]).collect();
    let mut text = String::new();
    if let Some(a) = audit {
        text = format!(
            "<p>Audit of {} acknowledged writes to {} keys: {} right, {} lost, {} wrong, {} unreadable.</p>",
            a.acknowledged_writes, a.keys, a.right, a.lost, a.wrong, a.unreadable
        );
    }
    if !rows.is_empty() {
        text.push_str(&table(&["wrong content"], &rows));
    }
    section("Content", text)
}

fn settings(report: &RunReport) -> String {
    let workload = serde_json::to_value(&report.workload).unwrap_or_default();
    let mut rows: Vec<Vec<String>> = workload
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            vec![name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)]
        })
        .collect();
    rows.extend(
        [
            ("seed", report.seed.to_string()),
            ("prefix", report.target.prefix.clone()),
            ("verify", report.verify.to_string()),
            ("retries", report.retries.to_string()),
            ("clients", report.clients.to_string()),
            ("threads", report.threads.to_string()),
            ("elapsed seconds", format!("{:.2}", report.elapsed_seconds)),
            ("client CPU seconds", number(report.client_cpu_seconds)),
            ("client CPU us per operation", number(report.client_cpu_us_per_operation)),
            ("version", report.tool_version.clone()),
        ]
        .map(|(name, value)| vec![name.to_owned(), value]),
    );
    table(&["setting", "value"], &rows)
}
