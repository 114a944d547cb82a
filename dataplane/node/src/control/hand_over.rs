//! A node of a cluster that stops: its primaries are led by others before it closes anything.
//!
//! ```text
//!   cores: finish what is in flight, give the leases back ---> controller: the next map ---> others serve
//! ```
//!
//! The leases first: who follows need not wait for them to run out. If the map does not come, the primaries serve again by
//! themselves (`HAND_OVER_MS` of the partition crate), and move when the node has left. Everything is bounded.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use quarry_clustermap::{NodeId, PartitionId};
use quarry_controller::{ControllerError, ControllerHandle};

/// How long cores may take to finish what is in flight.
const FINISH_FOR: Duration = Duration::from_secs(1);
/// How long the next map may take.
const COMMIT_FOR: Duration = Duration::from_secs(5);
/// How long the new primaries may take to serve.
const SERVE_FOR: Duration = Duration::from_secs(3);
/// Between looks.
const LOOK: Duration = Duration::from_millis(20);
/// Between looks into the metastore.
const LOOK_FAR: Duration = Duration::from_millis(100);

/// What is to be done, and how far the cores are.
#[derive(Clone, Debug, Default)]
pub(crate) struct HandOver(Arc<State>);

#[derive(Debug, Default)]
struct State {
    wanted: AtomicBool,
    cores: AtomicUsize,
    ready: AtomicUsize,
}

impl HandOver {
    /// How many cores there are to wait for.
    pub(crate) fn set_cores(&self, cores: usize) {
        self.0.cores.store(cores, Ordering::Release);
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.0.wanted.load(Ordering::Acquire)
    }

    /// No primary of a core serves any more, or can be handed over.
    pub(crate) fn core_is_ready(&self) {
        self.0.ready.fetch_add(1, Ordering::AcqRel);
    }

    /// Does it.
    pub(super) async fn run(&self, node: NodeId, controller: &ControllerHandle) {
        let led = led_by(node, controller).await;
        self.0.wanted.store(true, Ordering::Release);
        let cores = self.0.cores.load(Ordering::Acquire);
        let finished = wait_for(FINISH_FOR, LOOK, async || self.0.ready.load(Ordering::Acquire) >= cores);
        if !finished.await {
            tracing::warn!(event = "hand_over_slow", "something is in flight for long");
        }
        match tokio::time::timeout(COMMIT_FOR, controller.hand_over(node)).await {
            Ok(Ok(_)) => {}
            _ => {
                return tracing::warn!(
                    event = "primaries_not_handed_over",
                    "they move when this node has left"
                );
            }
        }
        let Ok(led) = led else { return };
        let served =
            wait_for(SERVE_FOR, LOOK_FAR, async || serve(&led, controller).await.unwrap_or(false)).await;
        tracing::info!(event = "primaries_handed_over", partitions = led.len(), served);
    }
}

async fn led_by(
    node: NodeId,
    controller: &ControllerHandle,
) -> Result<BTreeSet<PartitionId>, ControllerError> {
    let newest = controller.subscribe().await?;
    let map = newest.recv().await.map_err(|_| ControllerError::Stopped)?.map;
    let is_here = |device| map.devices.get(&device).is_some_and(|entry| entry.node == node);
    let partitions = (0..=u16::MAX).map(PartitionId).zip(&map.partitions);
    Ok(partitions.filter(|(_, config)| is_here(config.primary)).map(|(id, _)| id).collect())
}

/// Whether all of these have a primary that is activated.
async fn serve(
    partitions: &BTreeSet<PartitionId>,
    controller: &ControllerHandle,
) -> Result<bool, ControllerError> {
    let view = controller.view().await?.partitions();
    let mut theirs = view.iter().filter(|view| partitions.contains(&view.partition));
    Ok(theirs.all(|view| view.state == "serving"))
}

/// Looks again and again; whether it was so in time.
async fn wait_for(patience: Duration, pause: Duration, done: impl AsyncFn() -> bool) -> bool {
    let looking = async {
        while !done().await {
            tokio::time::sleep(pause).await;
        }
    };
    tokio::time::timeout(patience, looking).await.is_ok()
}
