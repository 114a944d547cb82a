//! Election of the leader: who puts its name under the leader key first, under its lease.
//!
//! A leader that cannot keep its lease steps down before the lease can end. Nothing depends on that: every commit of a
//! leader compares the revision of its entry, so one that was paused past its lease commits nothing.

use std::time::Duration;

use quarry_metastore::{Entry, LeaseId, Metastore, MetastoreError, Transaction};
use tokio::time::{Instant, sleep, timeout};

use super::{CONTROLLER_PREFIX, Holder, LEADER_KEY, LEASE_PARTS, changes::Changes};
use crate::state::to_json;

/// A won election.
#[derive(Debug)]
pub(crate) struct Term {
    /// The leader's entry; while the key is at its revision, nobody else leads.
    pub(crate) fence: Entry,
    lease: LeaseId,
}

/// Stands for election until it is won.
pub(crate) async fn campaign<M: Metastore + Clone>(metastore: &M, me: &Holder, ttl: Duration) -> Term {
    let changes = Changes::new(metastore.clone(), [LEADER_KEY.to_owned()]);
    let mut lease = None;
    loop {
        match stand(metastore, me, ttl, &mut lease).await {
            Ok(Some(term)) => return term,
            Ok(None) => {}
            Err(MetastoreError::LeaseLost) => lease = None,
            Err(error) => {
                tracing::warn!(event = "election_failed", %error);
                sleep(ttl / LEASE_PARTS / 2).await;
            }
        }
        // Woken by the end of the other's lease, or to keep the own one alive.
        let _ = timeout(ttl / LEASE_PARTS, changes.next()).await;
    }
}

async fn stand<M: Metastore>(
    metastore: &M,
    me: &Holder,
    ttl: Duration,
    lease: &mut Option<LeaseId>,
) -> Result<Option<Term>, MetastoreError> {
    let held = match *lease {
        Some(held) => {
            metastore.keep_alive(held).await?;
            held
        }
        None => {
            let granted = metastore.grant_lease(ttl).await?;
            *lease = Some(granted);
            // Shows that this one stands by; not needed for anything else.
            let standing = format!("{CONTROLLER_PREFIX}{}", me.name);
            metastore.transact(&Transaction::default().put_leased(&standing, to_json(me), granted)).await?;
            granted
        }
    };
    if let Some(entry) = metastore.get(LEADER_KEY).await? {
        // Ours, if the answer to our own attempt was lost: the lease is the one that we hold.
        return Ok((entry.value == to_json(me)).then_some(Term { fence: entry, lease: held }));
    }
    let claim = Transaction::default().expect(LEADER_KEY, None).put_leased(LEADER_KEY, to_json(me), held);
    match metastore.transact(&claim).await {
        Ok(revision) => {
            let fence = Entry { key: LEADER_KEY.to_owned(), value: to_json(me), revision };
            Ok(Some(Term { fence, lease: held }))
        }
        Err(MetastoreError::Conflict) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps the lease alive; returns when it is lost, or may be.
pub(crate) async fn hold(metastore: &impl Metastore, term: &Term, ttl: Duration) {
    let mut kept = Instant::now();
    loop {
        sleep(ttl / LEASE_PARTS).await;
        let asked = Instant::now();
        match metastore.keep_alive(term.lease).await {
            Ok(()) => kept = asked,
            Err(MetastoreError::LeaseLost) => return,
            Err(error) => tracing::warn!(event = "lease_not_kept", %error),
        }
        if kept.elapsed() > ttl * (LEASE_PARTS - 1) / LEASE_PARTS {
            return;
        }
    }
}

/// Ends a term before its time, so that another controller takes over at once.
pub(crate) async fn resign(metastore: &impl Metastore, term: Term) {
    // If it fails the lease ends by itself.
    let _ = metastore.revoke_lease(term.lease).await;
}
