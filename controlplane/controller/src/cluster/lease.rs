//! A node's lease: as long as it is kept, the node counts as alive.
//!
//! It is one per run. A run that finds the key of a newer run ends; an older one's key is taken over, so that a node that
//! was killed is back without waiting for its lease to end.

use std::{sync::Arc, time::Duration};

use quarry_clustermap::NodeId;
use quarry_metastore::{Entry, LeaseId, Metastore, MetastoreError, Transaction};
use tokio::{sync::watch, time::sleep};

use super::{Alive, LEASE_PARTS, alive_key};
use crate::{
    ControllerError,
    state::{parse, to_json},
};

/// What a node holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// Its key, to compare with; `None` while it has no lease.
    pub(crate) entry: Option<Entry>,
    pub(crate) lease: Option<LeaseId>,
    /// How often a lease was acquired.
    pub(crate) times: u32,
}

/// Keeps a node alive; returns when a newer run of it has taken over.
pub(crate) async fn keep<M: Metastore>(
    metastore: Arc<M>,
    node: NodeId,
    alive: Alive,
    ttl: Duration,
    held: watch::Sender<Held>,
) {
    loop {
        match acquire(&*metastore, node, &alive, ttl).await {
            Ok(Some((lease, entry))) => {
                held.send_modify(|held| {
                    *held = Held { entry: Some(entry.clone()), lease: Some(lease), times: held.times + 1 };
                });
                while still(&*metastore, lease, &entry, ttl).await {}
                held.send_modify(|held| (held.entry, held.lease) = (None, None));
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(event = "lease_not_acquired", %error);
                sleep(ttl / LEASE_PARTS / 2).await;
            }
        }
    }
}

async fn acquire(
    metastore: &impl Metastore,
    node: NodeId,
    alive: &Alive,
    ttl: Duration,
) -> Result<Option<(LeaseId, Entry)>, ControllerError> {
    let key = alive_key(node);
    let lease = metastore.grant_lease(ttl).await?;
    let other = metastore.get(&key).await?;
    if let Some(other) = &other
        && parse::<Alive>(other)?.incarnation > alive.incarnation
    {
        return Ok(None);
    }
    let value = to_json(alive);
    let take = Transaction::default().expect(&key, other.as_ref()).put_leased(&key, value.clone(), lease);
    let revision = metastore.transact(&take).await?;
    Ok(Some((lease, Entry { key, value, revision })))
}

/// Waits, keeps the lease alive, and looks whether the key is still there. Not knowing is no reason to let go.
async fn still(metastore: &impl Metastore, lease: LeaseId, entry: &Entry, ttl: Duration) -> bool {
    sleep(ttl / LEASE_PARTS).await;
    let kept = match metastore.keep_alive(lease).await {
        Ok(()) => metastore.get(&entry.key).await,
        Err(error) => Err(error),
    };
    match kept {
        Ok(found) => found.is_some_and(|found| found.revision == entry.revision),
        Err(MetastoreError::LeaseLost) => false,
        Err(error) => {
            tracing::warn!(event = "lease_not_kept", %error);
            true
        }
    }
}
