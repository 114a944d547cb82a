//! Shards of one device: reservations, writes and reads for other nodes, commits, pins, frees.
//!
//! A reservation lives in memory only: it ends by commit, by abort, or with the process. One whose blob is freed
//! meanwhile (a repair that a delete overtakes) can only be given back. A pin keeps the extents of a shard from being
//! reused while somebody reads them.
//!
//! What another node holds ends by itself when it is not used for long, because that node may be gone. Extents are
//! given back only when no write to them is under way: the device may still carry out one whose asker has given up.

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use bytes::Bytes;
use quarry_clustermap::{BlobId, Epoch, PartitionId, PgId, ShardIndex};
use quarry_object::{
    peer::{
        LIST_SHARDS_MAX, PIN_KEPT_MS, PeerFault, PeerResponse, RESERVATION_KEPT_MS, Run, ShardEntry,
        ShardName,
    },
    transport::BULK_BYTES_MAX,
};
use quarry_storage::{
    device::{BLOCK_BYTES, Device, DeviceError, IoBuf},
    extent::Extent,
    store::{CHECKSUM_UNIT_BYTES, ShardExtent, ShardKey, ShardPin, ShardRow, Store, StoreError},
};

use crate::runs;

/// Reservations and pins of one device, more than any load that its queue admits.
const HELD_MAX: usize = 65_536;

struct Reservation {
    epoch: Epoch,
    len_bytes: u64,
    extents: Vec<Extent>,
    /// The shard was freed since: the commit is refused.
    freed: bool,
    /// When it was last used, if its writer is on another node.
    remote_used_ms: Option<u64>,
    /// Writes of another node under way.
    writes: u32,
    /// Given up while writes were under way: the last of them releases the extents.
    over: bool,
}

/// A pinned shard.
struct Pinned {
    /// Dropped with the last read under way.
    held: ShardPin,
    /// What its reader on another node needs; a reader on this node was given its own.
    remote: Option<RemotePin>,
}

struct RemotePin {
    runs: Vec<Run>,
    len_bytes: u64,
    used_ms: Cell<u64>,
}

/// Why a piece of a shard was not read.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ReadFault {
    #[error(transparent)]
    Refused(#[from] PeerFault),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Told when the device's shard table is damaged: the device is out then.
pub(crate) type Report<D> = Box<dyn Fn(&Store<D>, &StoreError)>;

/// See the module.
pub(crate) struct Shards<D: Device> {
    store: Store<D>,
    reserved: RefCell<BTreeMap<ShardName, Reservation>>,
    pins: RefCell<HashMap<u64, Rc<Pinned>>>,
    next_pin: Cell<u64>,
    /// Monotonic, as of the last tick.
    now_ms: Cell<u64>,
    report: Report<D>,
}

impl<D: Device + 'static> Shards<D> {
    pub(crate) fn new(store: Store<D>, report: Report<D>) -> Self {
        Self {
            store,
            report,
            reserved: RefCell::default(),
            pins: RefCell::default(),
            next_pin: Cell::new(0),
            now_ms: Cell::new(0),
        }
    }

    /// Time passes: what other nodes have not used for long ends.
    pub(crate) fn tick(&self, now_ms: u64) {
        self.now_ms.set(now_ms);
        self.pins.borrow_mut().retain(|_, pinned| {
            let used = |remote: &RemotePin| remote.used_ms.get() + PIN_KEPT_MS >= now_ms;
            pinned.remote.as_ref().is_none_or(used)
        });
        let unused = |reservation: &Reservation| {
            !reservation.over
                && reservation.remote_used_ms.is_some_and(|used| used + RESERVATION_KEPT_MS < now_ms)
        };
        let mut over = Vec::new();
        for (name, reservation) in &*self.reserved.borrow() {
            if unused(reservation) {
                over.push(*name);
            }
        }
        for name in over {
            tracing::warn!(event = "reservation_expired", device = %self.store.device_id(), blob = %name.blob);
            self.give_up(name);
        }
    }

    /// What a peer is told about an error of the store.
    fn fault(&self, error: StoreError) -> PeerFault {
        match error {
            StoreError::Full { .. } => PeerFault::Full,
            StoreError::StalePgEpoch { seen, .. } | StoreError::StaleEpoch { seen, .. } => {
                PeerFault::StaleEpoch { seen }
            }
            StoreError::Overloaded { .. } => PeerFault::Busy,
            other => {
                if matches!(other, StoreError::Index { .. } | StoreError::Device(_)) {
                    (self.report)(&self.store, &other);
                }
                PeerFault::Device { detail: other.to_string() }
            }
        }
    }

    pub(crate) fn reserve(
        &self,
        name: ShardName,
        epoch: Epoch,
        len_bytes: u64,
        remote: bool,
    ) -> Result<PeerResponse, PeerFault> {
        if self.reserved.borrow().len() >= HELD_MAX {
            return Err(PeerFault::Busy);
        }
        if len_bytes == 0
            || !len_bytes.is_multiple_of(BLOCK_BYTES as u64)
            || self.reserved.borrow().contains_key(&name)
        {
            return Err(PeerFault::Damaged {
                detail: format!("{name:?} of {len_bytes} bytes cannot be reserved"),
            });
        }
        let seen = self.store.pg_epoch(name.pg);
        if epoch < seen {
            return Err(PeerFault::StaleEpoch { seen });
        }
        let extents = self.store.reserve(len_bytes).map_err(|error| self.fault(error))?;
        // A writer on another node has no use for them.
        let runs = if remote { Vec::new() } else { extents.iter().map(|extent| run(*extent)).collect() };
        let remote_used_ms = remote.then(|| self.now_ms.get());
        let (freed, writes, over) = (false, 0, false);
        let reservation = Reservation { epoch, len_bytes, extents, freed, remote_used_ms, writes, over };
        self.reserved.borrow_mut().insert(name, reservation);
        Ok(PeerResponse::Reserved { runs })
    }

    /// Writes a piece of a reserved shard for another node.
    pub(crate) async fn write(
        &self,
        name: ShardName,
        epoch: Epoch,
        offset: u64,
        bytes: &[u8],
    ) -> Result<PeerResponse, PeerFault> {
        let pieces = {
            let mut reserved = self.reserved.borrow_mut();
            let here = |reservation: &&mut Reservation| reservation.epoch == epoch && !reservation.over;
            let reservation = reserved.get_mut(&name).filter(here).ok_or(PeerFault::NotFound)?;
            let runs: Vec<Run> = reservation.extents.iter().map(|extent| run(*extent)).collect();
            let pieces = covered(&runs, reservation.len_bytes, offset, bytes.len())
                .filter(|_| reservation.remote_used_ms.is_some())
                .ok_or_else(|| damaged("write", name))?;
            reservation.remote_used_ms = Some(self.now_ms.get());
            reservation.writes += 1;
            pieces
        };
        let (result, _) = runs::write(&**self.store.device(), &pieces, IoBuf::copy_of(bytes)).await;
        let over = {
            let mut reserved = self.reserved.borrow_mut();
            let reservation = reserved.get_mut(&name).expect("kept while a write is under way");
            reservation.writes -= 1;
            reservation.over
        };
        if over {
            self.give_up(name);
            return Err(PeerFault::NotFound);
        }
        result.map_err(|error| PeerFault::Device { detail: error.to_string() })?;
        Ok(PeerResponse::Done)
    }

    /// Ends a reservation, now or with the last write to it; `false`: there is none.
    fn give_up(&self, name: ShardName) -> bool {
        let mut reserved = self.reserved.borrow_mut();
        let Some(reservation) = reserved.get_mut(&name) else { return false };
        reservation.over = true;
        if reservation.writes > 0 {
            return true;
        }
        let reservation = reserved.remove(&name).expect("just seen");
        self.store.release(reservation.extents);
        true
    }

    pub(crate) async fn commit(
        &self,
        name: ShardName,
        epoch: Epoch,
        owner: PartitionId,
        checksums: Vec<u32>,
    ) -> Result<PeerResponse, PeerFault> {
        if self.reserved.borrow().get(&name).is_some_and(|reservation| reservation.writes > 0) {
            // Its writer did not wait for them, so it does not know what is written.
            return Err(damaged("commit", name));
        }
        let reservation = self.reserved.borrow_mut().remove(&name).ok_or(PeerFault::NotFound)?;
        if reservation.freed {
            self.store.release(reservation.extents);
            return Err(PeerFault::NotFound);
        }
        let units = reservation.len_bytes.div_ceil(CHECKSUM_UNIT_BYTES);
        if epoch != reservation.epoch || checksums.len() as u64 != units {
            self.store.release(reservation.extents);
            return Err(PeerFault::Damaged {
                detail: format!("the commit of {name:?} does not fit its reservation"),
            });
        }
        let row = ShardRow {
            pg: name.pg,
            blob: name.blob,
            shard: name.shard,
            owner_partition: owner,
            epoch,
            writer: name.blob.writer,
            len_bytes: reservation.len_bytes,
            extents: split(&reservation, &checksums),
        };
        self.store.commit_shard(row).await.map_err(|error| self.fault(error))?;
        Ok(PeerResponse::Done)
    }

    pub(crate) async fn abort(&self, name: ShardName, epoch: Epoch) -> Result<PeerResponse, PeerFault> {
        if !self.give_up(name) {
            self.store
                .free_shard(name.pg, epoch, name.blob, name.shard)
                .await
                .map_err(|error| self.fault(error))?;
        }
        Ok(PeerResponse::Done)
    }

    pub(crate) async fn open(&self, name: ShardName, remote: bool) -> Result<PeerResponse, PeerFault> {
        if self.pins.borrow().len() >= HELD_MAX {
            return Err(PeerFault::Busy);
        }
        // Pinned before it is looked up, so that it cannot be freed and reused in between.
        let held = self.store.pin(name.pg, name.blob, name.shard);
        let row = self
            .store
            .shard(name.pg, name.blob, name.shard)
            .await
            .map_err(|error| self.fault(error))?
            .ok_or(PeerFault::NotFound)?;
        let pin = self.next_pin.get();
        self.next_pin.set(pin + 1);
        let mut runs = row.extents.iter().map(|piece| run(piece.extent)).collect();
        let remote = remote.then(|| RemotePin {
            runs: std::mem::take(&mut runs),
            len_bytes: row.len_bytes,
            used_ms: Cell::new(self.now_ms.get()),
        });
        self.pins.borrow_mut().insert(pin, Rc::new(Pinned { held, remote }));
        let owner = row.owner_partition;
        let checksums = row.extents.into_iter().flat_map(|piece| piece.checksums).collect();
        Ok(PeerResponse::Opened { pin, len_bytes: row.len_bytes, runs, checksums, owner })
    }

    /// Reads a piece of a pinned shard for another node; the bytes are not verified.
    pub(crate) async fn read(
        &self,
        name: ShardName,
        pin: u64,
        offset: u64,
        len_bytes: u32,
    ) -> Result<Bytes, ReadFault> {
        let pinned = self.pins.borrow().get(&pin).cloned().filter(|pinned| pinned.is_of(name));
        let pinned = pinned.ok_or(PeerFault::NotFound)?;
        let remote = pinned.remote.as_ref().ok_or(PeerFault::NotFound)?;
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        let pieces =
            covered(&remote.runs, remote.len_bytes, offset, len).ok_or_else(|| damaged("read", name))?;
        let (result, buf) = runs::read(&**self.store.device(), &pieces, IoBuf::zeroed(len)).await;
        remote.used_ms.set(self.now_ms.get());
        result?;
        Ok(buf.into_bytes())
    }

    pub(crate) fn close(&self, name: ShardName, pin: u64) -> PeerResponse {
        let mut pins = self.pins.borrow_mut();
        // A number of an earlier run of this node may be another shard's by now.
        if pins.get(&pin).is_some_and(|pinned| pinned.is_of(name)) {
            pins.remove(&pin);
        }
        PeerResponse::Done
    }

    pub(crate) async fn free(&self, name: ShardName, epoch: Epoch) -> Result<PeerResponse, PeerFault> {
        if let Some(reservation) = self.reserved.borrow_mut().get_mut(&name) {
            reservation.freed = true;
        }
        self.store
            .free_shard(name.pg, epoch, name.blob, name.shard)
            .await
            .map_err(|error| self.fault(error))?;
        Ok(PeerResponse::Done)
    }

    pub(crate) async fn fence(&self, pg: PgId, epoch: Epoch) -> Result<PeerResponse, PeerFault> {
        self.store.raise_pg_epoch(pg, epoch).await.map_err(|error| self.fault(error))?;
        Ok(PeerResponse::Done)
    }

    pub(crate) async fn list(
        &self,
        pg: PgId,
        after: Option<(BlobId, ShardIndex)>,
        limit: u32,
    ) -> Result<PeerResponse, PeerFault> {
        let from = match after {
            Some((blob, shard)) => Some(ShardKey { pg, blob, shard }),
            // The last key that the group before could have.
            None => pg.0.checked_sub(1).map(|before| ShardKey {
                pg: PgId(before),
                blob: BlobId::from_bytes([0xff; BlobId::ENCODED_BYTES]),
                shard: ShardIndex(u8::MAX),
            }),
        };
        let limit = limit.min(LIST_SHARDS_MAX) as usize;
        let rows = self.store.shards(from, limit).await.map_err(|error| self.fault(error))?;
        let of_group = rows.into_iter().filter(|row| row.pg == pg);
        let entry =
            |row: ShardRow| ShardEntry { blob: row.blob, shard: row.shard, owner: row.owner_partition };
        Ok(PeerResponse::Shards { shards: of_group.map(entry).collect() })
    }

    pub(crate) async fn lengths(&self, names: &[ShardName]) -> Result<PeerResponse, PeerFault> {
        let mut lengths = Vec::new();
        for name in names.iter().take(LIST_SHARDS_MAX as usize) {
            let row = self.store.shard(name.pg, name.blob, name.shard).await;
            lengths.push(row.map_err(|error| self.fault(error))?.map(|row| row.len_bytes));
        }
        Ok(PeerResponse::Lengths { lengths })
    }
}

impl Pinned {
    fn is_of(&self, name: ShardName) -> bool {
        self.held.key() == ShardKey { pg: name.pg, blob: name.blob, shard: name.shard }
    }
}

/// Where a range of a shard of so many bytes is, if another node may ask for it.
fn covered(runs: &[Run], shard_bytes: u64, offset: u64, len: usize) -> Option<Vec<(u64, u64)>> {
    let block = BLOCK_BYTES as u64;
    let is_sound = len > 0
        && len <= BULK_BYTES_MAX
        && len.is_multiple_of(BLOCK_BYTES)
        && offset.is_multiple_of(block)
        && offset.checked_add(len as u64).is_some_and(|end| end <= shard_bytes);
    if is_sound { runs::pieces(runs, offset, len as u64) } else { None }
}

fn damaged(what: &str, name: ShardName) -> PeerFault {
    PeerFault::Damaged { detail: format!("a {what} of {name:?} does not fit it") }
}

fn run(extent: Extent) -> Run {
    let block = BLOCK_BYTES as u64;
    Run { offset: extent.start.0 * block, len_bytes: u64::from(extent.blocks) * block }
}

/// Deals the checksums of the whole shard out to its extents; all but the last hold whole units.
fn split(reservation: &Reservation, checksums: &[u32]) -> Vec<ShardExtent> {
    let (mut left, mut checksums) = (reservation.len_bytes, checksums);
    reservation
        .extents
        .iter()
        .map(|extent| {
            let len = run(*extent).len_bytes.min(left);
            left -= len;
            let units =
                usize::try_from(len.div_ceil(CHECKSUM_UNIT_BYTES)).expect("an extent is at most a few MiB");
            let (of_extent, rest) = checksums.split_at(units);
            checksums = rest;
            ShardExtent {
                extent: *extent,
                len_bytes: u32::try_from(len).expect("an extent is at most a few MiB"),
                checksums: of_extent.to_vec(),
            }
        })
        .collect()
}
