//! Every family that a node shows; docs/metrics.md lists the same.

use quarry_meter::page::{Family, Kind};

macro_rules! families {
    ($($name:ident = $kind:ident($metric:literal, $help:literal);)*) => {
        $(pub(super) const $name: Family = Family::$kind($metric, $help);)*
        #[cfg(test)]
        const OWN: &[Family] = &[$($name),*];
    };
}

families! {
    BUILD = gauge("quarry_build_info", "1, with the version as a label");
    TIME = gauge("quarry_time_seconds", "Wall clock of the node, Unix time");
    CERTIFICATE = gauge("quarry_tls_certificate_expiry_timestamp_seconds", "End of the certificate in use, Unix time");

    REQUESTS = counter("quarry_s3_requests_total", "Requests by operation and HTTP status");
    REQUEST_SECONDS = histogram("quarry_s3_request_duration_seconds", "From the head of a request to the end of its answer");
    STAGE_SECONDS = histogram("quarry_s3_request_stage_duration_seconds", "Time of a request in a stage");
    FRONTS = counter("quarry_s3_fronts_total", "Requests by the way they took: fast, neither, or why the general one");
    BYTES = counter("quarry_s3_bytes_total", "Bytes of bodies");
    BUCKET_REQUESTS = counter("quarry_bucket_requests_total", "Requests by bucket and class of status");
    BUCKET_BYTES = counter("quarry_bucket_bytes_total", "Bytes of bodies by bucket");
    AUDIT = counter("quarry_audit_events_total", "Lines of the audit log, by what became of them");

    CONNECTIONS = gauge("quarry_core_connections", "Connections of clients");
    BUFFERS = gauge("quarry_core_buffers", "Stripe buffers");
    BUFFERS_FREE = gauge("quarry_core_buffers_free", "Stripe buffers that are free");
    IN_FLIGHT = gauge("quarry_core_device_operations_in_flight", "Device operations under way");
    CORE_CPU = counter("quarry_core_cpu_seconds_total", "CPU time of the core's thread");
    SCHEDULING = histogram("quarry_core_scheduling_delay_seconds", "From the pulse to the core's answer");
    SCHEDULING_MAX = gauge("quarry_core_scheduling_delay_max_seconds", "Longest delay since the last scrape");
    QUEUE = histogram("quarry_core_queue_delay_seconds", "From the wake of a task to its run, by task queue");
    PRIMARIES = gauge("quarry_core_partition_primaries", "Partitions that are served here");
    REPLICAS = gauge("quarry_core_partition_replicas", "Replicas of partitions");

    UNCOMMITTED = gauge("quarry_partition_log_uncommitted_entries", "Log entries that no quorum has yet, all replicas together");
    EPOCHS = counter("quarry_partition_epoch_changes_total", "New epochs of replicas");

    DEVICE_SECONDS = histogram("quarry_device_operation_duration_seconds", "Operations of a device that succeeded");
    DEVICE_BYTES = counter("quarry_device_bytes_total", "Bytes of operations that succeeded");
    DEVICE_ERRORS = counter("quarry_device_errors_total", "Operations that failed");
    DEVICE_IN = gauge("quarry_device_in", "1: the device is in; 0: it is out");
    CAPACITY = gauge("quarry_device_capacity_bytes", "Space of a device");
    FREE = gauge("quarry_device_free_bytes", "Space that is free");
    USED = gauge("quarry_device_used_bytes", "Space that is used");
    QUARANTINED = gauge("quarry_device_quarantined_bytes", "Space that is not used any more because it cannot be read");
    JOURNAL_QUEUE = gauge("quarry_device_journal_queue_bytes", "What waits for the journal");
    JOURNAL_FLUSHES = counter("quarry_device_journal_flushes_total", "Flushes of journal batches and checkpoints");
    JOURNAL_BATCHES = counter("quarry_device_journal_batches_total", "Journal batches");
    JOURNAL_RECORDS = counter("quarry_device_journal_records_total", "Records in journal batches");
    JOURNAL_BYTES = counter("quarry_device_journal_bytes_total", "Bytes of journal batches");
    CHECKPOINTS = counter("quarry_device_checkpoints_total", "Checkpoints made durable");
    CHECKPOINT_BYTES = counter("quarry_device_checkpoint_bytes_total", "Bytes of index pages and values written by checkpoints");
    DEVICE_FAILURES = counter("quarry_device_failures_total", "Devices reported as failed");
    SLOW_WRITES = counter("quarry_device_slow_writes_total", "Shards that a write went on without because their device was slow");

    MAP_VERSION = gauge("quarry_map_version", "Version of the cluster map in use");
    MAP_NODES = gauge("quarry_map_nodes", "Nodes of the map");
    MAP_DEVICES = gauge("quarry_map_devices", "Devices of the map by state");
    MAP_PARTITIONS = gauge("quarry_map_partitions", "Metadata partitions of the map");
    MAP_HEADLESS = gauge("quarry_map_partitions_headless", "Partitions whose primary is out, or that have lost their history");
    MAP_GROUPS = gauge("quarry_map_placement_groups", "Placement groups by state");
    MAP_OPEN = gauge("quarry_map_placement_groups_open", "Placement groups that take new blobs now");
    MAP_MISSING = gauge("quarry_map_placement_groups_by_missing_shards", "Placement groups by positions that may lack shards");

    DAMAGE = counter("quarry_object_damage_total", "Missing, unreadable or corrupt shards met by reads");
    OBJECTS_EXPIRED = counter("quarry_object_expired_total", "Objects deleted by their lifecycle");
    UPLOADS_EXPIRED = counter("quarry_upload_expired_total", "Uploads aborted by their lifecycle");
    TIER_MOVES = counter("quarry_tier_moves_total", "Versions that were moved to a tier or got another class, by what asked for it");
    TIER_BYTES = counter("quarry_tier_moved_bytes_total", "Bytes that were moved to a tier, by what asked for it");
    TIER_FAILED = counter("quarry_tier_moves_failed_total", "Moves that could not be done and are tried again");
    TIER_CAPACITY = gauge("quarry_tier_capacity_bytes", "Space of the devices of this node that are in, by tier");
    TIER_USED = gauge("quarry_tier_used_bytes", "Space of it that is used, by tier");
    BLOBS_FREED = counter("quarry_blob_freed_total", "Blobs whose shards were freed after a delete");
    BLOBS_COLLECTED = counter("quarry_blob_collected_total", "Shards of blobs without manifest freed");
    BLOBS_SHORT = gauge("quarry_blobs_by_missing_shards", "Blobs that lack shards, as of the last look at them");
    BACKLOG = gauge("quarry_repair_backlog_shards", "Shards that wait for repair or are being repaired");
    REPAIRED = counter("quarry_repair_shards_total", "Shards made anew from the others, or copied to a new member");
    REPAIRED_BYTES = counter("quarry_repair_bytes_total", "Bytes of shards made anew");
    STRAYS = counter("quarry_strays_freed_total", "Shards freed because another device has their position now");
    LOST = counter("quarry_repair_lost_total", "Shards that could not be made anew: too few others are whole");
    SCRUB_BYTES = counter("quarry_scrub_bytes_total", "Bytes that the scrub has read");
    SCRUB_DAMAGE = counter("quarry_scrub_damage_total", "Missing or damaged shards that the scrub has found");
    SCRUB_WANTED = gauge("quarry_scrub_pass_wanted", "The newest pass asked for in this run");
    SCRUB_FINISHED = gauge("quarry_scrub_pass_finished", "The newest pass that every core has finished in this run");
    SCRUB_TIME = gauge("quarry_scrub_finished_timestamp_seconds", "End of the last pass over a device, Unix time");

    PEER_BYTES = counter("quarry_peer_bytes_total", "Bytes to and from another node");
    PEER_FRAMES = counter("quarry_peer_frames_total", "Frames to and from another node");
    PEER_CONNECTIONS = counter("quarry_peer_connections_total", "Connections made");
    PEER_FAILURES = counter("quarry_peer_failures_total", "Connections that broke or could not be made");
    PEER_OVERLOADS = counter("quarry_peer_overloads_total", "Frames refused because a queue was full");
    PEER_QUEUED = gauge("quarry_peer_frames_queued", "Frames that wait to be written");
    PEER_ROUND_TRIP = gauge("quarry_peer_round_trip_seconds", "From the newest ping to its answer");
}

/// A counter in the registry that many threads count in: for what is rare.
pub(super) fn register(
    registry: &prometheus::Registry,
    family: &Family,
) -> Result<prometheus::IntCounter, prometheus::Error> {
    assert_eq!(family.kind, Kind::Counter, "only rare events are counted this way");
    let counter = prometheus::IntCounter::new(family.name, family.help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

#[cfg(test)]
mod tests {
    use quarry_meter::{page::undocumented, process};

    use super::*;

    #[test]
    fn every_family_is_documented_and_every_documented_one_is_there() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let document = std::fs::read_to_string(path).unwrap();
        let all: Vec<Family> = OWN.iter().chain(&process::FAMILIES).copied().collect();
        let problems = undocumented(&all, &document, "Node");
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}
