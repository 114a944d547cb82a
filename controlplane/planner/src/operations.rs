//! What operators ask for: checked against the map first, then part of it.

use quarry_clustermap::{
    ClusterMap, DeviceId, DeviceState, ErasureProfile, Incarnation, JobKind, NodeId, TierPolicy,
    TierPolicyError,
};
use serde::{Deserialize, Serialize};

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Empty the devices of a node.
    DrainNode(NodeId),
    /// Use the devices of a node again.
    UndrainNode(NodeId),
    /// Let a node that was removed join again.
    AddNode(NodeId),
    /// Take an empty node out of the map for good: when it starts again it waits to be added.
    RemoveNode(NodeId),
    /// Empty a device.
    DrainDevice(DeviceId),
    /// Use a device again.
    UndrainDevice(DeviceId),
    /// Take an empty device out of the map.
    RemoveDevice(DeviceId),
    /// A job starts nothing new and holds still.
    Pause(JobKind),
    /// It goes on.
    Resume(JobKind),
    /// Bytes per second of the jobs on each node; `None`: what the node's configuration says.
    Budget(Option<u64>),
    /// Profile wanted for new blobs of the cold tier.
    ColdProfile(ErasureProfile),
    /// What moves between tiers by itself.
    TierPolicy(TierPolicy),
}

/// Why a request is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IntentError {
    /// No such node.
    #[error("{0} is not in the map")]
    UnknownNode(NodeId),
    /// No such device.
    #[error("{0} is not in the map")]
    UnknownDevice(DeviceId),
    /// It may join: it was not removed.
    #[error("{0} was not removed: start it, and it joins")]
    NotRemoved(NodeId),
    /// The policy could not work.
    #[error(transparent)]
    Policy(#[from] TierPolicyError),
    /// It still takes data.
    #[error("{0} is in use: drain it first")]
    InUse(DeviceId),
    /// It still holds data.
    #[error("{device} still has {uses} places in placement groups and partitions: it is not empty yet")]
    NotEmpty {
        /// The device.
        device: DeviceId,
        /// How many.
        uses: usize,
    },
}

impl Intent {
    /// Whether it may be done now.
    ///
    /// # Errors
    /// [`IntentError`].
    pub fn check(self, map: &ClusterMap) -> Result<(), IntentError> {
        match self {
            Self::DrainNode(node) | Self::UndrainNode(node) | Self::RemoveNode(node)
                if !map.nodes.contains_key(&node) =>
            {
                Err(IntentError::UnknownNode(node))
            }
            Self::AddNode(node) if !map.operations.removed_nodes.contains(&node) => {
                Err(IntentError::NotRemoved(node))
            }
            Self::DrainDevice(device) | Self::UndrainDevice(device) | Self::RemoveDevice(device)
                if !map.devices.contains_key(&device) =>
            {
                Err(IntentError::UnknownDevice(device))
            }
            Self::RemoveDevice(device) => removable(map, device),
            Self::TierPolicy(policy) => Ok(policy.check()?),
            Self::RemoveNode(node) => {
                devices_of(map, node).into_iter().try_for_each(|device| removable(map, device))
            }
            _ => Ok(()),
        }
    }

    /// Changes the map; the caller has checked that it may.
    pub(crate) fn apply(self, next: &mut ClusterMap, now_ms: u64) {
        let operations = &mut next.operations;
        match self {
            Self::DrainNode(node) => drop(operations.draining_nodes.insert(node)),
            Self::UndrainNode(node) => drop(operations.draining_nodes.remove(&node)),
            Self::AddNode(node) => drop(operations.removed_nodes.remove(&node)),
            Self::DrainDevice(device) => drop(operations.draining_devices.insert(device)),
            Self::UndrainDevice(device) => drop(operations.draining_devices.remove(&device)),
            Self::Pause(job) => drop(operations.paused.insert(job)),
            Self::Resume(job) => drop(operations.paused.remove(&job)),
            Self::Budget(bytes) => operations.bytes_per_second = bytes,
            Self::ColdProfile(profile) => next.tiering.cold_profile = Some(profile),
            Self::TierPolicy(policy) => next.tiering.policy = policy,
            Self::RemoveDevice(device) => give_up(next, device, now_ms),
            Self::RemoveNode(node) => {
                devices_of(next, node).into_iter().for_each(|device| give_up(next, device, now_ms));
                next.operations.draining_nodes.remove(&node);
                next.operations.removed_nodes.insert(node);
                if let Some(entry) = next.nodes.get_mut(&node) {
                    // What its last run left behind is of a run before the newest: it may be collected.
                    entry.incarnation = Incarnation(entry.incarnation.0 + 1);
                }
            }
        }
    }
}

fn devices_of(map: &ClusterMap, node: NodeId) -> Vec<DeviceId> {
    map.devices.iter().filter(|(_, entry)| entry.node == node).map(|(device, _)| *device).collect()
}

fn removable(map: &ClusterMap, device: DeviceId) -> Result<(), IntentError> {
    if map.is_in(device) && !map.is_leaving(device) {
        return Err(IntentError::InUse(device));
    }
    match map.uses_of(device) {
        0 => Ok(()),
        uses => Err(IntentError::NotEmpty { device, uses }),
    }
}

/// It is out and of no more use: it leaves the map with this plan.
fn give_up(next: &mut ClusterMap, device: DeviceId, now_ms: u64) {
    next.operations.draining_devices.remove(&device);
    if let Some(entry) = next.devices.get_mut(&device) {
        entry.state = DeviceState::Out;
        entry.out_since_ms.get_or_insert(now_ms);
        entry.replaced = true;
    }
}
