//! Giving the core to other tasks in loops that may never wait for the device.

use std::cell::Cell;
use std::task::Poll;

/// Units of work between two yields. A unit is about an entry encoded or decoded (100-300 ns): 100-500 us.
const UNITS_PER_YIELD: usize = 1600;

/// Counts work and yields when due.
#[derive(Default)]
pub struct Pace(Cell<usize>);

impl Pace {
    /// Accounts `units` of work; yields once when enough has come together.
    pub async fn spend(&self, units: usize) {
        let spent = self.0.get() + units;
        if spent < UNITS_PER_YIELD {
            self.0.set(spent);
            return;
        }
        self.0.set(0);
        yield_now().await;
    }
}

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
