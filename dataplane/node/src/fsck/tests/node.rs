//! The devices of a stopped node as files, and what plants faults on them: rows of the index, the free map and single
//! bits are changed below the store, so that nothing refuses them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
    rc::Rc,
    sync::OnceLock,
};

use bytes::Bytes;
use futures::executor::block_on;
use quarry_clustermap::{BlobId, ClusterMap, DeviceId, PartitionId};
use quarry_controller::StoredMap;
use quarry_metastore::Embedded;
use quarry_partition::command::{DecodedRow, decode_row};
use quarry_storage::{
    device::{DeviceFile, OpenMode, SyncDevice},
    extent::FreeMap,
    format::{
        rows::{self, ShardRowV1},
        superblock::{SLOTS, Superblock, slot_offset, slots_of},
    },
    index::{TREE_ROOT_BYTES, Tree, TreeRoot},
    store::{ShardKey, ShardRow, Store},
};
use tempfile::TempDir;

use super::super::{check, read_only_options, report::Report};
use crate::sim::stopped::{Stopped, stopped_node};

/// Made once: filling a node takes longer than all that is done to it.
static STOPPED: OnceLock<Stopped> = OnceLock::new();

/// A stopped node of its own.
pub(super) struct Node {
    directory: TempDir,
    pub(super) map: ClusterMap,
}

/// What a checkpoint of a device names, to be changed.
pub(super) struct Checkpoint {
    /// Rows of the index to set or remove.
    pub(super) rows: BTreeMap<Bytes, Option<Bytes>>,
    pub(super) free: FreeMap,
}

impl Checkpoint {
    /// Sets a shard's rows, whatever they say, and leaves the free map as it is.
    pub(super) fn set_shard(&mut self, row: &ShardRow) {
        for (n, piece) in (0..).zip(ShardRowV1::from_row(row)) {
            self.rows.insert(rows::shard_key(row.key(), n), Some(rows::encode_shard(&piece)));
        }
    }

    /// Gives a shard room of its own and sets its rows.
    pub(super) fn add_shard(&mut self, mut row: ShardRow) {
        for piece in &mut row.extents {
            piece.extent = self.free.allocate_low(piece.extent.blocks).unwrap();
        }
        self.set_shard(&row);
    }

    /// Removes a shard and frees its blocks.
    pub(super) fn remove_shard(&mut self, row: &ShardRow) {
        for (n, piece) in (0..).zip(&row.extents) {
            self.rows.insert(rows::shard_key(row.key(), n), None);
            self.free.free(piece.extent);
        }
    }
}

impl Node {
    pub(super) fn new() -> Self {
        let stopped = STOPPED.get_or_init(stopped_node);
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("metastore"), &stopped.metastore).unwrap();
        fs::create_dir(directory.path().join("devices")).unwrap();
        let metastore = Embedded::open(directory.path()).unwrap();
        let map = crate::read_map(&metastore).unwrap().unwrap();
        drop(metastore);
        let mut node = Self { directory, map };
        let mut map = node.map.clone();
        for image in &stopped.images {
            let path = node.directory.path().join("devices").join(image.device.to_string());
            let file = File::create(&path).unwrap();
            file.set_len(image.size_bytes).unwrap();
            image.chunks.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
            map.devices.get_mut(&image.device).unwrap().location = path.display().to_string();
        }
        node.put_map(map);
        node
    }

    pub(super) fn put_map(&mut self, map: ClusterMap) {
        let metastore = Embedded::open(self.directory.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(StoredMap::overwrite(&metastore, &map)).unwrap();
        self.map = map;
    }

    pub(super) fn fsck(&self, verify: bool) -> Report {
        check(&[self.directory.path().to_owned()], &[], verify).unwrap()
    }

    pub(super) fn path(&self, device: DeviceId) -> PathBuf {
        PathBuf::from(&self.map.devices[&device].location)
    }

    pub(super) fn flip(&self, device: DeviceId, offset: u64) {
        let file = OpenOptions::new().read(true).write(true).open(self.path(device)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
    }

    /// Flips a bit in every superblock.
    pub(super) fn flip_superblocks(&self, device: DeviceId) {
        let size_bytes = fs::metadata(self.path(device)).unwrap().len();
        (0..SLOTS).for_each(|slot| self.flip(device, slot_offset(slot, size_bytes) + 100));
    }

    fn open(&self, device: DeviceId, mode: OpenMode) -> Rc<SyncDevice> {
        Rc::new(SyncDevice::new(DeviceFile::open(self.path(device), mode).unwrap()))
    }

    pub(super) fn store(&self, device: DeviceId) -> Store<SyncDevice> {
        let device = self.open(device, OpenMode::ReadOnly);
        block_on(Store::open_read_only(device, read_only_options())).unwrap()
    }

    /// Changes the device's last checkpoint.
    pub(super) fn write(&self, device: DeviceId, change: impl FnOnce(&mut Checkpoint)) {
        let io = self.open(device, OpenMode::ReadWrite);
        let file = OpenOptions::new().read(true).write(true).open(self.path(device)).unwrap();
        let mut superblock = newest(&file);
        let place = superblock.free_map.extents[0];
        let mut image = vec![0; usize::try_from(superblock.free_map.len_bytes).unwrap()];
        file.read_exact_at(&mut image, place.start.offset_bytes()).unwrap();
        let mut checkpoint = Checkpoint { rows: BTreeMap::new(), free: FreeMap::decode(&image).unwrap() };
        change(&mut checkpoint);
        let root = superblock.root.map(|root| root[..TREE_ROOT_BYTES].try_into().unwrap());
        let tree = Tree::open(io, root.and_then(TreeRoot::decode), 1 << 20);
        let space = RefCell::new(checkpoint.free);
        let applied = block_on(tree.apply(&checkpoint.rows, &space)).unwrap();
        let mut free = space.into_inner();
        applied.freed.into_iter().for_each(|extent| free.free(extent));
        if let (Some(field), Some(root)) = (&mut superblock.root, applied.root) {
            field[..TREE_ROOT_BYTES].copy_from_slice(&root.encode());
        }
        let image = free.encode();
        assert!(image.len() as u64 <= place.len_bytes(), "the free map has outgrown its place");
        (superblock.free_map.len_bytes, superblock.free_map.crc) =
            (image.len() as u64, crc32c::crc32c(&image));
        file.write_all_at(&image, place.start.offset_bytes()).unwrap();
        for slot in slots_of(superblock.checkpoint) {
            let offset = slot_offset(slot, superblock.device_bytes);
            file.write_all_at(&superblock.encode(slot), offset).unwrap();
        }
    }

    /// Sets and removes rows of a partition on one replica.
    pub(super) fn write_rows(
        &self,
        device: DeviceId,
        partition: PartitionId,
        changes: &[(Vec<u8>, Option<Bytes>)],
    ) {
        self.write(device, |checkpoint| {
            let changes =
                changes.iter().map(|(key, value)| (rows::partition_key(partition, key), value.clone()));
            checkpoint.rows.extend(changes);
        });
    }

    /// The same on every replica.
    pub(super) fn write_rows_everywhere(&self, partition: PartitionId, changes: &[(Vec<u8>, Option<Bytes>)]) {
        for device in &self.map.partition(partition).replicas {
            self.write_rows(*device, partition, changes);
        }
    }

    /// The first row of any partition that is one of those asked for.
    pub(super) fn find_row(&self, wanted: impl Fn(&DecodedRow) -> bool) -> (PartitionId, Bytes, Bytes) {
        let rows = (0..self.map.partition_count()).map(PartitionId).flat_map(|partition| {
            let store = self.store(self.map.partition(partition).primary);
            let rows = block_on(store.rows(partition, &[], None, usize::MAX)).unwrap();
            rows.into_iter().map(move |(key, value)| (partition, key, value))
        });
        let mut found = rows.filter(|(_, key, value)| decode_row(key, value).is_ok_and(|row| wanted(&row)));
        found.next().expect("the node holds such a row")
    }

    /// Every shard with its device.
    pub(super) fn shards(&self) -> Vec<(DeviceId, ShardRow)> {
        let shards = self.map.devices.keys().flat_map(|device| {
            let rows = block_on(self.store(*device).shards(None, usize::MAX)).unwrap();
            rows.into_iter().map(|row| (*device, row))
        });
        shards.collect()
    }

    /// The shards of one live blob, by position.
    pub(super) fn stripe(&self) -> Vec<(DeviceId, ShardRow)> {
        let mut shards = self.shards();
        let blob = shards[0].1.blob;
        shards.retain(|(_, row)| row.blob == blob);
        shards.sort_by_key(|(_, row)| row.shard);
        shards
    }
}

fn newest(file: &File) -> Superblock {
    let size_bytes = file.metadata().unwrap().len();
    let slots = (0..SLOTS).filter_map(|slot| {
        let mut block = vec![0; 4096];
        file.read_exact_at(&mut block, slot_offset(slot, size_bytes)).unwrap();
        Superblock::decode(&block, slot).ok()
    });
    slots.max_by_key(|superblock| superblock.checkpoint).unwrap()
}

/// A shard like this one, of a blob that nobody knows.
pub(super) fn stranger(row: &ShardRow, blob: BlobId) -> ShardRow {
    let ShardKey { pg, shard, .. } = row.key();
    ShardRow { pg, shard, blob, ..row.clone() }
}
