//! What every subscriber sees: the newest map and bucket table.

use std::sync::Arc;

use async_channel::Sender;
use quarry_clustermap::ClusterMap;
use quarry_identity::UserTable;

use crate::BucketTable;

/// A committed state. Map, buckets and users each only grow (version, revision) from one to the next.
#[derive(Clone, Debug)]
pub struct Published {
    /// The map.
    pub map: Arc<ClusterMap>,
    /// The buckets.
    pub buckets: Arc<BucketTable>,
    /// Users, access keys and policies.
    pub users: Arc<UserTable>,
}

/// The subscribers. Each has a channel of one: a newer state replaces one that was not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    channels: Vec<Sender<Published>>,
    newest: Option<Published>,
}

impl Subscribers {
    /// A new subscriber gets the newest state at once.
    pub(crate) fn add(&mut self, channel: Sender<Published>) {
        if self.newest.as_ref().is_none_or(|newest| channel.force_send(newest.clone()).is_ok()) {
            self.channels.push(channel);
        }
    }

    /// Sends a state to all, unless it is the one they have.
    pub(crate) fn publish(&mut self, state: &Published) {
        let same = |newest: &Published| {
            newest.map.version == state.map.version
                && newest.buckets.revision == state.buckets.revision
                && newest.users.revision == state.users.revision
        };
        if self.newest.as_ref().is_some_and(same) {
            return;
        }
        self.channels.retain(|channel| channel.force_send(state.clone()).is_ok());
        self.newest = Some(state.clone());
    }
}
