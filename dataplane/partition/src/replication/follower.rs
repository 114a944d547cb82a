//! What a follower does: makes its log equal to the primary's, acknowledges what is flushed, applies what is
//! committed.

use quarry_clustermap::{DeviceId, Epoch, Sequence};

use super::replica::Role;
use super::tail::Tail;
use super::{Message, Output, Replica};
use crate::Entry;

/// How far a follower is; drawn at [`Role`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// In-sync: holds everything committed.
    InSync,
    /// A joiner that has not been told where to begin.
    AwaitingBase,
    /// A joiner whose rows and log are being wiped.
    Resetting,
    /// A joiner that takes entries.
    Appending,
}

/// State of a follower; lives as long as its epoch.
#[derive(Debug)]
pub(super) struct Follower {
    primary: DeviceId,
    stage: Stage,
    /// The log equals the primary's through here; checked in this epoch, or committed.
    matched: Sequence,
    /// A joiner that has kept its rows.
    resumed: bool,
}

impl Follower {
    pub(super) fn new(primary: DeviceId, joining: bool, committed: Sequence) -> Self {
        let stage = if joining { Stage::AwaitingBase } else { Stage::InSync };
        Self { primary, stage, matched: committed, resumed: false }
    }
}

impl Replica {
    pub(super) fn receive_from_primary(
        &mut self,
        now_ms: u64,
        from: DeviceId,
        message: Message,
        out: &mut Vec<Output>,
    ) {
        let Role::Follower(follower) = &mut self.role else { return };
        if self.defects.no_fencing {
            follower.primary = from;
        }
        if from != follower.primary || !self.epoch_durable {
            return;
        }
        let takes_entries = matches!(follower.stage, Stage::InSync | Stage::Appending);
        if let Message::Append { asked_ms, .. } | Message::Commit { asked_ms, .. } = &message
            && let Some(times) = self.lease_times
            && takes_entries
            && *asked_ms > 0
        {
            self.grants.grant(from, self.epoch, *asked_ms, now_ms + times.grant_ms);
        }
        match message {
            Message::Join { base, kept_after, .. } => self.receive_join(base, kept_after, out),
            Message::Commit { committed, .. } if takes_entries => {
                self.follow_commit(committed, out);
                self.acknowledge(out);
            }
            Message::Append { previous, previous_epoch, entries, committed, .. } if takes_entries => {
                let appended = self.receive_append(previous, previous_epoch, entries, committed, out);
                self.follow_commit(committed, out);
                if !appended || self.defects.acknowledge_before_flush {
                    self.acknowledge(out);
                }
            }
            _ => {}
        }
    }

    fn receive_join(&mut self, base: Sequence, kept_after: Sequence, out: &mut Vec<Output>) {
        let resumes = self.may_resume(kept_after);
        let Role::Follower(follower) = &mut self.role else { return };
        match follower.stage {
            Stage::AwaitingBase if resumes => self.resume(out),
            Stage::AwaitingBase => {
                self.whole = false;
                follower.stage = Stage::Resetting;
                follower.matched = base;
                self.tail = Tail::new(base, Vec::new());
                self.flushed = base;
                out.push(Output::Reset { epoch: self.epoch, base });
            }
            Stage::Appending => self.acknowledge(out),
            Stage::InSync | Stage::Resetting => {}
        }
    }

    /// Whether nothing is missing here but entries that the primary has.
    fn may_resume(&self, kept_after: Sequence) -> bool {
        let whole = self.whole || self.defects.resume_in_part && self.tail.committed() > Sequence(0);
        whole && (self.tail.committed() >= kept_after || self.defects.resume_over_a_gap)
    }

    /// Committed entries are the primary's too, whatever has happened since; the rest is not known to be.
    fn resume(&mut self, out: &mut Vec<Output>) {
        let (committed, last) = (self.tail.committed(), self.tail.last());
        let keeps_tail = self.defects.resume_with_tail;
        let Role::Follower(follower) = &mut self.role else { return };
        follower.stage = Stage::Appending;
        follower.resumed = true;
        follower.matched = if keeps_tail { last } else { committed };
        if last > committed && !keeps_tail {
            self.tail.truncate(committed);
            self.flushed = self.flushed.min(committed);
            out.push(Output::Truncate { epoch: self.epoch, after: committed });
        }
        self.acknowledge(out);
    }

    pub(super) fn reset_done(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        let Role::Follower(follower) = &mut self.role else { return };
        if epoch == self.epoch && follower.stage == Stage::Resetting {
            follower.stage = Stage::Appending;
            self.acknowledge(out);
        }
    }

    /// Takes what continues the log; returns whether anything new went to the journal.
    ///
    /// An in-sync member holds every committed entry, so `previous` matches if it is committed at the primary and
    /// within this log. Anything else must carry the epoch that this log has there; if it does not, an earlier
    /// message is missing that would have removed the difference, and this one is dropped.
    fn receive_append(
        &mut self,
        previous: Sequence,
        previous_epoch: Epoch,
        entries: Vec<Entry>,
        committed: Sequence,
        out: &mut Vec<Output>,
    ) -> bool {
        let Role::Follower(follower) = &mut self.role else { return false };
        let known = previous <= follower.matched
            || (previous <= self.tail.last()
                && (previous <= committed || self.tail.epoch_at(previous) == Some(previous_epoch)));
        if !known {
            return false;
        }
        follower.matched = follower.matched.max(previous);
        let mut appended = false;
        for entry in entries {
            if entry.sequence <= follower.matched {
                continue;
            }
            follower.matched = entry.sequence;
            if entry.sequence <= self.tail.last() {
                if self.tail.epoch_at(entry.sequence) == Some(entry.epoch)
                    || self.defects.keep_differing_tails
                {
                    continue;
                }
                let after = Sequence(entry.sequence.0 - 1);
                self.tail.truncate(after);
                self.flushed = self.flushed.min(after);
                out.push(Output::Truncate { epoch: self.epoch, after });
            }
            self.tail.push(entry.clone());
            appended = true;
            out.push(Output::Append { epoch: self.epoch, entry, committed: self.tail.committed() });
        }
        appended
    }

    fn follow_commit(&mut self, committed: Sequence, out: &mut Vec<Output>) {
        let Role::Follower(follower) = &self.role else { return };
        let through = committed.min(follower.matched).min(self.flushed);
        self.commit_through(through, out);
    }

    /// Tells the primary what is flushed. Never before the epoch is durable: it is a promise to refuse lower ones.
    pub(super) fn acknowledge(&mut self, out: &mut Vec<Output>) {
        let Role::Follower(follower) = &self.role else { return };
        if !self.epoch_durable || !matches!(follower.stage, Stage::InSync | Stage::Appending) {
            return;
        }
        let flushed = if self.defects.acknowledge_before_flush {
            follower.matched
        } else {
            self.flushed.min(follower.matched)
        };
        let applied = self.tail.committed();
        let (lease_ms, resumed) = (self.grants.echo(self.epoch), follower.resumed);
        let message = Message::Ack { epoch: self.epoch, flushed, applied, lease_ms, resumed };
        out.push(Output::Send { to: follower.primary, message });
    }
}
