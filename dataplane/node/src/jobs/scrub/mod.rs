//! Looks for damage and loss in what nobody reads, within a rate of bytes.
//!
//! One pass of a core has four parts, none of which needs another core to be as far:
//! 1. `metadata`: superblocks, free map, journal and index of this core's devices are read past every cache;
//! 2. `shards`: every shard on this core's devices is read and verified, and must stand where its group has it;
//! 3. `owners`: every blob that a manifest or part of this core's primaries names must have all its shards;
//! 4. the collector: every shard must have an owner.
//!
//! What is missing or damaged goes to the node's repair queue; the pass ends when the queue is empty or has been given
//! time enough. When a device was last scrubbed stands on the device, so restarts do not put the next pass off.

mod board;
mod metadata;
mod owners;
mod shards;

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use quarry_clustermap::{DeviceId, Incarnation, NodeId};
use quarry_object::{cluster::Cluster, repair::Budget};

pub(crate) use self::board::ScrubBoard;
use super::collector;
use crate::{cluster::NodeCluster, host::CoreHost, platform::Platform};

/// Between looks at whether a pass is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the pass waits for its repairs: what cannot be repaired now is left to later attempts, or the next pass.
const REPAIRS_FOR: Duration = Duration::from_secs(120);
/// Device-local row: when the device was last scrubbed, Unix milliseconds, little endian.
const FINISHED_ROW: &str = "scrub/finished-ms";

/// What the scrub of a core is told.
pub(crate) struct ScrubOptions {
    /// Time between passes; zero: only when asked for.
    pub(crate) every: Duration,
    /// Of this core.
    pub(crate) budget: Budget,
    /// This node, for the collector.
    pub(crate) node: NodeId,
    /// Of this run of the node.
    pub(crate) incarnation: Incarnation,
}

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(
    host: Rc<CoreHost<P>>,
    cluster: Rc<NodeCluster<P>>,
    board: ScrubBoard,
    options: ScrubOptions,
) {
    let (core, _) = cluster.core();
    let mut scrub = Scrub { host, cluster, options };
    scrub.begin_history().await;
    let (mut done, mut checked) = (0, 0);
    loop {
        if scrub.is_due().await {
            board.due();
        }
        let wanted = board.wanted();
        if wanted > done {
            scrub.pass().await;
            done = wanted;
            board.finish(core, done);
        }
        if done > checked && board.finished() >= done && scrub.cluster.repairs().len() == 0 {
            scrub.mark_checked().await;
            checked = done;
        }
        scrub.cluster.sleep(LOOK_EVERY).await;
    }
}

struct Scrub<P: Platform> {
    host: Rc<CoreHost<P>>,
    cluster: Rc<NodeCluster<P>>,
    options: ScrubOptions,
}

impl<P: Platform> Scrub<P> {
    async fn pass(&mut self) {
        let began = self.cluster.monotonic();
        self.cluster.repairs().hope_again();
        let metrics = self.cluster.metrics();
        let before = metrics.scrub_damage.get();
        tracing::info!(event = "scrub_started", core = self.cluster.core().0);
        for (id, device) in self.host.devices() {
            if self.host.map().is_in(id) {
                metadata::scrub(&self.cluster, &self.options.budget, &self.host, (id, device)).await;
                shards::scrub(&self.cluster, &self.options.budget, id, device).await;
            }
        }
        for partition in self.host.primaries() {
            owners::scrub(&self.cluster, &self.options.budget, &partition).await;
        }
        let (host, cluster) = (Rc::clone(&self.host), Rc::clone(&self.cluster));
        collector::run(host, cluster, self.options.node, self.options.incarnation).await;
        let waiting_since = self.cluster.monotonic();
        while self.cluster.repairs().len() > 0
            && self.cluster.monotonic().saturating_sub(waiting_since) < REPAIRS_FOR
        {
            self.cluster.sleep(Duration::from_millis(100)).await;
        }
        self.write_history().await;
        let (damage, left) = (metrics.scrub_damage.get() - before, self.cluster.repairs().len());
        let took = self.cluster.monotonic().saturating_sub(began);
        tracing::info!(
            event = "scrub_finished",
            core = self.cluster.core().0,
            damage,
            left,
            seconds = took.as_secs()
        );
    }

    /// Every core has looked for shards that this core's devices lack, and all of them were made good.
    async fn mark_checked(&self) {
        for (id, device) in self.host.devices() {
            if self.host.map().is_in(id)
                && let Err(error) = device.store.shards_checked().await
            {
                tracing::debug!(event = "shards_not_marked_as_checked", device = %id, %error);
            }
        }
    }

    /// A device that was never scrubbed counts from now.
    async fn begin_history(&self) {
        for (id, device) in self.host.devices() {
            match device.store.get_local(FINISHED_ROW).await {
                Ok(None) => self.note(id, device).await,
                Ok(Some(row)) => {
                    if let Ok(finished) = <[u8; 8]>::try_from(&row[..]) {
                        self.cluster.metrics().set_scrubbed(id, u64::from_le_bytes(finished));
                    }
                }
                Err(_) => {}
            }
        }
    }

    async fn write_history(&self) {
        for (id, device) in self.host.devices() {
            self.note(id, device).await;
        }
    }

    async fn note(&self, id: DeviceId, device: &crate::host::DeviceHost<P>) {
        let now_ms = self.cluster.now_ms();
        self.cluster.metrics().set_scrubbed(id, now_ms);
        let now = Bytes::copy_from_slice(&now_ms.to_le_bytes());
        if let Err(error) = device.store.put_local(FINISHED_ROW, now).await {
            tracing::debug!(event = "scrub_time_not_noted", %error);
        }
    }

    async fn is_due(&self) -> bool {
        if self.options.every.is_zero() {
            return false;
        }
        let every_ms = u64::try_from(self.options.every.as_millis()).unwrap_or(u64::MAX);
        for (_, device) in self.host.devices() {
            if let Ok(Some(row)) = device.store.get_local(FINISHED_ROW).await
                && let Ok(finished) = <[u8; 8]>::try_from(&row[..])
                && self.cluster.now_ms() >= u64::from_le_bytes(finished).saturating_add(every_ms)
            {
                return true;
            }
        }
        false
    }
}
