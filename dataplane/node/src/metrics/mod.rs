//! Metrics of the node, for Prometheus: counted by cores ([`core`], [`requests`], [`buckets`]) and devices without
//! sharing, put together when they are asked for. Families are declared in [`families`]; docs/metrics.md explains them.

mod buckets;
mod core;
mod devices;
mod families;
mod map;
mod moves;
mod requests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
};

use prometheus::{IntCounter, Registry};
use quarry_clustermap::{DeviceId, NodeId, Tier};
use quarry_gateway::RequestRecord;
use quarry_meter::{page::Page, process};
use quarry_object::{tier::Moved, transport::Class};
use quarry_storage::{device::DeviceMeter, store::SharedStats};

use self::{
    buckets::{Buckets, CoreBuckets},
    core::CoreSource,
    devices::DeviceSource,
    families::register,
    map::MapNumbers,
    moves::MoveCounts,
};
pub(crate) use self::{
    core::{CoreGauges, QUEUES},
    moves::Moves,
};
use crate::{
    audit::AuditCounts,
    cluster::Repairs,
    host::DeviceSpace,
    jobs::{scrub::ScrubBoard, tiers::TierBoard, why::WhyBoard},
    runtime::{clock, net::LinkStats, pulse::CorePulse},
};

/// Blobs are told apart up to so many missing shards.
const MISSING_MAX: usize = 8;

/// Blobs by shards that they lack.
#[derive(Default)]
pub(crate) struct ShortBlobs([u64; MISSING_MAX]);

impl ShortBlobs {
    /// One more blob, which lacks these shards (a bit for each).
    pub(crate) fn add(&mut self, missing_shards: u32) {
        if let Some(missing) = missing_shards.count_ones().checked_sub(1) {
            self.0[(missing as usize).min(MISSING_MAX - 1)] += 1;
        }
    }
}

/// All metrics; shared by every thread. The counters here are for what is rare.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) damage: IntCounter,
    pub(crate) devices_failed: IntCounter,
    pub(crate) writes_given_up: IntCounter,
    pub(crate) blobs_freed: IntCounter,
    pub(crate) blobs_collected: IntCounter,
    pub(crate) objects_expired: IntCounter,
    pub(crate) uploads_expired: IntCounter,
    pub(crate) moves_failed: IntCounter,
    moves: MoveCounts,
    /// What the tier policy of each core sees.
    pub(crate) tiers: TierBoard,
    /// Questions of operators to the cores.
    pub(crate) why: WhyBoard,
    pub(crate) shards_rebuilt: IntCounter,
    pub(crate) rebuilt_bytes: IntCounter,
    pub(crate) strays_freed: IntCounter,
    pub(crate) shards_lost: IntCounter,
    pub(crate) scrub_bytes: IntCounter,
    pub(crate) scrub_damage: IntCounter,
    map: Mutex<MapNumbers>,
    buckets: Arc<Buckets>,
    node: OnceLock<NodeId>,
    audit: OnceLock<Arc<AuditCounts>>,
    repairs: OnceLock<Repairs>,
    scrub: OnceLock<ScrubBoard>,
    /// End of the certificate in use, Unix seconds; 0: none.
    certificate_until_s: AtomicI64,
    device_sources: Mutex<Vec<DeviceSource>>,
    device_meters: Mutex<BTreeMap<DeviceId, Vec<Arc<DeviceMeter>>>>,
    /// By core.
    short_blobs: Mutex<BTreeMap<usize, ShortBlobs>>,
    scrubbed_ms: Mutex<BTreeMap<DeviceId, u64>>,
    core_sources: Mutex<Vec<CoreSource>>,
    links: Mutex<BTreeMap<(NodeId, Class), Arc<LinkStats>>>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("nothing panics under this lock")
}

impl Metrics {
    /// Which node this is; `None` until it knows.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.node.get().copied()
    }

    pub(crate) fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Self {
            damage: register(&registry, &families::DAMAGE)?,
            devices_failed: register(&registry, &families::DEVICE_FAILURES)?,
            writes_given_up: register(&registry, &families::SLOW_WRITES)?,
            objects_expired: register(&registry, &families::OBJECTS_EXPIRED)?,
            uploads_expired: register(&registry, &families::UPLOADS_EXPIRED)?,
            blobs_freed: register(&registry, &families::BLOBS_FREED)?,
            blobs_collected: register(&registry, &families::BLOBS_COLLECTED)?,
            moves_failed: register(&registry, &families::TIER_FAILED)?,
            moves: MoveCounts::default(),
            tiers: TierBoard::default(),
            why: WhyBoard::default(),
            shards_rebuilt: register(&registry, &families::REPAIRED)?,
            rebuilt_bytes: register(&registry, &families::REPAIRED_BYTES)?,
            strays_freed: register(&registry, &families::STRAYS)?,
            shards_lost: register(&registry, &families::LOST)?,
            scrub_bytes: register(&registry, &families::SCRUB_BYTES)?,
            scrub_damage: register(&registry, &families::SCRUB_DAMAGE)?,
            map: Mutex::default(),
            buckets: Arc::default(),
            node: OnceLock::new(),
            audit: OnceLock::new(),
            repairs: OnceLock::new(),
            scrub: OnceLock::new(),
            certificate_until_s: AtomicI64::new(0),
            device_sources: Mutex::default(),
            device_meters: Mutex::default(),
            short_blobs: Mutex::default(),
            scrubbed_ms: Mutex::default(),
            core_sources: Mutex::default(),
            links: Mutex::default(),
            registry,
        };
        Ok(Arc::new(metrics))
    }

    /// Who this is, and what all cores share; once.
    pub(crate) fn set_node(&self, node: NodeId, repairs: Repairs, scrub: ScrubBoard) {
        let first =
            self.node.set(node).is_ok() && self.repairs.set(repairs).is_ok() && self.scrub.set(scrub).is_ok();
        assert!(first, "a process is one node");
    }

    /// What became of audit lines; once.
    pub(crate) fn set_audit(&self, counts: Arc<AuditCounts>) {
        assert!(self.audit.set(counts).is_ok(), "a process has one audit log");
    }

    /// A certificate is in use from now on; Unix seconds of its end.
    pub(crate) fn set_certificate(&self, until_s: i64) {
        self.certificate_until_s.store(until_s, Ordering::Relaxed);
    }

    /// Counters of a device's store are shown from now on.
    pub(crate) fn add_device(&self, device: String, stats: SharedStats, space: Arc<DeviceSpace>) {
        lock(&self.device_sources).push(DeviceSource { device, stats, space });
    }

    /// What one more core asks of a device is counted here.
    pub(crate) fn device_meter(&self, device: DeviceId) -> Arc<DeviceMeter> {
        let meter = Arc::new(DeviceMeter::default());
        lock(&self.device_meters).entry(device).or_default().push(Arc::clone(&meter));
        meter
    }

    /// A device was scrubbed at a time, Unix milliseconds.
    pub(crate) fn set_scrubbed(&self, device: DeviceId, at_ms: u64) {
        lock(&self.scrubbed_ms).insert(device, at_ms);
    }

    /// A version was moved to a tier, or stays where it is and got another class.
    pub(crate) fn moved(&self, why: Moves, tier: Option<Tier>, moved: Moved) {
        self.moves.add(why, tier, moved);
    }

    /// A core has looked through the blobs of its partitions that lack shards.
    pub(crate) fn set_short_blobs(&self, core: usize, found: ShortBlobs) {
        lock(&self.short_blobs).insert(core, found);
    }

    /// Gauges of a core are shown from now on.
    pub(crate) fn add_core(&self, core: usize, gauges: Arc<CoreGauges>, pulse: Arc<CorePulse>) {
        lock(&self.core_sources).push(CoreSource { core: core.to_string(), gauges, pulse });
    }

    /// For the requests of one core.
    pub(crate) fn requests_of(&self, gauges: Arc<CoreGauges>) -> RequestMeter {
        RequestMeter { gauges, buckets: CoreBuckets::new(&self.buckets) }
    }

    /// The counters of the traffic with a node in a class.
    pub(crate) fn link(&self, node: NodeId, class: Class) -> Arc<LinkStats> {
        Arc::clone(lock(&self.links).entry((node, class)).or_default())
    }

    /// Space of each tier of this node, and how much of it is used.
    pub(crate) fn tier_space(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let map = lock(&self.map);
        devices::tiers(&lock(&self.device_sources), |device| map.tier(device))
    }

    /// The map in use.
    pub(crate) fn set_map(&self, map: &quarry_clustermap::ClusterMap) {
        *lock(&self.map) = MapNumbers::of(map);
    }

    /// The exposition text.
    pub(crate) fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut page = Page::default();
        self.collect_node(&mut page);
        lock(&self.map).collect(self.node.get().copied(), &mut page);
        {
            let cores = lock(&self.core_sources);
            core::collect(&cores, &mut page);
            let requests: Vec<_> = cores.iter().map(|core| &core.gauges.requests).collect();
            requests::collect(&requests, &mut page);
        }
        self.buckets.collect(&mut page);
        lock(&self.device_sources).iter().for_each(|device| device.collect(&mut page));
        devices::collect_tiers(&self.tier_space(), &mut page);
        for (device, meters) in &*lock(&self.device_meters) {
            devices::collect_operations(&device.to_string(), meters, &mut page);
        }
        for ((node, class), stats) in &*lock(&self.links) {
            stats.collect(&node.to_string(), &format!("{class:?}").to_lowercase(), &mut page);
        }
        process::add(&mut page);
        page.text(&self.registry.gather())
    }

    #[allow(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
    fn collect_node(&self, page: &mut Page) {
        page.count(&families::BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1);
        page.value(&families::TIME, &[], clock::unix_ms() as f64 / 1e3);
        let until_s = self.certificate_until_s.load(Ordering::Relaxed);
        if until_s != 0 {
            page.value(&families::CERTIFICATE, &[], until_s as f64);
        }
        if let Some(audit) = self.audit.get() {
            for (result, count) in audit.values() {
                page.count(&families::AUDIT, &[("result", result)], count);
            }
        }
        if let Some(repairs) = self.repairs.get() {
            page.count(&families::BACKLOG, &[], repairs.len() as u64);
        }
        if let Some(scrub) = self.scrub.get() {
            page.count(&families::SCRUB_WANTED, &[], scrub.wanted());
            page.count(&families::SCRUB_FINISHED, &[], scrub.finished());
        }
        self.moves.collect(page);
        let short = lock(&self.short_blobs);
        for at in 0..MISSING_MAX {
            let count = short.values().map(|found| found.0[at]).sum();
            if at == 0 || count > 0 {
                page.count(&families::BLOBS_SHORT, &[("missing", &(at + 1).to_string())], count);
            }
        }
        for (device, at_ms) in &*lock(&self.scrubbed_ms) {
            page.value(&families::SCRUB_TIME, &[("device", &device.to_string())], *at_ms as f64 / 1e3);
        }
    }
}

/// Counts the requests of one core, on that core.
pub(crate) struct RequestMeter {
    gauges: Arc<CoreGauges>,
    buckets: CoreBuckets,
}

impl RequestMeter {
    /// A request has ended.
    pub(crate) fn observe(&self, record: &RequestRecord<'_>) {
        self.gauges.requests.observe(record);
        self.buckets.observe(record);
    }
}

impl LinkStats {
    #[allow(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
    fn collect(&self, peer: &str, class: &str, page: &mut Page) {
        let of = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
        let labels = [("peer", peer), ("class", class)];
        for (direction, bytes, frames) in [
            ("sent", &self.bytes_sent, &self.frames_sent),
            ("received", &self.bytes_received, &self.frames_received),
        ] {
            let labels = [("peer", peer), ("class", class), ("direction", direction)];
            page.count(&families::PEER_BYTES, &labels, of(bytes));
            page.count(&families::PEER_FRAMES, &labels, of(frames));
        }
        page.count(&families::PEER_CONNECTIONS, &labels, of(&self.connections));
        page.count(&families::PEER_FAILURES, &labels, of(&self.failures));
        page.count(&families::PEER_OVERLOADS, &labels, of(&self.overloads));
        page.count(&families::PEER_QUEUED, &labels, of(&self.queued));
        page.value(&families::PEER_ROUND_TRIP, &labels, of(&self.round_trip_us) as f64 / 1e6);
    }
}
