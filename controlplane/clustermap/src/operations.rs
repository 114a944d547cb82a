//! What the operator has asked for, beyond what is observed: part of the map, so that every node knows it.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{DeviceId, NodeId};

/// Work in the background that moves data between devices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Makes anew what was on devices that are out.
    Repair,
    /// Empties devices that are drained.
    Drain,
    /// Evens out what devices hold.
    Rebalance,
}

impl JobKind {
    /// All of them, most urgent first.
    pub const ALL: [Self; 3] = [Self::Repair, Self::Drain, Self::Rebalance];
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Repair => "repair",
            Self::Drain => "drain",
            Self::Rebalance => "rebalance",
        })
    }
}

/// No job has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no job {0:?}: the jobs are repair, drain and rebalance")]
pub struct UnknownJob(String);

impl FromStr for JobKind {
    type Err = UnknownJob;

    fn from_str(text: &str) -> Result<Self, UnknownJob> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| UnknownJob(text.to_owned()))
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Operations {
    /// Nodes whose devices are to be emptied.
    pub draining_nodes: BTreeSet<NodeId>,
    /// Devices that are to be emptied.
    pub draining_devices: BTreeSet<DeviceId>,
    /// Nodes that were removed for good: they have no devices. Their entries stay, because blob ids name their writer.
    pub removed_nodes: BTreeSet<NodeId>,
    /// Jobs that start nothing new and hold still what they have begun.
    pub paused: BTreeSet<JobKind>,
    /// Bytes per second that these jobs may read and write on each node; `None`: what the node's configuration says.
    pub bytes_per_second: Option<u64>,
}
