//! Devices of this node: what each core asked of them, their space and their stores.

use std::sync::Arc;

use quarry_clustermap::Tier;
use quarry_meter::page::Page;
use quarry_storage::{device::DeviceMeter, store::SharedStats};

use super::{
    families::{
        CAPACITY, CHECKPOINT_BYTES, CHECKPOINTS, DEVICE_BYTES, DEVICE_ERRORS, DEVICE_SECONDS, FREE,
        JOURNAL_BATCHES, JOURNAL_BYTES, JOURNAL_FLUSHES, JOURNAL_QUEUE, JOURNAL_RECORDS, QUARANTINED,
        TIER_CAPACITY, TIER_USED, USED,
    },
    requests::sum,
};
use crate::host::DeviceSpace;

/// A device whose store is open.
pub(super) struct DeviceSource {
    pub(super) device: String,
    pub(super) stats: SharedStats,
    pub(super) space: Arc<DeviceSpace>,
}

impl DeviceSource {
    pub(super) fn collect(&self, page: &mut Page) {
        let labels = [("device", &*self.device)];
        let stats = self.stats.load();
        let (capacity, free) = (self.space.capacity_bytes(), self.space.free_bytes());
        for (family, value) in [
            (&CAPACITY, capacity),
            (&FREE, free),
            (&USED, capacity.saturating_sub(free)),
            (&QUARANTINED, self.space.quarantined_bytes()),
            (&JOURNAL_QUEUE, stats.queued_bytes),
            (&JOURNAL_FLUSHES, stats.flushes),
            (&JOURNAL_BATCHES, stats.batches),
            (&JOURNAL_RECORDS, stats.records),
            (&JOURNAL_BYTES, stats.journal_bytes),
            (&CHECKPOINTS, stats.checkpoints),
            (&CHECKPOINT_BYTES, stats.checkpoint_bytes),
        ] {
            page.count(family, &labels, value);
        }
    }
}

/// Puts the space of each tier that has devices here on the page; `tier`: of a device that is in.
pub(super) fn collect_tiers(devices: &[DeviceSource], tier: impl Fn(&str) -> Option<Tier>, page: &mut Page) {
    for (wanted, name) in [(Tier::Hot, "hot"), (Tier::Cold, "cold")] {
        let of_tier = || devices.iter().filter(|device| tier(&device.device) == Some(wanted));
        if of_tier().next().is_none() {
            continue;
        }
        let capacity: u64 = of_tier().map(|device| device.space.capacity_bytes()).sum();
        let free: u64 = of_tier().map(|device| device.space.free_bytes()).sum();
        page.count(&TIER_CAPACITY, &[("tier", name)], capacity);
        page.count(&TIER_USED, &[("tier", name)], capacity.saturating_sub(free));
    }
}

/// Puts a device's operations on the page, those of all cores together.
pub(super) fn collect_operations(device: &str, meters: &[Arc<DeviceMeter>], page: &mut Page) {
    let of_cores: Vec<_> = meters.iter().map(|meter| meter.operations()).collect();
    for at in 0..of_cores.first().map_or(0, |operations| operations.len()) {
        let operation = of_cores[0][at].0.to_string();
        let labels = [("device", device), ("operation", &*operation)];
        let meters = || of_cores.iter().map(|operations| operations[at].1);
        page.histogram(&DEVICE_SECONDS, &labels, &sum(meters().map(|meter| meter.took.read())));
        page.count(&DEVICE_BYTES, &labels, meters().map(|meter| meter.bytes.get()).sum());
        page.count(&DEVICE_ERRORS, &labels, meters().map(|meter| meter.errors.get()).sum());
    }
}
