//! The callers' side: queues a request and waits for its answer.

use std::{collections::BTreeMap, sync::Arc};

use async_channel::Sender;
use futures::channel::oneshot;
use quarry_clustermap::{BucketId, DeviceId, DocumentKind, Epoch, NodeId, PartitionId, PgId, Versioning};
use quarry_identity::UserTable;
use quarry_planner::{GroupMoved, Intent, Joined, Lagging};

use crate::{
    Bucket, ControllerError, NodeRegistration, Published, Registered, Reply, Report, Request,
    bucket::{Change, ChangeKind},
    cluster::ClusterView,
};

/// Talks to a running [`Controller`](crate::Controller) from any thread and any executor. Cheap to clone; when the last
/// one is dropped, the controller stops.
#[derive(Clone, Debug)]
pub struct ControllerHandle {
    pub(crate) requests: Sender<Request>,
}

impl ControllerHandle {
    /// A node has started. Gives it its next incarnation and all its partitions a new epoch; the first registration
    /// makes the first map.
    ///
    /// # Errors
    /// [`ControllerError::Plan`] when no map can be made of the devices; [`ControllerError::RegisteredTwice`] when
    /// another registration of the node is served at the same time; metastore errors.
    pub async fn register_node(&self, registration: NodeRegistration) -> Result<Registered, ControllerError> {
        let node = registration.node;
        let published = self.report(Report::Register(registration)).await?;
        Ok(Registered { incarnation: published.map.nodes[&node].incarnation, published })
    }

    /// A device failed and serves nothing any more. Answered when a map without it is committed; repeating it is fine.
    ///
    /// # Errors
    /// [`ControllerError::UnknownDevice`]; metastore errors.
    pub async fn device_failed(
        &self,
        device: DeviceId,
        reason: String,
    ) -> Result<Published, ControllerError> {
        self.report(Report::DeviceFailed { device, reason }).await
    }

    /// A device was opened again without a start of its node: it is in, and its partitions get a new epoch.
    /// `lost_partitions`: as in [`ControllerHandle::replicas_lost`]. Repeating it is fine, and starts those again.
    ///
    /// # Errors
    /// [`ControllerError::UnknownDevice`], also for a device that was replaced and has left the map: it comes in as a new
    /// one when its node registers; metastore errors.
    pub async fn device_returned(
        &self,
        device: DeviceId,
        lost_partitions: Vec<PartitionId>,
    ) -> Result<Published, ControllerError> {
        self.report(Report::DeviceReturned { device, lost_partitions }).await
    }

    /// Replicas on a device lost their history. Each leaves the in-sync set and joins anew, if another in-sync replica
    /// has the history; if none has, the partition serves nothing (`PartitionConfig::lost`). Either way its epoch is new.
    ///
    /// # Errors
    /// [`ControllerError::UnknownDevice`]; metastore errors.
    pub async fn replicas_lost(
        &self,
        device: DeviceId,
        partitions: Vec<PartitionId>,
    ) -> Result<Published, ControllerError> {
        self.report(Report::ReplicasLost { device, partitions }).await
    }

    /// Every position that the map of `epoch` lists as to be rebuilt in a group is whole and flushed, and no reachable
    /// member takes anything of an older epoch. A report of an epoch that was replaced is ignored.
    ///
    /// # Errors
    /// [`ControllerError::NoMap`]; metastore errors.
    pub async fn group_moved(&self, pg: PgId, epoch: Epoch) -> Result<Published, ControllerError> {
        self.report(Report::GroupMoved(GroupMoved { pg, epoch })).await
    }

    /// Time has passed: plans what is due by now. The controller has no timer of its own; call it every few seconds.
    ///
    /// # Errors
    /// [`ControllerError::NoMap`] before the first registration; metastore errors.
    pub async fn tick(&self) -> Result<Published, ControllerError> {
        self.report(Report::Tick).await
    }

    /// A joiner holds the whole history. A report of an epoch that was replaced is ignored.
    ///
    /// # Errors
    /// [`ControllerError::NoMap`]; metastore errors.
    pub async fn joined(
        &self,
        partition: PartitionId,
        epoch: Epoch,
        device: DeviceId,
    ) -> Result<Published, ControllerError> {
        self.report(Report::Joined(Joined { partition, epoch, device })).await
    }

    /// A member of a partition keeps its primary waiting: it leaves, and another device joins if there is one. A report
    /// of an epoch that was replaced is ignored, and so is one about the primary or about the last in-sync replica.
    ///
    /// # Errors
    /// [`ControllerError::NoMap`]; metastore errors.
    pub async fn replica_lagging(
        &self,
        partition: PartitionId,
        epoch: Epoch,
        device: DeviceId,
    ) -> Result<Published, ControllerError> {
        self.report(Report::Lagging(Lagging { partition, epoch, device })).await
    }

    /// A node is about to stop: other in-sync replicas become primary in its place where there are any. It stays a member
    /// of its partitions until [`ControllerHandle::node_left`].
    ///
    /// # Errors
    /// [`ControllerError::NoMap`]; metastore errors.
    pub async fn hand_over(&self, node: NodeId) -> Result<Published, ControllerError> {
        self.report(Report::HandOver { node }).await
    }

    /// A node stops now, on purpose: its devices are out without the wait for its lease.
    ///
    /// # Errors
    /// [`ControllerError::NoMap`]; metastore errors.
    pub async fn node_left(&self, node: NodeId) -> Result<Published, ControllerError> {
        self.report(Report::Left { node }).await
    }

    /// Does what an operator asks for. In a cluster the leader checks it again, and only its log tells if it refuses.
    ///
    /// # Errors
    /// [`ControllerError::Refused`], [`ControllerError::NoMap`]; metastore errors.
    pub async fn operate(&self, intent: Intent) -> Result<Published, ControllerError> {
        self.report(Report::Operate { intent }).await
    }

    /// A new primary is about to acknowledge its first record of an epoch. `Ok`: it may, also when asked again.
    ///
    /// # Errors
    /// [`ControllerError::Superseded`]: it must not; [`ControllerError::UnknownPartition`]; metastore errors.
    pub async fn activate(&self, partition: PartitionId, epoch: Epoch) -> Result<(), ControllerError> {
        self.ask(|reply| Request::Activate { partition, epoch, reply }).await
    }

    /// Creates a bucket; `now_ms` (since 1970) becomes its creation time.
    ///
    /// # Errors
    /// [`ControllerError::BucketName`], [`ControllerError::BucketExists`]; metastore errors.
    pub async fn create_bucket(&self, name: &str, now_ms: u64) -> Result<Bucket, ControllerError> {
        self.create_bucket_with(name, now_ms, BTreeMap::new()).await
    }

    /// Creates a bucket that has documents from its first moment.
    ///
    /// # Errors
    /// As [`Self::create_bucket`]; [`ControllerError::ConfigurationTooLarge`].
    pub async fn create_bucket_with(
        &self,
        name: &str,
        now_ms: u64,
        documents: BTreeMap<DocumentKind, String>,
    ) -> Result<Bucket, ControllerError> {
        self.change(name, ChangeKind::Create { now_ms, documents }).await
    }

    /// First phase of a deletion: the bucket refuses writes from the published revision on. Repeating it is fine.
    ///
    /// # Errors
    /// [`ControllerError::NoSuchBucket`]; metastore errors.
    pub async fn mark_bucket_deleting(&self, name: &str) -> Result<Bucket, ControllerError> {
        self.change(name, ChangeKind::Mark).await
    }

    /// The bucket is not empty: takes the mark back.
    ///
    /// # Errors
    /// [`ControllerError::NoSuchBucket`]; metastore errors.
    pub async fn unmark_bucket(&self, name: &str, id: BucketId) -> Result<Bucket, ControllerError> {
        self.change(name, ChangeKind::Unmark { id }).await
    }

    /// The bucket is empty everywhere: removes it.
    ///
    /// # Errors
    /// [`ControllerError::NoSuchBucket`], [`ControllerError::BucketNotMarked`]; metastore errors.
    pub async fn remove_bucket(&self, name: &str, id: BucketId) -> Result<Bucket, ControllerError> {
        self.change(name, ChangeKind::Remove { id }).await
    }

    /// Sets what a bucket keeps of older versions. Setting what is set changes nothing.
    ///
    /// # Errors
    /// [`ControllerError::NoSuchBucket`]; [`ControllerError::VersioningStays`]; metastore errors.
    pub async fn set_versioning(
        &self,
        name: &str,
        id: BucketId,
        versioning: Versioning,
    ) -> Result<Bucket, ControllerError> {
        self.change(name, ChangeKind::SetVersioning { id, versioning }).await
    }

    /// Sets a document of a bucket, or removes it with `None`. The text is kept as it is.
    ///
    /// # Errors
    /// [`ControllerError::NoSuchBucket`]; [`ControllerError::ConfigurationTooLarge`]; metastore errors.
    pub async fn set_bucket_document(
        &self,
        name: &str,
        id: BucketId,
        kind: DocumentKind,
        document: Option<String>,
    ) -> Result<Bucket, ControllerError> {
        self.change(name, ChangeKind::SetDocument { id, kind, document }).await
    }

    /// Changes users, access keys or policies. The answer is the table after the change.
    ///
    /// # Errors
    /// [`ControllerError::User`]; metastore errors.
    pub async fn change_users(
        &self,
        change: quarry_identity::Change,
    ) -> Result<Arc<UserTable>, ControllerError> {
        self.ask(|reply| Request::User(change, reply)).await
    }

    /// A channel with the newest state: at once if there is a map, then after every change. States that were not taken
    /// in time are skipped, never reordered. Dropping the receiver ends the subscription.
    ///
    /// A node that starts registers first: until then the newest map may be one from before its start.
    ///
    /// # Errors
    /// [`ControllerError::Stopped`].
    pub async fn subscribe(&self) -> Result<async_channel::Receiver<Published>, ControllerError> {
        let (sender, receiver) = async_channel::bounded(1);
        self.requests.send(Request::Subscribe(sender)).await.map_err(|_| ControllerError::Stopped)?;
        Ok(receiver)
    }

    /// Everything that there is to know about the cluster, as the metastore has it.
    ///
    /// # Errors
    /// [`ControllerError::Damaged`]; metastore errors.
    pub async fn view(&self) -> Result<ClusterView, ControllerError> {
        self.ask(Request::View).await
    }

    async fn report(&self, report: Report) -> Result<Published, ControllerError> {
        self.ask(|reply| Request::Plan(report, reply)).await
    }

    async fn change(&self, name: &str, kind: ChangeKind) -> Result<Bucket, ControllerError> {
        self.ask(|reply| Request::Bucket(Change { name: name.to_owned(), kind }, reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, ControllerError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| ControllerError::Stopped)?;
        answer.await.unwrap_or(Err(ControllerError::Stopped))
    }
}
