//! The usual metrics of a process, from /proc. Those of the `prometheus` crate count CPU time in whole seconds.

use std::fs;

use crate::page::{Family, Page};

const CPU: Family = Family::counter("process_cpu_seconds_total", "CPU time of the process, user and system");
const RESIDENT: Family = Family::gauge("process_resident_memory_bytes", "Memory that is resident");
const VIRTUAL: Family = Family::gauge("process_virtual_memory_bytes", "Address space");
const OPEN_FILES: Family = Family::gauge("process_open_fds", "Open file descriptors");
const MAX_FILES: Family = Family::gauge("process_max_fds", "File descriptors that may be open");
const THREADS: Family = Family::gauge("process_threads", "Threads");
const STARTED: Family = Family::gauge("process_start_time_seconds", "Start of the process, Unix time");

/// All of them.
pub const FAMILIES: [Family; 7] = [CPU, RESIDENT, VIRTUAL, OPEN_FILES, MAX_FILES, THREADS, STARTED];

/// What `sysconf(_SC_CLK_TCK)` has been on Linux for as long as there is `/proc/PID/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds this process; what cannot be read is left out.
pub fn add(page: &mut Page) {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status = text("/proc/self/status");
    let of_status = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let stat = text("/proc/self/stat");
    // The name before the last parenthesis may hold anything; field 3 follows it.
    let fields: Vec<f64> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| {
        rest.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect()
    });
    let field = |number: usize| fields.get(number - 3).copied();
    let limits = text("/proc/self/limits");
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    let boot =
        text("/proc/stat").lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    let open =
        fs::read_dir("/proc/self/fd").map(Iterator::count).ok().and_then(|count| u32::try_from(count).ok());
    let values = [
        (CPU, field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_PER_SECOND)),
        (RESIDENT, of_status("VmRSS").map(|kib| kib * 1024.0)),
        (VIRTUAL, of_status("VmSize").map(|kib| kib * 1024.0)),
        // But the one that reads them.
        (OPEN_FILES, open.map(|count| f64::from(count.saturating_sub(1)))),
        (MAX_FILES, limit),
        (THREADS, of_status("Threads")),
        (STARTED, boot.zip(field(22)).map(|(boot, ticks)| boot + ticks / TICKS_PER_SECOND)),
    ];
    for (family, value) in values {
        if let Some(value) = value {
            page.value(&family, &[], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_found_and_plausible() {
        let mut page = Page::default();
        add(&mut page);
        let text = String::from_utf8(page.text(&[]).unwrap()).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_max_fds") > value("process_open_fds") && value("process_open_fds") >= 3.0);
        assert!(value("process_threads") >= 1.0 && value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
    }
}
