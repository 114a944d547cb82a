//! The loop: take what is queued, decide, commit, answer, publish.

use std::{collections::BTreeMap, sync::Arc};

use async_channel::{Receiver, Sender};
use quarry_clustermap::{ClusterMap, DeviceId, Epoch, PartitionId};
use quarry_identity::UserTable;
use quarry_metastore::{Metastore, MetastoreError, TRANSACTION_OPERATIONS_MAX, Transaction};
use quarry_planner::{DeviceObservation, Inventory, MapDiff, NodeObservation, PlanInput, Reports, plan};
use tracing::{info, warn};

use crate::{
    BUCKET_BYTES_MAX, Bucket, COMMIT_ATTEMPTS_MAX, ControllerError, ControllerHandle, ControllerOptions,
    NodeRegistration, Published, REQUESTS_QUEUED_MAX, Reply, Report, Request,
    bucket::{self, BucketCounters, Change},
    partition_epoch,
    published::Subscribers,
    state::{ACTIVATED_KEY, BUCKET_PREFIX, COUNTERS_KEY, Loaded, MAP_KEY, to_json},
    user,
};

/// Buckets that one transaction changes: one operation of it is for the counters.
const BUCKET_CHANGES_MAX: usize = TRANSACTION_OPERATIONS_MAX - 1;
/// Bytes of buckets after which a transaction takes no more: with the last one it stays below what etcd takes.
const BUCKET_CHANGES_BYTES_MAX: usize = BUCKET_BYTES_MAX;

/// Serves the requests of its handles. See the crate.
#[derive(Debug)]
pub struct Controller<M> {
    metastore: M,
    options: ControllerOptions,
    requests: Receiver<Request>,
    subscribers: Subscribers,
    /// What the last plan waited for: told once, not at every tick.
    waits: Vec<String>,
}

/// Requests taken from the queue together, by kind.
#[derive(Default)]
struct Batch {
    reports: Vec<(Report, Reply<Published>)>,
    activations: Vec<(PartitionId, Epoch, Reply<()>)>,
    changes: Vec<(Change, Reply<Bucket>)>,
    users: Vec<(quarry_identity::Change, Reply<Arc<UserTable>>)>,
    subscriptions: Vec<Sender<Published>>,
}

impl Batch {
    fn add(&mut self, request: Request) {
        match request {
            Request::Plan(report, reply) => self.reports.push((report, reply)),
            Request::Activate { partition, epoch, reply } => self.activations.push((partition, epoch, reply)),
            Request::Bucket(change, reply) => self.changes.push((change, reply)),
            Request::User(change, reply) => self.users.push((change, reply)),
            Request::Subscribe(channel) => self.subscriptions.push(channel),
        }
    }
}

impl<M: Metastore> Controller<M> {
    /// A controller on `metastore`, and the handle to it. Nothing happens until [`Controller::run`] is polled.
    pub fn new(metastore: M, options: ControllerOptions) -> (Self, ControllerHandle) {
        let (sender, requests) = async_channel::bounded(REQUESTS_QUEUED_MAX);
        let subscribers = Subscribers::default();
        let controller = Self { metastore, options, requests, subscribers, waits: Vec::new() };
        (controller, ControllerHandle { requests: sender })
    }

    /// Serves until every handle is gone. Failures of the metastore are answered to the callers; it goes on.
    pub async fn run(mut self) {
        match Loaded::read(&self.metastore).await {
            Ok(loaded) => self.publish(&loaded),
            Err(error) => warn!(event = "metastore_unreadable", %error),
        }
        while let Ok(first) = self.requests.recv().await {
            let mut batch = Batch::default();
            batch.add(first);
            for _ in 1..REQUESTS_QUEUED_MAX {
                let Ok(request) = self.requests.try_recv() else { break };
                batch.add(request);
            }
            self.serve(batch).await;
        }
    }

    async fn serve(&mut self, batch: Batch) {
        for channel in batch.subscriptions {
            self.subscribers.add(channel);
        }
        if !batch.reports.is_empty() {
            self.serve_reports(batch.reports).await;
        }
        if !batch.activations.is_empty() {
            self.serve_activations(batch.activations).await;
        }
        if !batch.changes.is_empty() {
            self.serve_changes(batch.changes).await;
        }
        // One by one: they are few, and each may touch several rows.
        for (change, reply) in batch.users {
            let answer = self.commit(|loaded| user::decide(&change, loaded)).await;
            // A caller that no longer waits needs no answer.
            let _ = reply.send(answer);
        }
    }

    fn publish(&mut self, loaded: &Loaded) {
        if let Some(published) = loaded.published() {
            self.subscribers.publish(&published);
        }
    }

    /// Reads, decides and commits until no other writer interferes. `decide` returns the transaction (`None`: nothing
    /// to write), the state after it, and what the callers are told.
    async fn commit<T>(
        &mut self,
        mut decide: impl FnMut(Loaded) -> Result<(Option<Transaction>, Loaded, T), ControllerError>,
    ) -> Result<T, ControllerError> {
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let loaded = Loaded::read(&self.metastore).await?;
            let (transaction, after, answer) = decide(loaded)?;
            if let Some(transaction) = transaction {
                match self.metastore.transact(&transaction).await {
                    Ok(_) => {}
                    Err(MetastoreError::Conflict) => continue,
                    Err(error) => return Err(ControllerError::from(&error)),
                }
            }
            self.publish(&after);
            return Ok(answer);
        }
        Err(ControllerError::Contention)
    }

    async fn serve_reports(&mut self, reports: Vec<(Report, Reply<Published>)>) {
        let (reports, replies): (Vec<_>, Vec<_>) = reports.into_iter().unzip();
        let options = self.options.clone();
        let result = self.commit(|loaded| decide_map(&options, &reports, loaded)).await;
        if let Err(error) = &result {
            warn!(event = "plan_failed", %error, reports = reports.len());
        }
        if let Ok(MapAnswer { waits: Some(waits), .. }) = &result
            && *waits != self.waits
        {
            info!(event = "plan_waits", reasons = ?waits);
            self.waits.clone_from(waits);
        }
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
        let result = self.commit(|loaded| decide_activations(&wanted, loaded)).await;
        answer_each(result, activations.into_iter().map(|(_, _, reply)| reply));
    }

    async fn serve_changes(&mut self, changes: Vec<(Change, Reply<Bucket>)>) {
        let (changes, replies): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
        let mut replies = replies.into_iter();
        // A transaction takes as many as fit, at least one.
        while replies.len() > 0 {
            let rest = &changes[changes.len() - replies.len()..];
            match self.commit(|loaded| Ok(decide_buckets(rest, loaded))).await {
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

pub(crate) type Decided<T> = (Option<Transaction>, Loaded, T);

/// What became of a batch of reports.
#[derive(Clone)]
struct MapAnswer {
    /// The state after the commit.
    published: Option<Published>,
    /// Which reports, by position, were refused.
    refused: BTreeMap<usize, ControllerError>,
    /// The reasons of a plan that changed nothing: what it waits for.
    waits: Option<Vec<String>>,
}

fn decide_map(
    options: &ControllerOptions,
    reports: &[Report],
    loaded: Loaded,
) -> Result<Decided<MapAnswer>, ControllerError> {
    let old = loaded.map.clone();
    let mut inventory = old.as_deref().map(Inventory::of_map).unwrap_or_default();
    let mut folded = Reports::default();
    let mut refused = BTreeMap::new();
    for (position, report) in reports.iter().enumerate() {
        let about_map = matches!(report, Report::Joined(_) | Report::GroupMoved(_) | Report::Tick);
        let result = if about_map && old.is_none() {
            Err(ControllerError::NoMap)
        } else {
            fold(report, &mut inventory, &mut folded)
        };
        if let Err(error) = result {
            refused.insert(position, error);
        }
    }
    if refused.len() == reports.len() {
        let answer = MapAnswer { published: loaded.published(), refused, waits: None };
        return Ok((None, loaded, answer));
    }
    let input = PlanInput {
        policy: &options.policy,
        inventory: &inventory,
        map: old.as_deref(),
        reports: &folded,
        now_ms: (options.clock_ms)(),
    };
    let plan = plan(&input)?;
    let Some(map) = plan.map else {
        let answer = MapAnswer { published: loaded.published(), refused, waits: Some(plan.reasons) };
        return Ok((None, loaded, answer));
    };
    log_plan(old.as_deref(), &map, &plan.reasons);
    let transaction =
        Transaction::default().expect(MAP_KEY, loaded.map_entry.as_ref()).put(MAP_KEY, to_json(&map));
    let after = Loaded { map: Some(Arc::new(map)), ..loaded };
    let answer = MapAnswer { published: after.published(), refused, waits: None };
    Ok((Some(transaction), after, answer))
}

fn log_plan(old: Option<&ClusterMap>, map: &ClusterMap, reasons: &[String]) {
    info!(event = "map_planned", version = map.version.0, ?reasons);
    tracing::debug!(event = "map_diff", diff = %MapDiff::new(old, map));
}

/// Adds one report to what is observed and to what is told.
fn fold(report: &Report, inventory: &mut Inventory, folded: &mut Reports) -> Result<(), ControllerError> {
    match report {
        Report::Register(registration) => {
            if !folded.started.insert(registration.node) {
                return Err(ControllerError::RegisteredTwice { node: registration.node });
            }
            register(registration, inventory);
            for report in &registration.devices {
                lose(folded, report.device, &report.lost_partitions);
            }
        }
        Report::DeviceFailed { device, reason } => {
            known(inventory, *device)?.present = false;
            warn!(event = "device_failed", %device, %reason);
        }
        Report::DeviceReturned { device, lost_partitions } => {
            known(inventory, *device)?.present = true;
            folded.returned.insert(*device);
            lose(folded, *device, lost_partitions);
        }
        Report::ReplicasLost { device, partitions } => {
            known(inventory, *device)?;
            lose(folded, *device, partitions);
        }
        Report::Joined(report) => folded.joined.push(*report),
        Report::GroupMoved(report) => folded.moved.push(*report),
        Report::Tick => {}
    }
    Ok(())
}

fn known(inventory: &mut Inventory, device: DeviceId) -> Result<&mut DeviceObservation, ControllerError> {
    inventory.devices.get_mut(&device).ok_or(ControllerError::UnknownDevice { device })
}

fn lose(folded: &mut Reports, device: DeviceId, partitions: &[PartitionId]) {
    if !partitions.is_empty() {
        warn!(event = "replicas_lost", %device, partitions = partitions.len());
        folded.lost.entry(device).or_default().extend(partitions);
    }
}

fn register(registration: &NodeRegistration, inventory: &mut Inventory) {
    let NodeRegistration { node, address, rack, devices } = registration;
    inventory.nodes.insert(*node, NodeObservation { address: address.clone(), rack: rack.clone() });
    for seen in inventory.devices.values_mut().filter(|seen| seen.node == *node) {
        seen.present = false;
    }
    for report in devices {
        let known = inventory.devices.get_mut(&report.device);
        match known {
            // A missing device may have moved to another node, which reports it as found.
            Some(seen) if !report.found => seen.present &= seen.node != *node,
            _ => {
                let seen = DeviceObservation {
                    node: *node,
                    tier: report.tier,
                    capacity_bytes: report.capacity_bytes,
                    location: report.location.clone(),
                    present: report.found,
                    replaces: report.replaces,
                };
                inventory.devices.insert(report.device, seen);
            }
        }
    }
}

fn decide_activations(
    wanted: &[(PartitionId, Epoch)],
    loaded: Loaded,
) -> Result<Decided<Vec<Result<(), ControllerError>>>, ControllerError> {
    let map = loaded.map.clone().ok_or(ControllerError::NoMap)?;
    let mut activated = loaded.activated.clone();
    activated.resize(map.partitions.len(), Epoch::default());
    let mut activate = |(partition, epoch): &(PartitionId, Epoch)| {
        let current = partition_epoch(&map, *partition)?;
        if current != *epoch {
            return Err(ControllerError::Superseded { partition: *partition, epoch: *epoch, current });
        }
        if !map.partition(*partition).has_history() {
            return Err(ControllerError::HistoryLost { partition: *partition });
        }
        activated[usize::from(partition.0)] = current;
        Ok(())
    };
    let answers = wanted.iter().map(&mut activate).collect();
    let changed = activated != loaded.activated;
    let transaction = changed.then(|| {
        Transaction::default()
            .expect(MAP_KEY, loaded.map_entry.as_ref())
            .expect(ACTIVATED_KEY, loaded.activated_entry.as_ref())
            .put(ACTIVATED_KEY, to_json(&activated))
    });
    Ok((transaction, Loaded { activated, ..loaded }, answers))
}

/// Takes changes until the transaction is full; there are answers to those that were taken.
fn decide_buckets(changes: &[Change], loaded: Loaded) -> Decided<Vec<Result<Bucket, ControllerError>>> {
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
