//! Who a node is: its number, its name and this run of it.
//!
//! A node chooses its incarnations itself, each once: the larger of what its file and the map say, plus one, durable in
//! the file before it is used. So it can start without a metastore, and registering twice does no harm.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use quarry_clustermap::{Incarnation, NodeId};
use quarry_metastore::{Metastore, MetastoreError, Transaction};
use serde::{Deserialize, Serialize};

use super::{FOUNDING_KEY, Founding, NODE_PREFIX, NodeName, node_key};
use crate::{
    COMMIT_ATTEMPTS_MAX, ControllerError, StoredMap,
    state::{parse, to_json},
};

/// A node that may start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// The cluster it belongs to.
    pub founding: Founding,
    /// Its number, given once.
    pub node: NodeId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// This run.
    pub incarnation: Incarnation,
}

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The node's file belongs to another cluster.
    #[error("{} names another cluster than the metastore", path.display())]
    OtherCluster {
        /// The file.
        path: PathBuf,
    },
    /// The node's file and the configuration name different nodes.
    #[error("{} names the node {found:?}, the configuration {wanted:?}", path.display())]
    OtherName {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: String,
        /// In the configuration.
        wanted: String,
    },
    /// The file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The metastore failed, or holds nonsense.
    #[error(transparent)]
    Controller(#[from] ControllerError),
}

impl From<MetastoreError> for JoinError {
    fn from(error: MetastoreError) -> Self {
        Self::Controller(error.into())
    }
}

impl NodeIdentity {
    /// What the file of a node says. `None`: there is no file.
    ///
    /// # Errors
    /// [`JoinError::File`].
    pub fn read(path: &Path) -> Result<Option<Self>, JoinError> {
        read(path)
    }
}

/// The node `name`, whose file is `path`; its number is given at its first start. `None`: the cluster is not founded yet,
/// no controller has led.
///
/// # Errors
/// [`JoinError`].
pub async fn join(
    metastore: &impl Metastore,
    path: &Path,
    name: &str,
) -> Result<Option<NodeIdentity>, JoinError> {
    let Some(entry) = metastore.get(FOUNDING_KEY).await? else { return Ok(None) };
    let founding: Founding = parse(&entry)?;
    let known = read(path)?;
    if let Some(known) = &known {
        if known.founding.id != founding.id {
            return Err(JoinError::OtherCluster { path: path.to_owned() });
        }
        if known.name != name {
            let (found, wanted) = (known.name.clone(), name.to_owned());
            return Err(JoinError::OtherName { path: path.to_owned(), found, wanted });
        }
    }
    let node = number(metastore, name).await?;
    let stored = StoredMap::read(metastore, None).await?;
    let in_map = stored.and_then(|stored| Some(stored.map.nodes.get(&node)?.incarnation)).unwrap_or_default();
    let used = known.map(|known| known.incarnation).unwrap_or_default().max(in_map);
    let identity =
        NodeIdentity { founding, node, name: name.to_owned(), incarnation: Incarnation(used.0 + 1) };
    write(path, &identity)?;
    Ok(Some(identity))
}

/// The node as its file knows it, with its next incarnation, for a start without a metastore. `None`: there is no file.
///
/// # Errors
/// [`JoinError::File`].
pub fn join_offline(path: &Path) -> Result<Option<NodeIdentity>, JoinError> {
    let Some(known) = read(path)? else { return Ok(None) };
    let identity = NodeIdentity { incarnation: Incarnation(known.incarnation.0 + 1), ..known };
    write(path, &identity)?;
    Ok(Some(identity))
}

/// The number that the name has, or the next free one.
async fn number(metastore: &impl Metastore, name: &str) -> Result<NodeId, JoinError> {
    for _ in 0..COMMIT_ATTEMPTS_MAX {
        let mut last = 0;
        for entry in metastore.range(NODE_PREFIX).await?.entries {
            let Ok(node) = entry.key[NODE_PREFIX.len()..].parse() else { continue };
            if parse::<NodeName>(&entry)?.name == name {
                return Ok(NodeId(node));
            }
            last = last.max(node);
        }
        let node = NodeId(last + 1);
        let record = to_json(&NodeName { name: name.to_owned() });
        let give = Transaction::default().expect(&node_key(node), None).put(&node_key(node), record);
        match metastore.transact(&give).await {
            Ok(_) => return Ok(node),
            Err(MetastoreError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ControllerError::Contention.into())
}

fn read(path: &Path) -> Result<Option<NodeIdentity>, JoinError> {
    let failed = |source| JoinError::File { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Replaces the file as a whole.
fn write(path: &Path, identity: &NodeIdentity) -> Result<(), JoinError> {
    let new = path.with_extension("new");
    let replace = || {
        let mut file = File::create(&new)?;
        file.write_all(&to_json(identity))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
            .sync_all()
    };
    replace().map_err(|source| JoinError::File { path: path.to_owned(), source })
}
