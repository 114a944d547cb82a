//! Replication of one partition's log: a pure state machine, one [`Replica`] per (partition, device).
//!
//! Primary/backup with the configuration decided elsewhere. An entry is committed when every in-sync and every
//! joining member of the configuration has flushed it; so whichever in-sync member becomes primary next, its log
//! holds everything that was ever acknowledged.
//!
//! **A new epoch.** Every replica first makes the epoch durable; until then it neither sends nor takes entries in
//! it. The primary then appends one `Noop` of the new epoch to its own log and sends everything after its committed
//! sequence. A member skips entries it already holds under the same (epoch, sequence), and removes its own tail
//! from the first one that differs. When all have flushed the `Noop`, all logs are equal through it: no probe and
//! no order to truncate is needed, and no delayed copy of one can do harm. Only then does the primary ask for
//! activation, and only activated does it commit and answer.
//!
//! **Joiners** that were in-sync in the same run, and miss no more than what the primary keeps in memory, take the entries
//! missing (catch-up by log). All others are wiped and continue the log at the primary's committed sequence. Once serving, the primary
//! proposes pages of its rows as `Backfill` entries (the rows go to joiners only, the others hold `Noop` there);
//! because a page is ordered with all other entries, applying in sequence yields exactly the primary's rows. When
//! the last page is committed, and not before, the joiner is reported whole: an uncommitted page could still be
//! rolled back by a primary that never had it. A new epoch starts an unfinished backfill again.
//!
//! Invariants:
//! - (epoch, sequence) names one entry for ever: a primary makes its epoch durable before it sends anything in it,
//!   and after a restart refuses to be primary in an epoch it had made durable;
//! - an in-sync member holds every committed entry, flushed; committed entries are never removed;
//! - an `Ack` speaks of entries that equal the primary's and are flushed, in an epoch that is durable.
//!
//! Failure model: messages are lost, duplicated, reordered, delayed without bound; devices lose unflushed journal
//! suffixes in a crash; a failed write or flush ends the replica. Not covered: a device that lost what it had
//! flushed must not be recovered as a member. Reads of a deposed primary are excluded by peer leases (`lease`);
//! replicas of one process use none.

mod defects;
mod follower;
mod io;
mod latency;
mod lease;
mod message;
mod primary;
mod replica;
#[cfg(test)]
mod sim;
mod tail;
#[cfg(test)]
mod tests;

pub use io::{Input, Output, Refusal, Report};
pub use latency::{EVICTION_WINDOW_MS, SLOW_MS_MIN};
pub use lease::{CLOCK_RATE_PERCENT, LeaseTimes};
pub use message::{APPEND_BYTES_MAX, APPEND_ENTRIES_MAX, ENVELOPE_BYTES_MAX, Envelope, Message};
pub use replica::{
    ABSENCE_MS, ACTIVATE_RETRY_MS, BACKFILL_BYTES_MAX, HAND_OVER_MS, IN_FLIGHT_BYTES_MAX,
    IN_FLIGHT_ENTRIES_MAX, LAGGING_MS, RESEND_MS, Replica, TICK_MS,
};
