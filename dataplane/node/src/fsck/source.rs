//! Which map is judged by, and whose devices: the metastore of a standalone node, or the newest of the copies that nodes of
//! a cluster keep. Locks are held to the end: none of these nodes can start meanwhile.

use std::{collections::BTreeSet, path::Path, path::PathBuf};

use anyhow::{Context, bail, ensure};
use quarry_clustermap::{ClusterMap, DeviceId, NodeId};
use quarry_controller::cluster::NodeIdentity;
use quarry_metastore::{Embedded, MetastoreError};

/// See the module.
pub(super) struct Source {
    pub(super) map: ClusterMap,
    /// Nodes of a cluster whose directories were given; `None`: there is one node.
    nodes: Option<BTreeSet<NodeId>>,
    _locked: Vec<Embedded>,
}

impl Source {
    /// Reads what the directories hold.
    pub(super) fn open(directories: &[PathBuf]) -> anyhow::Result<Self> {
        let mut newest: Option<ClusterMap> = None;
        let (mut nodes, mut locked) = (BTreeSet::new(), Vec::new());
        for data in directories {
            let metastore = if data.join("metastore").is_file() {
                ensure!(
                    directories.len() == 1,
                    "{} is of a standalone node, which is checked alone",
                    data.display()
                );
                open(data, data)?
            } else if let Some(identity) = NodeIdentity::read(&data.join("node.json"))? {
                nodes.insert(identity.node);
                open(&data.join("tables"), data)?
            } else {
                bail!("{} is not the data directory of a node: it holds no metastore", data.display());
            };
            let map = crate::read_map(&metastore)?.with_context(|| {
                format!("{} holds no cluster map: no node has ever started", data.display())
            })?;
            locked.push(metastore);
            if let Some(other) = newest.as_ref().filter(|other| other.cluster != map.cluster) {
                bail!("{} is of cluster {}, others are of {}", data.display(), map.cluster, other.cluster);
            }
            if newest.as_ref().is_none_or(|newest| newest.version < map.version) {
                newest = Some(map);
            }
        }
        let map = newest.context("give at least one data directory")?;
        map.validate().context("the cluster map breaks a rule")?;
        Ok(Self { map, nodes: (!nodes.is_empty()).then_some(nodes), _locked: locked })
    }

    /// Whether a device is of a node whose directory was given.
    pub(super) fn is_given(&self, device: DeviceId) -> bool {
        let Some(nodes) = &self.nodes else { return true };
        self.map.devices.get(&device).is_some_and(|entry| nodes.contains(&entry.node))
    }
}

fn open(directory: &Path, of: &Path) -> anyhow::Result<Embedded> {
    Embedded::open(directory).map_err(|error| match error {
        MetastoreError::Locked { .. } => {
            anyhow::anyhow!("a node is running on {}: stop it first", of.display())
        }
        error => error.into(),
    })
}
