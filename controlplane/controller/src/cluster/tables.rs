//! Copies of the tables that nodes act on: what a node keeps of them, and what makes a metastore of them again.

use std::path::Path;

use quarry_clustermap::{ClusterMap, Epoch, MapVersion, NodeId};
use quarry_metastore::{
    Embedded, Entry, Metastore, MetastoreError, TRANSACTION_BYTES_MAX, TRANSACTION_OPERATIONS_MAX,
    Transaction,
};

use super::{FOUNDING_KEY, Founding, NodeName, node_key};
use crate::{
    ControllerError, Published, StoredMap,
    map_store::stage,
    state::{Loaded, TABLE_PREFIXES, to_json},
};

/// How far ahead of the newest map that is known a restored one is: nobody has seen an epoch as high.
const RESTORED_AHEAD: u64 = 1 << 20;

/// The newest tables that a node has seen, in a directory of its own.
#[derive(Debug)]
pub struct Tables {
    store: Embedded,
}

impl Tables {
    /// Opens the copy in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open(directory: &Path) -> Result<Self, MetastoreError> {
        std::fs::create_dir_all(directory).map_err(|source| MetastoreError::Io {
            operation: "creating",
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self { store: Embedded::open(directory)? })
    }

    /// The tables, if any were kept.
    ///
    /// # Errors
    /// [`ControllerError::Damaged`]; metastore errors.
    pub async fn load(&self) -> Result<Option<Published>, ControllerError> {
        Ok(Loaded::read(&self.store, None).await?.published())
    }

    /// Keeps what `metastore` holds now.
    pub(crate) async fn keep(
        &mut self,
        metastore: &impl Metastore,
        stored: &StoredMap,
    ) -> Result<(), ControllerError> {
        let kept = StoredMap::read(&self.store, None).await?;
        if kept.as_ref().is_none_or(|kept| kept.map.version < stored.map.version) {
            stage(kept.as_deref(), &stored.map, Transaction::default(), 0).commit(&self.store).await?;
        }
        copy_entries(metastore, &self.store).await
    }
}

/// Makes every table but the map the same in `to` as it is in `from`.
async fn copy_entries(from: &impl Metastore, to: &impl Metastore) -> Result<(), ControllerError> {
    for prefix in TABLE_PREFIXES.into_iter().filter(|prefix| *prefix != crate::map_store::MAP_KEY) {
        let (wanted, there) = (from.range(prefix).await?.entries, to.range(prefix).await?.entries);
        let has = |entries: &[Entry], key: &str| {
            entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.clone())
        };
        let mut changes = vec![Transaction::default()];
        let mut add = |bytes: usize, change: &dyn Fn(Transaction) -> Transaction| {
            let last = changes.last_mut().expect("never empty");
            let full = last.puts.len() + last.deletes.len() >= TRANSACTION_OPERATIONS_MAX
                || last.bytes() + bytes > TRANSACTION_BYTES_MAX;
            if full {
                changes.push(change(Transaction::default()));
            } else {
                *last = change(std::mem::take(last));
            }
        };
        for entry in wanted.iter().filter(|entry| has(&there, &entry.key).as_ref() != Some(&entry.value)) {
            let bytes = entry.key.len() + entry.value.len();
            add(bytes, &|transaction| transaction.put(&entry.key, entry.value.clone()));
        }
        for entry in there.iter().filter(|entry| has(&wanted, &entry.key).is_none()) {
            add(entry.key.len(), &|transaction| transaction.delete(&entry.key));
        }
        for change in changes.iter().filter(|change| **change != Transaction::default()) {
            to.transact(change).await?;
        }
    }
    Ok(())
}

/// Why a metastore cannot be made of another one.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The target is in use.
    #[error("the metastore to fill already has a cluster")]
    NotEmpty,
    /// The source has no map.
    #[error("there is no cluster map to take over")]
    NoMap,
    /// A node of the map has no name, so nobody could take its number again.
    #[error("the map has nodes without a name: {nodes:?}; give their data directories, or their names")]
    Nameless {
        /// Which.
        nodes: Vec<u32>,
    },
    /// The source has more than the one node of a standalone store.
    #[error("the map has {nodes} nodes; only a standalone node can become a cluster")]
    NotStandalone {
        /// Nodes in the map.
        nodes: usize,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Controller(#[from] ControllerError),
}

/// Makes a cluster of the metastore of a stopped standalone node, which becomes the node `name`; `to` is empty.
///
/// # Errors
/// [`MoveError`]; if it is not [`MoveError::NotEmpty`], it can be repeated.
pub async fn migrate(from: &Embedded, to: &impl Metastore, name: &str) -> Result<(), MoveError> {
    let map = map_of(from).await?;
    let nodes: Vec<NodeId> = map.nodes.keys().copied().collect();
    let [node] = nodes[..] else { return Err(MoveError::NotStandalone { nodes: nodes.len() }) };
    fill(from, to, &map, &[(node, name.to_owned())]).await
}

/// Fills an empty metastore from the newest of the tables that nodes have kept. `names` are those of the nodes. Every
/// epoch is renewed: whoever acted on a map that is lost is fenced.
///
/// # Errors
/// [`MoveError`]; if it is not [`MoveError::NotEmpty`], it can be repeated.
pub async fn restore(
    kept: &[Tables],
    to: &impl Metastore,
    names: &[(NodeId, String)],
) -> Result<MapVersion, MoveError> {
    let mut newest: Option<(&Tables, ClusterMap)> = None;
    for tables in kept {
        let map = map_of(&tables.store).await?;
        if newest.as_ref().is_none_or(|(_, newest)| newest.version < map.version) {
            newest = Some((tables, map));
        }
    }
    let (tables, mut map) = newest.ok_or(MoveError::NoMap)?;
    let is_named = |node: &NodeId| names.iter().any(|(named, _)| named == node);
    let nodes: Vec<u32> = map.nodes.keys().filter(|node| !is_named(node)).map(|node| node.0).collect();
    if !nodes.is_empty() {
        return Err(MoveError::Nameless { nodes });
    }
    let version = MapVersion(map.version.0 + RESTORED_AHEAD);
    let epoch = Epoch(version.0);
    map.version = version;
    map.partitions.iter_mut().for_each(|config| config.epoch = epoch);
    map.placement_groups.values_mut().for_each(|group| group.epoch = epoch);
    fill(&tables.store, to, &map, names).await?;
    Ok(version)
}

async fn map_of(store: &Embedded) -> Result<ClusterMap, MoveError> {
    let stored = StoredMap::read(store, None).await?.ok_or(MoveError::NoMap)?;
    Ok((*stored.map).clone())
}

/// The map and the founding come last and together: before that the target counts as empty.
async fn fill(
    from: &Embedded,
    to: &impl Metastore,
    map: &ClusterMap,
    names: &[(NodeId, String)],
) -> Result<(), MoveError> {
    let of = ControllerError::from;
    if to.get(FOUNDING_KEY).await.map_err(of)?.is_some() {
        return Err(MoveError::NotEmpty);
    }
    copy_entries(from, to).await?;
    for (node, name) in names {
        let record = Transaction::default().put(&node_key(*node), to_json(&NodeName { name: name.clone() }));
        to.transact(&record).await.map_err(of)?;
    }
    let founding = Founding::new(map.cluster, map.partition_count(), map.hot_profile);
    let base = Transaction::default().expect(FOUNDING_KEY, None).put(FOUNDING_KEY, to_json(&founding));
    stage(None, map, base, 0).commit(to).await.map_err(of)?;
    Ok(())
}
