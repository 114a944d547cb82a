//! What stands on a device beside shards. Superblocks, free map and journal are in memory as well and are written anew;
//! a damaged index takes the device out until the next start mends it.

use std::rc::Rc;

use quarry_clustermap::DeviceId;
use quarry_object::repair::Budget;

use crate::{
    cluster::NodeCluster,
    host::{CoreHost, DeviceHost},
    platform::Platform,
};

/// Bytes of the index in one step.
const STEP_BYTES: usize = 4 << 20;

/// Reads all of it, and heals what can be healed here.
pub(super) async fn scrub<P: Platform>(
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    host: &Rc<CoreHost<P>>,
    (id, device): (DeviceId, &Rc<DeviceHost<P>>),
) {
    let metrics = cluster.metrics();
    match device.store.verify_copies().await {
        Ok(health) => {
            metrics.scrub_bytes.inc_by(health.read_bytes);
            budget.spend(&**cluster, health.read_bytes).await;
            if !health.is_whole() {
                metrics.scrub_damage.inc();
                tracing::warn!(event = "scrub_found_damaged_copies", device = %id, ?health);
                if let Err(error) = device.store.rewrite_copies().await {
                    tracing::error!(event = "copies_not_rewritten", device = %id, %error);
                }
            }
        }
        Err(error) => return tracing::debug!(event = "scrub_stopped", device = %id, %error),
    }
    let mut resume = None;
    loop {
        let step = match device.store.verify_index(resume, STEP_BYTES).await {
            Ok(step) => step,
            Err(error) => return tracing::debug!(event = "scrub_stopped", device = %id, %error),
        };
        metrics.scrub_bytes.inc_by(step.read_bytes);
        budget.spend(&**cluster, step.read_bytes).await;
        if let Some(first) = step.damage.first() {
            metrics.scrub_damage.inc();
            let reason =
                format!("the scrub found its index damaged at {}: {}", first.offset_bytes, first.reason);
            return host.index_damaged(id, reason);
        }
        resume = step.next;
        if resume.is_none() {
            return;
        }
    }
}
