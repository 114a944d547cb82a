//! Moves versions between tiers, for the partitions whose primaries this core holds.
//!
//! [`transitions`] gives versions the classes that lifecycle rules say, and brings to the cold tier what has a cold class
//! and lies on hot: because there was no cold tier when it was written, or no room on it.
//!
//! Each core walks the rows of its partitions after a start, when a new day has begun, when the rules of a bucket have
//! changed, and when the cold tier opens or closes. A store without cold devices and without transitions walks nothing.

mod transitions;

use std::{rc::Rc, time::Duration};

use quarry_clustermap::{BucketId, Tier};
use quarry_object::{
    cluster::Cluster,
    repair::Budget,
    tier::{MoveError, MoveJob, Moved, is_open},
    writer::WriteError,
};
use quarry_partition::command::{Command, Lookup, Manifest, Reply};

pub(crate) use self::transitions::{Transitions, pass};
use crate::{
    cluster::NodeCluster,
    host::{CoreHost, PartitionHost},
    metrics::Moves,
    platform::Platform,
};

/// Pause between looks whether there is anything to do.
const CHECK: Duration = Duration::from_secs(10);
/// Pause after a pass that could not do everything; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_secs(640);
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Bytes per second that moves may read and write on a node: what client traffic hardly notices on one device.
pub(crate) const BYTES_PER_SECOND: u64 = 64 << 20;

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>, budget: Rc<Budget>) {
    let mut done = None;
    let mut retry = RETRY_MIN;
    loop {
        let now_ms = cluster.now_ms();
        let transitions = Transitions::of(&cluster);
        let due = (now_ms / DAY_MS, transitions.revision(), is_open(&cluster.map(), Tier::Cold));
        if done != Some(due) && transitions.may_do_something() {
            if pass(&host, &cluster, &budget, now_ms).await {
                (done, retry) = (Some(due), RETRY_MIN);
            } else {
                cluster.sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
        cluster.sleep(CHECK).await;
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
