//! What replicas of one partition say to each other, and its form on the wire.
//!
//! | message | from -> to | meaning |
//! |---|---|---|
//! | `Join` | primary -> joiner | wipe and continue the log after `base`, or go on if all that is missing is kept |
//! | `Append` | primary -> member | entries that follow `previous`; also tells the committed sequence |
//! | `Commit` | primary -> member | the committed sequence alone |
//! | `Ack` | member -> primary | equal to your log and flushed through here; applied through there |
//! | `Release` | primary -> member | the leases asked for until now are given back |
//! | `Rejected` | any -> any | your epoch is over, this is mine |
//!
//! `asked_ms` is the primary's clock when it asks for a lease, and `lease_ms` its echo; see `lease`.
//!
//! A frame (see `crate::frame`) of kind 2 holds one [`Envelope`] as an rkyv archive, schema version 1.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use quarry_clustermap::{DeviceId, Epoch, PartitionId, Sequence};
use rkyv::{Archive, Deserialize, Serialize};

use crate::frame::FrameKind;
use crate::log::log_frame;
use crate::{Entry, FRAME_HEADER_BYTES, FrameError, PAYLOAD_BYTES_MAX, Payload};

/// Frame of an [`Envelope`].
const ENVELOPE: FrameKind = log_frame(2, ENVELOPE_BYTES_MAX);
/// Payload bytes after which the primary starts another `Append`; one entry always fits.
pub const APPEND_BYTES_MAX: usize = 1024 * 1024;
/// Most entries in one `Append`.
pub const APPEND_ENTRIES_MAX: usize = 256;
/// Longest encoded envelope: a full `Append` whose last entry is the longest, and 64 bytes per entry beside.
pub const ENVELOPE_BYTES_MAX: usize =
    APPEND_BYTES_MAX + PAYLOAD_BYTES_MAX + APPEND_ENTRIES_MAX * 64 + 1024 + FRAME_HEADER_BYTES;

/// One message; every one carries the sender's epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Entries of the primary's log, dense, from `previous + 1` on.
    Append {
        /// Epoch of the sender.
        epoch: Epoch,
        /// The entry before the first one.
        previous: Sequence,
        /// Its epoch; 0 if `previous` is committed and the primary no longer knows.
        previous_epoch: Epoch,
        /// At most [`APPEND_ENTRIES_MAX`].
        entries: Vec<Entry>,
        /// Committed at the primary.
        committed: Sequence,
        /// Sender's clock if it asks for a lease, else 0.
        asked_ms: u64,
    },
    /// Order to a joiner: wipe rows and log, continue after `base`; or keep both, if they are whole and reach at least
    /// `kept_after`. Repeats within one epoch are equal.
    Join {
        /// Epoch of the sender.
        epoch: Epoch,
        /// Where the log of a joiner begins that is wiped.
        base: Sequence,
        /// The primary can send every entry after this one.
        kept_after: Sequence,
    },
    /// Committed sequence, when there is nothing to append.
    Commit {
        /// Epoch of the sender.
        epoch: Epoch,
        /// Committed at the primary.
        committed: Sequence,
        /// Sender's clock if it asks for a lease, else 0.
        asked_ms: u64,
    },
    /// What a member holds.
    Ack {
        /// Epoch of the sender; durable at the sender.
        epoch: Epoch,
        /// Its log equals the primary's through here, and is flushed.
        flushed: Sequence,
        /// Applied through here.
        applied: Sequence,
        /// The newest `asked_ms` for which a lease is granted; 0: none.
        lease_ms: u64,
        /// A joiner that has kept its rows.
        resumed: bool,
    },
    /// The sender stops to serve, or has to ask for leases anew.
    Release {
        /// Epoch of the sender.
        epoch: Epoch,
        /// Leases asked for up to this reading of its clock are given back.
        asked_ms: u64,
    },
    /// Answer to a message of a lower epoch.
    Rejected {
        /// Epoch of the sender.
        epoch: Epoch,
    },
}

impl Message {
    /// The sender's epoch.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Append { epoch, .. }
            | Self::Join { epoch, .. }
            | Self::Commit { epoch, .. }
            | Self::Ack { epoch, .. }
            | Self::Release { epoch, .. }
            | Self::Rejected { epoch } => *epoch,
        }
    }
}

/// A message with its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Whose replicas talk.
    pub partition: PartitionId,
    /// Sender.
    pub from: DeviceId,
    /// Addressee.
    pub to: DeviceId,
    /// What is said.
    pub message: Message,
}

impl Envelope {
    /// The frame that is sent.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] if an `Append` is over the limits that [`super::Replica`] keeps.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        let wire = WireEnvelope {
            partition: self.partition,
            from: self.from,
            to: self.to,
            message: WireMessage::from_message(&self.message),
        };
        let frame = ENVELOPE.encode(&wire);
        if frame.len() > ENVELOPE_BYTES_MAX {
            let actual = frame.len() as u64;
            return Err(FrameError::TooLong { actual, limit: ENVELOPE_BYTES_MAX as u64 });
        }
        Ok(Bytes::from(frame))
    }

    /// Inverse of [`Envelope::encode`]. Payloads stay views into the frame.
    ///
    /// # Errors
    /// Anything but an intact frame with dense entries and valid payloads.
    pub fn decode(frame: &Bytes) -> Result<Self, FrameError> {
        let wire = ENVELOPE.access::<ArchivedWireEnvelope>(frame)?;
        Ok(Self {
            partition: PartitionId(wire.partition.0.into()),
            from: DeviceId(wire.from.0.into()),
            to: DeviceId(wire.to.0.into()),
            message: wire.message.to_message(frame)?,
        })
    }
}

#[derive(Archive, Serialize, Deserialize)]
struct WireEnvelope {
    partition: PartitionId,
    from: DeviceId,
    to: DeviceId,
    message: WireMessage,
}

#[derive(Archive, Serialize, Deserialize)]
struct WireEntry {
    epoch: Epoch,
    sequence: Sequence,
    payload: Vec<u8>,
}

#[derive(Archive, Serialize, Deserialize)]
enum WireMessage {
    Append {
        epoch: Epoch,
        previous: Sequence,
        previous_epoch: Epoch,
        entries: Vec<WireEntry>,
        committed: Sequence,
        asked_ms: u64,
    },
    Join {
        epoch: Epoch,
        base: Sequence,
        kept_after: Sequence,
    },
    Commit {
        epoch: Epoch,
        committed: Sequence,
        asked_ms: u64,
    },
    Ack {
        epoch: Epoch,
        flushed: Sequence,
        applied: Sequence,
        lease_ms: u64,
        resumed: bool,
    },
    Rejected {
        epoch: Epoch,
    },
    Release {
        epoch: Epoch,
        asked_ms: u64,
    },
}

impl WireMessage {
    fn from_message(message: &Message) -> Self {
        match message {
            Message::Append { epoch, previous, previous_epoch, entries, committed, asked_ms } => {
                Self::Append {
                    epoch: *epoch,
                    previous: *previous,
                    previous_epoch: *previous_epoch,
                    entries: entries
                        .iter()
                        .map(|entry| WireEntry {
                            epoch: entry.epoch,
                            sequence: entry.sequence,
                            payload: entry.payload.to_vec(),
                        })
                        .collect(),
                    committed: *committed,
                    asked_ms: *asked_ms,
                }
            }
            Message::Join { epoch, base, kept_after } => {
                Self::Join { epoch: *epoch, base: *base, kept_after: *kept_after }
            }
            Message::Commit { epoch, committed, asked_ms } => {
                Self::Commit { epoch: *epoch, committed: *committed, asked_ms: *asked_ms }
            }
            Message::Ack { epoch, flushed, applied, lease_ms, resumed } => Self::Ack {
                epoch: *epoch,
                flushed: *flushed,
                applied: *applied,
                lease_ms: *lease_ms,
                resumed: *resumed,
            },
            Message::Release { epoch, asked_ms } => Self::Release { epoch: *epoch, asked_ms: *asked_ms },
            Message::Rejected { epoch } => Self::Rejected { epoch: *epoch },
        }
    }
}

impl ArchivedWireMessage {
    fn to_message(&self, frame: &Bytes) -> Result<Message, FrameError> {
        Ok(match self {
            Self::Append { epoch, previous, previous_epoch, entries, committed, asked_ms } => {
                Message::Append {
                    epoch: Epoch(epoch.0.into()),
                    previous: Sequence(previous.0.into()),
                    previous_epoch: Epoch(previous_epoch.0.into()),
                    entries: decode_entries(previous.0.into(), entries, frame)?,
                    committed: Sequence(committed.0.into()),
                    asked_ms: asked_ms.into(),
                }
            }
            Self::Join { epoch, base, kept_after } => Message::Join {
                epoch: Epoch(epoch.0.into()),
                base: Sequence(base.0.into()),
                kept_after: Sequence(kept_after.0.into()),
            },
            Self::Commit { epoch, committed, asked_ms } => Message::Commit {
                epoch: Epoch(epoch.0.into()),
                committed: Sequence(committed.0.into()),
                asked_ms: asked_ms.into(),
            },
            Self::Release { epoch, asked_ms } => {
                Message::Release { epoch: Epoch(epoch.0.into()), asked_ms: asked_ms.into() }
            }
            Self::Ack { epoch, flushed, applied, lease_ms, resumed } => Message::Ack {
                epoch: Epoch(epoch.0.into()),
                flushed: Sequence(flushed.0.into()),
                applied: Sequence(applied.0.into()),
                lease_ms: lease_ms.into(),
                resumed: *resumed,
            },
            Self::Rejected { epoch } => Message::Rejected { epoch: Epoch(epoch.0.into()) },
        })
    }
}

fn decode_entries(
    previous: u64,
    entries: &[ArchivedWireEntry],
    frame: &Bytes,
) -> Result<Vec<Entry>, FrameError> {
    if entries.len() > APPEND_ENTRIES_MAX {
        return Err(FrameError::Rule { rule: "more entries than an append may hold" });
    }
    let mut decoded = Vec::with_capacity(entries.len());
    let mut last = previous;
    for entry in entries {
        let sequence: u64 = entry.sequence.0.into();
        if last.checked_add(1) != Some(sequence) {
            return Err(FrameError::Rule { rule: "entries are not dense" });
        }
        last = sequence;
        Payload::check(&entry.payload)?;
        decoded.push(Entry {
            epoch: Epoch(entry.epoch.0.into()),
            sequence: Sequence(sequence),
            payload: frame.slice_ref(&entry.payload),
        });
    }
    Ok(decoded)
}
