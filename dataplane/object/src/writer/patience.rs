//! How long a write waits for its slowest devices: what the others took says what is slow.
//!
//! Once as many shards are done as a blob needs, the rest get [`FACTOR`] times as long as those took, and at least
//! [`FLOOR`]. Then they count as failed for this blob (design rule: go on while k+1 remain, rebuild before the commit),
//! and the device's operations end when they end: their tasks hold buffer, reservation and blob. [`Cluster::give_up`]
//! limits how often a device is given up; beyond, the write waits, but never for a device that is out.

use std::time::Duration;

use futures::{
    StreamExt,
    channel::oneshot,
    future::{Either, select},
    stream::FuturesUnordered,
};

use super::placed::Placed;
use crate::cluster::Cluster;

/// Nothing is given up sooner: longer than a disk takes to retry a bad sector or a controller to reset.
pub(super) const FLOOR: Duration = Duration::from_secs(2);
/// Times what the others took.
const FACTOR: u32 = 8;

/// Waits for the tasks of shards, by index.
pub(super) async fn wait<C: Cluster>(
    cluster: &C,
    placed: &Placed<C>,
    tasks: Vec<(usize, oneshot::Receiver<()>)>,
    give_up: impl Fn(usize),
) {
    let begun = cluster.monotonic();
    let mut done = vec![false; tasks.len()];
    let mut left: FuturesUnordered<_> = tasks
        .into_iter()
        .map(async |(index, task)| {
            task.await.expect("spawned tasks run to their end");
            index
        })
        .collect();
    let mut deadline = None;
    let mut look = Box::pin(cluster.sleep(FLOOR));
    while done.contains(&false) {
        let ended = match select(left.next(), look.as_mut()).await {
            Either::Left((ended, _)) => Some(ended),
            Either::Right(_) => None,
        };
        if let Some(ended) = ended {
            let Some(index) = ended else { return };
            done[index] = true;
        } else {
            look = Box::pin(cluster.sleep(FLOOR));
            let is_late = deadline.is_some_and(|deadline| cluster.monotonic() >= deadline);
            for (index, done) in done.iter_mut().enumerate().filter(|(_, done)| !**done) {
                if may_give_up(cluster, placed, index, is_late) {
                    give_up(index);
                    *done = true;
                }
            }
        }
        let written = (0..done.len()).filter(|index| done[*index] && placed.is_live(*index)).count();
        if deadline.is_none() && written >= placed.needed() {
            let now = cluster.monotonic();
            deadline = Some(now + FLOOR.max(now.saturating_sub(begun) * FACTOR));
        }
    }
}

/// Whoever waits for a device that is out waits for ever: its operations may never end.
fn may_give_up<C: Cluster>(cluster: &C, placed: &Placed<C>, index: usize, is_late: bool) -> bool {
    let device = placed.device(index);
    let is_spare = || placed.live() > placed.needed() && cluster.give_up(device);
    !cluster.map().is_in(device) || (is_late && (!placed.is_live(index) || is_spare()))
}
