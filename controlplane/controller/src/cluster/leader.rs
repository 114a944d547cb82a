//! What the leader does: plans the reports that nodes leave, and takes out nodes whose lease has ended.
//!
//! Every transaction compares the leader's entry; one that takes a node out also compares that its lease is still gone.
//! So whatever was true when the leader looked is still true when it acts, or nothing happens and it looks again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use quarry_clustermap::{ClusterId, DeviceId, ErasureProfile, NodeId, PartitionId};
use quarry_metastore::{Entry, Metastore, Transaction};
use quarry_planner::Policy;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{
    ALIVE_PREFIX, FOUNDING_KEY, Founding, Holder, LEADER_KEY, LeaderNumbers, REPORT_PREFIX,
    changes::Changes,
    election::{self, Term},
    liveness::Liveness,
};
use crate::{
    Controller, ControllerError, ControllerOptions, Report, map_store,
    state::{parse, to_json},
};

/// Report keys that one transaction removes; the rest of it is for leaves of the map.
const REPORT_KEYS_MAX: usize = 32;
/// Between plans for what time alone brings.
const TICK: Duration = Duration::from_secs(10);
/// Between looks at the time while a node is absent.
const LOOK: Duration = Duration::from_millis(250);
/// How long a member that lagged is not chosen again for the same partition.
const AVOID_FOR: Duration = Duration::from_secs(60);

/// What a controller is started with.
#[derive(Clone, Debug)]
pub struct LeaderOptions {
    /// Unique among the controllers.
    pub name: String,
    /// Of its lease.
    pub lease_ttl: Duration,
    /// How long a node's lease must be gone before its devices are out.
    pub node_grace: Duration,
    /// For a cluster that is founded now.
    pub founding: Founding,
    /// The first map is made when so many nodes have registered: what they hold is laid out over them.
    pub initial_nodes: usize,
    /// How long a device is out before others take its places.
    pub rebuild_after_ms: u64,
    /// Milliseconds since 1970.
    pub clock_ms: fn() -> u64,
}

impl LeaderOptions {
    /// The policy of a founded cluster.
    fn policy(&self, founding: &Founding) -> Policy {
        let Founding { id, partitions, hot_profile, .. } = *founding;
        Policy {
            cluster: id,
            hot_profile,
            cold_profile: None,
            partition_count: partitions,
            rebuild_after_ms: self.rebuild_after_ms,
            groups_per_device: quarry_planner::groups_per_device(hot_profile),
        }
    }
}

/// One of any number of controllers.
#[derive(Debug)]
pub struct ClusterController<M> {
    metastore: Arc<M>,
    options: LeaderOptions,
    me: Holder,
    numbers: Arc<LeaderNumbers>,
}

impl<M: Metastore> ClusterController<M> {
    /// A controller; `run` tells this run of it from all others.
    pub fn new(metastore: Arc<M>, options: LeaderOptions, run: u64) -> Self {
        let me = Holder { name: options.name.clone(), run };
        Self { metastore, options, me, numbers: Arc::default() }
    }

    /// What it shows of itself.
    pub fn numbers(&self) -> Arc<LeaderNumbers> {
        Arc::clone(&self.numbers)
    }

    /// Stands for election and leads, again and again; never returns.
    pub async fn run(&self) {
        loop {
            let term = election::campaign(&self.metastore, &self.me, self.options.lease_ttl).await;
            info!(event = "leader_elected", name = self.me.name);
            self.numbers.terms.add(1);
            self.numbers.leads.set(1);
            let result = {
                let held = std::pin::pin!(election::hold(&self.metastore, &term, self.options.lease_ttl));
                let led = std::pin::pin!(self.lead(&term));
                match futures::future::select(held, led).await {
                    futures::future::Either::Left(((), _)) => Err(ControllerError::Deposed),
                    futures::future::Either::Right((result, _)) => result,
                }
            };
            self.numbers.leads.set(0);
            if let Err(error) = result {
                warn!(event = "leader_stepped_down", %error);
            }
            election::resign(&self.metastore, term).await;
            // Whatever ended the term may still be there.
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn lead(&self, term: &Term) -> Result<(), ControllerError> {
        let founding = self.found(term).await?;
        let options =
            ControllerOptions { policy: self.options.policy(&founding), clock_ms: self.options.clock_ms };
        let (mut controller, _handle) = Controller::new(Arc::clone(&self.metastore), options);
        controller.fence = Some(term.fence.clone());
        // Its keys are its own also over several terms: each write compares the fence of its term.
        controller.writer = self.me.run;
        controller.reload().await?;
        let fenced = Transaction::default().expect(LEADER_KEY, Some(&term.fence));
        let stored = controller.known.as_ref().and_then(|known| known.stored.clone());
        map_store::sweep(&self.metastore, stored.as_deref(), &fenced).await?;
        let mut acting = Acting {
            metastore: Arc::clone(&self.metastore),
            controller,
            fenced,
            liveness: Liveness::default(),
            lagged: BTreeMap::new(),
            started: Instant::now(),
            ticked: Instant::now(),
            options: self.options.clone(),
            numbers: Arc::clone(&self.numbers),
        };
        let prefixes = [ALIVE_PREFIX, REPORT_PREFIX].map(str::to_owned);
        let changes = Changes::new(Arc::clone(&self.metastore), prefixes);
        loop {
            let pause = if acting.liveness.waits() { LOOK } else { TICK };
            let _ = timeout(pause, changes.next()).await;
            loop {
                match acting.act().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    // The lease says whether this one still leads.
                    Err(ControllerError::Metastore { reason }) => {
                        warn!(event = "leader_waits", reason);
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// The cluster's founding; makes it if this is its first leader.
    async fn found(&self, term: &Term) -> Result<Founding, ControllerError> {
        if let Some(entry) = self.metastore.get(FOUNDING_KEY).await? {
            return parse(&entry);
        }
        let founding = self.options.founding.clone();
        let write = Transaction::default()
            .expect(LEADER_KEY, Some(&term.fence))
            .expect(FOUNDING_KEY, None)
            .put(FOUNDING_KEY, to_json(&founding));
        self.metastore.transact(&write).await?;
        info!(event = "cluster_founded", cluster = %founding.id, profile = %founding.hot_profile);
        Ok(founding)
    }
}

/// A leader in its term.
struct Acting<M> {
    metastore: Arc<M>,
    controller: Controller<Arc<M>>,
    /// Compares the leader's entry.
    fenced: Transaction,
    liveness: Liveness,
    lagged: BTreeMap<(PartitionId, DeviceId), Instant>,
    started: Instant,
    ticked: Instant,
    options: LeaderOptions,
    numbers: Arc<LeaderNumbers>,
}

impl<M: Metastore> Acting<M> {
    /// Looks, and does what is to be done. `true`: there may be more at once.
    async fn act(&mut self) -> Result<bool, ControllerError> {
        let left = self.metastore.range(REPORT_PREFIX).await?.entries;
        let alive = self.metastore.range(ALIVE_PREFIX).await?.entries;
        self.controller.reload().await?;
        let mut base = self.fenced.clone();
        let map = self.controller.known.as_ref().and_then(|known| known.map());
        let removed = map.as_ref().map(|map| map.operations.removed_nodes.clone()).unwrap_or_default();
        let (mut reports, mut handled, mut waits) = (Vec::new(), 0, false);
        for entry in &left {
            let told = parse::<Vec<Report>>(entry)?;
            // The start of a removed node waits until somebody adds it again.
            if told.iter().filter_map(starts).any(|node| removed.contains(&node)) {
                waits = true;
            } else if handled < REPORT_KEYS_MAX {
                reports.extend(told);
                base = base.expect(&entry.key, Some(entry)).delete(&entry.key);
                handled += 1;
            }
        }
        let more = waits || left.len() > REPORT_KEYS_MAX;
        let alive = nodes_of(&alive);
        self.numbers.reports_waiting.set(left.len() as u64);
        self.numbers.nodes_alive.set(alive.len() as u64);
        let Some(map) = map else { return self.first_map(&left, base).await };
        self.numbers.set_map(&map);
        for node in self.liveness.lost(&map, &alive, self.started.elapsed(), self.options.node_grace) {
            base = base.expect(&super::alive_key(node), None);
            // Before what the nodes say: one that has just registered is alive.
            reports.insert(0, Report::NodeLost { node });
        }
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            reports.push(Report::Tick);
        }
        if reports.is_empty() {
            return Ok(false);
        }
        Ok(self.plan(reports, base).await? || more)
    }

    /// Of all registrations, also those that stay in place because one transaction cannot remove them: they are handled
    /// again, which changes little.
    async fn first_map(&mut self, left: &[Entry], base: Transaction) -> Result<bool, ControllerError> {
        let mut reports = Vec::new();
        for entry in left {
            reports.extend(parse::<Vec<Report>>(entry)?);
        }
        reports.retain(|report| starts(report).is_some());
        let nodes: BTreeSet<NodeId> = reports.iter().filter_map(starts).collect();
        if nodes.len() < self.options.initial_nodes {
            info!(event = "first_map_waits", registered = nodes.len(), wanted = self.options.initial_nodes);
            return Ok(false);
        }
        Ok(self.plan(reports, base).await? || left.len() > REPORT_KEYS_MAX)
    }

    /// `true`: something has changed meanwhile, look again.
    async fn plan(&mut self, mut reports: Vec<Report>, base: Transaction) -> Result<bool, ControllerError> {
        let now = Instant::now();
        for report in &reports {
            match report {
                Report::Lagging(lag) => drop(self.lagged.insert((lag.partition, lag.device), now)),
                // It lagged before it was started.
                Report::Start { registration, .. } | Report::Register(registration) => {
                    let started = |device| registration.devices.iter().any(|seen| seen.device == device);
                    self.lagged.retain(|(_, device), _| !started(*device));
                }
                _ => {}
            }
        }
        self.lagged.retain(|_, at| at.elapsed() < AVOID_FOR);
        let avoid = self
            .lagged
            .keys()
            .map(|(partition, device)| Report::Avoid { partition: *partition, device: *device });
        reports.extend(avoid);
        match self.controller.plan_reports(&reports, &base, 1).await {
            Ok(answer) => {
                self.numbers.plans_done.add(1);
                for (position, error) in answer.refused {
                    warn!(event = "report_refused", report = ?reports[position], %error);
                }
                Ok(false)
            }
            // Something that was looked at has changed; perhaps this one leads no more.
            Err(ControllerError::Contention) => {
                self.numbers.plans_in_conflict.add(1);
                self.check_term().await
            }
            // Not with what there is now: the reports wait.
            Err(ControllerError::Plan(error)) => {
                self.numbers.plans_waiting.add(1);
                tracing::debug!(event = "reports_wait", %error);
                Ok(false)
            }
            Err(error) => {
                self.numbers.plans_failed.add(1);
                Err(error)
            }
        }
    }

    async fn check_term(&self) -> Result<bool, ControllerError> {
        let entry = self.metastore.get(LEADER_KEY).await?;
        let fence = self.controller.fence.as_ref().expect("a leader has one");
        if entry.as_ref().map(|entry| entry.revision) == Some(fence.revision) {
            Ok(true)
        } else {
            Err(ControllerError::Deposed)
        }
    }
}

/// The node that a report registers.
fn starts(report: &Report) -> Option<NodeId> {
    match report {
        Report::Start { registration, .. } | Report::Register(registration) => Some(registration.node),
        _ => None,
    }
}

fn nodes_of(alive: &[Entry]) -> BTreeSet<NodeId> {
    alive.iter().filter_map(|entry| entry.key[ALIVE_PREFIX.len()..].parse().ok().map(NodeId)).collect()
}

impl Founding {
    /// For a new cluster, with peer leases of the usual length.
    pub fn new(id: ClusterId, partitions: u16, hot_profile: ErasureProfile) -> Self {
        Self { id, partitions, hot_profile, peer_lease_ms: super::PEER_LEASE_MS }
    }
}
