//! Moves versions between tiers, for the partitions whose primaries this core holds.
//!
//! [`transitions`] gives versions the classes that lifecycle rules say, and brings to the cold tier what has a cold class
//! and lies on hot: because there was no cold tier when it was written, or no room on it.
//!
//! [`policy`] moves what is read often up and what is not read down, if the cluster's policy says so; [`watch`] counts
//! reads for it, and [`board`] shows what it sees.
//!
//! For the transitions each core walks the rows of its partitions after a start, when a new day has begun, when the rules of a bucket have
//! changed, and when the cold tier opens or closes. A store without cold devices and without transitions walks nothing.

mod access;
mod board;
mod policy;
#[cfg(test)]
mod simulated;
mod transitions;
mod watch;

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use quarry_clustermap::{BucketId, PartitionId, Tier};
use quarry_object::{
    cluster::Cluster,
    lifecycle::day_ms,
    repair::Budget,
    tier::{MoveError, MoveJob, Moved, is_open},
    writer::WriteError,
};
use quarry_partition::command::{Command, Lookup, Manifest, Reply};

pub(crate) use self::{
    board::{TierBoard, TierReport},
    policy::{Cursor, ROUND_S, Round},
    transitions::{Transitions, pass_over},
    watch::{VersionName, Watch},
};
use crate::{
    cluster::NodeCluster,
    host::{CoreHost, PartitionHost},
    metrics::Moves,
    platform::Platform,
};

/// Pause between looks whether anybody wants to see a plan.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between looks whether there is anything to do.
const CHECK: Duration = Duration::from_secs(10);
/// Pause after a pass that could not do everything; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_secs(640);

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>) {
    let (core, cores) = cluster.core();
    let budget = Rc::new(Budget::new(1));
    let cursor = Cursor::default();
    let mut transitions = Due::default();
    let (mut round_at, mut answered) = (cluster.monotonic(), 0);
    loop {
        let policy = cluster.map().tiering.policy;
        let (now, now_ms) = (cluster.monotonic(), cluster.now_ms());
        budget.set(Some(policy.bytes_per_second / cores as u64));
        host.watch().set_on(policy.enabled);
        if policy.enabled {
            let served: Vec<_> = host.primaries().iter().map(|partition| partition.partition()).collect();
            host.watch().set_partitions(&served, now_ms);
        }
        transitions.look(&host, &cluster, &budget).await;
        let board = &cluster.metrics().tiers;
        let wish = board.wished();
        let (is_asked, is_time) = (wish > answered, policy.enabled && now >= round_at);
        if is_asked || is_time {
            let (host, cluster, budget, cursor) = (&host, &cluster, &budget, &cursor);
            let is_dry = is_asked;
            let report = Round { host, cluster, budget, cursor, policy, now_ms, is_dry }.run().await;
            board.report(core, TierReport { wish, ..report });
            answered = wish;
            if !is_dry {
                round_at = now + Duration::from_secs(ROUND_S);
            }
        }
        cluster.sleep(LOOK).await;
    }
}

/// When transitions are looked at next.
#[derive(Default)]
struct Due {
    /// What each partition's last whole pass was for: the day, the rules, and whether there was a cold tier. One that is
    /// not served here, or not yet, has none.
    done: BTreeMap<PartitionId, (u64, u64, bool)>,
    again_at: Duration,
    retry: Option<Duration>,
}

impl Due {
    async fn look<P: Platform>(
        &mut self,
        host: &Rc<CoreHost<P>>,
        cluster: &Rc<NodeCluster<P>>,
        budget: &Rc<Budget>,
    ) {
        if cluster.monotonic() < self.again_at {
            return;
        }
        let now_ms = cluster.now_ms();
        let transitions = Transitions::of(cluster);
        let due = (now_ms / day_ms(), transitions.revision(), is_open(&cluster.map(), Tier::Cold));
        let served = host.primaries();
        self.done.retain(|partition, _| served.iter().any(|replica| replica.partition() == *partition));
        let mut is_complete = true;
        for partition in served.iter().filter(|_| transitions.may_do_something()) {
            if self.done.get(&partition.partition()) == Some(&due) {
                continue;
            }
            if pass_over(partition, &transitions, cluster, budget, now_ms).await {
                self.done.insert(partition.partition(), due);
            } else {
                is_complete = false;
            }
        }
        let retry = self.retry.map_or(RETRY_MIN, |last| (last * 2).min(RETRY_MAX));
        self.retry = (!is_complete).then_some(retry);
        self.again_at = cluster.monotonic() + self.retry.unwrap_or(CHECK);
    }
}

/// What moves one version.
pub(crate) struct Mover<'m, P: Platform> {
    pub(crate) cluster: &'m Rc<NodeCluster<P>>,
    pub(crate) budget: &'m Rc<Budget>,
    pub(crate) partition: &'m Rc<PartitionHost<P>>,
}

/// What is to become of a version.
pub(crate) struct Wanted<'w> {
    /// Where its blobs are to lie; `None`: where they are.
    pub(crate) tier: Option<Tier>,
    /// The class that it gets.
    pub(crate) class: Option<&'w str>,
    /// For the metrics.
    pub(crate) why: Moves,
}

impl<P: Platform> Mover<'_, P> {
    /// Moves a version; `None`: it could not be done now. `seen` may lack the segments of continuation rows.
    pub(crate) async fn run(
        &self,
        (bucket, key): (BucketId, &str),
        seen: &Manifest,
        wanted: Wanted<'_>,
    ) -> Option<Moved> {
        let whole;
        let manifest = if seen.continuation_rows == 0 {
            seen
        } else {
            let lookup = Lookup { version: Some(seen.version_id()), ..Lookup::newest(bucket, key) };
            match self.partition.execute(&Command::Get(lookup)).await {
                Ok(Reply::Object { manifest, .. }) => {
                    whole = manifest;
                    &whole
                }
                // Gone meanwhile, or it cannot be asked: the next pass sees.
                _ => return None,
            }
        };
        let (cluster, budget, partition) = (self.cluster, self.budget, self.partition.partition());
        let job = MoveJob { cluster, budget, partition, bucket, key, manifest };
        match job.run(wanted.tier, wanted.class).await {
            Ok(moved) => {
                self.cluster.metrics().moved(wanted.why, wanted.tier, moved);
                Some(moved)
            }
            Err(MoveError::Changed) => Some(Moved::default()),
            Err(error) => {
                let full = matches!(error, MoveError::Write(WriteError::OutOfSpace));
                tracing::debug!(event = "move_failed", %partition, key, %error, full);
                self.cluster.metrics().moves_failed.inc();
                None
            }
        }
    }
}
