//! What a primary tells the control plane and says again until it is acted on.

use quarry_clustermap::Epoch;

use super::super::{ACTIVATE_RETRY_MS, Message, Output, Report};
use super::{Backfill, Phase, Primary};

/// Repeats the question or the report that the control plane has not acted on.
pub(super) fn ask_again(
    primary: &mut Primary,
    epoch: Epoch,
    leased: bool,
    now_ms: u64,
    out: &mut Vec<Output>,
) {
    if now_ms.saturating_sub(primary.asked_ms) < ACTIVATE_RETRY_MS {
        return;
    }
    match (primary.phase, &primary.backfill) {
        (Phase::Activating, _) => {
            primary.asked_ms = now_ms;
            out.push(Output::Activate { epoch });
        }
        (Phase::HandedOver, _) => report_handed_over(primary, epoch, leased, now_ms, out),
        (Phase::Serving, Backfill::Whole) => report_joined(primary, epoch, now_ms, out),
        _ => {}
    }
}

pub(super) fn report_joined(primary: &mut Primary, epoch: Epoch, now_ms: u64, out: &mut Vec<Output>) {
    primary.asked_ms = now_ms;
    for peer in primary.peers.iter().filter(|peer| peer.joining) {
        out.push(Output::Report(Report::Joined { device: peer.device, epoch }));
    }
}

pub(super) fn report_handed_over(
    primary: &mut Primary,
    epoch: Epoch,
    leased: bool,
    now_ms: u64,
    out: &mut Vec<Output>,
) {
    primary.asked_ms = now_ms;
    for peer in primary.peers.iter().filter(|_| leased) {
        let message = Message::Release { epoch, asked_ms: primary.released_ms };
        out.push(Output::Send { to: peer.device, message });
    }
    out.push(Output::Report(Report::ReadyToHandOver { epoch }));
}
