//! The journal: a ring of batches, each made durable by one flush (group commit).
//!
//! `Queue` holds what callers submitted, in order; while one batch is being written and flushed the next one
//! accumulates. `Ring` knows where the next batch goes and what may still be needed by replay.
//!
//! Invariants: batches are dense in sequence and chained by crc; a batch is written only after the flush of the
//! one before it, so at most the last batch of a crashed ring is torn; nothing between the replay start of the
//! newest durable superblock and the head is overwritten; records of one subject (a partition, a placement
//! group) keep their order.
//!
//! Failure model: a failed write or flush is never retried. What a reader finds after the last good batch is a
//! torn tail, unless the header of a later batch stands somewhere in the ring: then the media is damaged.

mod queue;
mod reader;
mod ring;

pub(crate) use queue::{Class, Pending, QUEUE_BYTES_ADMIT, Queue, Subject};
pub(crate) use reader::{RingReader, ScanEnd};
pub(crate) use ring::Ring;
