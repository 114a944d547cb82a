//! What every subscriber sees: the newest map and bucket table.

use std::sync::Arc;

use async_channel::Sender;
use quarry_clustermap::{ClusterMap, DeviceId, Incarnation, NodeId};
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
    /// A node that has started and is not registered yet; see [`Subscribers::hold_back`].
    held_back: Option<(NodeId, Incarnation)>,
}

impl Subscribers {
    /// A new subscriber gets the newest state at once.
    pub(crate) fn add(&mut self, channel: Sender<Published>) {
        if self.newest.as_ref().is_none_or(|newest| channel.force_send(newest.clone()).is_ok()) {
            self.channels.push(channel);
        }
    }

    /// Until the start of a node is registered, the node must not lead a partition: it may have led it before, in the
    /// same epoch, and would give sequence numbers out again. It is shown a map in which those serve nothing.
    pub(crate) fn hold_back(&mut self, node: Option<(NodeId, Incarnation)>) {
        self.held_back = node;
        // What was shown until now may look different from now on.
        self.newest = None;
    }

    /// A state as the subscribers may see it.
    pub(crate) fn shown(&self, state: &Published) -> Published {
        let Some((node, incarnation)) = self.held_back else { return state.clone() };
        let mut map = (*state.map).clone();
        let own: Vec<DeviceId> =
            map.devices.iter().filter(|(_, entry)| entry.node == node).map(|(id, _)| *id).collect();
        for config in map.partitions.iter_mut().filter(|config| own.contains(&config.primary)) {
            config.lost = config.replicas.iter().copied().collect();
        }
        if let Some(entry) = map.nodes.get_mut(&node) {
            entry.incarnation = incarnation;
        }
        Published { map: Arc::new(map), ..state.clone() }
    }

    /// Sends a state to all, unless it is the one they have.
    pub(crate) fn publish(&mut self, state: &Published) {
        let state = &self.shown(state);
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
