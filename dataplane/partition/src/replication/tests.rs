//! Single rules, one replica at a time; their interplay is the simulator's business.

mod leases;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quarry_clustermap::{DeviceId, Epoch, PartitionConfig, PartitionId, Sequence};

use super::{IN_FLIGHT_ENTRIES_MAX, Input, LAGGING_MS, Message, Output, RESEND_MS, Refusal, Replica, Report};
use crate::{Entry, Payload, RecoveredLog, Row};

const A: DeviceId = DeviceId(1);
const B: DeviceId = DeviceId(2);

fn config(epoch: u64, replicas: &[DeviceId], joining: &[DeviceId]) -> PartitionConfig {
    let (replicas, joining) = (replicas.to_vec(), joining.to_vec());
    PartitionConfig {
        epoch: Epoch(epoch),
        primary: replicas[0],
        replicas,
        joining,
        lost: BTreeSet::new(),
        away: BTreeMap::new(),
    }
}

fn mutation() -> Bytes {
    Payload::Mutations(vec![Row { key: b"k".to_vec(), value: None }]).encode().unwrap()
}

fn step(replica: &mut Replica, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    replica.step(0, input, &mut out);
    out
}

fn resolved(out: &[Output]) -> Vec<(u64, Result<Sequence, Refusal>)> {
    let resolve = |output: &Output| match output {
        Output::Resolve { token, result } => Some((*token, *result)),
        _ => None,
    };
    out.iter().filter_map(resolve).collect()
}

/// A primary that serves in epoch 1 with an empty log: its first entry is committed.
fn serving(min_copies: usize, members: &[DeviceId]) -> Replica {
    let mut replica = Replica::recover(PartitionId(0), A, min_copies, RecoveredLog::default(), None);
    step(&mut replica, Input::Configure(config(1, members, &[])));
    step(&mut replica, Input::Persisted { epoch: Epoch(1), through: Sequence(0) });
    step(&mut replica, Input::Persisted { epoch: Epoch(1), through: Sequence(1) });
    for member in &members[1..] {
        ack(&mut replica, *member, 1, 1);
    }
    assert!(!replica.is_serving_primary(0));
    step(&mut replica, Input::Activated { epoch: Epoch(1) });
    assert!(replica.is_serving_primary(0));
    assert_eq!(replica.committed(), Sequence(1));
    replica
}

fn ack(replica: &mut Replica, from: DeviceId, epoch: u64, flushed: u64) -> Vec<Output> {
    let message = Message::Ack {
        epoch: Epoch(epoch),
        flushed: Sequence(flushed),
        applied: Sequence(0),
        lease_ms: 0,
        resumed: false,
    };
    step(replica, Input::Receive { from, message })
}

#[test]
fn one_copy_serves_alone() {
    let mut replica = serving(1, &[A]);
    assert_eq!(resolved(&step(&mut replica, Input::Propose { token: 9, payload: mutation() })), []);
    let out = step(&mut replica, Input::Persisted { epoch: Epoch(1), through: Sequence(2) });
    assert!(matches!(out[0], Output::Apply { sequence: Sequence(2), .. }), "applied before it is answered");
    assert_eq!(resolved(&out), [(9, Ok(Sequence(2)))]);
}

#[test]
fn too_few_members_refuse_writes_but_serve() {
    let mut replica = serving(2, &[A]);
    let out = step(&mut replica, Input::Propose { token: 1, payload: mutation() });
    assert_eq!(resolved(&out), [(1, Err(Refusal::TooFewCopies))]);
    let out = step(&mut replica, Input::Barrier { token: 2 });
    assert_eq!(resolved(&out), [(2, Ok(Sequence(1)))]);
}

#[test]
fn a_barrier_waits_for_what_was_proposed_before() {
    let mut replica = serving(2, &[A, B]);
    step(&mut replica, Input::Propose { token: 1, payload: mutation() });
    assert_eq!(resolved(&step(&mut replica, Input::Barrier { token: 2 })), []);
    step(&mut replica, Input::Propose { token: 3, payload: mutation() });
    step(&mut replica, Input::Persisted { epoch: Epoch(1), through: Sequence(3) });
    assert_eq!(resolved(&ack(&mut replica, B, 1, 2)), [(1, Ok(Sequence(2))), (2, Ok(Sequence(2)))]);
    assert_eq!(resolved(&ack(&mut replica, B, 1, 3)), [(3, Ok(Sequence(3)))]);
}

#[test]
fn proposals_stay_in_flight_while_primary_and_are_superseded_after() {
    let mut replica = serving(2, &[A, B]);
    step(&mut replica, Input::Propose { token: 1, payload: mutation() });
    assert_eq!(resolved(&step(&mut replica, Input::Configure(config(2, &[A, B], &[])))), []);
    let out = step(&mut replica, Input::Propose { token: 2, payload: mutation() });
    assert_eq!(resolved(&out), [(2, Err(Refusal::NotServing))]);
    let out = step(&mut replica, Input::Configure(config(3, &[B, A], &[])));
    assert_eq!(resolved(&out), [(1, Err(Refusal::Superseded))]);
    let out = step(&mut replica, Input::Propose { token: 3, payload: mutation() });
    assert_eq!(resolved(&out), [(3, Err(Refusal::NotPrimary))]);
}

#[test]
fn a_failed_device_answers_and_stops() {
    let mut replica = serving(2, &[A, B]);
    step(&mut replica, Input::Propose { token: 1, payload: mutation() });
    let out = step(&mut replica, Input::PersistFailed);
    assert_eq!(resolved(&out), [(1, Err(Refusal::DeviceFailed))]);
    assert!(replica.is_failed() && !replica.is_serving_primary(0));
    assert_eq!(ack(&mut replica, B, 1, 2), []);
    assert_eq!(step(&mut replica, Input::Configure(config(2, &[A, B], &[]))), []);
}

#[test]
fn in_flight_is_bounded_and_nonsense_refused() {
    let mut replica = serving(2, &[A, B]);
    let noise = step(&mut replica, Input::Propose { token: 0, payload: Bytes::from_static(b"noise") });
    assert_eq!(resolved(&noise), [(0, Err(Refusal::Invalid))]);
    for token in 0..IN_FLIGHT_ENTRIES_MAX as u64 {
        assert_eq!(resolved(&step(&mut replica, Input::Propose { token, payload: mutation() })), []);
    }
    let out = step(&mut replica, Input::Propose { token: 1 << 40, payload: mutation() });
    assert_eq!(resolved(&out), [(1 << 40, Err(Refusal::Overloaded))]);
}

#[test]
fn a_lower_epoch_is_rejected_and_a_higher_one_ends_serving() {
    let mut replica = serving(2, &[A, B]);
    let stale = Message::Commit { epoch: Epoch(0), committed: Sequence(1), asked_ms: 0 };
    let out = step(&mut replica, Input::Receive { from: B, message: stale });
    assert_eq!(out, [Output::Send { to: B, message: Message::Rejected { epoch: Epoch(1) } }]);
    let out = step(&mut replica, Input::Receive { from: B, message: Message::Rejected { epoch: Epoch(2) } });
    assert_eq!(out, [Output::Report(Report::Outdated { epoch: Epoch(2) })]);
    assert!(!replica.is_serving_primary(0));
}

#[test]
fn a_spent_epoch_is_not_used_again() {
    let log = RecoveredLog { epoch: Epoch(4), ..RecoveredLog::default() };
    let mut replica = Replica::recover(PartitionId(0), A, 2, log, None);
    for spent in [config(4, &[A, B], &[]), config(4, &[B], &[A])] {
        let out = step(&mut replica, Input::Configure(spent));
        assert_eq!(out, [Output::Report(Report::NewEpochNeeded { epoch: Epoch(4) })]);
    }
    let out = step(&mut replica, Input::Configure(config(4, &[B, A], &[])));
    assert!(matches!(out[..], [Output::Send { to: B, message: Message::Ack { .. } }]), "a follower goes on");
}

#[test]
fn a_follower_replaces_only_what_differs() {
    let entry = |epoch, sequence| Entry {
        epoch: Epoch(epoch),
        sequence: Sequence(sequence),
        payload: Payload::Noop.encode().unwrap(),
    };
    let tail = vec![entry(1, 1), entry(1, 2), entry(1, 3)];
    let log = RecoveredLog { epoch: Epoch(1), applied: Sequence(0), tail };
    let mut replica = Replica::recover(PartitionId(0), A, 2, log, None);
    step(&mut replica, Input::Configure(config(3, &[B, A], &[])));
    let append = Message::Append {
        epoch: Epoch(3),
        previous: Sequence(0),
        previous_epoch: Epoch(0),
        entries: vec![entry(1, 1), entry(2, 2)],
        committed: Sequence(0),
        asked_ms: 0,
    };
    let receive = || Input::Receive { from: B, message: append.clone() };
    assert_eq!(step(&mut replica, receive()), [], "the epoch is not durable yet");
    step(&mut replica, Input::Persisted { epoch: Epoch(3), through: Sequence(3) });
    let out = step(&mut replica, receive());
    assert!(matches!(
        out[..],
        [
            Output::Truncate { after: Sequence(1), .. },
            Output::Append { entry: Entry { epoch: Epoch(2), .. }, .. }
        ]
    ));
    let acks = step(&mut replica, Input::Persisted { epoch: Epoch(3), through: Sequence(2) });
    let ack = Message::Ack {
        epoch: Epoch(3),
        flushed: Sequence(2),
        applied: Sequence(0),
        lease_ms: 0,
        resumed: false,
    };
    assert_eq!(acks, [Output::Send { to: B, message: ack.clone() }]);
    assert_eq!(
        step(&mut replica, receive()),
        [Output::Send { to: B, message: ack }],
        "a repeat changes nothing"
    );
}

#[test]
fn a_silent_member_is_reported() {
    let mut replica = serving(2, &[A, B]);
    step(&mut replica, Input::Propose { token: 1, payload: mutation() });
    let mut out = Vec::new();
    replica.step(LAGGING_MS, Input::Tick, &mut out);
    assert!(out.contains(&Output::Report(Report::Lagging { device: B, epoch: Epoch(1) })), "{out:?}");
}

#[test]
fn a_lost_append_is_resent_under_load() {
    let mut replica = serving(2, &[A, B]);
    let mut out = Vec::new();
    for token in 0..10 {
        let now_ms = token * RESEND_MS / 8;
        replica.step(now_ms, Input::Propose { token, payload: mutation() }, &mut out);
        out.clear();
        replica.step(now_ms, Input::Tick, &mut out);
        let resent = |output: &Output| {
            matches!(output, Output::Send { message: Message::Append { previous: Sequence(1), .. }, .. })
        };
        assert_eq!(out.iter().any(resent), now_ms == RESEND_MS, "at {now_ms} ms");
    }
}

/// Otherwise a crash could make it primary in that epoch twice, with two entries of one identity.
#[test]
fn a_primary_sends_nothing_before_its_epoch_is_durable() {
    let mut replica = serving(2, &[A, B]);
    step(&mut replica, Input::Propose { token: 1, payload: mutation() });
    step(&mut replica, Input::Configure(config(2, &[A, B], &[])));
    assert_eq!(ack(&mut replica, B, 2, 1), []);
    let out = step(&mut replica, Input::Persisted { epoch: Epoch(2), through: Sequence(2) });
    assert!(out.iter().any(|output| matches!(output, Output::Send { to: B, .. })));
}

/// A replica that was in-sync, left in epoch 2, and joins again in epoch 3; its log is committed through 1, and has one
/// entry more: from the time when it was in-sync, or from before that (then it may be a page).
fn away(keeps_running: bool, entry_is_older: bool) -> Replica {
    let entry = |sequence| Entry {
        epoch: Epoch(1),
        sequence: Sequence(sequence),
        payload: Payload::Noop.encode().unwrap(),
    };
    let mut tail = vec![entry(2)];
    let later = if entry_is_older { Vec::new() } else { std::mem::take(&mut tail) };
    let log = RecoveredLog { epoch: Epoch(1), applied: Sequence(1), tail };
    let mut replica = Replica::recover(PartitionId(0), A, 2, log, None);
    if keeps_running {
        step(&mut replica, Input::Configure(config(1, &[B, A], &[])));
        let (previous, committed) = (Sequence(1), Sequence(1));
        let append = Message::Append {
            epoch: Epoch(1),
            previous,
            previous_epoch: Epoch(1),
            entries: later,
            committed,
            asked_ms: 0,
        };
        step(&mut replica, Input::Receive { from: B, message: append });
        step(&mut replica, Input::Configure(config(2, &[B], &[])));
        assert_eq!(replica.may_return(0), !entry_is_older);
    }
    step(&mut replica, Input::Configure(config(3, &[B], &[A])));
    step(&mut replica, Input::Persisted { epoch: Epoch(3), through: Sequence(2) });
    replica
}

#[test]
fn a_joiner_that_was_in_sync_lately_is_not_wiped() {
    let join = |kept_after| {
        let message = Message::Join { epoch: Epoch(3), base: Sequence(9), kept_after: Sequence(kept_after) };
        Input::Receive { from: B, message }
    };
    let out = step(&mut away(true, false), join(1));
    assert!(
        matches!(
            out[..],
            [
                Output::Truncate { after: Sequence(1), .. },
                Output::Send { message: Message::Ack { flushed: Sequence(1), resumed: true, .. }, .. }
            ]
        ),
        "{out:?}"
    );
    let wiped = |out: Vec<Output>| matches!(out[..], [Output::Reset { base: Sequence(9), .. }]);
    assert!(wiped(step(&mut away(true, false), join(2))), "entries are missing that nobody keeps");
    assert!(wiped(step(&mut away(true, true), join(1))), "its last page may not be committed here");
    assert!(wiped(step(&mut away(false, true), join(1))), "what an earlier run had may be part of a copy");
}

#[test]
fn a_primary_sends_what_a_member_missed() {
    let mut replica = serving(1, &[A, B]);
    step(&mut replica, Input::Configure(config(2, &[A], &[])));
    step(&mut replica, Input::Persisted { epoch: Epoch(2), through: Sequence(1) });
    step(&mut replica, Input::Persisted { epoch: Epoch(2), through: Sequence(2) });
    step(&mut replica, Input::Activated { epoch: Epoch(2) });
    step(&mut replica, Input::Propose { token: 1, payload: mutation() });
    step(&mut replica, Input::Persisted { epoch: Epoch(2), through: Sequence(3) });
    assert_eq!(replica.committed(), Sequence(3));
    step(&mut replica, Input::Configure(config(3, &[A], &[B])));
    let out = step(&mut replica, Input::Persisted { epoch: Epoch(3), through: Sequence(3) });
    let join = Message::Join { epoch: Epoch(3), base: Sequence(3), kept_after: Sequence(0) };
    assert!(out.contains(&Output::Send { to: B, message: join }), "{out:?}");
    step(&mut replica, Input::Persisted { epoch: Epoch(3), through: Sequence(4) });
    let ack = |flushed| Message::Ack {
        epoch: Epoch(3),
        flushed: Sequence(flushed),
        applied: Sequence(1),
        lease_ms: 0,
        resumed: true,
    };
    let out = step(&mut replica, Input::Receive { from: B, message: ack(1) });
    let sent = |output: &Output| match output {
        Output::Send { message: Message::Append { previous: Sequence(1), entries, .. }, .. } => {
            entries.iter().map(|entry| entry.sequence.0).eq([2, 3, 4])
        }
        _ => false,
    };
    assert!(out.iter().any(sent), "{out:?}");
    step(&mut replica, Input::Receive { from: B, message: ack(4) });
    let out = step(&mut replica, Input::Activated { epoch: Epoch(3) });
    assert!(
        out.contains(&Output::Report(Report::Joined { device: B, epoch: Epoch(3) })),
        "no pages: {out:?}"
    );
}
