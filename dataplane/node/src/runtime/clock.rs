//! The one place of the node that reads the wall clock, and the timer of a core.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::platform::Timer;

/// Unix milliseconds; 0 before 1970.
#[expect(clippy::disallowed_methods, reason = "the clock that everything else is given starts here")]
pub(crate) fn unix_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Time on an executor.
#[derive(Clone, Copy)]
pub(crate) struct CoreTimer {
    started: Instant,
}

impl CoreTimer {
    /// Its monotonic time begins now.
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }
}

impl Timer for CoreTimer {
    async fn sleep(&self, duration: Duration) {
        glommio::timer::sleep(duration).await;
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    fn unix_ms(&self) -> u64 {
        unix_ms()
    }
}
