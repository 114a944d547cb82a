//! What goes into a [`Replica`](super::Replica) and what comes out.

use bytes::Bytes;
use quarry_clustermap::{DeviceId, Epoch, PartitionConfig, Sequence};

use super::Message;
use crate::{Entry, Row};

/// Something that happened. Anything may come late, twice, or never; only what is said below must hold.
#[derive(Clone, Debug)]
pub enum Input {
    /// The control plane's newest entry for this partition, whether or not this device is in it. Old ones are
    /// ignored. After a restart a primary or joiner needs an epoch it has not persisted before.
    Configure(PartitionConfig),
    /// A client's change; answered by one [`Output::Resolve`] with this token.
    Propose {
        /// Chosen by the host, unique among unanswered ones.
        token: u64,
        /// A [`crate::Payload`] frame, of `Mutations` as a rule.
        payload: Bytes,
    },
    /// Answered by one [`Output::Resolve`] once everything proposed before it is committed (at once if it is).
    Barrier {
        /// Chosen by the host, unique among unanswered ones.
        token: u64,
    },
    /// A message of another device's replica of this partition.
    Receive {
        /// The sender.
        from: DeviceId,
        /// What it said.
        message: Message,
    },
    /// A journal output is durable, and so is every journal output before it. Echoes that output's `epoch` and
    /// its sequence (see [`Output`]). One may stand for several: only the last of a batch need be reported.
    Persisted {
        /// `epoch` of the output.
        epoch: Epoch,
        /// `through` of [`Output::RaiseEpoch`], `after` of [`Output::Truncate`], the entry's sequence of
        /// [`Output::Append`].
        through: Sequence,
    },
    /// The device failed a write or a flush: this replica is dead until the device is replaced.
    PersistFailed,
    /// The control plane has recorded that this device is primary of the epoch. Never said of a superseded epoch.
    Activated {
        /// The epoch asked for.
        epoch: Epoch,
    },
    /// [`Output::Reset`] is durable.
    ResetDone {
        /// The epoch of that output.
        epoch: Epoch,
    },
    /// A page of rows for [`Output::ReadBackfill`].
    ///
    /// The rows must be exact with respect to the log position that this call gives them: committed rows and the
    /// effect of every proposal before, of none after. So the host reads the page in the same per-partition FIFO
    /// in which it evaluates commands, and hands it in before it evaluates the next one.
    BackfillRows {
        /// The epoch of that output; pages of older ones are ignored.
        epoch: Epoch,
        /// Whole rows in key order, from the cursor on, at most [`super::BACKFILL_BYTES_MAX`] encoded.
        rows: Vec<Row>,
        /// Where the next page starts; `None` after the last one.
        next: Option<Vec<u8>>,
    },
    /// The node shuts down or drains: finish what is in flight, admit nothing, give the leases back, and report
    /// [`Report::ReadyToHandOver`]. `wanted: false` takes it back: the primary asks for leases anew and serves; it does
    /// so by itself after [`super::HAND_OVER_MS`]. A primary that cannot says [`Report::NotHandedOver`]; others ignore
    /// this.
    HandOver {
        /// Whether to hand over.
        wanted: bool,
    },
    /// Time has passed. Wanted about every [`super::TICK_MS`].
    Tick,
}

/// Something to do. The host executes outputs in the order given.
///
/// `RaiseEpoch`, `Append`, `Truncate` and `Reset` go to the device's journal in that order, and become durable in
/// that order (group commit is fine: a prefix is durable, never a set with holes).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Persist that lower epochs are refused from now on. Same as truncating after `through`, which removes nothing.
    RaiseEpoch {
        /// The epoch to persist.
        epoch: Epoch,
        /// End of the log, to echo in [`Input::Persisted`].
        through: Sequence,
    },
    /// Journal one entry.
    Append {
        /// Epoch in force, to echo in [`Input::Persisted`]; `entry.epoch` may be lower.
        epoch: Epoch,
        /// The entry; follows the end of the log.
        entry: Entry,
        /// Committed sequence known here, to journal with it.
        committed: Sequence,
    },
    /// Remove the uncommitted entries after a sequence.
    Truncate {
        /// Epoch in force, to echo in [`Input::Persisted`].
        epoch: Epoch,
        /// Last entry that stays, to echo in [`Input::Persisted`].
        after: Sequence,
    },
    /// Wipe this partition's rows and log on this device; the log then stands at `base`, all of it applied. Answer
    /// [`Input::ResetDone`] when durable. A reset cut short by a crash is harmless: the next epoch resets again.
    Reset {
        /// Epoch in force.
        epoch: Epoch,
        /// Where the log continues.
        base: Sequence,
    },
    /// A committed entry: make its rows visible. Comes in sequence order, each once per run.
    Apply {
        /// Its position.
        sequence: Sequence,
        /// Its [`crate::Payload`] frame; [`crate::Payload::check`] passed if a message brought it.
        payload: Bytes,
    },
    /// Send to the replica of this partition on another device; may be lost, duplicated, reordered.
    Send {
        /// The device.
        to: DeviceId,
        /// What to say.
        message: Message,
    },
    /// Answer to a proposal (its sequence) or a barrier (the sequence waited for).
    Resolve {
        /// From the input.
        token: u64,
        /// How it ended.
        result: Result<Sequence, Refusal>,
    },
    /// Ask the control plane to record that this device is primary of the epoch, by compare-and-swap. Asked again
    /// on later ticks; a host may ignore repeats of a question under way.
    Activate {
        /// The epoch.
        epoch: Epoch,
    },
    /// Read the next page of rows for the joiners; answer [`Input::BackfillRows`].
    ReadBackfill {
        /// The epoch, to echo.
        epoch: Epoch,
        /// First key wanted; `None`: from the first row.
        cursor: Option<Vec<u8>>,
    },
    /// News for the control plane; repeated on later ticks while it stays true.
    Report(Report),
}

/// News for the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// The joiner's history is whole and committed: it may become in-sync (and primary) in a next epoch.
    Joined {
        /// The joiner.
        device: DeviceId,
        /// The epoch in which it joined; a joiner of any other epoch is not whole.
        epoch: Epoch,
    },
    /// The partition waits for a member longer than members usually take (between [`super::SLOW_MS_MIN`] and
    /// [`super::LAGGING_MS`], early at most once per [`super::EVICTION_WINDOW_MS`]): evict it. Or this in-sync member has heard nothing
    /// from the primary for [`super::LAGGING_MS`].
    Lagging {
        /// The member.
        device: DeviceId,
        /// The epoch in which it lags.
        epoch: Epoch,
    },
    /// This primary has stopped, nothing is in flight, and its leases are given back: name another one.
    ReadyToHandOver {
        /// The epoch in which it was primary.
        epoch: Epoch,
    },
    /// This primary does not serve, has no in-sync peer, or was not replaced in time: it stays what it is.
    NotHandedOver {
        /// The epoch in which it is primary.
        epoch: Epoch,
    },
    /// A peer has a newer epoch than the configuration here: fetch the map.
    Outdated {
        /// The epoch heard of.
        epoch: Epoch,
    },
    /// The configuration names this device primary or joiner of an epoch that it had persisted before it
    /// restarted; it needs a new one.
    NewEpochNeeded {
        /// The spent epoch.
        epoch: Epoch,
    },
}

/// Why a proposal or a barrier was not answered with a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// This device is not the primary of the partition. Nothing was done.
    #[error("this device is not the partition's primary")]
    NotPrimary,
    /// It is, but not yet ready. Nothing was done.
    #[error("the partition's primary is not serving yet")]
    NotServing,
    /// The configuration has fewer members than a write needs copies. Nothing was done.
    #[error("the partition has fewer members than a write needs copies")]
    TooFewCopies,
    /// Too much is in flight. Nothing was done.
    #[error("too many proposals are in flight in the partition")]
    Overloaded,
    /// The payload is over its limit or no payload at all. Nothing was done.
    #[error("the proposal is not a valid payload")]
    Invalid,
    /// The configuration changed under it. The outcome is unknown: it may yet be committed.
    #[error("the partition's configuration changed: the outcome is unknown")]
    Superseded,
    /// The device failed under it. The outcome is unknown: it may yet be committed.
    #[error("the partition's device failed: the outcome is unknown")]
    DeviceFailed,
}

impl Refusal {
    /// Whether the change may have happened, or may yet happen.
    #[must_use]
    pub fn is_outcome_unknown(self) -> bool {
        matches!(self, Self::Superseded | Self::DeviceFailed)
    }
}
