//! Decisions about the map: a fold of reports into what the planner sees, and activations. No I/O.

use std::{collections::BTreeMap, sync::Arc};

use quarry_clustermap::{ClusterMap, DeviceId, Epoch, PartitionId};
use quarry_metastore::Transaction;
use quarry_planner::{DeviceObservation, Inventory, MapDiff, NodeObservation, PlanInput, Reports, plan};
use tracing::{info, warn};

use crate::{
    ControllerError, ControllerOptions, NodeRegistration, Published, Report,
    batch::{Decided, Write},
    map_store, partition_epoch,
    state::{Loaded, activated_key, to_json},
};

/// What became of a batch of reports.
#[derive(Clone, Debug)]
pub(crate) struct MapAnswer {
    /// The state after the commit.
    pub(crate) published: Option<Published>,
    /// Which reports, by position, were refused.
    pub(crate) refused: BTreeMap<usize, ControllerError>,
    /// The reasons of a plan that changed nothing: what it waits for.
    pub(crate) waits: Option<Vec<String>>,
}

/// The next map after `reports`. `base` is to be done with it, or alone if nothing changes.
pub(crate) fn decide_map(
    options: &ControllerOptions,
    reports: &[Report],
    loaded: Loaded,
    base: &Transaction,
    writer: u64,
) -> Result<Decided<Write, MapAnswer>, ControllerError> {
    let old = loaded.map();
    let mut inventory = old.as_deref().map(Inventory::of_map).unwrap_or_default();
    let mut folded = Reports::default();
    let mut refused = BTreeMap::new();
    for (position, report) in reports.iter().enumerate() {
        let about_map = match report {
            Report::Register(_) | Report::Start { .. } => false,
            // These name a device, which is unknown then.
            Report::DeviceFailed { .. } | Report::DeviceReturned { .. } | Report::ReplicasLost { .. } => {
                false
            }
            Report::Joined(_) | Report::GroupMoved(_) | Report::Lagging(_) | Report::Avoid { .. } => true,
            Report::Operate { .. } => true,
            Report::HandOver { .. } | Report::Left { .. } | Report::NodeLost { .. } | Report::Tick => true,
        };
        let result = if about_map && old.is_none() {
            Err(ControllerError::NoMap)
        } else if let (Report::Operate { intent }, Some(map)) = (report, &old) {
            intent.check(map).map(|()| folded.intents.push(*intent)).map_err(ControllerError::from)
        } else {
            fold(report, &mut inventory, &mut folded)
        };
        if let Err(error) = result {
            refused.insert(position, error);
        }
    }
    let alone = || (*base != Transaction::default()).then(|| Write::Plain(base.clone()));
    if refused.len() == reports.len() {
        let answer = MapAnswer { published: loaded.published(), refused, waits: None };
        return Ok((alone(), loaded, answer));
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
        return Ok((alone(), loaded, answer));
    };
    log_plan(old.as_deref(), &map, &plan.reasons);
    let staged = map_store::stage(loaded.stored.as_deref(), &map, base.clone(), writer);
    let answer = MapAnswer { published: Some(loaded.published_with(Arc::new(map))), refused, waits: None };
    Ok((Some(Write::Map(staged)), loaded, answer))
}

fn log_plan(old: Option<&ClusterMap>, map: &ClusterMap, reasons: &[String]) {
    info!(event = "map_planned", version = map.version.0, ?reasons);
    tracing::debug!(event = "map_diff", diff = %MapDiff::new(old, map));
}

/// Adds one report to what is observed and to what is told.
fn fold(report: &Report, inventory: &mut Inventory, folded: &mut Reports) -> Result<(), ControllerError> {
    match report {
        Report::Register(registration) => return start(registration, inventory, folded),
        Report::Start { registration, incarnation } => {
            start(registration, inventory, folded)?;
            folded.incarnations.insert(registration.node, *incarnation);
        }
        Report::NodeLost { node } | Report::Left { node } => {
            warn!(event = "node_out", %node, clean = matches!(report, Report::Left { .. }));
            for seen in inventory.devices.values_mut().filter(|seen| seen.node == *node) {
                seen.present = false;
            }
        }
        Report::HandOver { node } => drop(folded.leaving.insert(*node)),
        Report::Lagging(lagging) => folded.lagging.push(*lagging),
        Report::Avoid { partition, device } => drop(folded.avoid.insert((*partition, *device))),
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
        // Checked against the map by the caller.
        Report::Operate { .. } | Report::Tick => {}
    }
    Ok(())
}

fn start(
    registration: &NodeRegistration,
    inventory: &mut Inventory,
    folded: &mut Reports,
) -> Result<(), ControllerError> {
    if !folded.started.insert(registration.node) {
        return Err(ControllerError::RegisteredTwice { node: registration.node });
    }
    register(registration, inventory);
    for report in &registration.devices {
        lose(folded, report.device, &report.lost_partitions);
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

/// Activations of one transaction.
pub(crate) const ACTIVATIONS_MAX: usize = 100;

/// Records activations of epochs that the map still has: compared with the head, and a key for each partition, so that
/// nodes do not get into each other's way.
pub(crate) fn decide_activations(
    wanted: &[(PartitionId, Epoch)],
    loaded: Loaded,
) -> Result<Decided<Transaction, Vec<Result<(), ControllerError>>>, ControllerError> {
    let stored = loaded.stored.clone().ok_or(ControllerError::NoMap)?;
    let map = &stored.map;
    let mut activated: BTreeMap<PartitionId, Epoch> = BTreeMap::new();
    let mut activate = |(partition, epoch): &(PartitionId, Epoch)| {
        let current = partition_epoch(map, *partition)?;
        if current != *epoch {
            return Err(ControllerError::Superseded { partition: *partition, epoch: *epoch, current });
        }
        if !map.partition(*partition).has_history() {
            return Err(ControllerError::HistoryLost { partition: *partition });
        }
        activated.insert(*partition, current);
        Ok(())
    };
    let answers = wanted.iter().map(&mut activate).collect();
    let transaction = (!activated.is_empty()).then(|| {
        let compared = Transaction::default().expect(map_store::MAP_KEY, Some(stored.entry()));
        let put = |transaction: Transaction, (partition, epoch): (&PartitionId, &Epoch)| {
            transaction.put(&activated_key(*partition), to_json(epoch))
        };
        activated.iter().fold(compared, put)
    });
    Ok((transaction, loaded, answers))
}
