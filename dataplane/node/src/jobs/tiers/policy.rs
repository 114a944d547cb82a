//! The automatic policy on one core: looks for candidates, lets the planner choose, and moves.
//!
//! What could be promoted was read (see `watch`); what could be demoted is found by walking the rows of the partitions
//! served here, a bounded number in each round, going on where the last round ended. Each core takes its share of the hot
//! devices of this node for the whole: objects are spread evenly. Only versions of a hot class are looked at: data of a cold class
//! lies on cold because somebody asked for it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytes::Bytes;
use quarry_clustermap::{ClusterMap, PartitionId, Tier, TierPolicy};
use quarry_object::{
    cluster::Cluster,
    repair::Budget,
    tier::{is_open, moved_ms, tier_of_blob, tier_of_class},
};
use quarry_partition::command::{
    Command, DecodedRow, Lookup, Manifest, Reply, Segment, VersionId, decode_row,
};
use quarry_planner::{Candidate, Fill, TierMove, plan_tiers};

use super::{
    Mover, Wanted,
    board::{ShownMove, TierReport},
    watch::VersionName,
};
use crate::{
    cluster::NodeCluster,
    host::{CoreHost, PartitionHost},
    metrics::Moves,
    platform::Platform,
};

/// Seconds between rounds.
pub(crate) const ROUND_S: u64 = 60;
/// Rows that a round walks at most.
const ROWS_MAX: usize = 20_000;
/// Candidates for demotion that a round keeps: those that were used longest ago.
const VICTIMS_MAX: usize = 2_000;
const BATCH: usize = 64;

/// Where the walk of a core is.
#[derive(Default)]
pub(crate) struct Cursor {
    partition: Cell<Option<PartitionId>>,
    row: RefCell<Vec<u8>>,
}

/// One round on one core.
pub(crate) struct Round<'r, P: Platform> {
    pub(crate) host: &'r Rc<CoreHost<P>>,
    pub(crate) cluster: &'r Rc<NodeCluster<P>>,
    pub(crate) budget: &'r Rc<Budget>,
    pub(crate) cursor: &'r Cursor,
    pub(crate) policy: TierPolicy,
    pub(crate) now_ms: u64,
    /// Everything is walked, and nothing is moved: somebody wants to see the plan.
    pub(crate) is_dry: bool,
}

/// Candidates, and what they are.
#[derive(Default)]
struct Found {
    candidates: Vec<Candidate<VersionName>>,
    ids: BTreeMap<VersionName, VersionId>,
    report: TierReport,
}

impl Found {
    /// Keeps the number of victims bounded.
    fn trim(&mut self) {
        if self.candidates.len() > 2 * VICTIMS_MAX {
            self.candidates.sort_by(|a, b| a.used_ms.cmp(&b.used_ms).then_with(|| a.id.cmp(&b.id)));
            for candidate in self.candidates.drain(VICTIMS_MAX..) {
                self.ids.remove(&candidate.id);
            }
        }
    }
}

impl<P: Platform> Round<'_, P> {
    /// Plans, and carries the plan out unless it is a dry run; what it came to.
    pub(crate) async fn run(&self) -> TierReport {
        let map = self.cluster.map();
        let Some(fill) = self.fill(&map).filter(|_| is_open(&map, Tier::Cold)) else {
            return TierReport::default();
        };
        let mut found = Found::default();
        self.find_victims(&map, fill, &mut found).await;
        self.find_promotions(&map, &mut found).await;
        let plan = plan_tiers(&found.candidates, &self.policy, fill, self.bytes_max(), self.now_ms);
        (found.report.watched, found.report.watched_bytes) = self.host.watch().size();
        for TierMove { id, to, size_bytes } in plan {
            let shown = ShownMove { bucket: id.bucket.0, key: id.key.clone(), to, size_bytes };
            let is_done = self.is_dry || self.carry_out(&id, found.ids[&id], to).await;
            if is_done {
                found.report.plan(shown);
            }
        }
        found.report
    }

    /// This core's share of the hot devices of the node.
    fn fill(&self, map: &ClusterMap) -> Option<Fill> {
        let (capacity, used) = self.host.space_of_tier(map, Tier::Hot);
        let cores = self.cluster.core().1 as u64;
        let profile = map.open_groups(Tier::Hot).next()?.1.profile;
        #[allow(clippy::cast_precision_loss, reason = "shards are few")]
        let overhead = profile.total() as f64 / profile.data() as f64;
        (capacity > 0).then_some(Fill {
            capacity_bytes: capacity / cores,
            used_bytes: used / cores,
            overhead,
        })
    }

    /// What a round may move: its moves are read and written within the time until the next.
    fn bytes_max(&self) -> u64 {
        if self.is_dry {
            return u64::MAX;
        }
        (self.policy.bytes_per_second / 2 / self.cluster.core().1 as u64).saturating_mul(ROUND_S)
    }

    async fn find_promotions(&self, map: &ClusterMap, found: &mut Found) {
        let often = f64::from(self.policy.promote_reads_per_hour);
        for (name, id) in self.host.watch().cold_read(often, self.now_ms) {
            let Some(partition) = self.partition(name.partition) else { continue };
            match self.manifest(&partition, &name, id).await {
                Some(manifest) => {
                    let Some(candidate) = self.candidate(map, name.clone(), &manifest) else { continue };
                    if candidate.tier == Tier::Cold {
                        found.ids.insert(name, id);
                        found.candidates.push(candidate);
                    } else {
                        self.host.watch().forget_cold(&name);
                    }
                }
                None => self.host.watch().forget_cold(&name),
            }
        }
    }

    /// Walks for versions on hot, if the plan could need any.
    async fn find_victims(&self, map: &ClusterMap, fill: Fill, found: &mut Found) {
        let high = u128::from(fill.capacity_bytes) * u128::from(self.policy.high_percent);
        let is_above = u128::from(fill.used_bytes) * 100 > high;
        let often = f64::from(self.policy.promote_reads_per_hour);
        let is_wanted = !self.host.watch().cold_read(often, self.now_ms).is_empty();
        if !(is_above || is_wanted || self.is_dry) {
            return;
        }
        let primaries = self.host.primaries();
        let start = if self.is_dry { None } else { self.cursor.partition.get() };
        let first = primaries.iter().position(|one| start.is_none_or(|start| one.partition() >= start));
        let first = first.unwrap_or(0);
        let mut rows_left = if self.is_dry { usize::MAX } else { ROWS_MAX };
        for at in 0..primaries.len() {
            let partition = &primaries[(first + at) % primaries.len()];
            let resumes = at == 0 && start == Some(partition.partition());
            let from = if resumes { self.cursor.row.take() } else { Vec::new() };
            if let Some(row) = self.walk(map, partition, from, &mut rows_left, found).await {
                self.cursor.partition.set(Some(partition.partition()));
                self.cursor.row.replace(row);
                return;
            }
        }
        self.cursor.partition.set(None);
    }

    /// The versions of a partition; where to go on if there were too many rows.
    async fn walk(
        &self,
        map: &ClusterMap,
        partition: &Rc<PartitionHost<P>>,
        mut from: Vec<u8>,
        rows_left: &mut usize,
        found: &mut Found,
    ) -> Option<Vec<u8>> {
        loop {
            let rows: Vec<(Bytes, Bytes)> = partition.committed_rows(&from, BATCH).await.ok()?;
            let (last, _) = rows.last()?;
            from = [last, &[0][..]].concat();
            let bytes = rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
            self.budget.spend(&**self.cluster, bytes).await;
            for (row, value) in &rows {
                match decode_row(row, value) {
                    Ok(DecodedRow::Version { bucket, key, manifest }) => {
                        let version_ms = manifest.last_modified_ms;
                        let name = VersionName { partition: partition.partition(), bucket, key, version_ms };
                        self.see(map, name, &manifest, found);
                    }
                    Ok(_) => return None,
                    Err(_) => {}
                }
            }
            *rows_left = rows_left.saturating_sub(rows.len());
            if *rows_left == 0 {
                return Some(from);
            }
        }
    }

    fn see(&self, map: &ClusterMap, name: VersionName, manifest: &Manifest, found: &mut Found) {
        let Some(candidate) = self.candidate(map, name, manifest) else { return };
        let amount = if candidate.tier == Tier::Hot { &mut found.report.hot } else { &mut found.report.cold };
        amount.add(candidate.size_bytes);
        if candidate.tier == Tier::Hot {
            found.ids.insert(candidate.id.clone(), manifest.version_id());
            found.candidates.push(candidate);
            found.trim();
        }
    }

    /// A version as the planner sees it; `None`: it is none of the policy's business.
    fn candidate(
        &self,
        map: &ClusterMap,
        name: VersionName,
        manifest: &Manifest,
    ) -> Option<Candidate<VersionName>> {
        if manifest.kind.is_marker() || tier_of_class(manifest.attributes.storage_class()) == Tier::Cold {
            return None;
        }
        // An object with thousands of parts has its list of segments elsewhere: it stays.
        let tiers = manifest.segments.iter().filter_map(|segment| match segment {
            Segment::Blob(blob) => tier_of_blob(map, blob),
            Segment::Inline { .. } => None,
        });
        // Half a demotion, which a crash may leave, goes on.
        let tier = tiers.min()?;
        let watch = self.host.watch();
        let access = watch.access(&name, self.now_ms);
        let watched_ms = watch.since_ms(name.partition).unwrap_or(0);
        Some(Candidate {
            tier,
            size_bytes: manifest.size_bytes,
            reads_per_hour: access.map_or(0.0, |access| access.reads_per_hour),
            used_ms: access.map_or(0, |access| access.read_ms).max(manifest.last_modified_ms).max(watched_ms),
            moved_ms: moved_ms(manifest),
            id: name,
        })
    }

    fn partition(&self, partition: PartitionId) -> Option<Rc<PartitionHost<P>>> {
        self.host.primaries().into_iter().find(|replica| replica.partition() == partition)
    }

    async fn manifest(
        &self,
        partition: &Rc<PartitionHost<P>>,
        name: &VersionName,
        id: VersionId,
    ) -> Option<Manifest> {
        let lookup = Lookup { version: Some(id), ..Lookup::newest(name.bucket, name.key.clone()) };
        match partition.execute(&Command::Get(lookup)).await {
            Ok(Reply::Object { manifest, .. }) if manifest.last_modified_ms == name.version_ms => {
                Some(manifest)
            }
            _ => None,
        }
    }

    async fn carry_out(&self, name: &VersionName, id: VersionId, to: Tier) -> bool {
        let Some(partition) = self.partition(name.partition) else { return false };
        let Some(manifest) = self.manifest(&partition, name, id).await else { return false };
        // The plan was made a while ago.
        let rest_ms = self.policy.cool_down_s.saturating_mul(1000);
        if moved_ms(&manifest)
            .is_some_and(|moved_ms| self.cluster.now_ms().saturating_sub(moved_ms) < rest_ms)
        {
            return false;
        }
        let mover = Mover { cluster: self.cluster, budget: self.budget, partition: &partition };
        let wanted = Wanted { tier: Some(to), class: None, why: Moves::Policy };
        let moved = mover.run((name.bucket, &name.key), &manifest, wanted).await;
        if to == Tier::Hot && moved.is_some() {
            self.host.watch().forget_cold(name);
        }
        moved.is_some_and(|moved| moved.blobs > 0)
    }
}
