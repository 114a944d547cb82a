//! What `quarryctl tier` asks.
//!
//! | request | answer |
//! |---|---|
//! | `GET /admin/tiers` | profiles, the policy, and what this node has on its tiers |
//! | `POST /admin/tiers/plan` | what the policy would move now, on or off; nothing is moved |
//!
//! Both speak of the partitions whose primaries this node holds, and of its own devices.

use std::time::Duration;

use hyper::StatusCode;
use quarry_clustermap::Tier;
use serde_json::{Value, json};

use super::{AdminState, identity::Answer};
use crate::jobs::tiers::TierReport;

/// How long cores may take for a plan: they walk all their rows.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

/// Answers a request whose token was verified; `None`: it is about something else.
pub(super) async fn answer(state: &AdminState, method: &str, path: &str) -> Option<Answer> {
    match (method, path) {
        ("GET", "tiers") => Some((StatusCode::OK, status(state))),
        ("POST", "tiers/plan") => Some(plan(state).await),
        _ => None,
    }
}

fn status(state: &AdminState) -> Value {
    let Some(map) = state.map.lock().expect("nothing panics under this lock").clone() else {
        return json!({});
    };
    let space = state.metrics.tier_space();
    let tiers = Tier::ALL.map(|tier| {
        let (capacity, used) = space.get(tier.name()).copied().unwrap_or_default();
        let open = map.open_groups(tier).count();
        json!({
            "tier": tier, "profile": map.wanted_profile(tier).to_string(), "groups_open": open,
            "capacity_bytes_here": capacity, "used_bytes_here": used,
        })
    });
    let TierReport { watched, watched_bytes, demote, promote, .. } = state.metrics.tiers.sum();
    json!({
        "tiers": tiers, "policy": map.tiering.policy,
        "watched_versions": watched, "watched_memory_bytes": watched_bytes,
        "last_round": { "demote": demote, "promote": promote },
    })
}

async fn plan(state: &AdminState) -> Answer {
    let board = &state.metrics.tiers;
    let wish = board.wish();
    let done = async {
        while board.answered(wish) < state.cores {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(PATIENCE, done).await.is_err() {
        let error = "the cores are busy with moves, or still walking: ask again";
        return (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": error }));
    }
    let report = board.sum();
    let overhead = |tier| {
        let map = state.map.lock().expect("nothing panics under this lock").clone();
        let profile = map.map(|map| map.wanted_profile(tier));
        profile.map_or(1.0, |profile| profile.total() as f64 / profile.data() as f64)
    };
    let device_bytes = |bytes: u64, tier| (bytes as f64 * overhead(tier)).round();
    let freed = device_bytes(report.demote.bytes, Tier::Hot) - device_bytes(report.promote.bytes, Tier::Hot);
    let taken =
        device_bytes(report.demote.bytes, Tier::Cold) - device_bytes(report.promote.bytes, Tier::Cold);
    let answer = json!({
        "looked_at": { "hot": report.hot, "cold": report.cold },
        "demote": report.demote, "promote": report.promote, "moves": report.moves,
        "hot_device_bytes_saved": freed, "cold_device_bytes_taken": taken,
    });
    (StatusCode::OK, answer)
}
