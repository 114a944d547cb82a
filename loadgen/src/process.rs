//! CPU time and memory of processes on this machine, by /proc.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, UdpSocket};

use serde::{Deserialize, Serialize};

/// What a set of processes used so far. CPU time has the resolution of the kernel's clock tick (usually 10 ms).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_bytes: u64,
}

/// How the server's processes were found.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FoundBy {
    ServerPidFlag,
    ListeningPort,
    /// Its own metrics say so.
    Metrics,
}

/// Sum over `pids`: user and system time of all their threads (without children), and resident set high-water marks.
/// None when one of them is gone.
pub(crate) fn usage(pids: &[u32]) -> Option<Usage> {
    let mut sum = Usage { cpu_seconds: 0.0, peak_rss_bytes: 0 };
    for pid in pids {
        let ticks = cpu_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        #[allow(clippy::cast_precision_loss, reason = "2^53 ticks are a million years")]
        let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        sum.cpu_seconds += seconds;
        sum.peak_rss_bytes += peak_rss(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)?;
    }
    Some(sum)
}

/// Names of processes, for people to see whether they are the right ones (a proxy may hold the port instead).
pub(crate) fn names(pids: &[u32]) -> Vec<String> {
    let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    pids.iter().map(name).collect()
}

/// Our own.
pub(crate) fn own_usage() -> Option<Usage> {
    usage(&[std::process::id()])
}

/// Processes that listen on `port` of this machine, when `address` is of this machine.
pub(crate) fn listeners(address: IpAddr, port: u16) -> Vec<u32> {
    // Only an address of this machine can be bound.
    if UdpSocket::bind((address, 0)).is_err() {
        return Vec::new();
    }
    let sockets: HashSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| holds_any(*pid, &sockets))
        .collect();
    pids.sort_unstable();
    pids
}

fn holds_any(pid: u32, sockets: &HashSet<String>) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|link| link.to_str().is_some_and(|link| sockets.contains(link)))
}

/// Socket inodes in state LISTEN (0A) on `port`, from a table like /proc/net/tcp.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            (local.ends_with(&suffix) && *state == "0A").then(|| (*inode).to_owned())
        })
        .collect()
}

/// utime + stime: fields 14 and 15, counted after the name, which may hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn peak_rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::{cpu_ticks, listeners, listening_inodes, names, own_usage, peak_rss};

    #[test]
    fn reads_the_tables_of_the_kernel() {
        assert_eq!(cpu_ticks("7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14"), Some(42));
        assert_eq!(peak_rss("Name:\tx\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
        let table = "  sl  local rem st\n   0: 0100007F:2328 00000000:0000 0A 0:0 0:0 0 0 0 77 1\n   \
                     1: 0100007F:2328 0100007F:1000 01 0:0 0:0 0 0 0 78 1\n";
        assert_eq!(listening_inodes(table, 9000), ["77"]);
    }

    #[test]
    fn finds_this_process_by_its_port() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        assert_eq!(listeners(address.ip(), address.port()), [std::process::id()]);
        assert!(listeners([192, 0, 2, 1].into(), address.port()).is_empty());
        assert!(!names(&[std::process::id()])[0].is_empty());
        assert!(own_usage().unwrap().peak_rss_bytes > 1 << 20);
    }
}
