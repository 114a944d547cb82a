//! What every core knows of every device's space, so that a primary refuses what a replica could not take: an
//! entry that was admitted must find room everywhere, because a replica that cannot journal is lost.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use quarry_clustermap::DeviceId;
use quarry_object::peer::DeviceFill;
use quarry_storage::{device::Device, store::Store};

/// Space of one device, as of a moment ago.
#[derive(Debug, Default)]
pub(crate) struct DeviceSpace {
    capacity_bytes: AtomicU64,
    free_bytes: AtomicU64,
    quarantined_bytes: AtomicU64,
    /// The store's reserve, and what its next checkpoint may take.
    kept_bytes: AtomicU64,
    /// Its journal's queue is long.
    is_busy: AtomicBool,
}

impl DeviceSpace {
    pub(crate) fn set<D: Device + 'static>(&self, store: &Store<D>) {
        let usage = store.space();
        self.is_busy.store(store.stats().queue_is_long(), Ordering::Relaxed);
        self.capacity_bytes.store(usage.capacity_bytes, Ordering::Relaxed);
        self.free_bytes.store(usage.free_bytes, Ordering::Relaxed);
        self.quarantined_bytes.store(usage.quarantined_bytes, Ordering::Relaxed);
        self.kept_bytes.store(usage.reserve_bytes + usage.pending_bytes, Ordering::Relaxed);
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn quarantined_bytes(&self) -> u64 {
        self.quarantined_bytes.load(Ordering::Relaxed)
    }

    /// Only the reserve is left: it is for deletes and checkpoints.
    fn is_full(&self) -> bool {
        self.free_bytes() <= self.kept_bytes.load(Ordering::Relaxed)
    }
}

/// Space of all devices of the node.
#[derive(Clone, Debug)]
pub(crate) struct SpaceTable(Arc<BTreeMap<DeviceId, Arc<DeviceSpace>>>);

impl SpaceTable {
    pub(crate) fn new(devices: impl Iterator<Item = DeviceId>) -> Self {
        Self(Arc::new(devices.map(|device| (device, Arc::default())).collect()))
    }

    pub(crate) fn of(&self, device: DeviceId) -> Option<Arc<DeviceSpace>> {
        self.0.get(&device).cloned()
    }

    /// Space of some devices, and how much of it is used.
    pub(super) fn used(&self, is_of: impl Fn(DeviceId) -> bool) -> (u64, u64) {
        let of = self.0.iter().filter(|(device, _)| is_of(**device));
        of.fold((0, 0), |(capacity, used), (_, space)| {
            let own = space.capacity_bytes();
            (capacity + own, used + own.saturating_sub(space.free_bytes()))
        })
    }

    /// How full each device is; one whose space is not known yet is left out.
    pub(super) fn fill(&self) -> Vec<DeviceFill> {
        let known = self.0.iter().filter(|(_, space)| space.capacity_bytes() > 0);
        let fill = |(device, space): (&DeviceId, &Arc<DeviceSpace>)| {
            let capacity = u128::from(space.capacity_bytes());
            let used = capacity.saturating_sub(u128::from(space.free_bytes()));
            let permille = u16::try_from(used * 1000 / capacity).expect("at most 1000");
            DeviceFill { device: *device, permille }
        };
        known.map(fill).collect()
    }

    /// Devices that have only their reserve left.
    pub(super) fn full(&self) -> Vec<DeviceId> {
        self.0.iter().filter(|(_, space)| space.is_full()).map(|(device, _)| *device).collect()
    }

    pub(super) fn is_full(&self, device: DeviceId) -> bool {
        self.0.get(&device).is_some_and(|space| space.is_full())
    }

    /// Whether too much waits for the device's journal to begin anything that adds to it.
    pub(super) fn is_busy(&self, device: DeviceId) -> bool {
        self.0.get(&device).is_some_and(|space| space.is_busy.load(Ordering::Relaxed))
    }
}
