//! `quarryctl doctor`: what about hosts and the map is not as it should be, what that means, and what to do.
//!
//! Nodes tell facts (`/admin/host`, `/map`); [`judge_host`], [`judge_hosts`] and [`judge_map`] are pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;
use quarry_clustermap::{ClusterMap, DeviceId, DeviceState, Tier};
use serde::{Deserialize, Serialize};

use crate::{
    client::Client,
    output::{self, Format},
};

/// Clocks that differ by more are worth a look; signatures break at 15 minutes.
const SKEW_WARN_MS: u64 = 1_000;
const SKEW_BAD_MS: u64 = 60_000;
/// What a node needs at least, and wants.
const MEMLOCK_BAD_BYTES: u64 = 512 << 10;
const MEMLOCK_WARN_BYTES: u64 = 64 << 20;
/// A CPU that needs longer to wake adds that to every request.
const IDLE_EXIT_WARN_US: u64 = 100;
/// Positions of a device against its share of capacity, percent.
const UNBALANCED_WARN_PERCENT: f64 = 10.0;

#[derive(Args)]
pub(crate) struct Asked {
    /// Admin addresses of other nodes to ask too; the token must be theirs as well.
    #[arg(long = "also", value_name = "URL")]
    also: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Warn,
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    grade: Grade,
    check: &'static str,
    whose: String,
    found: String,
    /// What it means and what to do; empty if all is well.
    advice: &'static str,
}

/// What `/admin/host` tells; what a node does not know is `None`.
#[derive(Clone, Debug, Default, Deserialize)]
struct Facts {
    node: Option<u32>,
    version: String,
    io_uring_disabled: Option<u8>,
    memlock_bytes: Option<u64>,
    governors: Vec<String>,
    idle_exit_us_max: Option<u64>,
    interfaces: Vec<Interface>,
    data_free_bytes: Option<u64>,
    data_size_bytes: Option<u64>,
    schedulers: Vec<Scheduler>,
    time_ms: u64,
    /// Our clock when the answer came, and how long it took.
    #[serde(skip)]
    asked: (u64, u64),
}

#[derive(Clone, Debug, Deserialize)]
struct Interface {
    name: String,
    mtu: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
struct Scheduler {
    device: String,
    scheduler: String,
    rotational: bool,
}

impl Facts {
    fn name(&self) -> String {
        self.node.map_or_else(|| "node ?".to_owned(), |node| format!("node {node}"))
    }
}

fn finding(
    whose: &str,
    check: &'static str,
    (grade, advice): (Grade, &'static str),
    found: String,
) -> Finding {
    let advice = if grade == Grade::Ok { "" } else { advice };
    Finding { grade, check, whose: whose.to_owned(), found, advice }
}

fn grade(bad: bool, warn: bool) -> Grade {
    if bad {
        Grade::Bad
    } else if warn {
        Grade::Warn
    } else {
        Grade::Ok
    }
}

fn judge_host(facts: &Facts) -> Vec<Finding> {
    let name = facts.name();
    let mut all = Vec::new();
    let mut tell = |check, judged, found| all.push(finding(&name, check, judged, found));
    let (now, took) = facts.asked;
    // The answer was made at some time while we waited.
    let skew = facts.time_ms.abs_diff(now).saturating_sub(took);
    let advice = "clocks differ: signatures and expiry go wrong; run NTP on every host";
    tell("clock", (grade(skew > SKEW_BAD_MS, skew > SKEW_WARN_MS), advice), format!("{skew} ms from here"));
    if let Some(bytes) = facts.memlock_bytes {
        let advice = "I/O memory cannot be registered: raise LimitMEMLOCK (systemd) or ulimit -l";
        let judged = (grade(bytes < MEMLOCK_BAD_BYTES, bytes < MEMLOCK_WARN_BYTES), advice);
        tell(
            "memlock",
            judged,
            if bytes == u64::MAX { "unlimited".to_owned() } else { format!("{bytes} bytes") },
        );
    }
    if let Some(value) = facts.io_uring_disabled {
        let advice = "the kernel keeps io_uring from processes: set sysctl kernel.io_uring_disabled=0";
        tell("io_uring", (grade(value == 2, value == 1), advice), format!("io_uring_disabled={value}"));
    }
    if !facts.governors.is_empty() {
        let slow = facts.governors.iter().any(|governor| governor != "performance");
        let advice = "CPUs may run slowly when load comes: set the governor performance";
        tell("governor", (grade(false, slow), advice), facts.governors.join(", "));
    }
    if let Some(us) = facts.idle_exit_us_max {
        let advice =
            "idle CPUs wake late: limit C-states (cpupower idle-set, or tuned's latency-performance)";
        tell("c-states", (grade(false, us > IDLE_EXIT_WARN_US), advice), format!("{us} us to wake"));
    }
    if let (Some(free), Some(size)) = (facts.data_free_bytes, facts.data_size_bytes.filter(|size| *size > 0))
    {
        let percent = u128::from(free) * 100 / u128::from(size);
        let advice = "the data directory keeps tables and the metastore: free space on its file system";
        let judged = (grade(percent < 2 || free < 64 << 20, percent < 10), advice);
        tell("data directory", judged, format!("{percent} % free"));
    }
    for Scheduler { device, scheduler, rotational } in &facts.schedulers {
        let wrong = !rotational && scheduler != "none";
        let advice = "a scheduler costs time on flash: echo none > /sys/block/NAME/queue/scheduler";
        tell("scheduler", (grade(false, wrong), advice), format!("{device}: {scheduler}"));
    }
    all
}

/// What only several hosts together show.
fn judge_hosts(all: &[Facts]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let versions: BTreeSet<&str> = all.iter().map(|facts| facts.version.as_str()).collect();
    let found = versions.iter().copied().collect::<Vec<_>>().join(", ");
    let advice = "nodes run different versions: finish the upgrade";
    findings.push(finding("all", "versions", (grade(false, versions.len() > 1), advice), found));
    let mtus = |facts: &Facts| {
        facts.interfaces.iter().filter_map(|i| Some((i.mtu?, i.name.clone()))).collect::<Vec<_>>()
    };
    let distinct: BTreeSet<u32> = all.iter().flat_map(mtus).map(|(mtu, _)| mtu).collect();
    let of = |facts: &Facts| {
        let each: Vec<String> = mtus(facts).iter().map(|(mtu, name)| format!("{name} {mtu}")).collect();
        format!("{}: {}", facts.name(), each.join(", "))
    };
    let advice = "interfaces differ in MTU: large packets between peers may be dropped; use one on the network of the peers";
    let found = all.iter().map(of).collect::<Vec<_>>().join("; ");
    findings.push(finding("all", "mtu", (grade(false, distinct.len() > 1), advice), found));
    findings
}

fn judge_map(map: &ClusterMap) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut tell = |check, judged, found| all.push(finding("map", check, judged, found));
    let out = map.devices.values().filter(|entry| entry.state == DeviceState::Out).count();
    let advice = "devices are out: see the runbook \"A device is out\"";
    tell("devices", (grade(false, out > 0), advice), format!("{out} of {} out", map.devices.len()));
    let wanted = map.hot_profile.metadata_replicas();
    let copies = |config: &quarry_clustermap::PartitionConfig| {
        config.replicas.iter().filter(|device| map.is_in(**device)).count()
    };
    let short = map.partitions.iter().filter(|config| copies(config) < wanted).count();
    let none = map.partitions.iter().filter(|config| copies(config) == 0 || !config.has_history()).count();
    let advice = "partitions lack copies: their keys are not served without any; bring devices back";
    let found = format!("{short} without all {wanted} copies, {none} without any");
    tell("partitions", (grade(none > 0, short > 0), advice), found);
    let missing =
        map.placement_groups.values().map(|group| (group.positions_not_whole(map), group.profile.parity()));
    let (mut degraded, mut lost) = (0, 0);
    for (missing, parity) in missing {
        degraded += usize::from(missing > 0);
        lost += usize::from(missing > parity);
    }
    let advice = "groups lack shards: reads decode, or fail where more than m are gone; bring devices back, see quarryctl job list";
    let found = format!("{degraded} degraded, {lost} of them unreadable");
    tell("groups", (grade(lost > 0, degraded > 0), advice), found);
    for tier in Tier::ALL.into_iter().filter(|tier| map.devices.values().any(|entry| entry.tier == *tier)) {
        let open = map.open_groups(tier).count();
        let advice = "nothing can be written to this tier: bring devices back";
        tell("open groups", (grade(open == 0, false), advice), format!("{}: {open}", tier.name()));
        let (worst, device) = unbalanced(map, tier);
        let advice = "a device holds more or less than its share: see quarryctl job list, and whether rebalance is paused";
        let found = format!("{}: {worst:.0} % off{device}", tier.name());
        tell("balance", (grade(false, worst > UNBALANCED_WARN_PERCENT), advice), found);
    }
    all
}

/// How far the device that is off by most is from its share of positions, percent; one position is no imbalance.
fn unbalanced(map: &ClusterMap, tier: Tier) -> (f64, String) {
    let mut held: BTreeMap<DeviceId, f64> = BTreeMap::new();
    for (id, entry) in &map.devices {
        if entry.tier == tier && entry.state == DeviceState::In && !map.is_leaving(*id) {
            held.insert(*id, 0.0);
        }
    }
    for group in map.placement_groups.values() {
        for member in &group.members {
            if let Some(count) = held.get_mut(member) {
                *count += 1.0;
            }
        }
    }
    let capacity = |device: &DeviceId| map.devices[device].capacity_bytes.max(1) as f64;
    let (all, room): (f64, f64) = (held.values().sum(), held.keys().map(capacity).sum());
    let off = |(device, count): (&DeviceId, &f64)| {
        let share = all * capacity(device) / room;
        let off = ((count - share).abs() - 1.0).max(0.0);
        (if share > 0.0 { off / share * 100.0 } else { 0.0 }, format!(" ({device})"))
    };
    let worst = held.iter().map(off).max_by(|a, b| a.0.total_cmp(&b.0));
    worst.filter(|(off, _)| *off > 0.0).unwrap_or((0.0, String::new()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the command compares the clock of its own host with those of nodes"
)]
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn facts(client: &Client) -> anyhow::Result<Facts> {
    let before = now_ms();
    let mut facts: Facts = serde_json::from_value(client.get("/admin/host")?)?;
    let after = now_ms();
    facts.asked = (after, after.saturating_sub(before));
    Ok(facts)
}

pub(crate) fn run(
    asked: &Asked,
    token_file: Option<&std::path::Path>,
    client: &Client,
    format: Format,
) -> anyhow::Result<()> {
    let mut hosts = vec![facts(client)?];
    for address in &asked.also {
        hosts.push(facts(&Client::new(address, token_file)?)?);
    }
    let map: ClusterMap = serde_json::from_value(client.get("/map")?)?;
    let mut findings: Vec<Finding> = hosts.iter().flat_map(judge_host).collect();
    findings.extend(judge_hosts(&hosts));
    findings.extend(judge_map(&map));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.grade));
    let list = serde_json::to_value(&findings)?;
    output::rows(&list, &["grade", "check", "whose", "found", "advice"], format)?;
    let bad = findings.iter().filter(|finding| finding.grade == Grade::Bad).count();
    anyhow::ensure!(bad == 0, "{bad} findings are bad");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            node: Some(1),
            version: "1".to_owned(),
            io_uring_disabled: Some(0),
            memlock_bytes: Some(u64::MAX),
            governors: vec!["performance".to_owned()],
            idle_exit_us_max: Some(2),
            interfaces: vec![Interface { name: "eth0".to_owned(), mtu: Some(9000) }],
            data_free_bytes: Some(50 << 30),
            data_size_bytes: Some(100 << 30),
            schedulers: vec![Scheduler {
                device: "/dev/a".to_owned(),
                scheduler: "none".to_owned(),
                rotational: false,
            }],
            time_ms: 1_000_000,
            asked: (1_000_020, 40),
        }
    }

    fn of(findings: &[Finding], check: &str) -> Grade {
        findings.iter().find(|finding| finding.check == check).unwrap().grade
    }

    #[test]
    fn a_good_host_has_no_advice() {
        let findings = [judge_host(&good()), judge_hosts(&[good(), good()])].concat();
        assert!(findings.iter().all(|f| f.grade == Grade::Ok && f.advice.is_empty()), "{findings:?}");
        assert_eq!(findings.len(), 9);
    }

    #[test]
    fn each_fault_of_a_host_is_told() {
        let judged = |change: &dyn Fn(&mut Facts), check: &str| {
            let mut facts = good();
            change(&mut facts);
            let findings = judge_host(&facts);
            let others = findings.iter().filter(|f| f.check != check && f.grade != Grade::Ok).count();
            assert_eq!(others, 0, "{findings:?}");
            of(&findings, check)
        };
        assert_eq!(judged(&|f| f.time_ms += 5_000, "clock"), Grade::Warn);
        assert_eq!(judged(&|f| f.time_ms -= 100_000, "clock"), Grade::Bad);
        assert_eq!(judged(&|f| f.asked = (1_004_000, 4_000), "clock"), Grade::Ok);
        assert_eq!(judged(&|f| f.memlock_bytes = Some(64 << 10), "memlock"), Grade::Bad);
        assert_eq!(judged(&|f| f.memlock_bytes = Some(8 << 20), "memlock"), Grade::Warn);
        assert_eq!(judged(&|f| f.io_uring_disabled = Some(2), "io_uring"), Grade::Bad);
        assert_eq!(judged(&|f| f.governors.push("powersave".to_owned()), "governor"), Grade::Warn);
        assert_eq!(judged(&|f| f.idle_exit_us_max = Some(900), "c-states"), Grade::Warn);
        assert_eq!(judged(&|f| f.data_free_bytes = Some(1 << 30), "data directory"), Grade::Bad);
        assert_eq!(judged(&|f| f.schedulers[0].scheduler = "bfq".to_owned(), "scheduler"), Grade::Warn);
        assert_eq!(judged(&|f| f.schedulers[0].rotational = true, "scheduler"), Grade::Ok);
    }

    #[test]
    fn hosts_that_differ_are_told() {
        let mut other = good();
        (other.version, other.interfaces[0].mtu) = ("2".to_owned(), Some(1500));
        let findings = judge_hosts(&[good(), other]);
        assert_eq!((of(&findings, "versions"), of(&findings, "mtu")), (Grade::Warn, Grade::Warn));
    }
}
