//! Shards that are to be looked at and made anew: what readers, the scrub and members of groups miss. In memory only:
//! what a restart forgets, the next read or scrub finds again; what must not be forgotten stands in the map (groups that
//! move) and in partitions (blobs that were written short).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use quarry_clustermap::PartitionId;
use quarry_object::{peer::ShardName, repair::Suspect};

/// Shards that may wait; beyond, a report is dropped: the scrub finds the shard again.
const WAITING_MAX: usize = 100_000;
/// How often one shard is tried before it is left to the next report.
const ATTEMPTS_MAX: u32 = 8;
/// Pause after the first failure; doubles.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The queue of a node, shared by its cores: one short lock per damaged shard, none on the path of whole ones.
#[derive(Clone, Default)]
pub(crate) struct Repairs(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    ready: BTreeMap<ShardName, Option<PartitionId>>,
    /// Failed before: when it may be tried again, and how often it was.
    later: BTreeMap<ShardName, (Duration, u32, Option<PartitionId>)>,
    /// Being repaired, with the attempts before.
    running: BTreeMap<ShardName, u32>,
    /// Cannot be repaired: their repairs would report each other's damage for ever.
    lost: BTreeSet<ShardName>,
}

impl Queue {
    fn len(&self) -> usize {
        self.ready.len() + self.later.len() + self.running.len()
    }
}

impl Repairs {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().expect("nothing panics under this lock")
    }

    /// A shard may need repair; one that is known already stays where it is.
    pub(crate) fn push(&self, Suspect { name, owner }: Suspect) {
        let mut queue = self.lock();
        let known = queue.running.contains_key(&name)
            || queue.later.contains_key(&name)
            || queue.lost.contains(&name);
        if !known && queue.len() < WAITING_MAX {
            let known = queue.ready.entry(name).or_default();
            *known = known.or(owner);
        }
    }

    /// The next shard; give it back with [`Repairs::done`] or [`Repairs::failed`].
    pub(crate) fn take(&self, now: Duration) -> Option<Suspect> {
        let mut queue = self.lock();
        if let Some((name, owner)) = queue.ready.pop_first() {
            queue.running.insert(name, 0);
            return Some(Suspect { name, owner });
        }
        let due = queue.later.iter().find(|(_, (at, ..))| *at <= now);
        let (name, attempts, owner) = due.map(|(name, (_, attempts, owner))| (*name, *attempts, *owner))?;
        queue.later.remove(&name);
        queue.running.insert(name, attempts);
        Some(Suspect { name, owner })
    }

    /// Nothing is left to do for it.
    pub(crate) fn done(&self, name: ShardName) {
        self.lock().running.remove(&name);
    }

    /// It cannot be repaired: reports of it mean nothing until [`Repairs::hope_again`].
    pub(crate) fn lost(&self, name: ShardName) {
        let mut queue = self.lock();
        queue.running.remove(&name);
        if queue.lost.len() < WAITING_MAX {
            queue.lost.insert(name);
        }
    }

    /// What was lost is tried again when it is reported again: a scrub begins.
    pub(crate) fn hope_again(&self) {
        self.lock().lost.clear();
    }

    /// It is tried again after a while; `false`: it was tried often enough.
    pub(crate) fn failed(&self, Suspect { name, owner }: Suspect, now: Duration) -> bool {
        let mut queue = self.lock();
        let attempts = queue.running.remove(&name).unwrap_or_default() + 1;
        let again = attempts < ATTEMPTS_MAX;
        if again {
            queue.later.insert(name, (now + RETRY_AFTER * (1 << (attempts - 1)), attempts, owner));
        }
        again
    }

    /// Shards that wait or are being repaired.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use quarry_clustermap::{BlobId, PgId, ShardIndex};

    use super::*;

    fn name(shard: u8) -> Suspect {
        let name = ShardName { pg: PgId(1), blob: BlobId::default(), shard: ShardIndex(shard) };
        Suspect { name, owner: Some(PartitionId(7)) }
    }

    #[test]
    fn a_shard_is_repaired_once_at_a_time_and_again_after_a_failure() {
        let repairs = Repairs::default();
        repairs.push(name(1));
        repairs.push(name(1));
        assert_eq!(repairs.take(Duration::ZERO), Some(name(1)));
        repairs.push(name(1));
        assert_eq!(repairs.take(Duration::ZERO), None);
        assert!(repairs.failed(name(1), Duration::ZERO));
        repairs.push(name(1));
        assert_eq!((repairs.take(Duration::from_secs(1)), repairs.len()), (None, 1));
        assert_eq!(repairs.take(Duration::from_secs(2)), Some(name(1)));
        repairs.done(name(1).name);
        assert_eq!(repairs.len(), 0);
    }

    #[test]
    fn what_is_lost_is_tried_once_per_scrub() {
        let repairs = Repairs::default();
        repairs.push(name(0));
        repairs.lost(repairs.take(Duration::ZERO).unwrap().name);
        repairs.push(name(0));
        assert_eq!(repairs.take(Duration::ZERO), None);
        repairs.hope_again();
        repairs.push(name(0));
        assert_eq!(repairs.take(Duration::ZERO), Some(name(0)));
    }

    #[test]
    fn it_is_given_up_after_some_attempts() {
        let repairs = Repairs::default();
        repairs.push(name(0));
        let mut attempts = 0;
        let mut now = Duration::ZERO;
        loop {
            now += Duration::from_secs(100_000);
            let Some(taken) = repairs.take(now) else { break };
            attempts += 1;
            repairs.failed(taken, now);
        }
        assert_eq!((attempts, repairs.len()), (ATTEMPTS_MAX, 0));
    }
}
