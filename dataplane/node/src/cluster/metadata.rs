//! [`Metadata`]: partitions through their primaries, buckets through the control plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use quarry_clustermap::{BucketId, DocumentKind, NodeId, PartitionId, Versioning};
use quarry_controller::{BucketState, BucketTable, ControllerError};
use quarry_meter::stage::{self, Stage};
use quarry_object::{
    api::ApiError,
    metadata::{Bucket, ExecuteError, Metadata},
    peer::{PeerFault, PeerRequest, PeerResponse},
    transport::{Address, Class, Parcel},
};
use quarry_partition::command::{Command, Conditions, Entry, Framed, List, Outcome, Refusal, Reply};

use super::{NodeCluster, unexpected};
use crate::{
    host::listing,
    platform::{Platform, Timer},
};

/// How long a command is retried while a new primary takes over.
const RETRY_FOR: Duration = Duration::from_secs(8);
/// Pause before the first retry; doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(100);
/// How long a bucket change may take to reach every node: a lost one is out before.
const SPREAD_FOR: Duration = Duration::from_secs(20);

/// Who must act on a change of a bucket before it is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Every node that is in: whichever is asked next knows of it.
    Nodes,
    /// The serving primary of every partition too: nobody else commits anything for the bucket from then on.
    Primaries,
}

impl<P: Platform> NodeCluster<P> {
    /// Whether the same command may be sent again after `fault`.
    fn may_retry(command: &Command, fault: &PeerFault) -> bool {
        match fault {
            // Nothing has happened; the map will name another primary, or this one will get ready.
            PeerFault::NotPrimary | PeerFault::DeviceOut | PeerFault::TooFewCopies => true,
            // A repetition of these gets the first answer (blob id, upload id) or does the same again.
            PeerFault::OutcomeUnknown | PeerFault::Device { .. } => match command {
                Command::Delete { conditions, .. } => *conditions == Conditions::default(),
                _ => true,
            },
            _ => false,
        }
    }

    /// The table of buckets that this core acts on.
    pub(crate) fn bucket_table(&self) -> Arc<BucketTable> {
        Arc::clone(&self.buckets.borrow())
    }

    fn elapsed(&self, since: Duration) -> Duration {
        self.parts.timer.monotonic().saturating_sub(since)
    }

    /// Sends an encoded command to the primary as the map has it now.
    async fn execute_once(
        &self,
        partition: PartitionId,
        (class, request): (Class, &Bytes),
    ) -> Result<Outcome, PeerFault> {
        let primary = self.map.borrow().partition(partition).primary;
        let parcel = Parcel { message: request.clone(), bulk: Bytes::new() };
        match self.send(Address::Device(primary), class, parcel).await?.0 {
            PeerResponse::Executed { outcome } => {
                Outcome::decode(&outcome).map_err(|error| PeerFault::Damaged { detail: error.to_string() })
            }
            _ => Err(unexpected()),
        }
    }

    /// Who answers for all primaries together: the cores of this node, and every other node that has one.
    fn answerers(&self) -> Vec<Address> {
        let map = self.map.borrow();
        let node_of = |device| map.devices.get(&device).map(|entry| entry.node);
        let nodes: BTreeSet<NodeId> =
            map.partitions.iter().filter_map(|config| node_of(config.primary)).collect();
        let mine = (0..self.parts.cores).map(Address::Core);
        mine.chain(nodes.into_iter().filter(|node| *node != self.parts.node).map(Address::Node)).collect()
    }

    /// How many share the keys evenly: the cores of the only node, or the nodes.
    fn sources(&self) -> usize {
        let others = self.answerers().len() - self.parts.cores;
        if others == 0 { self.parts.cores } else { others + 1 }
    }

    /// Asks every node, until the answers cover all partitions.
    async fn ask_all(&self, request: PeerRequest) -> Result<Vec<PeerResponse>, PeerFault> {
        let started = self.parts.timer.monotonic();
        loop {
            let asked = self.answerers().into_iter().map(|to| self.ask(to, request.clone()));
            let answers: Result<Vec<_>, _> = join_all(asked).await.into_iter().collect();
            let fault = match answers {
                Ok(answers) => {
                    let covered: Vec<PartitionId> = answers.iter().flat_map(covered).copied().collect();
                    let distinct: BTreeSet<PartitionId> = covered.iter().copied().collect();
                    let partitions = self.map.borrow().partitions.len();
                    let early = answers
                        .iter()
                        .any(|answer| matches!(answer, PeerResponse::Empty { empty: false, .. }));
                    // Two that both serve a partition: one of them has not heard yet that it does not.
                    if early || distinct.len() == partitions && covered.len() == partitions {
                        return Ok(answers);
                    }
                    PeerFault::NotPrimary
                }
                // Nothing is changed by asking again.
                Err(
                    fault @ (PeerFault::NotPrimary
                    | PeerFault::DeviceOut
                    | PeerFault::OutcomeUnknown
                    | PeerFault::Device { .. }),
                ) => fault,
                Err(fault) => return Err(fault),
            };
            if self.elapsed(started) > RETRY_FOR {
                return Err(fault);
            }
            self.parts.timer.sleep(RETRY_PAUSE_MAX).await;
        }
    }

    /// Waits until this core's bucket table satisfies `done`, then until that table has the wanted reach.
    async fn spread(&self, reach: Reach, done: impl Fn(&BucketTable) -> bool) -> Result<(), ApiError> {
        let started = self.parts.timer.monotonic();
        let mut pause = RETRY_PAUSE_MIN;
        while self.elapsed(started) < SPREAD_FOR {
            let table = Arc::clone(&self.buckets.borrow());
            if done(&table) && self.parts.progress.bucket_revision() >= table.revision {
                if self.is_elsewhere(table.revision, reach).await {
                    return Ok(());
                }
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
            self.parts.timer.sleep(pause).await;
        }
        Err(ApiError::Unavailable {
            reason: "the change of the bucket is made, but has not reached every node in time".into(),
        })
    }

    /// Whether the other nodes act on a revision of the bucket table. A node that does not answer counts until the map has
    /// its devices out; whether it then still leads a partition is decided by the one that takes it over.
    async fn is_elsewhere(&self, revision: u64, reach: Reach) -> bool {
        let map = Rc::clone(&self.map.borrow());
        let nodes_in = map.devices.iter().filter(|(id, _)| map.is_in(**id)).map(|(_, entry)| entry.node);
        let others: BTreeSet<NodeId> = nodes_in.filter(|node| *node != self.parts.node).collect();
        if others.is_empty() {
            return true;
        }
        let mine = (0..self.parts.cores).map(Address::Core);
        let asked = mine.chain(others.into_iter().map(Address::Node));
        let asked = asked.map(|to| self.ask(to, PeerRequest::BucketRevision));
        let mut covered = Vec::new();
        for answer in join_all(asked).await {
            match answer {
                Ok(PeerResponse::ActsOn { revision: theirs, partitions }) if theirs >= revision => {
                    covered.extend(partitions);
                }
                _ => return false,
            }
        }
        let distinct: BTreeSet<PartitionId> = covered.iter().copied().collect();
        reach == Reach::Nodes || distinct.len() == map.partitions.len() && covered.len() == distinct.len()
    }

    async fn is_empty(&self, bucket: BucketId) -> Result<bool, PeerFault> {
        let answers = self.ask_all(PeerRequest::BucketIsEmpty { bucket }).await?;
        Ok(answers.iter().all(|answer| matches!(answer, PeerResponse::Empty { empty: true, .. })))
    }
}

fn covered(answer: &PeerResponse) -> &[PartitionId] {
    match answer {
        PeerResponse::Listed { partitions, .. } | PeerResponse::Empty { partitions, .. } => partitions,
        _ => &[],
    }
}

fn described(name: &str, bucket: &quarry_controller::Bucket) -> Bucket {
    Bucket {
        id: bucket.id,
        name: name.to_owned(),
        created_ms: bucket.created_ms,
        revision: bucket.revision,
        config: Arc::clone(&bucket.config),
    }
}

fn to_api_error(error: &ControllerError) -> ApiError {
    match error {
        ControllerError::BucketName(_) => ApiError::InvalidBucketName,
        ControllerError::BucketExists { .. } => ApiError::BucketAlreadyOwnedByYou,
        ControllerError::NoSuchBucket { .. } | ControllerError::BucketNotMarked { .. } => {
            ApiError::NoSuchBucket
        }
        ControllerError::ConfigurationTooLarge { .. } | ControllerError::VersioningStays { .. } => {
            ApiError::InvalidRequest { problem: error.to_string() }
        }
        other => ApiError::Unavailable { reason: other.to_string() },
    }
}

impl<P: Platform> Metadata for NodeCluster<P> {
    async fn execute(&self, partition: PartitionId, command: Command) -> Result<Reply, ExecuteError> {
        let request = PeerRequest::Execute { partition, command: command.encode() };
        let (class, request) = (request.class(), Bytes::from(request.encode()));
        let started = self.parts.timer.monotonic();
        let mut pause = RETRY_PAUSE_MIN;
        // Once a try may have been carried out, only an answer can say that the command was not.
        let mut unknown = false;
        let changes = !matches!(
            command,
            Command::Head(_)
                | Command::Get(_)
                | Command::ObjectParts { .. }
                | Command::GetUpload { .. }
                | Command::ListParts { .. }
        );
        loop {
            match stage::timed(Stage::Commit, self.execute_once(partition, (class, &request))).await {
                Ok(Outcome::Done(reply)) => return Ok(reply),
                // The first try has aborted it.
                Ok(Outcome::Refused(Refusal::NoSuchUpload))
                    if unknown && matches!(command, Command::Abort { .. }) =>
                {
                    return Ok(Reply::Done);
                }
                Ok(Outcome::Refused(refusal)) => return Err(refusal.into()),
                Err(fault) => {
                    unknown |=
                        changes && matches!(fault, PeerFault::OutcomeUnknown | PeerFault::Device { .. });
                    if !Self::may_retry(&command, &fault) || self.elapsed(started) >= RETRY_FOR {
                        return Err(if unknown { PeerFault::OutcomeUnknown } else { fault }.into());
                    }
                    self.parts.timer.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
            }
        }
    }

    async fn list(&self, list: List) -> Result<(Vec<Entry>, bool), ExecuteError> {
        let mut each = listing::share(&list, self.sources());
        loop {
            let command = Command::List(List { max: each, ..list.clone() });
            let request = PeerRequest::List { list: command.encode() };
            let answers = stage::timed(Stage::Commit, self.ask_all(request)).await?;
            let merged = listing::merge_pages(answers, list.max as usize)?;
            if merged.complete || each == list.max {
                return Ok((merged.entries, merged.truncated));
            }
            each = list.max;
        }
    }

    fn bucket(&self, name: &str) -> Option<Bucket> {
        let buckets = self.buckets.borrow();
        let bucket = buckets.by_name.get(name).filter(|bucket| bucket.state == BucketState::Active)?;
        Some(described(name, bucket))
    }

    fn buckets(&self) -> Vec<Bucket> {
        let active = |(name, bucket): (&String, &quarry_controller::Bucket)| {
            (bucket.state == BucketState::Active).then(|| described(name, bucket))
        };
        self.buckets.borrow().by_name.iter().filter_map(active).collect()
    }

    async fn create_bucket(
        &self,
        name: &str,
        documents: BTreeMap<DocumentKind, String>,
    ) -> Result<(), ApiError> {
        let controller = self.parts.control.controller();
        let bucket = controller
            .create_bucket_with(name, self.parts.timer.unix_ms(), documents)
            .await
            .map_err(|error| to_api_error(&error))?;
        self.spread(Reach::Nodes, |table| table.revision >= bucket.revision).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<(), ApiError> {
        let controller = self.parts.control.controller();
        let bucket = controller.mark_bucket_deleting(name).await.map_err(|error| to_api_error(&error))?;
        let marked = self
            .spread(Reach::Primaries, |table| {
                table.by_name.get(name).is_none_or(|known| known.state == BucketState::Deleting)
            })
            .await;
        let empty = match marked {
            Ok(()) => self.is_empty(bucket.id).await.map_err(ApiError::from),
            Err(error) => Err(error),
        };
        match empty {
            Ok(true) => {
                controller.remove_bucket(name, bucket.id).await.map_err(|error| to_api_error(&error))?;
                self.spread(Reach::Nodes, |table| {
                    table.by_name.get(name).is_none_or(|known| known.id != bucket.id)
                })
                .await
            }
            outcome => {
                let open = controller.unmark_bucket(name, bucket.id).await;
                let open = open.map_err(|error| to_api_error(&error))?;
                self.spread(Reach::Nodes, |table| table.revision >= open.revision).await?;
                outcome.and(Err(ApiError::BucketNotEmpty))
            }
        }
    }

    async fn set_bucket_document(
        &self,
        name: &str,
        kind: DocumentKind,
        document: Option<String>,
    ) -> Result<(), ApiError> {
        let id = self.bucket(name).ok_or(ApiError::NoSuchBucket)?.id;
        let controller = self.parts.control.controller();
        let changed = controller.set_bucket_document(name, id, kind, document).await;
        let bucket = changed.map_err(|error| to_api_error(&error))?;
        self.spread(Reach::Primaries, |table| table.revision >= bucket.revision).await
    }

    async fn set_versioning(&self, name: &str, versioning: Versioning) -> Result<(), ApiError> {
        let id = self.bucket(name).ok_or(ApiError::NoSuchBucket)?.id;
        let changed = self.parts.control.controller().set_versioning(name, id, versioning).await;
        let bucket = changed.map_err(|error| to_api_error(&error))?;
        self.spread(Reach::Primaries, |table| table.revision >= bucket.revision).await
    }
}
