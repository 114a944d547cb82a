//! Peer leases and hand-over, one replica at a time.

use quarry_clustermap::{Epoch, PartitionId, Sequence};

use super::{A, B, config, mutation, resolved};
use crate::RecoveredLog;
use crate::replication::{
    ACTIVATE_RETRY_MS, HAND_OVER_MS, Input, LAGGING_MS, LeaseTimes, Message, Output, Refusal, Replica, Report,
};

const GRANT_MS: u64 = 1_100;
/// 1,100 ms by a clock 10 % faster, less 2.
const HOLD_MS: u64 = 998;
const NOT_HANDED_OVER: Output = Output::Report(Report::NotHandedOver { epoch: Epoch(1) });
const READY: Output = Output::Report(Report::ReadyToHandOver { epoch: Epoch(1) });

fn step(replica: &mut Replica, now_ms: u64, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    replica.step(now_ms, input, &mut out);
    out
}

fn ack(replica: &mut Replica, now_ms: u64, flushed: u64, lease_ms: u64) -> Vec<Output> {
    let (flushed, applied) = (Sequence(flushed), Sequence(0));
    let message = Message::Ack { epoch: Epoch(1), flushed, applied, lease_ms, resumed: false };
    step(replica, now_ms, Input::Receive { from: B, message })
}

fn replica(log: RecoveredLog) -> Replica {
    Replica::recover(PartitionId(0), A, 1, log, Some(LeaseTimes::new(GRANT_MS)))
}

fn persisted(replica: &mut Replica, now_ms: u64, epoch: u64, through: u64) -> Vec<Output> {
    step(replica, now_ms, Input::Persisted { epoch: Epoch(epoch), through: Sequence(through) })
}

/// A primary with one in-sync peer (or one joiner), activated at 100 ms; the peer's lease was asked for at 90 ms.
fn activated(joining: bool) -> Replica {
    let mut replica = replica(RecoveredLog::default());
    let config = if joining { config(1, &[A], &[B]) } else { config(1, &[A, B], &[]) };
    step(&mut replica, 80, Input::Configure(config));
    persisted(&mut replica, 90, 1, 0);
    persisted(&mut replica, 90, 1, 1);
    ack(&mut replica, 95, 1, 90);
    step(&mut replica, 100, Input::Activated { epoch: Epoch(1) });
    assert!(replica.is_serving_primary(100));
    replica
}

/// A follower of epoch 1, granted at 1,000 ms what was asked for at 50 by another clock; now primary of epoch 2.
fn successor() -> Replica {
    let mut replica = replica(RecoveredLog::default());
    step(&mut replica, 900, Input::Configure(config(1, &[B, A], &[])));
    persisted(&mut replica, 900, 1, 0);
    let asks = Message::Commit { epoch: Epoch(1), committed: Sequence(0), asked_ms: 50 };
    let out = step(&mut replica, 1_000, Input::Receive { from: B, message: asks });
    let echo = |output: &Output| {
        matches!(output, Output::Send { to: B, message: Message::Ack { lease_ms: 50, .. } })
    };
    assert!(out.iter().any(echo), "{out:?}");
    step(&mut replica, 1_050, Input::Configure(config(2, &[A], &[])));
    persisted(&mut replica, 1_060, 2, 0);
    replica
}

fn activates(out: &[Output]) -> bool {
    out.contains(&Output::Activate { epoch: Epoch(2) })
}

#[test]
fn a_primary_serves_and_commits_only_while_leased() {
    let mut replica = activated(false);
    assert!(replica.is_serving_primary(90 + HOLD_MS - 1));
    assert!(!replica.is_serving_primary(90 + HOLD_MS));
    let late = 90 + HOLD_MS;
    let out = step(&mut replica, late - 1, Input::Propose { token: 1, payload: mutation() });
    assert_eq!(resolved(&out), []);
    let out = step(&mut replica, late, Input::Propose { token: 2, payload: mutation() });
    assert_eq!(resolved(&out), [(2, Err(Refusal::NotServing))]);
    persisted(&mut replica, late, 1, 2);
    assert_eq!(resolved(&ack(&mut replica, late, 2, 90)), [], "flushed everywhere, but no lease");
    assert_eq!(resolved(&ack(&mut replica, late, 2, late - 10)), [(1, Ok(Sequence(2)))]);
    assert!(replica.is_serving_primary(late));
}

#[test]
fn an_idle_primary_asks_again_in_time() {
    let mut replica = activated(false);
    let asks = |output: &Output| {
        matches!(output, Output::Send { to: B, message: Message::Commit { asked_ms: 500, .. } })
    };
    assert!(step(&mut replica, 500, Input::Tick).iter().any(asks));
}

#[test]
fn a_new_primary_waits_for_what_it_granted() {
    let mut replica = successor();
    let out = persisted(&mut replica, 1_070, 2, 1);
    assert!(!activates(&out), "{out:?}");
    assert!(!activates(&step(&mut replica, 1_000 + GRANT_MS, Input::Tick)));
    assert!(activates(&step(&mut replica, 1_001 + GRANT_MS, Input::Tick)));
}

#[test]
fn a_new_primary_does_not_wait_for_what_was_given_back() {
    let mut replica = successor();
    persisted(&mut replica, 1_070, 2, 1);
    let release = |asked_ms| {
        let message = Message::Release { epoch: Epoch(1), asked_ms };
        Input::Receive { from: B, message }
    };
    assert!(!activates(&step(&mut replica, 1_080, release(49))), "the lease was asked for later");
    assert!(activates(&step(&mut replica, 1_090, release(60))));
}

#[test]
fn a_message_overtaken_by_the_release_asks_for_nothing() {
    let mut replica = replica(RecoveredLog::default());
    step(&mut replica, 0, Input::Configure(config(1, &[B, A], &[])));
    persisted(&mut replica, 0, 1, 0);
    let asks = |asked_ms| {
        let message = Message::Commit { epoch: Epoch(1), committed: Sequence(0), asked_ms };
        Input::Receive { from: B, message }
    };
    step(&mut replica, 10, asks(50));
    let message = Message::Release { epoch: Epoch(1), asked_ms: 60 };
    step(&mut replica, 20, Input::Receive { from: B, message });
    step(&mut replica, 30, asks(55));
    assert!(replica.grants.are_over(30));
    step(&mut replica, 40, asks(61));
    assert!(!replica.grants.are_over(40));
}

#[test]
fn a_restarted_granter_counts_one_whole_grant() {
    let mut replica = replica(RecoveredLog { epoch: Epoch(1), ..RecoveredLog::default() });
    step(&mut replica, 500, Input::Configure(config(2, &[A], &[])));
    persisted(&mut replica, 510, 2, 0);
    assert!(!activates(&persisted(&mut replica, 520, 2, 1)));
    assert!(!activates(&step(&mut replica, 500 + GRANT_MS, Input::Tick)));
    assert!(activates(&step(&mut replica, 501 + GRANT_MS, Input::Tick)));
}

#[test]
fn a_hand_over_finishes_what_is_in_flight_and_gives_the_leases_back() {
    let mut replica = activated(false);
    step(&mut replica, 200, Input::Propose { token: 1, payload: mutation() });
    let out = step(&mut replica, 210, Input::HandOver { wanted: true });
    assert!(!out.contains(&READY), "{out:?}");
    let out = step(&mut replica, 220, Input::Propose { token: 2, payload: mutation() });
    assert_eq!(resolved(&out), [(2, Err(Refusal::NotServing))]);
    persisted(&mut replica, 230, 1, 2);
    let out = ack(&mut replica, 240, 2, 200);
    assert_eq!(resolved(&out), [(1, Ok(Sequence(2)))]);
    let release = Message::Release { epoch: Epoch(1), asked_ms: 240 };
    assert!(out.contains(&READY) && out.contains(&Output::Send { to: B, message: release }), "{out:?}");
    assert!(!replica.is_serving_primary(240));
    ack(&mut replica, 245, 2, 200);
    assert!(!replica.is_serving_primary(245));
    let asks = |output: &Output| match output {
        Output::Send { message: Message::Commit { asked_ms, .. }, .. } => *asked_ms > 0,
        _ => false,
    };
    let out = step(&mut replica, 240 + ACTIVATE_RETRY_MS, Input::Tick);
    assert!(out.contains(&READY) && !out.iter().any(asks), "said again, and no lease is asked for: {out:?}");
}

#[test]
fn a_hand_over_that_nobody_takes_is_over() {
    let mut replica = activated(false);
    let end = 200 + HAND_OVER_MS;
    assert!(step(&mut replica, 200, Input::HandOver { wanted: true }).contains(&READY));
    assert!(!step(&mut replica, end - 1, Input::Tick).contains(&NOT_HANDED_OVER));
    let out = step(&mut replica, end, Input::Tick);
    assert!(out.contains(&NOT_HANDED_OVER), "{out:?}");
    let asks = Message::Commit { epoch: Epoch(1), committed: Sequence(1), asked_ms: end };
    assert!(out.contains(&Output::Send { to: B, message: asks }), "{out:?}");
    ack(&mut replica, end + 5, 1, 200);
    assert!(!replica.is_serving_primary(end + 5), "what was given back does not count");
    ack(&mut replica, end + 10, 1, end);
    assert!(replica.is_serving_primary(end + 10));
}

/// Also with proposals in flight that a silent peer does not acknowledge.
#[test]
fn a_hand_over_that_cannot_finish_is_over() {
    let mut replica = activated(false);
    step(&mut replica, 200, Input::Propose { token: 1, payload: mutation() });
    assert!(!step(&mut replica, 200, Input::HandOver { wanted: true }).contains(&READY));
    assert!(step(&mut replica, 200 + HAND_OVER_MS, Input::Tick).contains(&NOT_HANDED_OVER));
}

#[test]
fn a_hand_over_without_an_in_sync_peer_is_refused() {
    let mut replica = activated(true);
    assert_eq!(step(&mut replica, 200, Input::HandOver { wanted: true }), [NOT_HANDED_OVER]);
    assert!(replica.is_serving_primary(200));
}

#[test]
fn a_spent_epoch_is_complained_of_again() {
    let mut replica = replica(RecoveredLog { epoch: Epoch(4), ..RecoveredLog::default() });
    let needed = [Output::Report(Report::NewEpochNeeded { epoch: Epoch(4) })];
    assert_eq!(step(&mut replica, 0, Input::Configure(config(4, &[A, B], &[]))), needed);
    assert_eq!(step(&mut replica, ACTIVATE_RETRY_MS - 1, Input::Tick), []);
    assert_eq!(step(&mut replica, ACTIVATE_RETRY_MS, Input::Tick), needed);
    step(&mut replica, ACTIVATE_RETRY_MS, Input::Configure(config(5, &[A, B], &[])));
    assert_eq!(step(&mut replica, 3 * ACTIVATE_RETRY_MS, Input::Tick), []);
}

/// It refuses everything, so it has nothing to be behind with: it says all the same that it waits.
#[test]
fn an_idle_primary_without_a_lease_reports_who_does_not_give_it() {
    let mut replica = activated(false);
    let lags = Output::Report(Report::Lagging { device: B, epoch: Epoch(1) });
    let first =
        (100..10_000).step_by(20).find(|now_ms| step(&mut replica, *now_ms, Input::Tick).contains(&lags));
    let over_ms = 90 + HOLD_MS;
    assert!(first.is_some_and(|at| (over_ms..=over_ms + LAGGING_MS + 20).contains(&at)), "{first:?}");
    let mut replica = activated(false);
    for now_ms in (100..10_000).step_by(20) {
        ack(&mut replica, now_ms, 1, now_ms);
        assert!(!step(&mut replica, now_ms, Input::Tick).contains(&lags), "it is leased at {now_ms}");
    }
}

#[test]
fn an_in_sync_member_reports_a_primary_that_is_silent() {
    let mut replica = replica(RecoveredLog::default());
    step(&mut replica, 0, Input::Configure(config(1, &[B, A], &[])));
    persisted(&mut replica, 0, 1, 0);
    let silent = Output::Report(Report::Lagging { device: B, epoch: Epoch(1) });
    let asks = Message::Commit { epoch: Epoch(1), committed: Sequence(0), asked_ms: 50 };
    step(&mut replica, 1_000, Input::Receive { from: B, message: asks });
    assert!(!step(&mut replica, 999 + LAGGING_MS, Input::Tick).contains(&silent));
    assert!(step(&mut replica, 1_000 + LAGGING_MS, Input::Tick).contains(&silent));
    assert!(!step(&mut replica, 1_020 + LAGGING_MS, Input::Tick).contains(&silent), "not at every tick");
    assert!(step(&mut replica, 1_000 + 2 * LAGGING_MS, Input::Tick).contains(&silent));
}

#[test]
fn a_primary_that_is_replaced_gives_its_leases_back() {
    let release = Output::Send { to: B, message: Message::Release { epoch: Epoch(1), asked_ms: 200 } };
    let told = |new: &[quarry_clustermap::DeviceId]| {
        let mut replica = activated(false);
        let out = step(&mut replica, 200, Input::Configure(config(2, new, &[])));
        (replica.is_serving_primary(200), out.contains(&release))
    };
    assert_eq!(told(&[B, A]), (false, true));
    assert_eq!(told(&[B]), (false, true), "it is no member any more");
    assert_eq!(told(&[A, B]), (false, false), "it is primary again, and asks anew");
    let mut follower = successor();
    assert!(!step(&mut follower, 2_000, Input::Configure(config(3, &[B, A], &[]))).contains(&release));
}

/// Both sides of a planned change: the new primary activates as soon as it hears that the old one has stopped.
#[test]
fn a_planned_change_of_the_primary_waits_for_no_lease() {
    let mut old = activated(false);
    let mut new =
        Replica::recover(PartitionId(0), B, 1, RecoveredLog::default(), Some(LeaseTimes::new(GRANT_MS)));
    step(&mut new, 5_000, Input::Configure(config(1, &[A, B], &[])));
    persisted(&mut new, 5_000, 1, 0);
    let asks = Message::Commit { epoch: Epoch(1), committed: Sequence(0), asked_ms: 190 };
    step(&mut new, 5_110, Input::Receive { from: A, message: asks });
    // The new one hears of it first, and is whole; only the lease is in its way.
    step(&mut new, 5_115, Input::Configure(config(2, &[B], &[])));
    persisted(&mut new, 5_116, 2, 0);
    assert!(!activates(&persisted(&mut new, 5_117, 2, 1)));
    let out = step(&mut old, 200, Input::Configure(config(2, &[B], &[])));
    let mut released = out.into_iter().filter_map(|output| match output {
        Output::Send { to: B, message } => Some(message),
        _ => None,
    });
    let message = released.next().expect("the old one says that it has stopped");
    assert!(activates(&step(&mut new, 5_120, Input::Receive { from: A, message })));
}
