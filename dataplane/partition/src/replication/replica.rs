//! The replica itself: its role, how a configuration changes it, and fencing.

use std::collections::BTreeSet;

use quarry_clustermap::{DeviceId, Epoch, PartitionConfig, PartitionId, Sequence};

use super::defects::Defects;
use super::follower::Follower;
use super::latency::Latency;
use super::lease::{Grants, LeaseTimes};
use super::primary::{Phase, Primary};
use super::tail::{Keep, Tail};
use super::{Input, Message, Output, Refusal, Report};
use crate::RecoveredLog;

/// How often a host is to give [`Input::Tick`], in milliseconds.
pub const TICK_MS: u64 = 20;
/// A member that has not confirmed what was sent to it is sent it again after this, in milliseconds.
pub const RESEND_MS: u64 = 200;
/// Activation is asked for again after this, in milliseconds.
pub const ACTIVATE_RETRY_MS: u64 = 1_000;
/// A hand-over that nobody has taken by then is over, and the primary serves again; in milliseconds.
pub const HAND_OVER_MS: u64 = 2_000;
/// A member that keeps the partition waiting, and a primary with leases that is silent, is reported after this; in
/// milliseconds.
pub const LAGGING_MS: u64 = 3_000;
/// How long a replica that was evicted stays as it is, and the others keep what it misses; in milliseconds.
pub const ABSENCE_MS: u64 = 600_000;
/// Most uncommitted entries before proposals are refused.
pub const IN_FLIGHT_ENTRIES_MAX: usize = 4_096;
/// Most payload bytes of uncommitted entries before proposals are refused; what a new primary may have to resend.
pub const IN_FLIGHT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest encoded page of rows for a joiner. One row always fits, since a payload may be longer than this.
pub const BACKFILL_BYTES_MAX: usize = 1024 * 1024;

/// What this device is to the partition in the epoch in force.
///
/// ```text
///              Configure (a higher epoch; every arrow below but Failed is one)
///   Idle <------> Follower <------> Primary          any --PersistFailed--> Failed
///
///   Follower:  InSync                                Joining: AwaitingBase -> Resetting -> Appending
///   Primary:   Recovering -> Activating -> Serving <-> HandingOver -> HandedOver -> Serving   (HAND_OVER_MS)
///              any phase --higher epoch heard--> Fenced
/// ```
#[derive(Debug)]
pub(super) enum Role {
    /// Not a member, not configured yet, or waiting for an epoch that it has not spent.
    Idle,
    /// Takes entries from the primary.
    Follower(Follower),
    /// Makes entries.
    Primary(Primary),
    /// The device failed.
    Failed,
}

/// One partition's replica on one device. See the module header for the protocol.
#[derive(Debug)]
pub struct Replica {
    pub(super) partition: PartitionId,
    pub(super) me: DeviceId,
    pub(super) min_copies: usize,
    /// Highest epoch adopted; lower ones are refused.
    pub(super) epoch: Epoch,
    /// Whether `epoch` is durable.
    pub(super) epoch_durable: bool,
    /// Highest epoch that the journal held when this run began: spent for primaries and joiners.
    pub(super) epoch_recovered: Epoch,
    pub(super) tail: Tail,
    /// Own log is flushed through here.
    pub(super) flushed: Sequence,
    pub(super) role: Role,
    /// Unanswered proposals and barriers by the sequence they wait for, in order.
    pub(super) waiting: BTreeSet<(Sequence, u64)>,
    /// `None`: all replicas share a process, and no leases are needed.
    pub(super) lease_times: Option<LeaseTimes>,
    pub(super) grants: Grants,
    /// When a new epoch was last asked for, while this one is spent.
    spent_asked_ms: Option<u64>,
    /// Whether a step was made: what an earlier run may have granted counts from the first one.
    started: bool,
    pub(super) latency: Latency,
    /// In-sync members of the newest configuration.
    in_sync: Vec<DeviceId>,
    /// This replica was in-sync in this run and nothing has wiped its rows since: they are whole once it has committed this.
    /// A joiner may be in-sync before it knows that its last pages are committed.
    pub(super) whole: Option<Sequence>,
    /// When an in-sync member was last seen to leave.
    left_ms: Option<u64>,
    pub(super) keep: (Keep, Keep),
    pub(super) defects: Defects,
}

impl Replica {
    /// A replica after a restart (or of an empty log), without a configuration: it answers no one until
    /// [`Input::Configure`]. `min_copies` is the fewest members with which writes are accepted: min(m+1, 2).
    /// `lease_times`: the same for all replicas; `None` if they all share this process.
    ///
    /// # Panics
    /// If the log's tail is not dense after `applied`.
    pub fn recover(
        partition: PartitionId,
        me: DeviceId,
        min_copies: usize,
        log: RecoveredLog,
        lease_times: Option<LeaseTimes>,
    ) -> Self {
        let tail = Tail::new(log.applied, log.tail);
        Self {
            partition,
            me,
            min_copies,
            epoch: log.epoch,
            epoch_durable: true,
            epoch_recovered: log.epoch,
            flushed: tail.last(),
            tail,
            role: Role::Idle,
            waiting: BTreeSet::new(),
            lease_times,
            grants: Grants::default(),
            spent_asked_ms: None,
            started: false,
            latency: Latency::default(),
            in_sync: Vec::new(),
            whole: None,
            left_ms: None,
            keep: (Keep::FEW, Keep::MANY),
            defects: Defects::default(),
        }
    }

    /// One step. `now_ms` is a monotonic clock of any origin; outputs are added to `out`, in order of execution.
    pub fn step(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        if !std::mem::replace(&mut self.started, true)
            && let Some(times) = self.lease_times
            && self.epoch_recovered > Epoch(0)
            && !self.defects.forget_grants
        {
            self.grants.restarted(now_ms + times.grant_ms);
        }
        let (few, many) = self.keep;
        let limit = if self.is_someone_away(now_ms) { many } else { few };
        self.tail.keep(limit, self.primary().map_or(Sequence(u64::MAX), Primary::needed_after));
        match input {
            Input::Configure(config) => self.configure(now_ms, config, out),
            Input::Propose { token, payload } => self.propose(now_ms, token, payload, out),
            Input::Barrier { token } => self.barrier(now_ms, token, out),
            Input::Receive { from, message } => self.receive(now_ms, from, message, out),
            Input::Persisted { epoch, through } => self.persisted(now_ms, epoch, through, out),
            Input::PersistFailed => {
                self.role = Role::Failed;
                self.refuse_waiting(Refusal::DeviceFailed, out);
            }
            Input::Activated { epoch } => self.activated(now_ms, epoch, out),
            Input::ResetDone { epoch } => self.reset_done(epoch, out),
            Input::BackfillRows { epoch, rows, next } => self.backfill_rows(now_ms, epoch, rows, next, out),
            Input::HandOver { wanted } => self.hand_over(now_ms, wanted, out),
            Input::Tick => self.tick(now_ms, out),
        }
    }

    /// Whether this device may answer reads and take proposals now: it is primary, activated, everything that
    /// an earlier primary may have acknowledged is applied, and no later one serves.
    ///
    /// A read must ask this *after* it has its rows, with a clock read after them.
    pub fn is_serving_primary(&self, now_ms: u64) -> bool {
        self.serving(now_ms).is_ok()
    }

    /// Whether the device failed; such a replica does nothing any more.
    pub fn is_failed(&self) -> bool {
        matches!(self.role, Role::Failed)
    }

    /// Whether it was evicted lately and may be back soon: then it needs what it has missed only, if nobody wipes it.
    pub fn may_return(&self, now_ms: u64) -> bool {
        self.is_whole() && matches!(self.role, Role::Idle) && self.is_someone_away(now_ms)
    }

    /// Whether its rows are those of its committed sequence.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.is_some_and(|whole| self.tail.committed() >= whole || self.defects.whole_too_early)
    }

    fn is_someone_away(&self, now_ms: u64) -> bool {
        self.left_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < ABSENCE_MS)
    }

    /// Which partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The highest epoch adopted.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Everything through here is committed, as far as known here, and was handed out by [`Output::Apply`].
    pub fn committed(&self) -> Sequence {
        self.tail.committed()
    }

    /// End of the log; on a primary, the last proposal.
    pub fn last_proposed(&self) -> Sequence {
        self.tail.last()
    }

    /// The log is flushed on this device through here.
    pub fn flushed(&self) -> Sequence {
        self.flushed
    }

    fn configure(&mut self, now_ms: u64, config: PartitionConfig, out: &mut Vec<Output>) {
        if matches!(self.role, Role::Failed) || config.epoch < self.epoch {
            return;
        }
        let again = config.epoch == self.epoch;
        if again && !(matches!(self.role, Role::Idle) && self.epoch == self.epoch_recovered) {
            return;
        }
        let joining = config.joining.contains(&self.me);
        if again && (config.primary == self.me || joining) {
            self.spent_asked_ms = Some(now_ms);
            out.push(Output::Report(Report::NewEpochNeeded { epoch: self.epoch }));
            return;
        }
        self.spent_asked_ms = None;
        if config.primary != self.me {
            self.leave(now_ms, out);
        }
        if !again {
            self.epoch = config.epoch;
            self.epoch_durable = false;
            out.push(Output::RaiseEpoch { epoch: self.epoch, through: self.tail.last() });
        }
        if self.in_sync.iter().any(|device| !config.replicas.contains(device)) {
            self.left_ms = Some(now_ms);
        }
        self.in_sync.clone_from(&config.replicas);
        if config.replicas.contains(&self.me) {
            // All pages that it was sent stand in its log.
            self.whole.get_or_insert(self.tail.last());
        }
        let member_count = config.members().count();
        if config.primary != self.me || member_count < self.min_copies {
            self.refuse_waiting(Refusal::Superseded, out);
        }
        self.role = if config.primary == self.me {
            Role::Primary(Primary::new(&config, (self.tail.committed(), self.tail.kept_after()), now_ms))
        } else if joining || config.replicas.contains(&self.me) {
            Role::Follower(Follower::new(config.primary, joining, self.tail.committed(), now_ms))
        } else {
            Role::Idle
        };
        if again {
            self.epoch_became_durable(now_ms, out);
        }
    }

    fn persisted(&mut self, now_ms: u64, epoch: Epoch, through: Sequence, out: &mut Vec<Output>) {
        if epoch != self.epoch || matches!(self.role, Role::Failed) {
            return;
        }
        assert!(through <= self.tail.last(), "the journal persists what was appended in this epoch");
        self.flushed = self.flushed.max(through);
        if !self.epoch_durable {
            self.epoch_durable = true;
            self.epoch_became_durable(now_ms, out);
            return;
        }
        match &self.role {
            Role::Follower(_) => self.acknowledge(out),
            Role::Primary(_) => self.progress(now_ms, out),
            Role::Idle | Role::Failed => {}
        }
    }

    fn epoch_became_durable(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        match &self.role {
            Role::Primary(_) => self.begin_epoch(now_ms, out),
            Role::Follower(_) => self.acknowledge(out),
            Role::Idle | Role::Failed => {}
        }
    }

    fn receive(&mut self, now_ms: u64, from: DeviceId, message: Message, out: &mut Vec<Output>) {
        if matches!(self.role, Role::Failed) {
            return;
        }
        let epoch = message.epoch();
        if epoch == self.epoch {
            self.heard(now_ms, from);
        }
        if let Message::Release { asked_ms, .. } = message {
            self.grants.released(from, epoch, asked_ms);
            if matches!(&self.role, Role::Primary(_)) {
                self.progress(now_ms, out);
            }
            return;
        }
        if epoch < self.epoch && !self.defects.no_fencing {
            if !matches!(message, Message::Rejected { .. }) {
                out.push(Output::Send { to: from, message: Message::Rejected { epoch: self.epoch } });
            }
            return;
        }
        if epoch > self.epoch && !self.defects.no_fencing {
            self.fence(epoch, out);
            return;
        }
        match message {
            Message::Ack { flushed, applied, lease_ms, resumed, .. } => {
                self.receive_lease(now_ms, from, lease_ms);
                self.receive_ack(now_ms, from, (flushed, applied, resumed), out);
            }
            Message::Rejected { .. } | Message::Release { .. } => {}
            Message::Append { .. } | Message::Join { .. } | Message::Commit { .. } => {
                self.receive_from_primary(now_ms, from, message, out);
            }
        }
    }

    /// A peer lives in a higher epoch: whatever this replica is, it is so no longer.
    fn fence(&mut self, heard: Epoch, out: &mut Vec<Output>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.phase = Phase::Fenced;
        }
        out.push(Output::Report(Report::Outdated { epoch: heard }));
    }

    fn tick(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        match &self.role {
            Role::Primary(_) => self.tick_primary(now_ms, out),
            Role::Idle => {
                if self.spent_asked_ms.is_some_and(|at| now_ms.saturating_sub(at) >= ACTIVATE_RETRY_MS) {
                    self.spent_asked_ms = Some(now_ms);
                    out.push(Output::Report(Report::NewEpochNeeded { epoch: self.epoch }));
                }
            }
            Role::Follower(_) => self.tick_follower(now_ms, out),
            Role::Failed => {}
        }
    }

    pub(super) fn refuse_waiting(&mut self, refusal: Refusal, out: &mut Vec<Output>) {
        for (_, token) in std::mem::take(&mut self.waiting) {
            out.push(Output::Resolve { token, result: Err(refusal) });
        }
    }

    /// Commits and applies through a sequence that the tail holds, and answers who waited for it.
    pub(super) fn commit_through(&mut self, through: Sequence, out: &mut Vec<Output>) {
        while self.tail.committed() < through {
            let entry = self.tail.commit_next();
            out.push(Output::Apply { sequence: entry.sequence, payload: entry.payload });
        }
        while let Some((sequence, token)) = self.waiting.first().copied()
            && sequence <= through
        {
            self.waiting.pop_first();
            out.push(Output::Resolve { token, result: Ok(sequence) });
        }
    }
}
