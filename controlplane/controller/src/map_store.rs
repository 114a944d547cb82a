//! The cluster map in the metastore: a head, and packed leaves that are written once.
//!
//! | key | value (JSON) |
//! |---|---|
//! | `map` | [`Head`]: version, profile, and for each leaf the end of its key |
//! | `leaf/nNNNNN@END` | 16 nodes by id, with their devices |
//! | `leaf/pNNNNN@END` | 64 partitions by id |
//! | `leaf/gNNNNN@END` | 64 placement groups by id |
//!
//! `END` is the map version that wrote the leaf and a number of its writer: a key is never written twice, so a head
//! and its leaves belong together whoever else writes at the same time. A commit compares the head with the one it was
//! planned on. As a rule it is one transaction; what does not fit into one (128 operations, 1 MiB) is written ahead of
//! it, where no head names it yet. Leaves that the new head no longer names are removed with it or after it.
//!
//! A reader that finds a leaf gone reads the head again: there is a newer one. Leaves that a crashed writer left are
//! removed by [`sweep`], which only the one acting writer may call.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::future::try_join_all;
use quarry_clustermap::{
    ClusterId, ClusterMap, DeviceEntry, DeviceId, ErasureProfile, MapVersion, NodeEntry, NodeId, Operations,
    PartitionConfig, PgId, PlacementGroup, Tiering,
};
use quarry_metastore::{
    Entry, Metastore, MetastoreError, Revision, TRANSACTION_BYTES_MAX, TRANSACTION_OPERATIONS_MAX,
    Transaction,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    ControllerError,
    state::{damaged, parse, to_json},
};

/// The head's key.
pub(crate) const MAP_KEY: &str = "map";
/// What leaf keys begin with.
pub(crate) const LEAF_PREFIX: &str = "leaf/";
const FORMAT: u32 = 1;
/// Partitions, or groups, of one leaf.
const ENTRIES_PER_LEAF: usize = 64;
/// Nodes of one leaf; their devices come with them.
const NODES_PER_LEAF: u32 = 16;
/// Changes of a transaction that is written ahead.
const AHEAD_OPERATIONS_MAX: usize = 100;
/// Bytes after which a transaction takes no more leaves; one leaf more still fits.
const BYTES_WANTED_MAX: usize = TRANSACTION_BYTES_MAX / 2;
/// Leaves that are asked for one by one, whatever part of the map they are.
const LEAVES_READ_SINGLY_MAX: usize = 24;
/// Of a larger map a node asks for up to one leaf in so many one by one; beyond that it reads all at once. A thousand nodes
/// do so at the same time: what one does not need costs etcd a thousand times.
const LEAVES_READ_SINGLY_PART: usize = 4;
/// Of those, how many are under way at a time.
const LEAVES_AT_A_TIME: usize = 8;
/// Readings of a head whose leaves are gone before that is called damage.
const READ_ATTEMPTS_MAX: usize = 16;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    cluster: ClusterId,
    version: MapVersion,
    hot_profile: ErasureProfile,
    #[serde(default)]
    operations: Operations,
    #[serde(default)]
    tiering: Tiering,
    /// By name (`p00003`): the end of the key.
    leaves: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
struct Nodes {
    nodes: BTreeMap<NodeId, NodeEntry>,
    devices: BTreeMap<DeviceId, DeviceEntry>,
}

#[derive(Clone, PartialEq, Debug)]
enum Content {
    Nodes(Nodes),
    Partitions(Vec<PartitionConfig>),
    Groups(BTreeMap<PgId, PlacementGroup>),
}

impl Content {
    fn to_json(&self) -> Vec<u8> {
        match self {
            Self::Nodes(content) => to_json(content),
            Self::Partitions(content) => to_json(content),
            Self::Groups(content) => to_json(content),
        }
    }

    fn parse(name: &str, entry: &Entry) -> Result<Self, ControllerError> {
        fn of<T: DeserializeOwned>(entry: &Entry) -> Result<T, ControllerError> {
            parse(entry)
        }
        match name.as_bytes().first() {
            Some(b'n') => of(entry).map(Self::Nodes),
            Some(b'p') => of(entry).map(Self::Partitions),
            Some(b'g') => of(entry).map(Self::Groups),
            _ => Err(damaged(MAP_KEY, &format!("it names a leaf {name:?}"))),
        }
    }
}

/// A leaf as it is stored.
#[derive(Clone, Debug)]
struct Leaf {
    key: String,
    content: Arc<Content>,
}

/// The committed map, and what is needed to commit a next one.
#[derive(Clone, Debug)]
pub struct StoredMap {
    /// The map.
    pub map: Arc<ClusterMap>,
    entry: Entry,
    leaves: BTreeMap<String, Leaf>,
}

impl StoredMap {
    /// Reads the newest map; what `known` has of it is not read again.
    ///
    /// # Errors
    /// [`ControllerError::Damaged`]; metastore errors.
    pub async fn read(
        metastore: &impl Metastore,
        known: Option<&Arc<Self>>,
    ) -> Result<Option<Arc<Self>>, ControllerError> {
        for _ in 0..READ_ATTEMPTS_MAX {
            let Some(entry) = metastore.get(MAP_KEY).await? else {
                return Ok(None);
            };
            if let Some(known) = known.filter(|known| known.entry.revision == entry.revision) {
                return Ok(Some(Arc::clone(known)));
            }
            let head: Head = parse(&entry)?;
            if head.format != FORMAT {
                return Err(damaged(MAP_KEY, &format!("format {} is not known", head.format)));
            }
            if let Some(leaves) = read_leaves(metastore, &head, known).await? {
                let map = assemble(&head, &leaves);
                map.validate().map_err(|error| damaged(MAP_KEY, &error))?;
                return Ok(Some(Arc::new(Self { map: Arc::new(map), entry, leaves })));
            }
        }
        Err(damaged(MAP_KEY, &"leaves that it names are missing"))
    }

    /// Writes a map in the place of whatever map is there, for tools on the metastore of a stopped node.
    ///
    /// # Errors
    /// [`ControllerError::Damaged`]; metastore errors.
    pub async fn overwrite(metastore: &impl Metastore, map: &ClusterMap) -> Result<(), ControllerError> {
        let old = Self::read(metastore, None).await?;
        stage(old.as_deref(), map, Transaction::default(), 0).commit(metastore).await?;
        Ok(())
    }

    /// Who wrote the newest leaves, if this version wrote any.
    #[cfg(test)]
    pub(crate) fn writer(&self) -> Option<u64> {
        let of_now = format!("@{}.", self.map.version.0);
        let leaf = self.leaves.values().find(|leaf| leaf.key.contains(&of_now))?;
        u64::from_str_radix(leaf.key.rsplit_once('.')?.1, 16).ok()
    }

    /// The head, to compare with: the map is still this one.
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }
}

/// `None`: a leaf is gone, so there is a newer head.
async fn read_leaves(
    metastore: &impl Metastore,
    head: &Head,
    known: Option<&Arc<StoredMap>>,
) -> Result<Option<BTreeMap<String, Leaf>>, ControllerError> {
    let mut leaves = BTreeMap::new();
    let mut missing = Vec::new();
    for (name, end) in &head.leaves {
        let key = key_of(name, end);
        match known.and_then(|known| known.leaves.get(name)).filter(|leaf| leaf.key == key) {
            Some(leaf) => drop(leaves.insert(name.clone(), leaf.clone())),
            None => missing.push((name, key)),
        }
    }
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    if missing.len() > LEAVES_READ_SINGLY_MAX.max(head.leaves.len() / LEAVES_READ_SINGLY_PART) {
        let range = metastore.range(LEAF_PREFIX).await?;
        entries.extend(range.entries.into_iter().map(|entry| (entry.key.clone(), entry)));
    }
    let singly: Vec<&String> =
        missing.iter().map(|(_, key)| key).filter(|key| !entries.contains_key(*key)).collect();
    for keys in singly.chunks(LEAVES_AT_A_TIME) {
        let mut reads = Vec::with_capacity(keys.len());
        for key in keys {
            reads.push(metastore.get(key));
        }
        let read = try_join_all(reads).await?;
        entries.extend(read.into_iter().flatten().map(|entry| (entry.key.clone(), entry)));
    }
    for (name, key) in missing {
        let Some(entry) = entries.remove(&key) else { return Ok(None) };
        let content = Arc::new(Content::parse(name, &entry)?);
        leaves.insert(name.clone(), Leaf { key, content });
    }
    Ok(Some(leaves))
}

fn key_of(name: &str, end: &str) -> String {
    format!("{LEAF_PREFIX}{name}@{end}")
}

fn assemble(head: &Head, leaves: &BTreeMap<String, Leaf>) -> ClusterMap {
    let mut map = ClusterMap {
        cluster: head.cluster,
        version: head.version,
        hot_profile: head.hot_profile,
        nodes: BTreeMap::new(),
        devices: BTreeMap::new(),
        partitions: Vec::new(),
        operations: head.operations.clone(),
        tiering: head.tiering.clone(),
        placement_groups: BTreeMap::new(),
    };
    // In the order of their names: partitions are listed by id.
    for leaf in leaves.values() {
        match &*leaf.content {
            Content::Nodes(content) => {
                map.nodes.extend(content.nodes.clone());
                map.devices.extend(content.devices.clone());
            }
            Content::Partitions(partitions) => map.partitions.extend(partitions.iter().cloned()),
            Content::Groups(groups) => map.placement_groups.extend(groups.clone()),
        }
    }
    map
}

fn split(map: &ClusterMap) -> BTreeMap<String, Content> {
    let mut nodes: BTreeMap<u32, Nodes> = BTreeMap::new();
    for (id, entry) in &map.nodes {
        nodes.entry(id.0 / NODES_PER_LEAF).or_default().nodes.insert(*id, entry.clone());
    }
    for (id, entry) in &map.devices {
        nodes.entry(entry.node.0 / NODES_PER_LEAF).or_default().devices.insert(*id, entry.clone());
    }
    let mut groups: BTreeMap<usize, BTreeMap<PgId, PlacementGroup>> = BTreeMap::new();
    for (id, group) in &map.placement_groups {
        let index = usize::try_from(id.0).expect("32 bits") / ENTRIES_PER_LEAF;
        groups.entry(index).or_default().insert(*id, group.clone());
    }
    let nodes = nodes.into_iter().map(|(index, content)| (format!("n{index:05}"), Content::Nodes(content)));
    let partitions = map.partitions.chunks(ENTRIES_PER_LEAF).enumerate();
    let partitions =
        partitions.map(|(index, leaf)| (format!("p{index:05}"), Content::Partitions(leaf.to_vec())));
    let groups =
        groups.into_iter().map(|(index, content)| (format!("g{index:05}"), Content::Groups(content)));
    nodes.chain(partitions).chain(groups).collect()
}

/// A commit of a next map, ready to be written.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Leaves for which the last transaction has no room.
    ahead: Vec<Transaction>,
    last: Transaction,
    /// Leaves that no head names once this is committed, beyond what the last transaction removes.
    garbage: Vec<String>,
    after: StoredMap,
}

/// Prepares the commit of `next` in the place of `old`. `base` is done with it and, if it fails, not at all; its
/// comparisons hold for everything that is written.
pub(crate) fn stage(old: Option<&StoredMap>, next: &ClusterMap, base: Transaction, writer: u64) -> Staged {
    let end = format!("{}.{:012x}", next.version.0, writer & 0xffff_ffff_ffff);
    let mut head = Head {
        format: FORMAT,
        cluster: next.cluster,
        version: next.version,
        hot_profile: next.hot_profile,
        operations: next.operations.clone(),
        tiering: next.tiering.clone(),
        leaves: BTreeMap::new(),
    };
    let mut leaves = BTreeMap::new();
    let mut written = Vec::new();
    for (name, content) in split(next) {
        let same = old.and_then(|old| old.leaves.get(&name)).filter(|leaf| *leaf.content == content);
        let leaf = match same {
            Some(leaf) => leaf.clone(),
            None => {
                let key = key_of(&name, &end);
                written.push((key.clone(), content.to_json()));
                Leaf { key, content: Arc::new(content) }
            }
        };
        let (_, end) = leaf.key.rsplit_once('@').expect("a leaf's key has an end");
        head.leaves.insert(name.clone(), end.to_owned());
        leaves.insert(name, leaf);
    }
    let kept: BTreeSet<&String> = leaves.values().map(|leaf| &leaf.key).collect();
    let of_old = old.into_iter().flat_map(|old| old.leaves.values());
    let mut garbage: Vec<String> =
        of_old.filter(|leaf| !kept.contains(&leaf.key)).map(|leaf| leaf.key.clone()).collect();
    let compare = base.clone().expect(MAP_KEY, old.map(|old| &old.entry)).compare;
    let value = to_json(&head);
    let mut last = Transaction { compare: compare.clone(), ..base }.put(MAP_KEY, value.clone());
    let ahead = distribute(written, &mut last, &compare);
    let room = TRANSACTION_OPERATIONS_MAX - last.puts.len() - last.deletes.len();
    last.deletes.extend(garbage.drain(garbage.len().saturating_sub(room)..));
    // The revision is filled in when there is one.
    let revision = old.map_or(Revision::UNKNOWN, |old| old.entry.revision);
    let entry = Entry { key: MAP_KEY.to_owned(), value, revision };
    Staged { ahead, last, garbage, after: StoredMap { map: Arc::new(next.clone()), entry, leaves } }
}

/// Puts leaves into the last transaction if all fit, else into transactions ahead of it.
fn distribute(
    written: Vec<(String, Vec<u8>)>,
    last: &mut Transaction,
    compare: &[(String, quarry_metastore::Expected)],
) -> Vec<Transaction> {
    let bytes: usize = written.iter().map(|(key, value)| key.len() + value.len()).sum();
    let operations = written.len() + last.puts.len() + last.deletes.len();
    if operations <= TRANSACTION_OPERATIONS_MAX && bytes + last.bytes() <= TRANSACTION_BYTES_MAX {
        *last = written.into_iter().fold(std::mem::take(last), |last, (key, value)| last.put(&key, value));
        return Vec::new();
    }
    let new = || Transaction { compare: compare.to_vec(), ..Transaction::default() };
    let mut ahead: Vec<Transaction> = Vec::new();
    for (key, value) in written {
        let full = |t: &Transaction| t.puts.len() >= AHEAD_OPERATIONS_MAX || t.bytes() >= BYTES_WANTED_MAX;
        if ahead.last().is_none_or(full) {
            ahead.push(new());
        }
        let transaction = ahead.pop().expect("just made");
        ahead.push(transaction.put(&key, value));
    }
    ahead
}

impl Staged {
    /// Writes it. [`MetastoreError::Conflict`]: nothing has changed. [`MetastoreError::Unavailable`]: nobody knows.
    pub(crate) async fn commit(self, metastore: &impl Metastore) -> Result<StoredMap, MetastoreError> {
        let mut result = Ok(());
        for transaction in &self.ahead {
            result = metastore.transact(transaction).await.map(drop);
            if result.is_err() {
                break;
            }
        }
        let committed = match result {
            Ok(()) => metastore.transact(&self.last).await,
            Err(error) => Err(error),
        };
        let garbage = match &committed {
            Ok(_) => self.garbage,
            Err(MetastoreError::Conflict) => {
                let ahead = self.ahead.into_iter().flat_map(|transaction| transaction.puts);
                ahead.map(|put| put.key).collect()
            }
            Err(_) => Vec::new(),
        };
        remove(metastore, garbage, &[]).await;
        let mut after = self.after;
        after.entry.revision = committed?;
        Ok(after)
    }

    #[cfg(test)]
    pub(crate) fn transactions(&self) -> impl Iterator<Item = &Transaction> {
        self.ahead.iter().chain([&self.last])
    }
}

/// Removes keys that nothing names, as far as it can: what stays is swept later.
async fn remove(
    metastore: &impl Metastore,
    keys: Vec<String>,
    compare: &[(String, quarry_metastore::Expected)],
) {
    for keys in keys.chunks(TRANSACTION_OPERATIONS_MAX) {
        let transaction = Transaction { compare: compare.to_vec(), puts: Vec::new(), deletes: keys.to_vec() };
        if let Err(error) = metastore.transact(&transaction).await {
            return tracing::debug!(event = "leaves_left", %error);
        }
    }
}

/// Removes leaves that crashed writers left. `base` compares what proves that the caller is the only writer.
pub(crate) async fn sweep(
    metastore: &impl Metastore,
    stored: Option<&StoredMap>,
    base: &Transaction,
) -> Result<(), MetastoreError> {
    let named: BTreeSet<&String> =
        stored.into_iter().flat_map(|stored| stored.leaves.values().map(|leaf| &leaf.key)).collect();
    let mut keys = metastore.keys(LEAF_PREFIX).await?;
    keys.retain(|key| !named.contains(key));
    let compare = base.clone().expect(MAP_KEY, stored.map(|stored| &stored.entry)).compare;
    remove(metastore, keys, &compare).await;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
