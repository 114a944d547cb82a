//! What the code of a core runs on: devices, a transport, a timer. Production names its own in [`crate::core`]; the
//! simulation puts simulated ones in their place, so that both run the same data path.

use std::time::Duration;

use quarry_object::transport::Transport;
use quarry_storage::device::Device;

/// The parts that differ between production and simulation.
pub(crate) trait Platform: 'static {
    /// Raw devices.
    type Device: Device + 'static;
    /// Frames to the owners of devices, and to cores.
    type Transport: Transport;
    /// Time.
    type Timer: Timer;
}

/// The clocks of one core; clones show the same time.
pub(crate) trait Timer: Clone + 'static {
    /// Waits.
    async fn sleep(&self, duration: Duration);
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// Wall clock, Unix milliseconds.
    fn unix_ms(&self) -> u64;
}
