//! Formatting and opening: newest valid superblock, free map, index root, replay of the ring.
//!
//! Replay changes memory only, so it may be repeated any number of times. It ends with a flush: what it read may
//! still lie in a volatile cache (the process died, not the machine), and callers will build on it.
//!
//! Failure model: a torn last batch is dropped, it was never acknowledged. A bad batch with a valid later one in
//! the ring, or one that cannot be read, is media damage: opening refuses, unless told to salvage; then what
//! follows the damage is dropped and a checkpoint is written at once, past every sequence seen. Told to mend, it
//! deals with all damage behind the superblock: see [`super::mend`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use event_listener::Event;

use super::core::{Core, Mode};
use super::space::Space;
use super::{
    BusyShards, FormatParams, Inner, Mend, SharedStats, Store, StoreError, StoreOptions, StoreState,
};
use super::{checkpoint, mend, quarantine};
use quarry_clustermap::{ClusterId, DeviceId};

use crate::device::{BLOCK_BYTES, Device, IoBuf};
use crate::extent::{BlockIndex, FreeMap};
use crate::format::FormatError;
use crate::format::record::Record;
use crate::format::rows;
use crate::format::superblock::{
    Area, FREE_MAP_EXTENTS_MAX, FreeMapPlace, ReplayStart, SLOTS, Superblock, slot_offset,
};
use crate::index::{TREE_ROOT_BYTES, Tree, TreeRoot};
use crate::journal::{Queue, Ring, RingReader, ScanEnd};

/// Least blocks of a ring: sixteen shares of one block.
const JOURNAL_BLOCKS_MIN: u64 = 16;
/// Least blocks of the data area.
const DATA_BLOCKS_MIN: u64 = 64;
/// Index rows read at once while loading the tables of epochs and logs.
const LOAD_ROWS: usize = 1024;

/// Reads the copy in `slot`; the outer error is the device's.
pub(crate) async fn read_slot<D: Device>(device: &D, slot: u64) -> Result<Superblock, StoreError> {
    let offset = slot_offset(slot, device.size_bytes());
    let (result, buf) = device.read(offset, IoBuf::zeroed(BLOCK_BYTES)).await;
    result?;
    Superblock::decode(&buf, slot).map_err(|error| StoreError::NoSuperblock { reason: error.to_string() })
}

/// The newest valid copy.
pub(crate) async fn newest_superblock<D: Device>(device: &D) -> Result<Superblock, StoreError> {
    let mut newest: Option<Superblock> = None;
    let mut refusal = None;
    for slot in 0..SLOTS {
        match read_slot(device, slot).await {
            Ok(found) if newest.as_ref().is_none_or(|newest| found.checkpoint > newest.checkpoint) => {
                newest = Some(found);
            }
            Ok(_) => {}
            Err(error) => refusal = Some(refusal.unwrap_or(error)),
        }
    }
    let newest = newest.ok_or_else(|| refusal.expect("a slot without a superblock has a reason"))?;
    let actual_bytes = device.size_bytes();
    if actual_bytes < newest.device_bytes {
        return Err(StoreError::DeviceShrunk { formatted_bytes: newest.device_bytes, actual_bytes });
    }
    Ok(newest)
}

/// Who a device says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster it was formatted for.
    pub cluster: ClusterId,
    /// The device.
    pub device: DeviceId,
}

/// Reads the newest superblock and nothing else.
///
/// # Errors
/// [`StoreError::NoSuperblock`]: no copy is valid.
pub async fn read_identity<D: Device>(device: &D) -> Result<Identity, StoreError> {
    let superblock = newest_superblock(device).await?;
    Ok(Identity { cluster: superblock.cluster, device: superblock.device })
}

/// Most blocks that the image of a free map takes: every other block of the data area a run, and its place split as
/// far as a superblock can say.
fn free_map_blocks_max(data: Area) -> u64 {
    let runs = data.blocks.div_ceil(2) + FREE_MAP_EXTENTS_MAX as u64;
    FreeMap::image_bytes(runs).div_ceil(BLOCK_BYTES as u64) + FREE_MAP_EXTENTS_MAX as u64
}

/// Reads and verifies the free map of a checkpoint.
pub(crate) async fn read_free_map<D: Device>(
    device: &D,
    superblock: &Superblock,
) -> Result<FreeMap, StoreError> {
    let FreeMapPlace { extents, len_bytes, crc } = &superblock.free_map;
    let damaged = |reason: String| StoreError::FreeMapDamaged { reason };
    // Whatever a superblock says, memory is bounded by what a map of its data area may take.
    let blocks: u64 = extents.iter().map(|extent| u64::from(extent.blocks)).sum();
    if blocks > free_map_blocks_max(superblock.data) {
        return Err(damaged(format!("{blocks} blocks are more than any map of the data area takes")));
    }
    let mut image = Vec::new();
    for extent in extents {
        let length = usize::try_from(extent.len_bytes()).expect("an extent fits the address space");
        let (result, buf) = device.read(extent.start.offset_bytes(), IoBuf::zeroed(length)).await;
        result?;
        image.extend_from_slice(&buf);
    }
    image.truncate(usize::try_from(*len_bytes).map_err(|_| damaged("length".into()))?);
    if crc32c::crc32c(&image) != *crc {
        return Err(damaged("checksum mismatch".into()));
    }
    let map = FreeMap::decode(&image).map_err(|error| damaged(error.to_string()))?;
    let end = BlockIndex(superblock.data.start.0 + superblock.data.blocks);
    if map.area() != (superblock.data.start..end) {
        return Err(damaged("it is of another area".into()));
    }
    Ok(map)
}

/// Root of the index of a checkpoint.
pub(crate) fn root_of(superblock: &Superblock) -> Result<Option<TreeRoot>, StoreError> {
    let Some(bytes) = &superblock.root else { return Ok(None) };
    let bytes: [u8; TREE_ROOT_BYTES] = bytes[..TREE_ROOT_BYTES].try_into().expect("the field is longer");
    let root = TreeRoot::decode(bytes);
    root.map(Some).ok_or_else(|| StoreError::Index { reason: "the root record is malformed".into() })
}

/// What recovery found.
pub(super) struct Recovered<D: Device> {
    pub(super) superblock: Superblock,
    pub(super) tree: Tree<D>,
    pub(super) space: Space,
    pub(super) core: Core,
    /// Where the next batch goes.
    pub(super) head: ReplayStart,
    /// Something was dropped: a checkpoint must be written before anything else.
    pub(super) checkpoint: bool,
}

impl<D: Device + 'static> Store<D> {
    /// Writes an empty store; whatever was on the device is lost.
    ///
    /// # Errors
    /// [`StoreError::BadFormatParams`] or [`StoreError::Device`].
    pub async fn format(device: Rc<D>, params: FormatParams) -> Result<(), StoreError> {
        let block = BLOCK_BYTES as u64;
        let device_bytes = device.size_bytes() / block * block;
        let bad = |reason| Err(StoreError::BadFormatParams { reason });
        if !params.journal_bytes.is_multiple_of(block) || params.journal_bytes / block < JOURNAL_BLOCKS_MIN {
            return bad("the journal needs whole blocks, at least 16");
        }
        if params.journal_bytes > device_bytes / 4 {
            return bad("the journal may take a quarter of the device");
        }
        let journal = Area { start: BlockIndex(2), blocks: params.journal_bytes / block };
        let data_start = journal.start.0 + journal.blocks;
        let data_end = (device_bytes / block).saturating_sub(2);
        if data_end < data_start + DATA_BLOCKS_MIN {
            return bad("the device is too small");
        }
        let map = FreeMap::new(BlockIndex(data_start)..BlockIndex(data_end));
        let (free_map, image) = checkpoint::place_first_map(map)?;
        let mut superblock = Superblock {
            cluster: params.cluster,
            device: params.device,
            device_bytes,
            journal,
            data: Area { start: BlockIndex(data_start), blocks: data_end - data_start },
            checkpoint: 0,
            replay: ReplayStart { position: 0, sequence: 1, previous_crc: 0 },
            root: None,
            free_map,
        };
        checkpoint::write_spread(&*device, &superblock.free_map.extents, &image).await?;
        device.flush().await?;
        // Both pairs, so that no copy of a former store can win.
        for number in [0, 1] {
            superblock.checkpoint = number;
            checkpoint::write_superblock(&*device, &superblock).await?;
        }
        Ok(device.flush().await?)
    }

    /// Opens the device, replays its journal and starts the background tasks.
    ///
    /// # Errors
    /// [`StoreError`]: no superblock, damaged journal, damaged free map or index (unless [`StoreOptions::mend`] is
    /// set), device errors.
    pub async fn open(device: Rc<D>, options: StoreOptions) -> Result<Self, StoreError> {
        let superblock = newest_superblock(&*device).await?;
        let (recovered, old_tree) = match recover_whole(&device, &options, &superblock).await {
            Err(error) if options.mend != Mend::Never && mend::is_damage(&error) => {
                let (recovered, old_tree) = mend::mend(&device, &options, superblock).await?;
                (recovered, Some(old_tree))
            }
            whole => (whole?, None),
        };
        device.flush().await?;
        let checkpoint = recovered.checkpoint;
        let store = Self::build(device, options, recovered, StoreState::Serving, old_tree.is_some()).await?;
        let inner = Rc::clone(&store.0);
        (store.0.options.spawn)(Box::pin(inner.run_writer()));
        if checkpoint && let Err(error) = store.checkpoint().await {
            // Its writer must not wait for ever.
            store.0.fail(&error);
            return Err(error);
        }
        drop(old_tree);
        store.0.space.collect();
        Ok(store)
    }

    /// Opens the device for reading: same replay, in memory only; nothing is written and no task is started.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn open_read_only(device: Rc<D>, options: StoreOptions) -> Result<Self, StoreError> {
        let superblock = newest_superblock(&*device).await?;
        let recovered = recover(&device, &options, &superblock).await?;
        Self::build(device, options, recovered, StoreState::ReadOnly, false).await
    }

    async fn build(
        device: Rc<D>,
        options: StoreOptions,
        recovered: Recovered<D>,
        state: StoreState,
        mended: bool,
    ) -> Result<Self, StoreError> {
        let Recovered { superblock, tree, space, core, head, .. } = recovered;
        let key = rows::local_key(rows::SHARDS_INCOMPLETE);
        let mark = match core.overlay_get(&key) {
            Some(mark) => mark,
            None => tree.get(&key).await?,
        };
        let shards_incomplete = Cell::new(mark.is_some_and(|mark| mark[..] != [0]));
        for extent in quarantine::recorded(&core, &tree).await? {
            space.free.borrow_mut().quarantine(extent);
        }
        let ring = Ring::new(superblock.journal, superblock.device, head, superblock.replay.position);
        Ok(Self(Rc::new(Inner {
            device,
            options,
            superblock: RefCell::new(superblock),
            tree,
            space: Rc::new(space),
            core: RefCell::new(core),
            queue: RefCell::new(Queue::default()),
            ring: RefCell::new(ring),
            state: RefCell::new(state),
            busy: BusyShards::default(),
            stats: SharedStats::default(),
            work: Event::new(),
            progress: Event::new(),
            installs: Cell::new(0),
            checkpoint_wanted: Cell::new(false),
            checkpoints_begun: Cell::new(0),
            checkpoints_ended: Cell::new(0),
            checkpoint_refused: RefCell::default(),
            free_when_refused: Cell::new(None),
            stopping: Cell::new(false),
            writing: Cell::new(false),
            writer_stopped: Cell::new(false),
            shards_incomplete,
            mended,
        })))
    }
}

/// As [`recover`]; if it is to be mended, only when all of it is whole that is suspected not to be.
async fn recover_whole<D: Device>(
    device: &Rc<D>,
    options: &StoreOptions,
    superblock: &Superblock,
) -> Result<Recovered<D>, StoreError> {
    if options.mend == Mend::Never {
        return recover(device, options, superblock).await;
    }
    let mut recovered =
        recover(device, &StoreOptions { salvage: false, ..options.clone() }, superblock).await?;
    let key = rows::local_key(rows::INDEX_DAMAGED);
    let mark = match recovered.core.overlay_get(&key) {
        Some(mark) => mark,
        None => recovered.tree.get(&key).await?,
    };
    let marked = mark.is_some_and(|mark| mark[..] != [0]);
    if !marked && options.mend != Mend::AfterSurvey {
        return Ok(recovered);
    }
    if mend::index_is_whole(&recovered.tree).await? {
        // Later checkpoints have replaced what was damaged.
        if marked {
            recovered.core.active.put(key, None);
        }
        return Ok(recovered);
    }
    Err(StoreError::Index { reason: "pages, values or rows are damaged".into() })
}

async fn recover<D: Device>(
    device: &Rc<D>,
    options: &StoreOptions,
    superblock: &Superblock,
) -> Result<Recovered<D>, StoreError> {
    let space = Space::new(read_free_map(&**device, superblock).await?);
    let tree = Tree::open(Rc::clone(device), root_of(superblock)?, options.cache_bytes);
    let mut core = load_tables(&tree).await?;
    let (journal, id) = (superblock.journal, superblock.device);
    let mut reader = RingReader::new(&**device, journal, id, superblock.replay);
    while let Some((header, payload)) = reader.next_batch().await {
        replay_batch(&mut core, &space, header.sequence, &payload, &Mode::Replay(&options.decode_entry))?;
    }
    let mut head = reader.next_start();
    let found = match reader.end().await {
        ScanEnd::Tail => None,
        ScanEnd::Damaged { found } => Some(found),
        ScanEnd::Unreadable(_) => Some(head.sequence),
    };
    if let Some(found) = found {
        if !options.salvage {
            return Err(StoreError::JournalDamaged { expected: head.sequence, found });
        }
        tracing::warn!(event = "journal_salvaged", device = %id, expected = head.sequence, found);
        head.sequence = found + 1;
    }
    Ok(Recovered { superblock: superblock.clone(), tree, space, core, head, checkpoint: found.is_some() })
}

/// Epochs, applied sequences and losses as of the checkpoint.
async fn load_tables<D: Device>(tree: &Tree<D>) -> Result<Core, StoreError> {
    let mut core = Core::default();
    let mut from = vec![rows::TABLE_PG_EPOCHS];
    loop {
        let found = tree.scan(&from, &[rows::TABLE_LOST + 1], LOAD_ROWS).await?;
        for (key, value) in &found {
            let bad = |error: FormatError| StoreError::BadRow { table: key[0], reason: error.to_string() };
            core.load_row(key, value).map_err(bad)?;
        }
        match found.last() {
            Some((last, _)) if found.len() == LOAD_ROWS => from = [last, &[0][..]].concat(),
            _ => return Ok(core),
        }
    }
}

pub(super) fn replay_batch(
    core: &mut Core,
    space: &Space,
    batch: u64,
    payload: &[u8],
    mode: &Mode<'_>,
) -> Result<(), StoreError> {
    let mut rest = payload;
    while !rest.is_empty() {
        let (record, after) = Record::decode(rest)
            .map_err(|error| StoreError::BadRecord { batch, reason: error.to_string() })?;
        core.apply_record(record, space, mode)?;
        rest = after;
    }
    Ok(())
}
