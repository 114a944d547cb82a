//! What a primary does: makes entries, sends them, counts flushes, commits, fills joiners.

mod ask;

use bytes::Bytes;
use quarry_clustermap::{DeviceId, Epoch, PartitionConfig, Sequence};

use self::ask::{ask_again, report_handed_over, report_joined};
use super::lease::LeaseTimes;
use super::replica::Role;
use super::{
    HAND_OVER_MS, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_ENTRIES_MAX, LAGGING_MS, Message, Output, RESEND_MS,
    Refusal, Replica, Report,
};
use crate::{Entry, Payload, Row};

/// How far a primary is; drawn at [`Role`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Makes the members' logs equal to its own.
    Recovering,
    /// Logs are equal; waits for the control plane to record that.
    Activating,
    /// Commits and answers, while it holds its leases.
    Serving,
    /// Commits what is in flight, and admits nothing.
    HandingOver,
    /// Nothing is in flight, and the leases are given back.
    HandedOver,
    /// Heard of a higher epoch: commits and answers nothing until it is configured.
    Fenced,
}

/// Filling the joiners of this epoch, all at once.
///
/// ```text
///   Idle --Serving, with joiners--> Reading --BackfillRows--> Proposed --committed--> Reading (there is a next page)
///                                                                     \-committed--> Whole   (that was the last)
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
enum Backfill {
    /// Not serving yet, or nobody joins.
    Idle,
    /// The host reads a page.
    Reading,
    /// A page is in flight: its place in the log, its full payload, where the next one starts.
    Proposed { page: Sequence, payload: Bytes, next: Option<Vec<u8>> },
    /// All joiners are whole.
    Whole,
}

/// What the primary knows of another member.
#[derive(Debug)]
struct Peer {
    device: DeviceId,
    joining: bool,
    /// Has acknowledged something in this epoch; a joiner takes entries only after that.
    heard: bool,
    /// A joiner that has kept its rows: it needs all entries after the first it acknowledges, and no pages.
    resumed: bool,
    /// Equal and flushed through here.
    acked: Sequence,
    /// Applied through here.
    applied: Sequence,
    /// Sent through here since the last resend.
    sent: Sequence,
    /// Newest committed sequence told.
    told: Sequence,
    sent_ms: u64,
    /// When it last advanced, had nothing to do, or was resent to. Not when it was last sent to: new entries would
    /// put off for ever the resending of a lost one.
    retry_ms: u64,
    /// When it last advanced, or had nothing to do, or was reported.
    progress_ms: u64,
    /// Own clock when the newest lease it granted was asked for; 0: none.
    lease_ms: u64,
}

impl Peer {
    /// What it surely has: what it acknowledged, and what is committed, unless it was away then.
    fn next_after(&self, committed: Sequence) -> Sequence {
        if self.resumed { self.acked } else { self.acked.max(committed) }
    }
}

/// State of a primary; lives as long as its epoch.
#[derive(Debug)]
pub(super) struct Primary {
    pub(super) phase: Phase,
    /// First entry of this epoch: once all have flushed it, all logs are equal.
    noop: Sequence,
    /// Where joiners of this epoch begin that are wiped.
    base: Sequence,
    /// Where those are at least that need not be.
    kept_after: Sequence,
    peers: Vec<Peer>,
    backfill: Backfill,
    /// When activation was last asked for, or joiners last reported.
    asked_ms: u64,
    /// Leases asked for up to here are given back.
    released_ms: u64,
    /// When handing over began.
    handing_over_ms: u64,
}

impl Primary {
    pub(super) fn new(
        config: &PartitionConfig,
        (committed, kept_after): (Sequence, Sequence),
        now_ms: u64,
    ) -> Self {
        let peer = |device: &DeviceId, joining| Peer {
            device: *device,
            joining,
            heard: false,
            resumed: false,
            acked: Sequence(0),
            applied: Sequence(0),
            sent: committed,
            told: Sequence(0),
            sent_ms: now_ms,
            retry_ms: now_ms,
            progress_ms: now_ms,
            lease_ms: 0,
        };
        let in_sync = config.replicas.iter().filter(|device| **device != config.primary);
        let peers = in_sync.map(|device| peer(device, false));
        let peers = peers.chain(config.joining.iter().map(|device| peer(device, true))).collect();
        Self {
            phase: Phase::Recovering,
            noop: Sequence(u64::MAX),
            base: committed,
            kept_after,
            peers,
            backfill: Backfill::Idle,
            asked_ms: now_ms,
            released_ms: 0,
            handing_over_ms: 0,
        }
    }

    /// Entries after this one may still have to be sent to joiners that keep their rows.
    pub(super) fn needed_after(&self) -> Sequence {
        let after = |peer: &Peer| match (peer.heard, peer.resumed) {
            (false, _) => self.kept_after,
            (true, true) => peer.acked,
            (true, false) => Sequence(u64::MAX),
        };
        let joiners = self.peers.iter().filter(|peer| peer.joining);
        joiners.map(after).min().unwrap_or(Sequence(u64::MAX))
    }

    /// Whether a peer's lease is needed for serving.
    fn needs_lease_of(&self, peer: &Peer) -> bool {
        !peer.joining || self.backfill == Backfill::Whole
    }

    /// Peers without whose leases this primary does not serve, although it has asked and would.
    fn unleased(&self, times: Option<LeaseTimes>, now_ms: u64) -> Vec<DeviceId> {
        let Some(times) = times.filter(|_| self.phase == Phase::Serving) else { return Vec::new() };
        let over = |peer: &&Peer| self.needs_lease_of(peer) && now_ms >= peer.lease_ms + times.hold_ms;
        self.peers.iter().filter(over).map(|peer| peer.device).collect()
    }

    /// After a hand-over that was not taken: the next tick asks for leases.
    fn serve_again(&mut self) {
        self.phase = Phase::Serving;
        self.peers.iter_mut().for_each(|peer| peer.sent_ms = 0);
    }

    fn peer_mut(&mut self, device: DeviceId) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.device == device)
    }
}

impl Replica {
    pub(super) fn primary(&self) -> Option<&Primary> {
        match &self.role {
            Role::Primary(primary) => Some(primary),
            Role::Idle | Role::Follower(_) | Role::Failed => None,
        }
    }

    fn primary_mut(&mut self) -> Option<&mut Primary> {
        match &mut self.role {
            Role::Primary(primary) => Some(primary),
            Role::Idle | Role::Follower(_) | Role::Failed => None,
        }
    }

    /// The epoch is durable: appends its first entry and tells the members.
    pub(super) fn begin_epoch(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let payload = Payload::Noop.encode().expect("a payload without rows is within every limit");
        let noop = self.append_own(payload, out);
        let epoch = self.epoch;
        let Some(primary) = self.primary_mut() else { return };
        primary.noop = noop;
        let (base, kept_after) = (primary.base, primary.kept_after);
        for peer in primary.peers.iter_mut().filter(|peer| peer.joining) {
            peer.sent_ms = now_ms;
            let message = Message::Join { epoch, base, kept_after };
            out.push(Output::Send { to: peer.device, message });
        }
        self.send_to_all(now_ms, out);
        self.progress(now_ms, out);
    }

    pub(super) fn propose(&mut self, now_ms: u64, token: u64, payload: Bytes, out: &mut Vec<Output>) {
        if let Err(refusal) = self.admit(now_ms, &payload) {
            out.push(Output::Resolve { token, result: Err(refusal) });
            return;
        }
        let sequence = self.append_own(payload, out);
        self.waiting.insert((sequence, token));
        self.send_to_all(now_ms, out);
        self.progress(now_ms, out);
    }

    pub(super) fn barrier(&mut self, now_ms: u64, token: u64, out: &mut Vec<Output>) {
        let result = match self.serving(now_ms) {
            Err(refusal) => Err(refusal),
            Ok(_) if self.tail.committed() < self.tail.last() => {
                self.waiting.insert((self.tail.last(), token));
                return;
            }
            Ok(_) => Ok(self.tail.committed()),
        };
        out.push(Output::Resolve { token, result });
    }

    pub(super) fn serving(&self, now_ms: u64) -> Result<&Primary, Refusal> {
        let primary = self.primary().ok_or(Refusal::NotPrimary)?;
        let releasing = matches!(primary.phase, Phase::HandingOver | Phase::HandedOver);
        if releasing && self.defects.serve_after_release {
            return Ok(primary);
        }
        let serves = primary.phase == Phase::Serving && self.holds_leases(primary, now_ms);
        if serves { Ok(primary) } else { Err(Refusal::NotServing) }
    }

    /// Whether no later primary can serve yet; the argument is in `lease`.
    fn holds_leases(&self, primary: &Primary, now_ms: u64) -> bool {
        let Some(times) = self.lease_times else { return true };
        if self.defects.serve_without_lease {
            return true;
        }
        let hold_ms = if self.defects.ignore_clock_rates { times.grant_ms } else { times.hold_ms };
        let counts = |peer: &&Peer| {
            primary.needs_lease_of(peer) && !(peer.joining && self.defects.no_lease_of_joiners)
        };
        let mut granters = primary.peers.iter().filter(counts);
        granters.all(|peer| peer.lease_ms > primary.released_ms && now_ms < peer.lease_ms + hold_ms)
    }

    pub(super) fn receive_lease(&mut self, now_ms: u64, from: DeviceId, lease_ms: u64) {
        let from_arrival = self.defects.lease_from_arrival && lease_ms > 0;
        let Some(peer) = self.primary_mut().and_then(|primary| primary.peer_mut(from)) else { return };
        let lease_ms = if from_arrival { now_ms } else { lease_ms.min(now_ms) };
        peer.lease_ms = peer.lease_ms.max(lease_ms);
    }

    /// Refused if nobody could follow: then serving until the end is the shorter gap.
    pub(super) fn hand_over(&mut self, now_ms: u64, wanted: bool, out: &mut Vec<Output>) {
        let epoch = self.epoch;
        let Some(primary) = self.primary_mut() else { return };
        let another = primary.peers.iter().any(|peer| !peer.joining);
        match (primary.phase, wanted) {
            (Phase::HandingOver | Phase::HandedOver, true) => return,
            (Phase::Serving, true) if another => {
                primary.phase = Phase::HandingOver;
                primary.handing_over_ms = now_ms;
            }
            (_, true) => {
                out.push(Output::Report(Report::NotHandedOver { epoch }));
                return;
            }
            (Phase::HandingOver | Phase::HandedOver, false) => primary.serve_again(),
            (_, false) => return,
        }
        self.progress(now_ms, out);
    }

    /// Another one is primary from now on, and this one never serves in its epoch again: its leases are given back, so that
    /// the other need not wait until they run out.
    pub(super) fn leave(&self, now_ms: u64, out: &mut Vec<Output>) {
        let (Some(primary), Some(_)) = (self.primary(), self.lease_times) else { return };
        for peer in &primary.peers {
            let message = Message::Release { epoch: self.epoch, asked_ms: now_ms };
            out.push(Output::Send { to: peer.device, message });
        }
    }

    /// Nobody took over in time: serves again.
    fn give_up_handing_over(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let epoch = self.epoch;
        let Some(primary) = self.primary_mut() else { return };
        let handing_over = matches!(primary.phase, Phase::HandingOver | Phase::HandedOver);
        if handing_over && now_ms.saturating_sub(primary.handing_over_ms) >= HAND_OVER_MS {
            primary.serve_again();
            out.push(Output::Report(Report::NotHandedOver { epoch }));
        }
    }

    fn admit(&self, now_ms: u64, payload: &[u8]) -> Result<(), Refusal> {
        let primary = self.serving(now_ms)?;
        if primary.peers.len() + 1 < self.min_copies {
            return Err(Refusal::TooFewCopies);
        }
        let bytes = self.tail.payload_bytes() + payload.len();
        if self.tail.len() >= IN_FLIGHT_ENTRIES_MAX || bytes > IN_FLIGHT_BYTES_MAX {
            return Err(Refusal::Overloaded);
        }
        Payload::check(payload).map_err(|_| Refusal::Invalid)
    }

    /// Appends to the own log; the journal flushes it while the members do the same.
    fn append_own(&mut self, payload: Bytes, out: &mut Vec<Output>) -> Sequence {
        let entry = Entry { epoch: self.epoch, sequence: self.tail.last().next(), payload };
        let sequence = entry.sequence;
        self.tail.push(entry.clone());
        out.push(Output::Append { epoch: self.epoch, entry, committed: self.tail.committed() });
        sequence
    }

    fn send_to_all(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if !self.epoch_durable {
            return;
        }
        let asked_ms = self.asked_ms(now_ms);
        let Role::Primary(primary) = &mut self.role else { return };
        for peer in &mut primary.peers {
            if peer.joining && !peer.heard {
                continue;
            }
            let page = match &primary.backfill {
                Backfill::Proposed { page, payload, .. } if peer.joining => Some((*page, payload)),
                _ => None,
            };
            send_entries(self.epoch, &self.tail, peer, page, (now_ms, asked_ms), out);
        }
    }

    pub(super) fn receive_ack(
        &mut self,
        now_ms: u64,
        from: DeviceId,
        (flushed, applied, resumed): (Sequence, Sequence, bool),
        out: &mut Vec<Output>,
    ) {
        let (last, committed) = (self.tail.last(), self.tail.committed());
        let Some(peer) = self.primary_mut().and_then(|primary| primary.peer_mut(from)) else { return };
        let flushed = flushed.min(last);
        let waited_ms = now_ms.saturating_sub(peer.progress_ms);
        let advanced = flushed > peer.acked && peer.heard;
        if flushed > peer.acked || !peer.heard {
            peer.progress_ms = now_ms;
            peer.retry_ms = now_ms;
        }
        let first = !peer.heard;
        peer.heard = true;
        peer.resumed |= peer.joining && resumed;
        peer.acked = peer.acked.max(flushed);
        peer.applied = peer.applied.max(applied);
        // What was sent before it had adopted the epoch was dropped there.
        peer.sent = if first { peer.next_after(committed) } else { peer.sent.max(peer.acked) };
        if advanced {
            self.latency.learn(waited_ms);
        }
        if first {
            self.send_to_all(now_ms, out);
        }
        self.progress(now_ms, out);
    }

    /// What every member that counts has flushed.
    fn flushed_by_all(&self, primary: &Primary) -> Sequence {
        let own = if self.defects.acknowledge_before_flush { self.tail.last() } else { self.flushed };
        let counts = |peer: &&Peer| !(peer.joining && self.defects.commit_without_joiners);
        let mut flushed: Vec<Sequence> = primary.peers.iter().filter(counts).map(|peer| peer.acked).collect();
        flushed.push(own);
        flushed.sort_unstable();
        if self.defects.commit_without_slowest && flushed.len() > 1 {
            flushed.remove(0);
        }
        flushed[0]
    }

    /// Something was flushed somewhere, or the phase changed: does what has become possible.
    pub(super) fn progress(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let Some(primary) = self.primary() else { return };
        let flushed = self.flushed_by_all(primary);
        match primary.phase {
            Phase::Recovering if flushed >= primary.noop && self.may_activate(now_ms) => {
                let epoch = self.epoch;
                let serve = self.defects.serve_before_activation;
                let Some(primary) = self.primary_mut() else { return };
                primary.phase = Phase::Activating;
                primary.asked_ms = now_ms;
                out.push(Output::Activate { epoch });
                if serve {
                    self.activated(now_ms, epoch, out);
                }
            }
            Phase::Serving if self.holds_leases(primary, now_ms) => {
                self.commit_through(flushed, out);
                self.continue_backfill(now_ms, out);
            }
            Phase::HandingOver if self.holds_leases(primary, now_ms) => {
                self.commit_through(flushed, out);
                self.release(now_ms, out);
            }
            Phase::Recovering
            | Phase::Activating
            | Phase::Serving
            | Phase::HandingOver
            | Phase::HandedOver
            | Phase::Fenced => {}
        }
    }

    /// Whether no earlier primary can serve any more, as far as that depends on this replica's grants.
    fn may_activate(&self, now_ms: u64) -> bool {
        self.lease_times.is_none() || self.defects.ignore_grants || self.grants.are_over(now_ms)
    }

    /// What a message sent now says of leases.
    fn asked_ms(&self, now_ms: u64) -> u64 {
        let over = self.primary().is_some_and(|primary| primary.phase == Phase::HandedOver);
        if self.lease_times.is_some() && !over { now_ms } else { 0 }
    }

    /// Nothing is in flight any more: gives the leases back.
    fn release(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if self.tail.committed() < self.tail.last() {
            return;
        }
        let (epoch, leased) = (self.epoch, self.lease_times.is_some());
        let Some(primary) = self.primary_mut() else { return };
        primary.phase = Phase::HandedOver;
        primary.released_ms = now_ms;
        report_handed_over(primary, epoch, leased, now_ms, out);
    }

    pub(super) fn activated(&mut self, now_ms: u64, epoch: Epoch, out: &mut Vec<Output>) {
        if epoch != self.epoch {
            return;
        }
        let noop = Payload::Noop.encode().expect("a payload without rows is within every limit");
        let Some(primary) = self.primary_mut() else { return };
        if primary.phase != Phase::Activating {
            return;
        }
        primary.phase = Phase::Serving;
        let mut joiners = primary.peers.iter().filter(|peer| peer.joining).peekable();
        if joiners.peek().is_some() {
            if joiners.all(|peer| peer.resumed) {
                // They are whole when the first entry of this epoch is committed: they had to take all before it.
                primary.backfill = Backfill::Proposed { page: primary.noop, payload: noop, next: None };
            } else {
                primary.backfill = Backfill::Reading;
                out.push(Output::ReadBackfill { epoch, cursor: None });
            }
        }
        self.progress(now_ms, out);
    }

    pub(super) fn backfill_rows(
        &mut self,
        now_ms: u64,
        epoch: Epoch,
        rows: Vec<Row>,
        next: Option<Vec<u8>>,
        out: &mut Vec<Output>,
    ) {
        // Not whether leases are held: an entry may always be appended, and one page lost would end the backfill.
        let reading = self
            .primary()
            .is_some_and(|primary| primary.phase == Phase::Serving && primary.backfill == Backfill::Reading);
        if epoch != self.epoch || !reading {
            return;
        }
        let payload = Payload::Backfill(rows).encode().expect("the host keeps the limit of a page");
        let noop = Payload::Noop.encode().expect("a payload without rows is within every limit");
        let page = self.append_own(noop, out);
        let Some(primary) = self.primary_mut() else { return };
        primary.backfill = Backfill::Proposed { page, payload, next };
        self.send_to_all(now_ms, out);
        self.progress(now_ms, out);
    }

    fn continue_backfill(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let (epoch, committed, early) = (self.epoch, self.tail.committed(), self.defects.report_joined_early);
        let Some(primary) = self.primary_mut() else { return };
        let Backfill::Proposed { page, next, .. } = &mut primary.backfill else { return };
        if *page > committed && !(early && next.is_none()) {
            return;
        }
        match next.take() {
            Some(cursor) => {
                primary.backfill = Backfill::Reading;
                out.push(Output::ReadBackfill { epoch, cursor: Some(cursor) });
            }
            None => {
                primary.backfill = Backfill::Whole;
                report_joined(primary, epoch, now_ms, out);
            }
        }
    }

    /// Resends what is overdue, tells the committed sequence where it is not known, reports who keeps us waiting.
    pub(super) fn tick_primary(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let (epoch, last, committed) = (self.epoch, self.tail.last(), self.tail.committed());
        if !self.epoch_durable {
            return;
        }
        self.give_up_handing_over(now_ms, out);
        let asked_ms = self.asked_ms(now_ms);
        let renew_ms = self.lease_times.map_or(u64::MAX, |times| times.renew_ms());
        let Role::Primary(primary) = &mut self.role else { return };
        if matches!(primary.phase, Phase::Fenced) {
            return;
        }
        let (base, kept_after) = (primary.base, primary.kept_after);
        let unleased = primary.unleased(self.lease_times, now_ms);
        for peer in &mut primary.peers {
            let overdue = now_ms.saturating_sub(peer.sent_ms) >= RESEND_MS;
            let behind = !peer.heard || peer.acked < last;
            if !behind {
                peer.retry_ms = now_ms;
                // Without its lease nothing is served, so nothing is proposed that it could be behind with.
                if !unleased.contains(&peer.device) {
                    peer.progress_ms = now_ms;
                }
            }
            if peer.joining && !peer.heard {
                if overdue {
                    peer.sent_ms = now_ms;
                    out.push(Output::Send {
                        to: peer.device,
                        message: Message::Join { epoch, base, kept_after },
                    });
                }
            } else if behind && now_ms.saturating_sub(peer.retry_ms) >= RESEND_MS {
                peer.retry_ms = now_ms;
                peer.sent = peer.next_after(committed);
                let page = match &primary.backfill {
                    Backfill::Proposed { page, payload, .. } if peer.joining => Some((*page, payload)),
                    _ => None,
                };
                send_entries(epoch, &self.tail, peer, page, (now_ms, asked_ms), out);
            } else if peer.told < committed
                || (peer.applied < committed && overdue)
                || (primary.phase != Phase::HandedOver && now_ms.saturating_sub(peer.sent_ms) >= renew_ms)
            {
                peer.told = committed;
                peer.sent_ms = now_ms;
                out.push(Output::Send {
                    to: peer.device,
                    message: Message::Commit { epoch, committed, asked_ms },
                });
            }
            let waited_ms = now_ms.saturating_sub(peer.progress_ms);
            if self.latency.is_too_slow(now_ms, waited_ms, LAGGING_MS) {
                peer.progress_ms = now_ms;
                out.push(Output::Report(Report::Lagging { device: peer.device, epoch }));
            }
        }
        ask_again(primary, epoch, renew_ms != u64::MAX, now_ms, out);
        if renew_ms != u64::MAX {
            self.progress(now_ms, out);
        }
    }
}

/// Sends everything not sent yet. `page` replaces the payload at its sequence: joiners get a page's rows.
fn send_entries(
    epoch: Epoch,
    tail: &super::tail::Tail,
    peer: &mut Peer,
    page: Option<(Sequence, &Bytes)>,
    (now_ms, asked_ms): (u64, u64),
    out: &mut Vec<Output>,
) {
    let committed = tail.committed();
    while peer.sent.max(peer.next_after(committed)) < tail.last() {
        let previous = peer.sent.max(peer.next_after(committed));
        let mut entries = tail.batch_after(previous);
        for entry in &mut entries {
            if let Some((sequence, payload)) = page
                && entry.sequence == sequence
            {
                entry.payload = payload.clone();
            }
        }
        peer.sent = Sequence(previous.0 + entries.len() as u64);
        peer.told = committed;
        peer.sent_ms = now_ms;
        let previous_epoch = tail.epoch_at(previous).unwrap_or_default();
        let message = Message::Append { epoch, previous, previous_epoch, entries, committed, asked_ms };
        out.push(Output::Send { to: peer.device, message });
    }
}
