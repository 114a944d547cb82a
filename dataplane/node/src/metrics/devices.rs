//! Devices of this node: what each core asked of them, their space and their stores.

use std::{collections::BTreeMap, sync::Arc};

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

/// Space of each tier that has devices here, and how much of it is used; `tier`: of a device that is in.
pub(super) fn tiers(
    devices: &[DeviceSource],
    tier: impl Fn(&str) -> Option<Tier>,
) -> BTreeMap<&'static str, (u64, u64)> {
    let mut sums = BTreeMap::new();
    for device in devices {
        let Some(tier) = tier(&device.device) else { continue };
        let (capacity, used): &mut (u64, u64) = sums.entry(tier.name()).or_default();
        *capacity += device.space.capacity_bytes();
        *used += device.space.capacity_bytes().saturating_sub(device.space.free_bytes());
    }
    sums
}

/// Puts the space of each tier on the page.
pub(super) fn collect_tiers(tiers: &BTreeMap<&'static str, (u64, u64)>, page: &mut Page) {
    for (tier, (capacity, used)) in tiers {
        page.count(&TIER_CAPACITY, &[("tier", tier)], *capacity);
        page.count(&TIER_USED, &[("tier", tier)], *used);
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
