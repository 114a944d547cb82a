//! `quarryd fsck`: checks owners, shards, extents and free maps of a stopped node, or of stopped nodes of a cluster, against
//! each other, in both directions, and changes nothing. What only nodes that were not given can tell is counted as unread.
//!
//! ```text
//! owners  -> shards   every blob of a manifest or part has its shards, where the map says (blobs)
//! shards  -> owners   every shard is named by its owner partition, else it is the collector's (blobs)
//! shards  -> extents  shards, index and free map are disjoint and cover the data area (space)
//! rows                decode, agree with each other (owners) and between in-sync replicas (partitions)
//! data                with `--verify-data`, every checksum unit of live shards (data)
//! ```
//!
//! Judging is pure; reading goes on past damage and missing devices, and what is left is judged. A group or partition
//! that is being moved is judged by the map, like any other.
//!
//! Memory: 40 bytes per blob, 24 per extent of one device, pages of rows.
//!
//! Exit code: 0 clean, 1 errors found, 2 could not run.

mod blobs;
mod data;
mod devices;
mod owners;
mod partitions;
mod report;
mod rows;
mod source;
mod space;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use futures::executor::block_on;
use quarry_clustermap::{ClusterMap, DeviceId, PartitionId};
use quarry_partition::command::{BlobStatus, Command, EvaluationContext, Reply, evaluate};
use quarry_storage::store::ShardRow;

pub(crate) use self::devices::read_only_options;
use self::{
    blobs::{Blobs, Known, Verdict},
    devices::{Listed, OpenDevice},
    report::{DeviceReport, Findings, Report, Totals},
    rows::ReplicaRows,
    source::Source,
    space::{Purpose, Used},
};

/// Runs the command; returns only if everything is clean.
pub(crate) fn run(data: &[PathBuf], devices: &[PathBuf], verify: bool, json: bool) -> anyhow::Result<()> {
    let report = match check(data, devices, verify) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("fsck cannot run: {error:#}");
            std::process::exit(2);
        }
    };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    if !report.clean {
        std::process::exit(1);
    }
    Ok(())
}

fn check(data: &[PathBuf], devices: &[PathBuf], verify: bool) -> anyhow::Result<Report> {
    let source = Source::open(data)?;
    let mut findings = Findings::default();
    let opened = devices::open_all((data, devices), &source, &mut findings)?;
    let unread = source.map.devices.keys().copied();
    let unread = unread.filter(|id| !source.is_given(*id) && !opened.contains_key(id)).collect();
    Ok(block_on(judge(&source.map, (&opened, &unread), verify, findings)))
}

/// Judges everything that the opened devices hold.
async fn judge(
    map: &ClusterMap,
    (opened, unread): (&BTreeMap<DeviceId, OpenDevice>, &BTreeSet<DeviceId>),
    verify: bool,
    findings: Findings,
) -> Report {
    let mut check = Check {
        map,
        blobs: Blobs::new(map),
        partitions: BTreeMap::new(),
        verify,
        findings,
        totals: Totals::default(),
    };
    for partition in (0..map.partition_count()).map(PartitionId) {
        let Check { blobs, totals, findings, .. } = &mut check;
        let rows = partitions::judge(partition, map, (opened, unread), blobs, totals, findings).await;
        check.partitions.extend(rows.map(|rows| (partition, rows)));
    }
    check.totals.blobs = check.blobs.seal(&mut check.findings);
    let mut known = BTreeMap::new();
    let mut reports = Vec::new();
    for (id, entry) in &map.devices {
        let Some(device) = opened.get(id) else {
            reports.push(DeviceReport {
                device: id.to_string(),
                path: entry.location.clone(),
                opened: false,
                shards: 0,
                shard_bytes: 0,
                free_bytes: 0,
            });
            continue;
        };
        let (report, whole) = check.device(device).await;
        known.insert(*id, if whole { Known::Whole } else { Known::Partly });
        reports.push(report);
    }
    check.blobs.finish(&known, unread, &mut check.findings);
    Report::new(check.findings, reports, check.totals)
}

struct Check<'m> {
    map: &'m ClusterMap,
    blobs: Blobs<'m>,
    /// The rows of each partition that could be read, to ask about orphans.
    partitions: BTreeMap<PartitionId, ReplicaRows>,
    verify: bool,
    findings: Findings,
    totals: Totals,
}

impl Check<'_> {
    /// Judges the shards and the space of a device; whether all its shards could be listed.
    async fn device(&mut self, device: &OpenDevice) -> (DeviceReport, bool) {
        let name = device.id.to_string();
        let mut used = device.used.clone();
        let (mut shards, mut shard_bytes) = (0, 0);
        let mut listed = device.shards();
        while let Some(next) = listed.next(&mut self.findings).await {
            let row = match next {
                Listed::Shard(row) => row,
                Listed::Damaged(extents) => {
                    used.extend(extents.into_iter().map(|extent| Used { extent, purpose: Purpose::Shard }));
                    continue;
                }
            };
            shards += 1;
            shard_bytes += row.len_bytes;
            used.extend(
                row.extents.iter().map(|piece| Used { extent: piece.extent, purpose: Purpose::Shard }),
            );
            self.shard(device, &name, &row).await;
        }
        let whole = listed.whole();
        let free = device.store.free_map();
        let idle = free.idle().into_iter();
        used.extend(idle.map(|extent| Used { extent, purpose: Purpose::Quarantine }));
        let area = free.area();
        let runs = free.runs().map(|(start, blocks)| (start.0, blocks));
        space::judge(&name, area.start.0..area.end.0, used, runs, whole, &mut self.findings);
        self.totals.shards += shards;
        self.totals.bytes += shard_bytes;
        let path = device.path.display().to_string();
        let free_bytes = device.store.space().free_bytes;
        (DeviceReport { device: name, path, opened: true, shards, shard_bytes, free_bytes }, whole)
    }

    async fn shard(&mut self, device: &OpenDevice, name: &str, row: &ShardRow) {
        match self.blobs.shard(device.id, row, &mut self.findings) {
            // Bytes of other shards are not promised: a commit that was not acknowledged may lack them.
            Verdict::Live if self.verify => {
                let io = &**device.store.device();
                self.totals.verified_bytes += data::verify(io, name, row, &mut self.findings).await;
            }
            Verdict::Live | Verdict::Freed => {}
            Verdict::Unjudged => self.findings.add(report::Class::UnjudgedShard, || blobs::name(row)),
            Verdict::Orphan => {
                let status = self.status(row).await;
                blobs::orphan(self.map, device.id, row, status, &mut self.findings);
            }
        }
    }

    /// What the collector would be told about a blob.
    async fn status(&self, row: &ShardRow) -> Option<BlobStatus> {
        let rows = self.partitions.get(&row.owner_partition)?;
        let answer = evaluate(rows, EvaluationContext::default(), &Command::BlobStatus { blob: row.blob })
            .await
            .ok()?;
        match answer.reply {
            Reply::Blob(status) => Some(status),
            _ => None,
        }
    }
}
