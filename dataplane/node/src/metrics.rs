//! Metrics of the node, for Prometheus. Names: `quarry_subsystem_noun_unit_total`; the list is in docs/operations.md.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};
use quarry_clustermap::NodeId;
use quarry_object::transport::Class;
use quarry_storage::store::SharedStats;

use crate::{
    host::DeviceSpace,
    runtime::{net::LinkStats, pulse::CorePulse},
};

/// Upper bounds of request durations, seconds.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// What one core shows of itself.
#[derive(Default)]
pub(crate) struct CoreGauges {
    pub(crate) connections: AtomicU64,
    pub(crate) buffers_free: AtomicU64,
    pub(crate) buffers: AtomicU64,
    pub(crate) device_io_in_flight: AtomicU64,
    pub(crate) primaries: AtomicU64,
}

struct DeviceSource {
    device: String,
    stats: SharedStats,
    space: Arc<DeviceSpace>,
}

struct CoreSource {
    core: String,
    gauges: Arc<CoreGauges>,
    pulse: Arc<CorePulse>,
}

/// All metrics; shared by every thread.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: IntCounterVec,
    pub(crate) request_seconds: HistogramVec,
    pub(crate) bytes: IntCounterVec,
    pub(crate) damage: IntCounter,
    pub(crate) devices_failed: IntCounter,
    pub(crate) writes_given_up: IntCounter,
    pub(crate) blobs_freed: IntCounter,
    pub(crate) blobs_collected: IntCounter,
    pub(crate) objects_expired: IntCounter,
    pub(crate) uploads_expired: IntCounter,
    pub(crate) shards_rebuilt: IntCounter,
    pub(crate) rebuilt_bytes: IntCounter,
    pub(crate) strays_freed: IntCounter,
    pub(crate) shards_lost: IntCounter,
    pub(crate) scrub_bytes: IntCounter,
    pub(crate) scrub_damage: IntCounter,
    map_version: IntGauge,
    devices: IntGaugeVec,
    groups_open: IntGauge,
    core: IntGaugeVec,
    scheduling_delay_us: IntGaugeVec,
    journal: IntGaugeVec,
    device_bytes: IntGaugeVec,
    device_sources: Mutex<Vec<DeviceSource>>,
    core_sources: Mutex<Vec<CoreSource>>,
    peer_link: IntGaugeVec,
    links: Mutex<BTreeMap<(NodeId, Class), Arc<LinkStats>>>,
}

impl Metrics {
    pub(crate) fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Self {
            requests: add(
                &registry,
                IntCounterVec::new(
                    Opts::new("quarry_s3_requests_total", "S3 requests by operation and HTTP status"),
                    &["operation", "status"],
                )?,
            )?,
            request_seconds: add(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "quarry_s3_request_duration_seconds",
                        "From the last header byte to the end of the response",
                    )
                    .buckets(DURATION_BUCKETS.to_vec()),
                    &["operation"],
                )?,
            )?,
            bytes: add(
                &registry,
                IntCounterVec::new(
                    Opts::new("quarry_s3_bytes_total", "Body bytes by direction"),
                    &["direction"],
                )?,
            )?,
            damage: counter(
                &registry,
                "quarry_object_damage_total",
                "Missing, unreadable or corrupt shards met by reads",
            )?,
            devices_failed: counter(&registry, "quarry_device_failures_total", "Devices reported as failed")?,
            writes_given_up: counter(
                &registry,
                "quarry_device_slow_writes_total",
                "Shards that a write went on without because their device was slow",
            )?,
            objects_expired: counter(
                &registry,
                "quarry_object_expired_total",
                "Objects deleted by their lifecycle",
            )?,
            uploads_expired: counter(
                &registry,
                "quarry_upload_expired_total",
                "Uploads aborted by their lifecycle",
            )?,
            blobs_freed: counter(
                &registry,
                "quarry_blob_freed_total",
                "Blobs whose shards were freed after a delete",
            )?,
            blobs_collected: counter(
                &registry,
                "quarry_blob_collected_total",
                "Shards of blobs without manifest freed",
            )?,
            shards_rebuilt: counter(
                &registry,
                "quarry_repair_shards_total",
                "Shards made anew from the others",
            )?,
            strays_freed: counter(
                &registry,
                "quarry_strays_freed_total",
                "Shards freed because another device has their position now",
            )?,
            rebuilt_bytes: counter(&registry, "quarry_repair_bytes_total", "Bytes of shards made anew")?,
            shards_lost: counter(
                &registry,
                "quarry_repair_lost_total",
                "Shards that could not be made anew: too few others are whole",
            )?,
            scrub_bytes: counter(&registry, "quarry_scrub_bytes_total", "Bytes that the scrub has read")?,
            scrub_damage: counter(
                &registry,
                "quarry_scrub_damage_total",
                "Missing or damaged shards that the scrub has found",
            )?,
            map_version: gauge(&registry, "quarry_map_version", "Version of the cluster map in use")?,
            devices: add(
                &registry,
                IntGaugeVec::new(Opts::new("quarry_map_devices", "Devices of the map by state"), &["state"])?,
            )?,
            groups_open: gauge(
                &registry,
                "quarry_map_placement_groups_open",
                "Placement groups that take new blobs",
            )?,
            core: add(
                &registry,
                IntGaugeVec::new(Opts::new("quarry_core", "What a core holds now"), &["core", "what"])?,
            )?,
            scheduling_delay_us: add(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "quarry_core_scheduling_delay_max_microseconds",
                        "Longest delay since the last scrape",
                    ),
                    &["core"],
                )?,
            )?,
            journal: add(
                &registry,
                IntGaugeVec::new(
                    Opts::new("quarry_device_journal_total", "Counters of a device's store"),
                    &["device", "what"],
                )?,
            )?,
            device_bytes: add(
                &registry,
                IntGaugeVec::new(Opts::new("quarry_device_bytes", "Space of a device"), &["device", "what"])?,
            )?,
            device_sources: Mutex::default(),
            core_sources: Mutex::default(),
            peer_link: add(
                &registry,
                IntGaugeVec::new(
                    Opts::new("quarry_peer_link", "Traffic with another node, by class"),
                    &["peer", "class", "what"],
                )?,
            )?,
            links: Mutex::default(),
            registry,
        };
        Ok(Arc::new(metrics))
    }

    /// Counters of a device's store are shown from now on.
    pub(crate) fn add_device(&self, device: String, stats: SharedStats, space: Arc<DeviceSpace>) {
        let source = DeviceSource { device, stats, space };
        self.device_sources.lock().expect("nothing panics under this lock").push(source);
    }

    /// Gauges of a core are shown from now on.
    pub(crate) fn add_core(&self, core: usize, gauges: Arc<CoreGauges>, pulse: Arc<CorePulse>) {
        let source = CoreSource { core: core.to_string(), gauges, pulse };
        self.core_sources.lock().expect("nothing panics under this lock").push(source);
    }

    /// The counters of the traffic with a node in a class.
    pub(crate) fn link(&self, node: NodeId, class: Class) -> Arc<LinkStats> {
        let mut links = self.links.lock().expect("nothing panics under this lock");
        Arc::clone(links.entry((node, class)).or_default())
    }

    /// The map in use.
    pub(crate) fn set_map(&self, map: &quarry_clustermap::ClusterMap) {
        let signed = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.map_version.set(i64::try_from(map.version.0).unwrap_or(i64::MAX));
        let present = map.devices.keys().filter(|device| map.is_in(**device)).count();
        self.devices.with_label_values(&["in"]).set(signed(present));
        self.devices.with_label_values(&["out"]).set(signed(map.devices.len() - present));
        self.groups_open.set(signed(map.open_groups(quarry_clustermap::Tier::Hot).count()));
    }

    /// One request has ended.
    pub(crate) fn observe_request(
        &self,
        operation: &str,
        status: u16,
        duration: Duration,
        bytes_in: u64,
        bytes_out: u64,
    ) {
        self.requests.with_label_values(&[operation, &status.to_string()]).inc();
        self.request_seconds.with_label_values(&[operation]).observe(duration.as_secs_f64());
        self.bytes.with_label_values(&["in"]).inc_by(bytes_in);
        self.bytes.with_label_values(&["out"]).inc_by(bytes_out);
    }

    /// The exposition text.
    pub(crate) fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        self.refresh();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    fn refresh(&self) {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for source in self.core_sources.lock().expect("nothing panics under this lock").iter() {
            let set = |what: &str, value: &AtomicU64| {
                self.core.with_label_values(&[&source.core, what]).set(signed(value.load(Ordering::Relaxed)));
            };
            set("connections", &source.gauges.connections);
            set("buffers", &source.gauges.buffers);
            set("buffers_free", &source.gauges.buffers_free);
            set("device_io_in_flight", &source.gauges.device_io_in_flight);
            set("primaries", &source.gauges.primaries);
            let delay = source.pulse.take_delay_max();
            let delay_us = i64::try_from(delay.as_micros()).unwrap_or(i64::MAX);
            self.scheduling_delay_us.with_label_values(&[&source.core]).set(delay_us);
        }
        for ((node, class), stats) in &*self.links.lock().expect("nothing panics under this lock") {
            let (peer, class) = (node.to_string(), format!("{class:?}").to_lowercase());
            for (what, value) in stats.values() {
                self.peer_link.with_label_values(&[&peer, &class, what]).set(signed(value));
            }
        }
        for source in self.device_sources.lock().expect("nothing panics under this lock").iter() {
            for (what, value) in source.stats.counters() {
                self.journal.with_label_values(&[&source.device, what]).set(signed(value));
            }
            let bytes = |what: &str, value: u64| {
                self.device_bytes.with_label_values(&[&source.device, what]).set(signed(value));
            };
            bytes("free", source.space.free_bytes());
            bytes("capacity", source.space.capacity_bytes());
            bytes("quarantined", source.space.quarantined_bytes());
        }
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    add(registry, IntCounter::new(name, help)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    add(registry, IntGauge::new(name, help)?)
}
