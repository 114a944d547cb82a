//! The controller: collects reports, plans, commits the next map by compare-and-swap, and publishes it.
//!
//! It keeps nothing of its own: every decision is a function of what the metastore holds and of the queued requests,
//! so after a conflict, a lost answer or a restart it reads again, plans again and commits again.
//! [`Controller::run`] lives on the control plane's thread (tokio); a [`ControllerHandle`] is used from any executor.
//!
//! Keys in the metastore (JSON):
//!
//! | key | value |
//! |---|---|
//! | `map`, `leaf/...` | the cluster map, see `map_store` |
//! | `activated/PPPPP` | the newest epoch of the partition whose primary may acknowledge |
//! | `buckets` | revision of the bucket table and the next bucket id |
//! | `bucket/NAME` | id, creation time, state, configuration |
//!
//! Invariants:
//! - a map, activation or bucket change is answered only after its transaction is durable;
//! - an activation is committed together with a comparison of the map: never for an epoch that is already replaced, nor
//!   for a partition whose history is lost;
//! - what is queued when a batch begins is planned together: many reports make one map version;
//! - a bucket id is given once, for ever.

mod batch;
mod bucket;
pub mod cluster;
mod handle;
mod map_store;
mod plan;
mod published;
mod state;
#[cfg(test)]
mod tests;
mod user;

use std::sync::Arc;

use quarry_clustermap::{ClusterMap, DeviceId, Epoch, Incarnation, NodeId, PartitionId, Tier};
use quarry_identity::UserTable;
use quarry_metastore::MetastoreError;
use quarry_planner::{PlanError, Policy};
use serde::{Deserialize, Serialize};

pub use batch::Controller;
pub use bucket::{BUCKET_BYTES_MAX, Bucket, BucketNameError, BucketState, BucketTable, check_bucket_name};
pub use handle::ControllerHandle;
pub use map_store::StoredMap;
pub use published::Published;

/// Requests that may wait; callers beyond wait for room.
pub const REQUESTS_QUEUED_MAX: usize = 4096;
/// Tries of one batch when other writers keep winning.
pub const COMMIT_ATTEMPTS_MAX: usize = 16;

/// What a node tells when it starts: all of its devices, found or missing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRegistration {
    /// The node.
    pub node: NodeId,
    /// Address of its peer transport; empty for a standalone node.
    pub address: String,
    /// Failure domain above the node; empty if there is none.
    pub rack: String,
    /// Its devices. A device of the map that this node had and does not list is missing.
    pub devices: Vec<DeviceReport>,
}

/// One device as its node sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Its id.
    pub device: DeviceId,
    /// Its device class.
    pub tier: Tier,
    /// Usable bytes.
    pub capacity_bytes: u64,
    /// Where the node finds it.
    pub location: String,
    /// Found, and recovered clean; `false`: missing or unusable.
    pub found: bool,
    /// The device that is out, in whose place its owner put this one. It takes the other's positions at once; ignored
    /// while that one is in or is no longer in the map. Repeating it does no harm.
    pub replaces: Option<DeviceId>,
    /// Its store was mended, and these replicas lost their history.
    pub lost_partitions: Vec<PartitionId>,
}

/// Answer to a registration.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Of this run of the node.
    pub incarnation: Incarnation,
    /// The map that has it; the node acts on this map or a newer one, never on one from before its start.
    pub published: Published,
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControllerError {
    /// The epoch to activate has been replaced.
    #[error("{partition} is at {current}, {epoch} cannot be activated")]
    Superseded {
        /// The partition.
        partition: PartitionId,
        /// What was asked for.
        epoch: Epoch,
        /// What the map says.
        current: Epoch,
    },
    /// No replica has the partition's history, so none may acknowledge anything.
    #[error("{partition} serves nothing: every in-sync replica lost its history")]
    HistoryLost {
        /// The partition.
        partition: PartitionId,
    },
    /// No such partition in the map.
    #[error("{partition} is not in the map")]
    UnknownPartition {
        /// The partition.
        partition: PartitionId,
    },
    /// No such device in the map.
    #[error("{device} is not in the map")]
    UnknownDevice {
        /// The device.
        device: DeviceId,
    },
    /// Another start of the same node is being registered; two runs never share an incarnation.
    #[error("{node} is already being registered")]
    RegisteredTwice {
        /// The node.
        node: NodeId,
    },
    /// No node has registered yet, so there is no map.
    #[error("there is no cluster map yet: no node has registered")]
    NoMap,
    /// The bucket name breaks a rule.
    #[error(transparent)]
    BucketName(#[from] BucketNameError),
    /// The bucket exists, perhaps marked for deletion.
    #[error("bucket {name:?} exists")]
    BucketExists {
        /// Its name.
        name: String,
    },
    /// No such bucket, or another one than meant.
    #[error("bucket {name:?} does not exist")]
    NoSuchBucket {
        /// Its name.
        name: String,
    },
    /// Only a bucket that is marked for deletion is removed.
    #[error("bucket {name:?} is not marked for deletion")]
    BucketNotMarked {
        /// Its name.
        name: String,
    },
    /// A bucket that was versioned once may hold versions for ever.
    #[error("versioning of bucket {name:?} can be suspended, not undone")]
    VersioningStays {
        /// Its name.
        name: String,
    },
    /// A document, or all that is kept of a bucket, is too long.
    #[error("the bucket's configuration of {bytes} bytes is over the limit of {limit}")]
    ConfigurationTooLarge {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A change of users, keys or policies is refused.
    #[error(transparent)]
    User(#[from] quarry_identity::UserError),
    /// What an operator asks for cannot be done now.
    #[error(transparent)]
    Refused(#[from] quarry_planner::IntentError),
    /// No map can be made; every planning request of the batch fails with it.
    #[error("cannot plan: {0}")]
    Plan(#[from] PlanError),
    /// The metastore failed; the request may or may not have taken effect, and may be repeated.
    #[error("metastore: {reason}")]
    Metastore {
        /// What it said.
        reason: String,
    },
    /// Other writers won every time; the request has had no effect.
    #[error("gave up after {COMMIT_ATTEMPTS_MAX} conflicts in the metastore")]
    Contention,
    /// Another controller leads, or may; nothing was changed.
    #[error("this controller leads no more")]
    Deposed,
    /// The node has started and the leader has not handled its registration yet.
    #[error("the start of this node is not registered yet")]
    NotRegistered,
    /// What the metastore holds under a key makes no sense.
    #[error("the metastore's {key:?} is damaged: {reason}")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The controller has stopped.
    #[error("the controller has stopped")]
    Stopped,
}

impl ControllerError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Metastore { .. }
                | Self::Contention
                | Self::NoMap
                | Self::RegisteredTwice { .. }
                | Self::NotRegistered
        )
    }
}

impl From<&MetastoreError> for ControllerError {
    fn from(error: &MetastoreError) -> Self {
        Self::Metastore { reason: error.to_string() }
    }
}

impl From<MetastoreError> for ControllerError {
    fn from(error: MetastoreError) -> Self {
        Self::from(&error)
    }
}

/// What the controller is started with.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// Wanted state.
    pub policy: Policy,
    /// Milliseconds since 1970.
    pub clock_ms: fn() -> u64,
}

type Reply<T> = futures::channel::oneshot::Sender<Result<T, ControllerError>>;

/// A queued request and where its answer goes.
#[derive(Debug)]
enum Request {
    Plan(Report, Reply<Published>),
    Activate { partition: PartitionId, epoch: Epoch, reply: Reply<()> },
    Bucket(bucket::Change, Reply<Bucket>),
    User(quarry_identity::Change, Reply<Arc<UserTable>>),
    Subscribe(async_channel::Sender<Published>),
    View(Reply<cluster::ClusterView>),
}

/// A request that leads to a plan. In a cluster it waits in the metastore for the leader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Register(NodeRegistration),
    /// The same, of a node that chooses its incarnations itself.
    Start {
        registration: NodeRegistration,
        incarnation: Incarnation,
    },
    DeviceFailed {
        device: DeviceId,
        reason: String,
    },
    DeviceReturned {
        device: DeviceId,
        lost_partitions: Vec<PartitionId>,
    },
    ReplicasLost {
        device: DeviceId,
        partitions: Vec<PartitionId>,
    },
    Joined(quarry_planner::Joined),
    GroupMoved(quarry_planner::GroupMoved),
    Lagging(quarry_planner::Lagging),
    /// For a while, a device is not to join a partition.
    Avoid {
        partition: PartitionId,
        device: DeviceId,
    },
    /// A node is about to stop: its primaries go to others.
    HandOver {
        node: NodeId,
    },
    /// A node stops now.
    Left {
        node: NodeId,
    },
    /// An operator asks for something.
    Operate {
        intent: quarry_planner::Intent,
    },
    /// A node's lease has ended.
    NodeLost {
        node: NodeId,
    },
    Tick,
}

fn partition_epoch(map: &ClusterMap, partition: PartitionId) -> Result<Epoch, ControllerError> {
    let config = map.partitions.get(usize::from(partition.0));
    config.map(|config| config.epoch).ok_or(ControllerError::UnknownPartition { partition })
}
