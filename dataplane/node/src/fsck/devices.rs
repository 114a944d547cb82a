//! Finds and opens the devices of a stopped node, read-only, and lists their shards past damage.
//!
//! Identity comes from the superblock; the map's locations only say where to look, and the data directory is looked
//! through as well. The lock of a device is held for as long as it is open here: no node can start meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::executor::block_on;
use quarry_clustermap::{ClusterMap, DeviceId};
use quarry_storage::{
    device::{DeviceError, DeviceFile, OpenMode, SyncDevice},
    extent::Extent,
    format::rows::{self, ShardRowV1},
    index::{IndexError, KeyRange, Visit, WalkDepth},
    store::{ShardKey, ShardRow, Store, StoreError, StoreOptions, read_identity},
};

use super::{
    report::{Class, Findings},
    rows::decode_entry,
    source::Source,
    space::{Purpose, Used},
};
use crate::devices::open_when_free;

/// Rows of the shard table read at once.
const PAGE_ROWS: usize = 1024;

/// A device that was opened.
pub(super) struct OpenDevice {
    pub(super) id: DeviceId,
    pub(super) path: PathBuf,
    pub(super) store: Store<SyncDevice>,
    /// What the index and the free map's image use.
    pub(super) used: Vec<Used>,
    /// Keys that cannot be read.
    pub(super) damaged: Vec<KeyRange>,
    /// Everything that the index uses is known.
    pub(super) whole: bool,
    _lock: DeviceFile,
}

/// Opens all devices of the map that can be opened; reports the others.
///
/// # Errors
/// A device is in use: the node runs.
pub(super) fn open_all(
    (data, more): (&[PathBuf], &[PathBuf]),
    source: &Source,
    findings: &mut Findings,
) -> anyhow::Result<BTreeMap<DeviceId, OpenDevice>> {
    let map = &source.map;
    let mut opened: BTreeMap<DeviceId, OpenDevice> = BTreeMap::new();
    let mut refused: BTreeMap<PathBuf, String> = BTreeMap::new();
    for path in candidates(data, more, source) {
        let lock = match lock(&path) {
            Ok(lock) => lock,
            Err(DeviceError::InUse { path }) => bail!("{} is in use: stop the node first", path.display()),
            Err(error) => {
                refused.insert(path, error.to_string());
                continue;
            }
        };
        match block_on(open(&path, map, lock, findings)) {
            Ok(device) if opened.contains_key(&device.id) => {
                bail!("{} and {} are the same device", opened[&device.id].path.display(), path.display())
            }
            Ok(device) => {
                opened.insert(device.id, device);
            }
            Err(error) => {
                refused.insert(path, format!("{error:#}"));
            }
        }
    }
    for (id, entry) in map.devices.iter().filter(|(id, _)| !opened.contains_key(id)) {
        if !source.is_given(*id) {
            findings.add(Class::UnreadDevice, || format!("{id} of {}, which was not given", entry.node));
            continue;
        }
        let reason = refused.get(Path::new(&entry.location));
        let class =
            if reason.is_some() && map.is_in(*id) { Class::DamagedDevice } else { Class::MissingDevice };
        let reason = reason.map_or("not found", String::as_str);
        findings.add(class, || format!("{id} at {}: {reason}", entry.location));
    }
    Ok(opened)
}

fn candidates(data: &[PathBuf], more: &[PathBuf], source: &Source) -> Vec<PathBuf> {
    // What a location means elsewhere is nobody's business here.
    let given = source.map.devices.iter().filter(|(id, _)| source.is_given(**id));
    let mut paths: Vec<PathBuf> = given.map(|(_, entry)| PathBuf::from(&entry.location)).collect();
    for directory in data.iter().filter_map(|data| std::fs::read_dir(data.join("devices")).ok()) {
        paths.extend(directory.flatten().map(|entry| entry.path()));
    }
    paths.extend(more.iter().cloned());
    let mut seen = BTreeSet::new();
    paths.retain(|path| path.canonicalize().is_ok_and(|path| seen.insert(path)));
    paths
}

/// Opened for writing only because that takes the lock; where writing is not allowed the lock is done without.
fn lock(path: &Path) -> Result<DeviceFile, DeviceError> {
    match open_when_free(path) {
        Err(DeviceError::Open { .. }) => DeviceFile::open(path, OpenMode::ReadOnly),
        other => other,
    }
}

/// Options of a store that never writes, and so needs no executor.
pub(crate) fn read_only_options() -> StoreOptions {
    StoreOptions::new(Rc::new(|_| {}), Rc::new(decode_entry))
}

async fn open(
    path: &Path,
    map: &ClusterMap,
    lock: DeviceFile,
    findings: &mut Findings,
) -> anyhow::Result<OpenDevice> {
    let device = Rc::new(SyncDevice::new(DeviceFile::open(path, OpenMode::ReadOnly)?));
    let identity = read_identity(&*device).await?;
    if identity.cluster != map.cluster {
        bail!("it belongs to cluster {}, not {}", identity.cluster, map.cluster);
    }
    if !map.devices.contains_key(&identity.device) {
        bail!("it is {}, which is not in the map", identity.device);
    }
    let opened = Store::open_read_only(device, read_only_options()).await;
    let store = opened.context("it cannot be recovered")?;
    let mut device = OpenDevice {
        id: identity.device,
        path: path.to_owned(),
        used: Vec::new(),
        damaged: Vec::new(),
        whole: true,
        store,
        _lock: lock,
    };
    device.walk_index(findings).await;
    Ok(device)
}

impl OpenDevice {
    async fn walk_index(&mut self, findings: &mut Findings) {
        let Self { id, store, used, damaged, whole, .. } = self;
        let mut add = |extent: Extent, purpose| used.push(Used { extent, purpose });
        store.free_map_extents().into_iter().for_each(|extent| add(extent, Purpose::FreeMap));
        let visit = |visit: Visit<'_>| match visit {
            Visit::Page { extent, .. } => add(extent, Purpose::IndexPage),
            Visit::Value { extent, .. } => add(extent, Purpose::IndexValue),
            Visit::Damaged { extent, error } => {
                add(extent, Purpose::IndexPage);
                findings.add(Class::DamagedIndex, || format!("{id}: {error}"));
                *whole = false;
                if let IndexError::Damaged { key_range, .. } = error {
                    damaged.push(*key_range);
                }
            }
        };
        store.tree().walk(WalkDepth::Values, visit).await;
    }

    /// All shards that can be read.
    pub(super) fn shards(&self) -> Shards<'_> {
        let table = (vec![rows::TABLE_SHARDS], vec![rows::TABLE_SHARDS + 1]);
        let ranges = healthy(table, &self.damaged);
        Shards { device: self, ranges, page: VecDeque::new(), open: None, whole: self.whole }
    }
}

/// `range` without the damaged ranges, in order.
fn healthy(range: (Vec<u8>, Vec<u8>), damaged: &[KeyRange]) -> VecDeque<(Vec<u8>, Vec<u8>)> {
    let (mut from, end) = range;
    let mut damaged: Vec<&KeyRange> = damaged.iter().collect();
    damaged.sort_unstable_by(|a, b| a.from.cmp(&b.from));
    let mut ranges = VecDeque::new();
    for KeyRange { from: bad, to } in damaged {
        let upto = bad.to_vec().min(end.clone());
        if from < upto {
            ranges.push_back((from.clone(), upto));
        }
        from = to.as_ref().map_or(end.clone(), |to| from.max(to.to_vec()));
    }
    if from < end {
        ranges.push_back((from, end));
    }
    ranges
}

/// The shards of a device one after another, in order of their keys.
pub(super) struct Shards<'d> {
    device: &'d OpenDevice,
    ranges: VecDeque<(Vec<u8>, Vec<u8>)>,
    page: VecDeque<(Bytes, Bytes)>,
    /// Extents of the shard whose last row has not been seen yet.
    open: Option<(ShardKey, Vec<ShardRowV1>)>,
    whole: bool,
}

/// What the shard table holds.
pub(super) enum Listed {
    /// A shard.
    Shard(ShardRow),
    /// Rows that do not make a shard; the extents that they name.
    Damaged(Vec<Extent>),
}

impl Shards<'_> {
    /// Whether every shard has been listed, once there is no next one.
    pub(super) fn whole(&self) -> bool {
        self.whole
    }

    pub(super) async fn next(&mut self, findings: &mut Findings) -> Option<Listed> {
        let id = self.device.id;
        loop {
            let Some((key, value)) = self.row(findings).await else {
                return self.open.take().map(|open| self.close(open, findings));
            };
            let damaged = |findings: &mut Findings, reason: &dyn std::fmt::Display| {
                findings
                    .add(Class::DamagedRow, || format!("{id}: shard row {}: {reason}", hex::encode(&key)));
            };
            let Some((shard, _)) = rows::parse_shard_key(&key) else {
                damaged(findings, &"malformed key");
                self.whole = false;
                continue;
            };
            let piece = match rows::decode_shard(&value) {
                Ok(piece) => piece,
                Err(error) => {
                    damaged(findings, &error);
                    self.whole = false;
                    continue;
                }
            };
            match &mut self.open {
                Some((current, pieces)) if *current == shard => pieces.push(piece),
                open => {
                    if let Some(closed) = open.replace((shard, vec![piece])) {
                        return Some(self.close(closed, findings));
                    }
                }
            }
        }
    }

    fn close(&mut self, (key, pieces): (ShardKey, Vec<ShardRowV1>), findings: &mut Findings) -> Listed {
        let extents = pieces.iter().map(|piece| piece.extent.into()).collect();
        match ShardRowV1::into_row(key, pieces) {
            Ok(row) => Listed::Shard(row),
            Err(error) => {
                findings.add(Class::DamagedRow, || format!("{}: {key:?}: {error}", self.device.id));
                self.whole = false;
                Listed::Damaged(extents)
            }
        }
    }

    async fn row(&mut self, findings: &mut Findings) -> Option<(Bytes, Bytes)> {
        loop {
            if let Some(row) = self.page.pop_front() {
                return Some(row);
            }
            let (from, to) = self.ranges.pop_front()?;
            match self.device.store.scan(&from, &to, PAGE_ROWS).await {
                Ok(page) => {
                    if let Some((last, _)) = page.last().filter(|_| page.len() == PAGE_ROWS) {
                        self.ranges.push_front(([last, &[0][..]].concat(), to));
                    }
                    self.page = page.into();
                }
                Err(error) => self.skip(&error, findings),
            }
        }
    }

    /// Gives up a range that cannot be read although the walk found no damage in it.
    fn skip(&mut self, error: &StoreError, findings: &mut Findings) {
        self.whole = false;
        findings.add(Class::DamagedIndex, || format!("{}: shards: {error}", self.device.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_ranges_are_cut_out() {
        let key = |byte: u8| vec![byte];
        let bad = |from: u8, to: Option<u8>| KeyRange {
            from: Bytes::from(key(from)),
            to: to.map(|to| Bytes::from(key(to))),
        };
        let cut = |damaged: &[KeyRange]| Vec::from(healthy((key(10), key(20)), damaged));
        assert_eq!(cut(&[]), [(key(10), key(20))]);
        assert_eq!(
            cut(&[bad(15, Some(17)), bad(12, Some(13))]),
            [(key(10), key(12)), (key(13), key(15)), (key(17), key(20))]
        );
        assert_eq!(cut(&[bad(5, Some(12)), bad(18, None)]), [(key(12), key(18))]);
        assert_eq!(cut(&[bad(12, Some(16)), bad(13, Some(14))]), [(key(10), key(12)), (key(16), key(20))]);
        assert_eq!(cut(&[bad(0, None)]), []);
        assert_eq!(cut(&[bad(30, Some(40)), bad(0, Some(5))]), [(key(10), key(20))]);
    }
}
