//! What the host of this node is like: `GET /admin/host` for `quarryctl doctor`, `GET /admin/blocks` for
//! `quarryctl device list --available`. Facts only; `quarryctl` judges.
//!
//! A fact that cannot be told is `null`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hyper::StatusCode;
use quarry_clustermap::NodeId;
use serde_json::{Value, json};

use super::{
    AdminState,
    blocks::{self, Host, scheduler, text},
    identity::Answer,
};
use crate::runtime::clock;

/// Answers a request whose token was verified; `None`: it is about something else.
pub(super) fn answer(state: &AdminState, method: &str, path: &str) -> Option<Answer> {
    let host = Host::real();
    match (method, path) {
        ("GET", "host") => Some((StatusCode::OK, facts(state, &host))),
        ("GET", "blocks") => Some((StatusCode::OK, blocks::list(&host, &locations(state)))),
        _ => None,
    }
}

/// Paths of this node's devices.
fn locations(state: &AdminState) -> Vec<PathBuf> {
    let Some(map) = state.map.lock().expect("nothing panics under this lock").clone() else {
        return Vec::new();
    };
    let mine = map.devices.values().filter(|entry| Some(entry.node) == state.metrics.node());
    mine.map(|entry| PathBuf::from(&entry.location)).collect()
}

fn facts(state: &AdminState, host: &Host<'_>) -> Value {
    let map = state.map.lock().expect("nothing panics under this lock").clone();
    let node: Option<NodeId> = state.metrics.node();
    let address = map.as_ref().and_then(|map| Some(map.nodes.get(&node?)?.address.clone()));
    let space = rustix::fs::statvfs(&state.access.data).ok();
    let bytes = |blocks: u64| space.as_ref().map(|space| blocks.saturating_mul(space.f_frsize));
    json!({
        "node": node, "address": address, "version": env!("CARGO_PKG_VERSION"), "time_ms": clock::unix_ms(),
        "map_version": map.map(|map| map.version),
        "kernel": text(&host.proc.join("sys/kernel/osrelease")),
        "io_uring_disabled": text(&host.proc.join("sys/kernel/io_uring_disabled")).parse::<u8>().ok(),
        "memlock_bytes": memlock(&text(&host.proc.join("self/limits"))),
        "governors": governors(host.sys), "idle_exit_us_max": idle_exit_us(host.sys),
        "interfaces": interfaces(host.sys),
        "data_free_bytes": space.as_ref().and_then(|space| bytes(space.f_bavail)),
        "data_size_bytes": space.as_ref().and_then(|space| bytes(space.f_blocks)),
        "schedulers": locations(state).iter().filter_map(|path| scheduler_of(host, path)).collect::<Vec<_>>(),
    })
}

/// Soft limit of locked memory; `u64::MAX`: none.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn entries(path: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// Frequency governors in use, each once.
fn governors(sys: &Path) -> Vec<String> {
    let cpus = entries(&sys.join("devices/system/cpu"));
    let mut all: Vec<String> = cpus
        .iter()
        .map(|cpu| text(&cpu.join("cpufreq/scaling_governor")))
        .filter(|name| !name.is_empty())
        .collect();
    all.sort();
    all.dedup();
    all
}

/// Microseconds that the first CPU needs to leave its deepest idle state that is not disabled.
fn idle_exit_us(sys: &Path) -> Option<u64> {
    let states = entries(&sys.join("devices/system/cpu/cpu0/cpuidle"));
    let enabled = states.iter().filter(|state| text(&state.join("disable")) != "1");
    enabled.filter_map(|state| text(&state.join("latency")).parse().ok()).max()
}

/// Network interfaces that are up, but for the loopback.
fn interfaces(sys: &Path) -> Value {
    let up = |path: &&PathBuf| text(&path.join("operstate")) == "up" && !path.ends_with("lo");
    let one = |path: &PathBuf| {
        json!({
            "name": path.file_name().and_then(|name| name.to_str()),
            "mtu": text(&path.join("mtu")).parse::<u32>().ok(),
        })
    };
    entries(&sys.join("class/net")).iter().filter(up).map(one).collect()
}

/// The I/O scheduler of a block device; none for a file.
fn scheduler_of(host: &Host<'_>, path: &Path) -> Option<Value> {
    let path = fs::canonicalize(path).ok()?;
    let name = path.strip_prefix(host.dev).ok()?.to_str()?.replace('/', "!");
    let sys = fs::canonicalize(host.sys.join("class/block").join(name)).ok()?;
    // A partition has the queue of its disk.
    let queue = [sys.join("queue"), sys.parent()?.join("queue")].into_iter().find(|queue| queue.exists())?;
    let chosen = text(&queue.join("scheduler"));
    let rotational = text(&queue.join("rotational")) == "1";
    Some(json!({ "device": path, "scheduler": scheduler(&chosen), "rotational": rotational }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_as_the_kernel_writes_them() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max locked memory         8388608              unlimited            bytes\n";
        assert_eq!(memlock(limits), Some(8 << 20));
        assert_eq!(memlock("Max locked memory  unlimited  unlimited  bytes"), Some(u64::MAX));
        assert_eq!(memlock(""), None);
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (cpu, governor) in [(0, "powersave"), (1, "performance"), (2, "powersave")] {
            put(&format!("devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"), governor);
        }
        put("devices/system/cpu/cpu0/cpuidle/state1/latency", "2");
        put("devices/system/cpu/cpu0/cpuidle/state2/latency", "900");
        put("devices/system/cpu/cpu0/cpuidle/state2/disable", "1");
        for (name, state) in [("lo", "up"), ("eth0", "up"), ("eth1", "down")] {
            put(&format!("class/net/{name}/operstate"), state);
            put(&format!("class/net/{name}/mtu"), "9000");
        }
        assert_eq!(governors(root.path()), ["performance", "powersave"]);
        assert_eq!(idle_exit_us(root.path()), Some(2));
        assert_eq!(interfaces(root.path()), json!([{ "name": "eth0", "mtu": 9000 }]));
    }
}
