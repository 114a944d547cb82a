//! A node's part in the control plane of its cluster: what a [`ControllerHandle`] asks for, done without a call to
//! anybody but the metastore.
//!
//! ```text
//!   register ---> waits for a lease ---> report written ---> handled by the leader: registered
//!                                             |
//!                                             +--> nobody handles it in time, and the node has tables of before:
//!                                                  it serves what it can with those (see `Subscribers::hold_back`)
//! ```
//!
//! - Reports are written one key per batch, under a comparison of the node's own key, and repeated until they are there.
//!   They are answered when the leader has removed them. The same report waits only once. Each write also compares and
//!   replaces the name of the newest one (`reported/N`): a write that was given up, repeated and handled, and then arrives
//!   after all, changes nothing.
//! - Activations and buckets are committed here.
//! - When the lease was lost and is held again, devices that are out for that reason are reported as returned.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use quarry_clustermap::{DeviceId, DeviceState, NodeId};
use quarry_metastore::{Entry, Metastore, MetastoreError, TRANSACTION_OPERATIONS_MAX, Transaction};
use quarry_planner::Policy;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{error, info, warn};

use super::{
    Alive, NodeIdentity, Tables,
    changes::Changes,
    lease::{self, Held},
    report_prefix, reported_key,
};
use crate::{
    Controller, ControllerError, ControllerHandle, ControllerOptions, NodeRegistration, Published, Reply,
    Report,
    batch::Batch,
    state::{TABLE_PREFIXES, to_json},
};

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Reports of one key.
const REPORTS_PER_KEY_MAX: usize = 512;

/// What a node takes part with.
#[derive(Debug)]
pub struct MemberOptions {
    /// Who it is.
    pub identity: NodeIdentity,
    /// Address of its peer transport, as others reach it.
    pub address: String,
    /// Of its lease.
    pub lease_ttl: Duration,
    /// How long a start waits for the leader before it goes on with tables of before.
    pub patience: Duration,
    /// Where the newest tables are kept.
    pub tables: Option<Tables>,
}

/// Why a member ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberEnd {
    /// Every handle is gone.
    Stopped,
    /// A newer run of the same node has taken over; this one must end.
    Superseded,
}

/// See the module.
#[derive(Debug)]
pub struct Member<M> {
    metastore: Arc<M>,
    controller: Controller<Arc<M>>,
    options: MemberOptions,
    pending: Vec<Pending>,
    /// What stands under [`reported_key`]; `None`: not known.
    reported: Option<Option<Entry>>,
    sequence: u32,
    /// The leader has handled this start.
    registered: bool,
    started: Option<Instant>,
    /// It was told that it was removed.
    waits_to_be_added: bool,
    /// Devices that work as far as this node knows.
    working: BTreeSet<DeviceId>,
    held: Held,
    /// Something could not be read and is to be read again.
    stale: bool,
    /// Devices that are out because the lease was lost are to be reported.
    returns: bool,
}

/// Reports under one key.
#[derive(Debug)]
struct Pending {
    key: String,
    reports: Vec<Report>,
    replies: Vec<Reply<Published>>,
    written: bool,
}

impl Pending {
    fn is_start(&self) -> bool {
        matches!(self.reports[..], [Report::Start { .. }])
    }
}

impl<M: Metastore> Member<M> {
    /// A member on `metastore`, and the handle to it.
    pub fn new(metastore: Arc<M>, options: MemberOptions) -> (Self, ControllerHandle) {
        let founding = &options.identity.founding;
        let policy = Policy {
            cluster: founding.id,
            hot_profile: founding.hot_profile,
            cold_profile: None,
            partition_count: founding.partitions,
            rebuild_after_ms: quarry_planner::REBUILD_AFTER_MS,
            groups_per_device: 1,
        };
        // Nothing is planned here: neither is used.
        let unused = ControllerOptions { policy, clock_ms: || 0 };
        let (mut controller, handle) = Controller::new(Arc::clone(&metastore), unused);
        controller.subscribers.hold_back(Some((options.identity.node, options.identity.incarnation)));
        let member = Self {
            metastore,
            controller,
            options,
            pending: Vec::new(),
            reported: None,
            sequence: 0,
            registered: false,
            started: None,
            waits_to_be_added: false,
            working: BTreeSet::new(),
            held: Held::default(),
            stale: false,
            returns: false,
        };
        (member, handle)
    }

    fn node(&self) -> NodeId {
        self.options.identity.node
    }

    /// Takes part until every handle is gone, or a newer run of this node is there.
    pub async fn run(mut self) -> MemberEnd {
        let identity = &self.options.identity;
        let alive = Alive {
            name: identity.name.clone(),
            address: self.options.address.clone(),
            incarnation: identity.incarnation,
        };
        let (sender, mut held) = watch::channel(Held::default());
        let metastore = Arc::clone(&self.metastore);
        let keeper = lease::keep(metastore, self.node(), alive, self.options.lease_ttl, sender);
        let end = tokio::select! {
            biased;
            () = keeper => MemberEnd::Superseded,
            () = self.serve(held.clone()) => MemberEnd::Stopped,
        };
        let lease = held.borrow_and_update().lease;
        if let Some(lease) = lease.filter(|_| end == MemberEnd::Stopped) {
            // If it fails the lease ends by itself.
            let _ = self.metastore.revoke_lease(lease).await;
        }
        end
    }

    async fn serve(&mut self, mut held: watch::Receiver<Held>) {
        let tables = TABLE_PREFIXES.map(str::to_owned);
        let tables = Changes::new(Arc::clone(&self.metastore), tables);
        let own = Changes::new(Arc::clone(&self.metastore), [report_prefix(self.node())]);
        let requests = self.controller.requests.clone();
        loop {
            // In this order, so that a simulation follows from its seed. What comes first is rare; requests are batched.
            tokio::select! {
                biased;
                Ok(()) = held.changed() => {
                    self.held = held.borrow_and_update().clone();
                    self.returns |= self.held.entry.is_some() && self.held.times > 1;
                    self.work().await;
                }
                () = tables.next() => {
                    self.stale = true;
                    self.work().await;
                }
                () = own.next() => self.settle().await,
                request = requests.recv() => {
                    let Ok(first) = request else { return };
                    let batch = self.controller.gather(first);
                    self.take(batch).await;
                }
                () = sleep(RETRY), if self.has_work() => self.work().await,
            }
        }
    }

    fn has_work(&self) -> bool {
        self.stale || self.returns || !self.pending.is_empty()
    }

    async fn take(&mut self, mut batch: Batch) {
        for (report, reply) in std::mem::take(&mut batch.reports) {
            self.add(report, Some(reply));
        }
        if !self.registered {
            for (_, _, reply) in std::mem::take(&mut batch.activations) {
                // A caller that no longer waits needs no answer.
                let _ = reply.send(Err(ControllerError::NotRegistered));
            }
        }
        self.controller.serve(batch).await;
        self.write_pending().await;
    }

    /// Queues a report, or joins those who wait for the same one.
    fn add(&mut self, report: Report, reply: Option<Reply<Published>>) {
        let report = match report {
            Report::Register(registration) => self.start(registration),
            Report::DeviceFailed { device, .. } => {
                self.working.remove(&device);
                report
            }
            Report::DeviceReturned { device, .. } => {
                self.working.insert(device);
                report
            }
            other => other,
        };
        let same = self.pending.iter_mut().find(|pending| pending.reports.contains(&report));
        if let Some(pending) = same {
            return pending.replies.extend(reply);
        }
        let fits = |pending: &&mut Pending| {
            !pending.written && !pending.is_start() && pending.reports.len() < REPORTS_PER_KEY_MAX
        };
        let is_start = matches!(report, Report::Start { .. });
        match self.pending.last_mut().filter(fits).filter(|_| !is_start) {
            Some(pending) => {
                pending.reports.push(report);
                pending.replies.extend(reply);
            }
            None => {
                let prefix = report_prefix(self.options.identity.node);
                let key =
                    format!("{prefix}{:08x}-{:08x}", self.options.identity.incarnation.0, self.sequence);
                self.sequence += 1;
                let replies = reply.into_iter().collect();
                self.pending.push(Pending { key, reports: vec![report], replies, written: false });
            }
        }
    }

    fn start(&mut self, registration: NodeRegistration) -> Report {
        self.started.get_or_insert_with(Instant::now);
        let found = registration.devices.iter().filter(|report| report.found);
        self.working = found.map(|report| report.device).collect();
        Report::Start { registration, incarnation: self.options.identity.incarnation }
    }

    /// Everything that is due, as far as the metastore lets it.
    async fn work(&mut self) {
        if self.stale || self.returns {
            match self.controller.reload().await {
                Ok(()) => {
                    self.stale = false;
                    self.keep_tables().await;
                    self.report_returned();
                }
                Err(error) => warn!(event = "metastore_unreadable", %error),
            }
        }
        self.write_pending().await;
        self.settle().await;
        self.go_on_without().await;
    }

    /// What was read after the lease was acquired is final: nobody takes out a node that holds one.
    fn report_returned(&mut self) {
        // A start that is not known to be handled may have been, before the lease ended: looked at when it is known.
        if !self.registered || !std::mem::take(&mut self.returns) {
            return;
        }
        let Some(map) = self.controller.known.as_ref().and_then(|known| known.map()) else { return };
        let is_out = |device: &&DeviceId| {
            map.devices
                .get(device)
                .is_some_and(|entry| entry.state == DeviceState::Out && entry.node == self.node())
        };
        let out: Vec<DeviceId> = self.working.iter().filter(is_out).copied().collect();
        for device in out {
            info!(event = "device_returns", %device, "the node's lease had ended");
            self.add(Report::DeviceReturned { device, lost_partitions: Vec::new() }, None);
        }
    }

    async fn write_pending(&mut self) {
        let Some(alive) = self.held.entry.clone() else { return };
        let mut may_write = self.registered || self.pending.iter().any(Pending::is_start);
        for index in 0..self.pending.len() {
            if self.pending[index].written || !may_write {
                continue;
            }
            match self.write(index, &alive).await {
                Ok(written) => {
                    self.pending[index].written = written;
                    may_write = written;
                }
                Err(error) => {
                    self.reported = None;
                    return warn!(event = "report_not_written", %error);
                }
            }
        }
    }

    /// Writes one that is not known to be there; `false`: the lease is not what it was.
    async fn write(&mut self, index: usize, alive: &Entry) -> Result<bool, MetastoreError> {
        let reported_key = reported_key(self.node());
        let before = match &self.reported {
            Some(known) => known.clone(),
            None => self.metastore.get(&reported_key).await?,
        };
        let pending = &self.pending[index];
        let name = to_json(&pending.key);
        // There since an attempt whose answer was lost, and perhaps handled.
        if before.as_ref().is_some_and(|entry| entry.value == name) {
            self.reported = Some(before);
            return Ok(true);
        }
        let mut write = Transaction::default()
            .expect(&alive.key, Some(alive))
            .expect(&reported_key, before.as_ref())
            .expect(&pending.key, None)
            .put(&pending.key, to_json(&pending.reports))
            .put(&reported_key, name.clone());
        if pending.is_start() {
            write.deletes = self.reports_of_before().await?;
        }
        self.reported = None;
        match self.metastore.transact(&write).await {
            Ok(revision) => {
                self.reported = Some(Some(Entry { key: reported_key, value: name, revision }));
                Ok(true)
            }
            Err(MetastoreError::Conflict) => {
                let now = self.metastore.get(&reported_key).await?;
                Ok(now.is_some_and(|entry| entry.value == name))
            }
            Err(error) => Err(error),
        }
    }

    /// Reports of an earlier run that nobody has handled: this start makes them void.
    async fn reports_of_before(&self) -> Result<Vec<String>, MetastoreError> {
        let prefix = report_prefix(self.node());
        let own = format!("{prefix}{:08x}-", self.options.identity.incarnation.0);
        let mut keys = self.metastore.keys(&prefix).await?;
        keys.retain(|key| !key.starts_with(&own));
        keys.truncate(TRANSACTION_OPERATIONS_MAX - 2);
        Ok(keys)
    }

    /// Answers reports that the leader has handled.
    async fn settle(&mut self) {
        if !self.pending.iter().any(|pending| pending.written) {
            return;
        }
        let left = match self.metastore.keys(&report_prefix(self.node())).await {
            Ok(left) => left,
            Err(error) => return warn!(event = "metastore_unreadable", %error),
        };
        let handled = |pending: &Pending| pending.written && !left.contains(&pending.key);
        if !self.pending.iter().any(handled) {
            return;
        }
        if self.pending.iter().any(|pending| pending.is_start() && handled(pending)) {
            self.registered = true;
            self.controller.subscribers.hold_back(None);
        }
        // The map that was committed with the removal, or a newer one.
        if let Err(error) = self.controller.reload().await {
            return warn!(event = "metastore_unreadable", %error);
        }
        self.keep_tables().await;
        let published = self.controller.known.as_ref().and_then(|known| known.published());
        for pending in self.pending.extract_if(.., |pending| handled(pending)) {
            for reply in pending.replies {
                // A caller that no longer waits needs no answer.
                let _ = reply.send(published.clone().ok_or(ControllerError::NoMap));
            }
        }
    }

    /// Whether the newest map says that this node was removed: then it waits to be added again.
    fn is_removed(&mut self) -> bool {
        let map = self.controller.known.as_ref().and_then(|known| known.map());
        // Nor is there any going on with tables of before once it was added: a leader is there.
        let removed = map.is_some_and(|map| map.operations.removed_nodes.contains(&self.node()))
            || self.waits_to_be_added;
        if removed && !std::mem::replace(&mut self.waits_to_be_added, true) {
            let name = &self.options.identity.name;
            error!(
                event = "node_removed",
                "this node was removed from the cluster: `quarryctl node add {name}` lets it join again"
            );
        }
        removed
    }

    async fn keep_tables(&mut self) {
        let Some(known) = &self.controller.known else { return };
        if let (Some(tables), Some(stored)) = (&mut self.options.tables, &known.stored)
            && let Err(error) = tables.keep(&*self.metastore, stored).await
        {
            warn!(event = "tables_not_kept", %error);
        }
    }

    /// A start that nobody handles goes on with tables of before, if there are any.
    async fn go_on_without(&mut self) {
        let late = self.started.is_some_and(|started| started.elapsed() >= self.options.patience);
        if self.registered || !late || self.is_removed() {
            return;
        }
        let node = self.node();
        let Some(start) =
            self.pending.iter_mut().find(|pending| pending.is_start() && !pending.replies.is_empty())
        else {
            return;
        };
        let newest = self.controller.known.as_ref().and_then(|known| known.published());
        let kept = match (&self.options.tables, newest) {
            (_, Some(newest)) => Some(newest),
            (Some(tables), None) => tables.load().await.unwrap_or_default(),
            (None, None) => None,
        };
        let Some(kept) = kept.filter(|kept| kept.map.nodes.contains_key(&node)) else { return };
        warn!(
            event = "start_not_registered",
            "no leader is there: this node leads no partition until one is"
        );
        let shown = self.controller.subscribers.shown(&kept);
        self.controller.subscribers.publish(&kept);
        for reply in start.replies.drain(..) {
            // A caller that no longer waits needs no answer.
            let _ = reply.send(Ok(shown.clone()));
        }
    }
}
