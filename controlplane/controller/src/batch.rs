//! The loop: take what is queued, decide, commit, answer, publish.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use async_channel::{Receiver, Sender};
use quarry_clustermap::{Epoch, PartitionId};
use quarry_identity::UserTable;
use quarry_metastore::{Entry, Metastore, MetastoreError, TRANSACTION_OPERATIONS_MAX, Transaction};
use tracing::{info, warn};

use crate::{
    BUCKET_BYTES_MAX, Bucket, COMMIT_ATTEMPTS_MAX, ControllerError, ControllerHandle, ControllerOptions,
    Published, REQUESTS_QUEUED_MAX, Reply, Report, Request,
    accusers::Accusers,
    bucket::{self, BucketCounters, Change},
    cluster::ClusterView,
    map_store::{self, Staged},
    plan::{ACTIVATIONS_MAX, MapAnswer, decide_activations, decide_map},
    published::Subscribers,
    state::{BUCKET_PREFIX, COUNTERS_KEY, Loaded, to_json},
    user,
};

/// Buckets that one transaction changes: one operation of it is for the counters.
const BUCKET_CHANGES_MAX: usize = TRANSACTION_OPERATIONS_MAX - 1;
/// Bytes of buckets after which a transaction takes no more: with the last one it stays below what etcd takes.
const BUCKET_CHANGES_BYTES_MAX: usize = BUCKET_BYTES_MAX;

/// Serves the requests of its handles. See the crate.
#[derive(Debug)]
pub struct Controller<M> {
    pub(crate) metastore: M,
    pub(crate) options: ControllerOptions,
    pub(crate) requests: Receiver<Request>,
    pub(crate) subscribers: Subscribers,
    /// What the last plan waited for: told once, not at every tick.
    waits: Vec<String>,
    accusers: Accusers,
    /// The newest state read or written here: what has not changed is not read again.
    pub(crate) known: Option<Loaded>,
    /// Makes the keys that this controller writes its own.
    pub(crate) writer: u64,
    /// The leader's entry: no map is committed once it is another one.
    pub(crate) fence: Option<Entry>,
}

/// A decided change: what to write, the state after it (but for revisions), and what the callers are told.
pub(crate) type Decided<W, T> = (Option<W>, Loaded, T);

/// Something to write.
#[derive(Debug)]
pub(crate) enum Write {
    /// One transaction.
    Plain(Transaction),
    /// A next map.
    Map(Staged),
}

impl From<Transaction> for Write {
    fn from(transaction: Transaction) -> Self {
        Self::Plain(transaction)
    }
}

/// Requests taken from the queue together, by kind.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) reports: Vec<(Report, Reply<Published>)>,
    pub(crate) activations: Vec<(PartitionId, Epoch, Reply<()>)>,
    changes: Vec<(Change, Reply<Bucket>)>,
    users: Vec<(quarry_identity::Change, Reply<Arc<UserTable>>)>,
    subscriptions: Vec<Sender<Published>>,
    views: Vec<Reply<ClusterView>>,
}

impl Batch {
    fn add(&mut self, request: Request) {
        match request {
            Request::Plan(report, reply) => self.reports.push((report, reply)),
            Request::Activate { partition, epoch, reply } => self.activations.push((partition, epoch, reply)),
            Request::Bucket(change, reply) => self.changes.push((change, reply)),
            Request::User(change, reply) => self.users.push((change, reply)),
            Request::Subscribe(channel) => self.subscriptions.push(channel),
            Request::View(reply) => self.views.push(reply),
        }
    }
}

impl<M: Metastore> Controller<M> {
    /// A controller on `metastore`, and the handle to it. Nothing happens until [`Controller::run`] is polled.
    pub fn new(metastore: M, options: ControllerOptions) -> (Self, ControllerHandle) {
        let (sender, requests) = async_channel::bounded(REQUESTS_QUEUED_MAX);
        let subscribers = Subscribers::default();
        let controller = Self {
            metastore,
            options,
            requests,
            subscribers,
            waits: Vec::new(),
            accusers: Accusers::default(),
            known: None,
            writer: RandomState::new().build_hasher().finish(),
            fence: None,
        };
        (controller, ControllerHandle { requests: sender })
    }

    /// Serves until every handle is gone. Failures of the metastore are answered to the callers; it goes on.
    pub async fn run(mut self) {
        if let Err(error) = self.begin().await {
            warn!(event = "metastore_unreadable", %error);
        }
        while let Ok(first) = self.requests.recv().await {
            let batch = self.gather(first);
            self.serve(batch).await;
        }
    }

    /// Publishes what there is, and clears away what a crash left.
    async fn begin(&mut self) -> Result<(), ControllerError> {
        self.reload().await?;
        let stored = self.known.as_ref().and_then(|known| known.stored.clone());
        let swept = map_store::sweep(&self.metastore, stored.as_deref(), &Transaction::default()).await;
        swept.map_err(|error| ControllerError::from(&error))
    }

    /// Reads the newest state and publishes it.
    pub(crate) async fn reload(&mut self) -> Result<(), ControllerError> {
        let loaded = Loaded::read(&self.metastore, self.known.as_ref()).await?;
        self.publish(&loaded);
        self.known = Some(loaded);
        Ok(())
    }

    /// A request and all that wait behind it.
    pub(crate) fn gather(&self, first: Request) -> Batch {
        let mut batch = Batch::default();
        batch.add(first);
        for _ in 1..REQUESTS_QUEUED_MAX {
            let Ok(request) = self.requests.try_recv() else { break };
            batch.add(request);
        }
        batch
    }

    pub(crate) async fn serve(&mut self, batch: Batch) {
        for channel in batch.subscriptions {
            self.subscribers.add(channel);
        }
        if !batch.reports.is_empty() {
            self.serve_reports(batch.reports).await;
        }
        let mut activations = batch.activations.into_iter().peekable();
        while activations.peek().is_some() {
            self.serve_activations(activations.by_ref().take(ACTIVATIONS_MAX).collect()).await;
        }
        if !batch.changes.is_empty() {
            self.serve_changes(batch.changes).await;
        }
        // One by one: they are few, and each may touch several rows.
        for (change, reply) in batch.users {
            let answer = self.commit(COMMIT_ATTEMPTS_MAX, |loaded| user::decide(&change, loaded)).await;
            // A caller that no longer waits needs no answer.
            let _ = reply.send(answer);
        }
        if !batch.views.is_empty() {
            let known = self.known.as_ref().and_then(|known| known.stored.as_ref());
            let view = ClusterView::read_after(&self.metastore, known).await;
            for reply in batch.views {
                // A caller that no longer waits needs no answer.
                let _ = reply.send(view.clone());
            }
        }
    }

    fn publish(&mut self, loaded: &Loaded) {
        if let Some(published) = loaded.published() {
            self.subscribers.publish(&published);
        }
    }

    /// Reads, decides and commits until no other writer interferes. `decide` returns what to write (`None`: nothing),
    /// the state after it, and what the callers are told.
    async fn commit<W: Into<Write>, T>(
        &mut self,
        attempts: usize,
        mut decide: impl FnMut(Loaded) -> Result<Decided<W, T>, ControllerError>,
    ) -> Result<T, ControllerError> {
        for _ in 0..attempts {
            let loaded = Loaded::read(&self.metastore, self.known.as_ref()).await?;
            self.known = Some(loaded.clone());
            let (write, mut after, answer) = decide(loaded)?;
            let written = match write.map(Into::into) {
                None => Ok(()),
                Some(Write::Plain(transaction)) => self.metastore.transact(&transaction).await.map(drop),
                Some(Write::Map(staged)) => staged.commit(&self.metastore).await.map(|stored| {
                    after.stored = Some(Arc::new(stored));
                }),
            };
            match written {
                Ok(()) => {}
                Err(MetastoreError::Conflict) => continue,
                Err(error) => return Err(ControllerError::from(&error)),
            }
            self.publish(&after);
            return Ok(answer);
        }
        Err(ControllerError::Contention)
    }

    /// Plans reports together and commits the map; `base` is done with it, or alone if the map stays as it is.
    pub(crate) async fn plan_reports(
        &mut self,
        reports: &[Report],
        base: &Transaction,
        attempts: usize,
    ) -> Result<MapAnswer, ControllerError> {
        let (options, writer) = (self.options.clone(), self.writer);
        let mut accusers = std::mem::take(&mut self.accusers);
        let decide = |loaded: Loaded| {
            let now_ms = (options.clock_ms)();
            if let Some(map) = loaded.map() {
                accusers.note(&map, reports, now_ms);
            }
            decide_map(&options, (reports, accusers.accusations(now_ms)), loaded, base, writer)
        };
        let result = self.commit(attempts, decide).await;
        self.accusers = accusers;
        if let Err(error) = &result {
            warn!(event = "plan_failed", %error, reports = reports.len());
        }
        if let Ok(MapAnswer { waits: Some(waits), .. }) = &result
            && *waits != self.waits
        {
            info!(event = "plan_waits", reasons = ?waits);
            self.waits.clone_from(waits);
        }
        result
    }

    async fn serve_reports(&mut self, reports: Vec<(Report, Reply<Published>)>) {
        let (reports, replies): (Vec<_>, Vec<_>) = reports.into_iter().unzip();
        let result = self.plan_reports(&reports, &Transaction::default(), COMMIT_ATTEMPTS_MAX).await;
        for (position, reply) in replies.into_iter().enumerate() {
            let answer = result.clone().and_then(|MapAnswer { published, refused, .. }| {
                match refused.get(&position) {
                    Some(error) => Err(error.clone()),
                    None => published.ok_or(ControllerError::NoMap),
                }
            });
            // A caller that no longer waits needs no answer.
            let _ = reply.send(answer);
        }
    }

    async fn serve_activations(&mut self, activations: Vec<(PartitionId, Epoch, Reply<()>)>) {
        let wanted: Vec<(PartitionId, Epoch)> = activations.iter().map(|(p, e, _)| (*p, *e)).collect();
        let result = self.commit(COMMIT_ATTEMPTS_MAX, |loaded| decide_activations(&wanted, loaded)).await;
        answer_each(result, activations.into_iter().map(|(_, _, reply)| reply));
    }

    async fn serve_changes(&mut self, changes: Vec<(Change, Reply<Bucket>)>) {
        let (changes, replies): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
        let mut replies = replies.into_iter();
        // A transaction takes as many as fit, at least one.
        while replies.len() > 0 {
            let rest = &changes[changes.len() - replies.len()..];
            match self.commit(COMMIT_ATTEMPTS_MAX, |loaded| Ok(decide_buckets(rest, loaded))).await {
                Ok(answers) => {
                    for (answer, reply) in answers.into_iter().zip(replies.by_ref()) {
                        // A caller that no longer waits needs no answer.
                        let _ = reply.send(answer);
                    }
                }
                error => answer_each(error, replies.by_ref()),
            }
        }
    }
}

fn answer_each<T>(
    result: Result<Vec<Result<T, ControllerError>>, ControllerError>,
    replies: impl ExactSizeIterator<Item = Reply<T>>,
) {
    let answers = match result {
        Ok(answers) => answers,
        Err(error) => replies
            .len()
            .checked_sub(1)
            .map_or_else(Vec::new, |more| (0..=more).map(|_| Err(error.clone())).collect()),
    };
    for (reply, answer) in replies.zip(answers) {
        // A caller that no longer waits needs no answer.
        let _ = reply.send(answer);
    }
}

/// Takes changes until the transaction is full; there are answers to those that were taken.
fn decide_buckets(
    changes: &[Change],
    loaded: Loaded,
) -> Decided<Transaction, Vec<Result<Bucket, ControllerError>>> {
    let mut table = (*loaded.buckets).clone();
    let mut counters = loaded.counters;
    let mut answers = Vec::new();
    // What to write of each bucket that differs from before; none: it goes.
    let mut values: BTreeMap<&str, Option<Vec<u8>>> = BTreeMap::new();
    for change in changes {
        let bytes: usize = values.values().flatten().map(Vec::len).sum();
        if values.len() >= BUCKET_CHANGES_MAX || bytes >= BUCKET_CHANGES_BYTES_MAX {
            break;
        }
        let name = &change.name;
        answers.push(bucket::apply(&mut table.by_name, &mut counters, change));
        let (old, new) = (loaded.buckets.by_name.get(name), table.by_name.get(name));
        if old == new {
            values.remove(name.as_str());
        } else {
            values.insert(name, new.map(to_json));
        }
    }
    if table.by_name == loaded.buckets.by_name && counters == loaded.counters {
        return (None, loaded, answers);
    }
    counters = BucketCounters { revision: counters.revision + 1, ..counters };
    table.revision = counters.revision;
    let mut transaction = Transaction::default()
        .expect(COUNTERS_KEY, loaded.counters_entry.as_ref())
        .put(COUNTERS_KEY, to_json(&counters));
    for (name, value) in values {
        let key = format!("{BUCKET_PREFIX}{name}");
        transaction = match value {
            Some(value) => transaction.put(&key, value),
            None => transaction.delete(&key),
        };
    }
    (Some(transaction), Loaded { buckets: Arc::new(table), counters, ..loaded }, answers)
}
