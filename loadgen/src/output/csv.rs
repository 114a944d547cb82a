//! The result as comma-separated values.

use std::fmt::Write;

use super::report::RunReport;
use crate::report::Latency;

/// One line for every second of the run.
pub(crate) fn series(report: &RunReport) -> String {
    let mut text = "second,operations,bytes,errors,p50_ms,p99_ms,max_ms\n".to_owned();
    for (second, s) in report.series.iter().enumerate() {
        let (operations, bytes, errors) = (s.operations, s.bytes, s.errors);
        writeln!(text, "{second},{operations},{bytes},{errors},{},{},{}", s.p50_ms, s.p99_ms, s.max_ms)
            .expect("writing to a string");
    }
    text
}

/// One line for every operation, for all, and for every phase.
pub(crate) fn operations(report: &RunReport) -> String {
    let mut text =
        "kind,name,operations,operations_per_second,mib_per_second,mean_ms,p50_ms,p90_ms,p99_ms,p999_ms,\
                    p9999_ms,max_ms\n"
            .to_owned();
    let mut line = |kind: &str, name: &str, operations: u64, rate: f64, mib: f64, l: &Latency| {
        let Latency { mean, p50, p90, p99, p999, p9999, max } = l;
        writeln!(
            text,
            "{kind},{name},{operations},{rate},{mib},{mean},{p50},{p90},{p99},{p999},{p9999},{max}"
        )
        .expect("writing to a string");
    };
    for (operation, v) in &report.by_operation {
        let name = operation.name();
        line("operation", name, v.operations, v.operations_per_second, v.mib_per_second, &v.latency_ms);
    }
    let all = &report.volume;
    line("all", "all", all.operations, all.operations_per_second, all.mib_per_second, &all.latency_ms);
    for phase in &report.phases {
        let (rate, mib) = (phase.operations_per_second, phase.mib_per_second);
        line("phase", &phase.name, phase.operations, rate, mib, &phase.latency_ms);
    }
    text
}
