//! What waits for the next batch.

use std::collections::{HashSet, VecDeque};

use futures::channel::oneshot;
use quarry_clustermap::{PartitionId, PgId};

use super::Ring;
use crate::format::record::Record;
use crate::store::StoreError;

/// Bytes that wait beyond which what can be refused without harm is refused: shards, device-local rows, and, by the
/// primaries ([`crate::store::SharedStats::queue_is_long`]), commands before anything is done.
pub(crate) const QUEUE_BYTES_ADMIT: usize = 32 << 20;
/// Most bytes that wait, of any kind: a replica that cannot journal what was proposed elsewhere is lost, so this lies
/// well above what is admitted.
const QUEUE_BYTES_MAX: usize = 256 << 20;

/// Which part of the ring a record may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Waits while the ring is nearly full.
    Ordinary,
    /// Frees space or fences: has a reserve.
    Privileged,
    /// Uncommitted entries that a checkpoint appends anew: may use what is left.
    Tail,
}

/// What a record is about: records of one subject never overtake each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Subject {
    /// A partition's log.
    Partition(PartitionId),
    /// Shards and epoch of a placement group.
    Pg(PgId),
    /// Device-local rows.
    Local,
}

/// One record on its way to the device.
pub(crate) struct Pending {
    /// Its frame.
    pub(crate) bytes: Vec<u8>,
    /// What to apply once it is durable; `None` if it is applied already.
    pub(crate) record: Option<Record>,
    pub(crate) subject: Subject,
    pub(crate) class: Class,
    /// Whether it is an entry that counts against the limit of uncommitted bytes.
    pub(crate) grows_tail: bool,
    pub(crate) done: oneshot::Sender<Result<(), StoreError>>,
    /// Kept until the record is durable and applied.
    pub(crate) hold: Option<Box<dyn std::any::Any>>,
}

/// Records in the order of submission.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: VecDeque<Pending>,
    bytes: usize,
}

impl Queue {
    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn push(&mut self, pending: Pending) -> Result<(), StoreError> {
        let is_replicated = matches!(pending.subject, Subject::Partition(_));
        let may_be_refused = pending.class == Class::Ordinary && !is_replicated;
        let limit = if may_be_refused { QUEUE_BYTES_ADMIT } else { QUEUE_BYTES_MAX };
        if self.bytes + pending.bytes.len() > limit {
            return Err(StoreError::Overloaded { queued_bytes: self.bytes as u64 });
        }
        self.bytes += pending.bytes.len();
        self.waiting.push_back(pending);
        Ok(())
    }

    /// Puts records before everything that waits, in the given order.
    pub(crate) fn push_front(&mut self, first: Vec<Pending>) {
        for pending in first.into_iter().rev() {
            self.bytes += pending.bytes.len();
            self.waiting.push_front(pending);
        }
    }

    /// Takes the records of the next batch, passing over those that must wait for room and what follows them.
    pub(crate) fn take_batch(&mut self, ring: &Ring, tail_bytes: usize) -> Vec<Pending> {
        let mut batch = Vec::new();
        let (mut total, mut tail_total) = (0, tail_bytes);
        let mut skipped = HashSet::new();
        let mut kept = VecDeque::new();
        let limit = ring.payload_bytes_max();
        while let Some(pending) = self.waiting.pop_front() {
            let length = pending.bytes.len();
            if total + length > limit {
                kept.push_back(pending);
                break;
            }
            let tail_full =
                pending.grows_tail && tail_total > 0 && tail_total + length > ring.tail_bytes_max();
            let no_room = total + length > ring.room_bytes(pending.class);
            if tail_full || no_room || skipped.contains(&pending.subject) {
                skipped.insert(pending.subject);
                kept.push_back(pending);
                continue;
            }
            total += length;
            tail_total += if pending.grows_tail { length } else { 0 };
            self.bytes -= length;
            batch.push(pending);
        }
        kept.append(&mut self.waiting);
        self.waiting = kept;
        batch
    }

    /// Takes everything, to be refused.
    pub(crate) fn drain(&mut self) -> Vec<Pending> {
        self.bytes = 0;
        self.waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut Queue, subject: Subject, class: Class) -> Result<(), StoreError> {
        let (done, _) = oneshot::channel();
        let bytes = vec![0; 1 << 20];
        queue.push(Pending { bytes, record: None, subject, class, grows_tail: false, done, hold: None })
    }

    #[test]
    fn what_was_admitted_elsewhere_has_room_when_the_rest_is_refused() {
        let mut queue = Queue::default();
        let shard = (Subject::Pg(PgId(1)), Class::Ordinary);
        while push(&mut queue, shard.0, shard.1).is_ok() {}
        assert_eq!(queue.bytes(), QUEUE_BYTES_ADMIT);
        assert!(push(&mut queue, Subject::Local, Class::Ordinary).is_err());
        push(&mut queue, Subject::Pg(PgId(1)), Class::Privileged).unwrap();
        while push(&mut queue, Subject::Partition(PartitionId(1)), Class::Ordinary).is_ok() {}
        assert_eq!(queue.bytes(), QUEUE_BYTES_MAX);
        assert_eq!(queue.drain().len(), QUEUE_BYTES_MAX >> 20);
        assert_eq!(queue.bytes(), 0);
    }
}
