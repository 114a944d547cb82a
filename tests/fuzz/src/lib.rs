//! Hostile bytes for every decoder of what comes from media or the wire.
//!
//! An input is a valid encoding with random content, damaged in a few places, and mostly sealed again: lengths and
//! checksums are made right, so that the damage gets past them to what they protect. It follows from
//! (target, seed, number) alone, whatever ran before: a failure is replayed by these three.
//!
//! What a decoder owes for any input:
//! - it does not panic, nor does the use of what it returned;
//! - it allocates at most the target's factor times the input, and a constant;
//! - the valid encoding itself is accepted (or the fuzzer would test nothing).

mod allocations;
mod damage;
mod engine;
mod form;
mod identity;
mod metastore;
mod object;
mod partition;
mod random;
mod storage;

pub use engine::{Campaign, Failure, Problem, Target, campaign, input, judge};
pub use random::Random;

/// Every decoder.
pub const TARGETS: &[Target] = &[
    storage::SUPERBLOCK,
    storage::BATCH,
    storage::RECORD,
    storage::ROW,
    storage::FREE_MAP,
    storage::tree::TREE,
    storage::device::DEVICE,
    partition::PAYLOAD,
    partition::ENVELOPE,
    partition::MESSAGE,
    partition::ROW,
    object::PEER,
    metastore::FILE,
    metastore::JSON,
    identity::POLICY,
    form::FORM,
];
