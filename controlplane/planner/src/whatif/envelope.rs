//! The back of an envelope: from users to requests, bandwidth and storage.

use quarry_clustermap::ErasureProfile;

/// Requests at the busiest hour against the mean of the day.
const PEAK: f64 = 3.0;

/// What people do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Demand {
    /// Users.
    pub users: f64,
    /// Requests that each makes in a day.
    pub requests_per_user: f64,
    /// Bytes of an object.
    pub object_bytes: f64,
    /// Share of requests that write a new object, 0 to 1.
    pub write_share: f64,
    /// Years for which everything is kept.
    pub years: f64,
}

/// What that takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Envelope {
    /// Mean requests per second.
    pub requests_per_s: f64,
    /// At the busiest hour, taken as three times the mean.
    pub peak_requests_per_s: f64,
    /// Bytes per second to and from clients at the busiest hour.
    pub peak_bytes_per_s: f64,
    /// Bytes per second that devices write at the busiest hour: with parity.
    pub peak_device_bytes_per_s: f64,
    /// Bytes of objects at the end.
    pub object_bytes: f64,
    /// Objects at the end.
    pub objects: f64,
    /// Bytes of devices for them.
    pub device_bytes: f64,
}

/// Computes it.
pub fn envelope(demand: &Demand, profile: ErasureProfile) -> Envelope {
    let overhead = profile.total() as f64 / profile.data() as f64;
    let per_day = demand.users * demand.requests_per_user;
    let requests_per_s = per_day / 86400.0;
    let peak = requests_per_s * PEAK;
    let objects = per_day * demand.write_share * 365.25 * demand.years;
    Envelope {
        requests_per_s,
        peak_requests_per_s: peak,
        peak_bytes_per_s: peak * demand.object_bytes,
        peak_device_bytes_per_s: peak * demand.write_share * demand.object_bytes * overhead,
        object_bytes: objects * demand.object_bytes,
        objects,
        device_bytes: objects * demand.object_bytes * overhead,
    }
}
