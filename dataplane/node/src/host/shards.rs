//! Shards of one device: reservations, commits, pins, frees.
//!
//! A reservation lives in memory only: it ends by commit, by abort, or with the process. One whose blob is freed
//! meanwhile (a repair that a delete overtakes) can only be given back. A pin keeps the extents of a shard from being
//! reused while somebody reads them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
};

use quarry_clustermap::{BlobId, Epoch, PartitionId, PgId, ShardIndex};
use quarry_object::peer::{LIST_SHARDS_MAX, PeerFault, PeerResponse, Run, ShardEntry, ShardName};
use quarry_storage::{
    device::{BLOCK_BYTES, Device},
    extent::Extent,
    store::{CHECKSUM_UNIT_BYTES, ShardExtent, ShardKey, ShardPin, ShardRow, Store, StoreError},
};

/// Reservations and pins of one device, more than any load that its queue admits.
const HELD_MAX: usize = 65_536;

struct Reservation {
    epoch: Epoch,
    len_bytes: u64,
    extents: Vec<Extent>,
    /// The shard was freed since: the commit is refused.
    freed: bool,
}

/// Told when the device's shard table is damaged: the device is out then.
pub(crate) type Report<D> = Box<dyn Fn(&Store<D>, &StoreError)>;

/// See the module.
pub(crate) struct Shards<D: Device> {
    store: Store<D>,
    reserved: RefCell<BTreeMap<ShardName, Reservation>>,
    pins: RefCell<HashMap<u64, ShardPin>>,
    next_pin: Cell<u64>,
    report: Report<D>,
}

impl<D: Device + 'static> Shards<D> {
    pub(crate) fn new(store: Store<D>, report: Report<D>) -> Self {
        Self { store, report, reserved: RefCell::default(), pins: RefCell::default(), next_pin: Cell::new(0) }
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
        let runs = extents.iter().map(|extent| run(*extent)).collect();
        self.reserved.borrow_mut().insert(name, Reservation { epoch, len_bytes, extents, freed: false });
        Ok(PeerResponse::Reserved { runs })
    }

    pub(crate) async fn commit(
        &self,
        name: ShardName,
        epoch: Epoch,
        owner: PartitionId,
        checksums: Vec<u32>,
    ) -> Result<PeerResponse, PeerFault> {
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
        let reserved = self.reserved.borrow_mut().remove(&name);
        match reserved {
            Some(reservation) => self.store.release(reservation.extents),
            None => {
                self.store
                    .free_shard(name.pg, epoch, name.blob, name.shard)
                    .await
                    .map_err(|error| self.fault(error))?;
            }
        }
        Ok(PeerResponse::Done)
    }

    pub(crate) async fn open(&self, name: ShardName) -> Result<PeerResponse, PeerFault> {
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
        self.pins.borrow_mut().insert(pin, held);
        let runs = row.extents.iter().map(|piece| run(piece.extent)).collect();
        let owner = row.owner_partition;
        let checksums = row.extents.into_iter().flat_map(|piece| piece.checksums).collect();
        Ok(PeerResponse::Opened { pin, len_bytes: row.len_bytes, runs, checksums, owner })
    }

    pub(crate) fn close(&self, pin: u64) -> PeerResponse {
        self.pins.borrow_mut().remove(&pin);
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
