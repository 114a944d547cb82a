//! Deletes what its lifecycle says is over: objects by the rules of their bucket or by their own time, and uploads that
//! nobody completed or whose bucket was deleted. Reads refuse an expired object from its time on by themselves; this frees its space.
//!
//! Each core walks the rows of the partitions whose primaries it holds: after a start, when a new day has begun (rules
//! in days end at midnight, UTC), and when the rules of a bucket have changed. So an idle node reads its rows once a day.
//! When a bucket was deleted it looks at the rows of uploads alone. That a bucket is gone, and not just not known here
//! yet, is told by its id: ids grow, and the table says which was the newest.
//!
//! In a bucket with versions the newest version gets a delete marker, older ones go for good, and so does a delete marker
//! that has nothing under it.
//!
//! A delete of the newest version is conditional on the version that was seen. The condition compares whole seconds, so
//! an object is left alone until it is [`SETTLED_MS`] old: what is written in the meantime differs by more than a second.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use quarry_clustermap::{BucketId, DocumentKind, Epoch, PartitionId};
use quarry_controller::BucketTable;
use quarry_object::{
    cluster::Cluster,
    lifecycle::{Candidate, EXPIRES_ATTRIBUTE, Lifecycle, day_ms, expiry_ms},
    metadata::{ExecuteError, Metadata},
    repair::Budget,
};
use quarry_partition::command::{
    Command, Conditions, DecodedRow, Manifest, UPLOAD_ROWS, VersionId, decode_row,
};

use crate::{
    cluster::NodeCluster,
    host::{CoreHost, PartitionHost},
    platform::Platform,
};

/// Pause between looks whether there is anything to do.
const CHECK: Duration = Duration::from_secs(10);
/// Rows taken from the index at once, as in the scrub.
const BATCH: usize = 64;
/// How old an object is at least before it is deleted.
pub(crate) const SETTLED_MS: u64 = 10_000;

/// The rules of every bucket that exists, and the newest revision of any that has rules.
struct Rules {
    by_bucket: BTreeMap<BucketId, Option<Lifecycle>>,
    revision: u64,
    table: Arc<BucketTable>,
    /// Those that exist, also if they are being deleted.
    existing: BTreeSet<BucketId>,
}

impl Rules {
    fn of<P: Platform>(cluster: &NodeCluster<P>) -> Self {
        let table = cluster.bucket_table();
        let existing = table.ids();
        let mut rules = Self { by_bucket: BTreeMap::new(), revision: 0, table, existing };
        for bucket in cluster.buckets() {
            let document = bucket.config.document(DocumentKind::Lifecycle);
            if document.is_some() {
                rules.revision = rules.revision.max(bucket.revision);
            }
            let lifecycle = document.map(Lifecycle::parse).transpose().unwrap_or_else(|error| {
                tracing::error!(event = "lifecycle_damaged", bucket = bucket.name, %error);
                None
            });
            rules.by_bucket.insert(bucket.id, lifecycle);
        }
        rules
    }

    /// Whether the newest version of an object is over.
    fn takes(&self, bucket: BucketId, key: &str, manifest: &Manifest, now_ms: u64) -> bool {
        let Some(rules) = self.by_bucket.get(&bucket) else { return false };
        if now_ms < manifest.last_modified_ms.saturating_add(SETTLED_MS) {
            return false;
        }
        let tags = manifest.tags.iter().cloned().collect();
        let own = manifest.attributes.headers.iter().find(|(name, _)| name == EXPIRES_ATTRIBUTE);
        let own = own.map(|(_, value)| value.as_str());
        let at_ms = expiry_ms(rules.as_ref(), &candidate(key, manifest, &tags), own);
        at_ms.is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// Whether an older version is over, which was replaced at `replaced_ms` and has `newer` older ones above it.
    fn takes_noncurrent(
        &self,
        (bucket, key): (BucketId, &str),
        manifest: &Manifest,
        (replaced_ms, newer): (u64, u32),
        now_ms: u64,
    ) -> bool {
        let Some(Some(rules)) = self.by_bucket.get(&bucket) else { return false };
        let tags = manifest.tags.iter().cloned().collect();
        let at_ms = rules.noncurrent_expiry(&candidate(key, manifest, &tags), replaced_ms, newer);
        at_ms.is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// Whether a delete marker without any version under it is over.
    fn takes_lone_marker(&self, bucket: BucketId, key: &str, written_ms: u64, now_ms: u64) -> bool {
        let Some(Some(rules)) = self.by_bucket.get(&bucket) else { return false };
        rules.takes_lone_marker(key, written_ms, now_ms)
    }

    /// Whether an upload is over.
    fn takes_upload(&self, bucket: BucketId, key: &str, began_ms: u64, now_ms: u64) -> bool {
        if bucket <= self.table.last_id && !self.existing.contains(&bucket) {
            return true;
        }
        let default = Lifecycle::default();
        let Some(rules) = self.by_bucket.get(&bucket) else { return false };
        rules.as_ref().unwrap_or(&default).upload_expiry_ms(key, began_ms) <= now_ms
    }
}

fn candidate<'a>(key: &'a str, manifest: &Manifest, tags: &'a BTreeMap<String, String>) -> Candidate<'a> {
    let Manifest { size_bytes, last_modified_ms, .. } = *manifest;
    Candidate { key, size_bytes, last_modified_ms, tags }
}

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>, budget: Budget) {
    let mut done = Done::default();
    loop {
        let now_ms = cluster.now_ms();
        let rules = Rules::of(&cluster);
        let due = Due { day: now_ms / day_ms(), revision: rules.revision, removed: rules.table.removed() };
        let served = host.primaries();
        done.keep(&served.iter().map(|partition| (partition.partition(), partition.epoch())).collect());
        for partition in &served {
            let from: &[u8] = match done.owes(partition.partition(), due) {
                Owed::Nothing => continue,
                Owed::Uploads => &UPLOAD_ROWS,
                Owed::All => &[],
            };
            let (cluster, rules) = (&cluster, &rules);
            let mut walk = Walk { cluster, rules, partition, now_ms, complete: true };
            walk.run(&budget, from).await;
            if walk.complete {
                done.note(partition.partition(), partition.epoch(), due);
            }
        }
        // Days are shorter than that in tests only.
        cluster.sleep(CHECK.min(Duration::from_millis(day_ms() / 8))).await;
    }
}

/// What a pass over a partition is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Due {
    day: u64,
    revision: u64,
    /// Buckets that are gone.
    removed: u64,
}

/// What of a partition is to be looked at.
#[derive(PartialEq, Eq, Debug)]
enum Owed {
    Nothing,
    Uploads,
    All,
}

/// The last whole pass over each partition that is served here, at the epoch of that pass. One that another core or node
/// served meanwhile, or that was not served yet, has none: its rows were not looked at.
#[derive(Default)]
struct Done(BTreeMap<PartitionId, (Epoch, Due)>);

impl Done {
    /// Forgets what is not served any more, or was served by others meanwhile.
    fn keep(&mut self, served: &BTreeMap<PartitionId, Epoch>) {
        self.0.retain(|partition, (epoch, _)| served.get(partition) == Some(epoch));
    }

    fn owes(&self, partition: PartitionId, due: Due) -> Owed {
        match self.0.get(&partition) {
            Some((_, done)) if *done == due => Owed::Nothing,
            Some((_, done)) if (done.day, done.revision) == (due.day, due.revision) => Owed::Uploads,
            _ => Owed::All,
        }
    }

    fn note(&mut self, partition: PartitionId, epoch: Epoch, due: Due) {
        self.0.insert(partition, (epoch, due));
    }
}

/// Deletes once what is over at `now_ms`; `false`: something could not be looked at, or is over but not settled yet.
#[cfg(test)]
pub(crate) async fn pass<P: Platform>(
    host: &Rc<CoreHost<P>>,
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    now_ms: u64,
) -> bool {
    walk_all(host, cluster, budget, now_ms, &[]).await
}

/// As [`pass`], of uploads alone.
#[cfg(test)]
pub(crate) async fn pass_uploads<P: Platform>(
    host: &Rc<CoreHost<P>>,
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    now_ms: u64,
) -> bool {
    walk_all(host, cluster, budget, now_ms, &UPLOAD_ROWS).await
}

#[cfg(test)]
async fn walk_all<P: Platform>(
    host: &Rc<CoreHost<P>>,
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    now_ms: u64,
    from: &[u8],
) -> bool {
    let rules = Rules::of(cluster);
    let mut complete = true;
    for partition in host.primaries() {
        let mut walk = Walk { cluster, rules: &rules, partition: &partition, now_ms, complete: true };
        walk.run(budget, from).await;
        complete &= walk.complete;
    }
    complete
}

/// One walk over the rows of a partition.
struct Walk<'a, P: Platform> {
    cluster: &'a Rc<NodeCluster<P>>,
    rules: &'a Rules,
    partition: &'a Rc<PartitionHost<P>>,
    now_ms: u64,
    complete: bool,
}

/// Versions of one key that a walk has passed, newest first.
struct Seen {
    bucket: BucketId,
    key: String,
    count: u32,
    /// The time of the last of them: when the next one was replaced.
    last_ms: u64,
    /// The newest, if it is a delete marker.
    marker: Option<VersionId>,
}

/// Where a walk goes on.
enum Next {
    Row,
    Uploads,
    End,
}

impl<P: Platform> Walk<'_, P> {
    async fn run(&mut self, budget: &Budget, from: &[u8]) {
        let mut from = from.to_vec();
        let mut seen: Option<Seen> = None;
        loop {
            let rows = match self.partition.committed_rows(&from, BATCH).await {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::debug!(event = "expiry_stopped", partition = %self.partition.partition(), %error);
                    self.complete = false;
                    return;
                }
            };
            let Some((last, _)) = rows.last() else { return self.leave(seen.take()).await };
            from = [last, &[0][..]].concat();
            let bytes = rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
            budget.spend(&**self.cluster, bytes).await;
            for (key, value) in &rows {
                match self.row(key, value, &mut seen).await {
                    Next::Row => {}
                    Next::Uploads if key[..] < UPLOAD_ROWS[..] => {
                        from = UPLOAD_ROWS.to_vec();
                        break;
                    }
                    Next::Uploads | Next::End => return self.leave(seen.take()).await,
                }
            }
        }
    }

    async fn row(&mut self, key: &Bytes, value: &Bytes, seen: &mut Option<Seen>) -> Next {
        // What cannot be decoded is for fsck to tell.
        let Ok(row) = decode_row(key, value) else { return Next::Row };
        match row {
            DecodedRow::Version { bucket, key, manifest } => {
                match seen {
                    Some(seen) if seen.bucket == bucket && seen.key == key => {
                        self.older(seen, &manifest).await
                    }
                    _ => {
                        self.leave(seen.take()).await;
                        *seen = Some(self.newest(bucket, key, &manifest).await);
                    }
                }
                Next::Row
            }
            DecodedRow::Upload { bucket, key, upload, created_ms } => {
                if self.rules.takes_upload(bucket, &key, created_ms, self.now_ms) {
                    let done = self.execute(Command::Abort { bucket, key, upload }).await;
                    self.cluster.metrics().uploads_expired.inc_by(u64::from(done));
                }
                Next::Row
            }
            _ if key[..] < UPLOAD_ROWS[..] => Next::Uploads,
            _ => Next::End,
        }
    }

    async fn newest(&mut self, bucket: BucketId, key: String, manifest: &Manifest) -> Seen {
        let last_ms = manifest.last_modified_ms;
        let marker = manifest.kind.is_marker().then(|| manifest.version_id());
        if marker.is_some() {
            return Seen { bucket, key, count: 1, last_ms, marker };
        }
        if self.rules.takes(bucket, &key, manifest, self.now_ms) {
            let conditions = Conditions { if_unmodified_since_ms: Some(last_ms), ..Conditions::default() };
            self.delete(bucket, &key, None, conditions).await;
        } else if self.rules.takes(bucket, &key, manifest, self.now_ms + SETTLED_MS) {
            self.complete = false;
        }
        Seen { bucket, key, count: 1, last_ms, marker }
    }

    async fn older(&mut self, seen: &mut Seen, manifest: &Manifest) {
        let about = (seen.bucket, seen.key.as_str());
        if self.rules.takes_noncurrent(about, manifest, (seen.last_ms, seen.count - 1), self.now_ms) {
            let version = Some(manifest.version_id());
            self.delete(seen.bucket, &seen.key, version, Conditions::default()).await;
        }
        seen.last_ms = manifest.last_modified_ms;
        seen.count += 1;
    }

    /// All versions of a key were passed.
    async fn leave(&mut self, seen: Option<Seen>) {
        let Some(Seen { bucket, key, count: 1, last_ms, marker: Some(marker) }) = seen else { return };
        if self.rules.takes_lone_marker(bucket, &key, last_ms, self.now_ms) {
            self.delete(bucket, &key, Some(marker), Conditions::default()).await;
        }
    }

    async fn delete(
        &mut self,
        bucket: BucketId,
        key: &str,
        version: Option<VersionId>,
        conditions: Conditions,
    ) {
        let request = self.cluster.next_blob_id();
        let delete = Command::Delete { bucket, key: key.to_owned(), version, request, conditions };
        let done = self.execute(delete).await;
        self.cluster.metrics().objects_expired.inc_by(u64::from(done));
    }

    /// Whether it was done.
    async fn execute(&mut self, command: Command) -> bool {
        match self.partition.execute(&command).await {
            Ok(_) => return true,
            // One that was replaced meanwhile is no failure.
            Err(ExecuteError::Refused(_)) => {}
            Err(error) => {
                self.complete = false;
                tracing::debug!(event = "expiry_failed", partition = %self.partition.partition(), %error);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_was_not_served_is_owed_a_pass() {
        let due = Due { day: 1, revision: 2, removed: 3 };
        let (first, second) = (PartitionId(1), PartitionId(2));
        let mut done = Done::default();
        done.keep(&[(first, Epoch(1))].into());
        assert_eq!(done.owes(first, due), Owed::All);
        done.note(first, Epoch(1), due);
        assert_eq!(done.owes(first, due), Owed::Nothing);
        // Another one arrives on the same day.
        done.keep(&[(first, Epoch(1)), (second, Epoch(5))].into());
        assert_eq!((done.owes(first, due), done.owes(second, due)), (Owed::Nothing, Owed::All));
        done.note(second, Epoch(5), due);
        assert_eq!(done.owes(second, Due { removed: 4, ..due }), Owed::Uploads);
        assert_eq!(done.owes(second, Due { revision: 4, ..due }), Owed::All);
        // It goes, and comes back, between two looks: only its epoch tells.
        done.keep(&[(first, Epoch(1)), (second, Epoch(7))].into());
        assert_eq!(done.owes(second, due), Owed::All);
    }
}
