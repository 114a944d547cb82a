//! Gives back what a device holds of partitions that it is no member of any more: it was evicted while it was away, and
//! another one has taken its place. Such rows are of no use: whoever joins a partition begins with nothing, but for a
//! replica that was evicted a short while ago and has run since.

use std::{rc::Rc, time::Duration};

use quarry_object::cluster::Cluster;

use crate::{cluster::NodeCluster, host::CoreHost, platform::Platform};

/// Between looks; a look without leftovers costs next to nothing.
const EVERY: Duration = Duration::from_secs(5);

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>) {
    loop {
        cluster.sleep(EVERY).await;
        for (device, partition) in host.leftovers() {
            match host.forget(device, partition).await {
                Ok(()) => tracing::info!(event = "partition_forgotten", %device, %partition),
                // A newer map has it as a member, or the device failed.
                Err(error) => tracing::debug!(event = "partition_not_forgotten", %device, %partition, %error),
            }
        }
    }
}
