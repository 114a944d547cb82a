//! What `quarryctl node|device drain`, `remove` and `job` ask.
//!
//! | request | answer |
//! |---|---|
//! | `POST /admin/plan` `{"intents"}` | what that would lead to; nothing is changed |
//! | `POST /admin/operate` `{"intents"}` | does it, one after the other |
//! | `GET /admin/jobs` | a list: what each job has under way and before it |
//!
//! Intents are those of the planner: `{"drain_node": 3}`, `{"pause": "rebalance"}`.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use hyper::StatusCode;
use quarry_clustermap::{ClusterMap, JobKind, PartitionConfig};
use quarry_controller::{ControllerError, ControllerHandle, cluster::ClusterView};
use quarry_planner::{Forecast, Intent, Policy, REBUILD_AFTER_MS, forecast, groups_per_device};
use serde::Deserialize;
use serde_json::json;

use super::{AdminState, identity::Answer};
use crate::{jobs::mover::job_of, runtime::clock};

/// Over how long the rate of a job is measured.
const PACE_MS: u64 = 10 * 60 * 1000;
/// Placement groups up to which what is to come is counted.
const GROUPS_FORECAST_MAX: usize = 2_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    intents: Vec<Intent>,
}

/// Answers a request whose token was verified; `None`: it is about something else.
pub(super) async fn answer(
    state: &AdminState,
    controller: &ControllerHandle,
    (method, path, body): (&str, &str, &[u8]),
) -> Option<Answer> {
    let changes = match (method, path) {
        ("POST", "plan") => false,
        ("POST", "operate") => true,
        ("GET", "jobs") => return Some(jobs(state, controller).await.unwrap_or_else(|error| failed(&error))),
        _ => return None,
    };
    let asked: Asked = match serde_json::from_slice(body) {
        Ok(asked) => asked,
        Err(error) => return Some((StatusCode::BAD_REQUEST, json!({ "error": error.to_string() }))),
    };
    let result = if changes {
        operate(controller, &asked.intents).await
    } else {
        show(controller, &asked.intents).await
    };
    Some(result.unwrap_or_else(|error| failed(&error)))
}

fn failed(error: &ControllerError) -> Answer {
    let status = match error {
        ControllerError::Refused(_) => StatusCode::CONFLICT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, json!({ "error": error.to_string() }))
}

async fn view(controller: &ControllerHandle) -> Result<(ClusterMap, Policy), ControllerError> {
    let ClusterView { founding, map, .. } = controller.view().await?;
    let map = map.ok_or(ControllerError::NoMap)?;
    let policy = Policy {
        cluster: map.cluster,
        hot_profile: map.hot_profile,
        cold_profile: None,
        partition_count: map.partition_count(),
        rebuild_after_ms: REBUILD_AFTER_MS,
        groups_per_device: if founding.is_some() { groups_per_device(map.hot_profile) } else { 1 },
    };
    Ok((map, policy))
}

async fn operate(controller: &ControllerHandle, intents: &[Intent]) -> Result<Answer, ControllerError> {
    let (map, _) = view(controller).await?;
    intents.iter().try_for_each(|intent| intent.check(&map))?;
    for intent in intents {
        controller.operate(*intent).await?;
    }
    Ok((StatusCode::OK, json!({ "done": intents.len() })))
}

async fn show(controller: &ControllerHandle, intents: &[Intent]) -> Result<Answer, ControllerError> {
    let (map, policy) = view(controller).await?;
    intents.iter().try_for_each(|intent| intent.check(&map))?;
    let Forecast { first, plans, positions, positions_all, replicas, remains, stuck } =
        forecast(&policy, &map, intents, clock::unix_ms())?;
    Ok((
        StatusCode::OK,
        json!({
            "first": first, "plans": plans, "positions": positions, "positions_all": positions_all,
            "replicas": replicas, "remains": remains, "stuck": stuck,
        }),
    ))
}

/// What moves of a job are under way: positions of groups, and replicas.
fn under_way(map: &ClusterMap, job: JobKind) -> (usize, usize) {
    let groups = map.placement_groups.values().filter(|group| !group.rebuilding.is_empty());
    let positions =
        groups.filter(|group| job_of(map, group) == job).map(|group| group.rebuilding.len()).sum();
    let wanted = map.hot_profile.metadata_replicas();
    let job_of_join = |config: &&PartitionConfig| match config.replicas.len() < wanted {
        true => JobKind::Repair,
        false if config.replicas.iter().any(|device| map.is_leaving(*device)) => JobKind::Drain,
        false => JobKind::Rebalance,
    };
    let joining =
        map.partitions.iter().filter(|config| !config.joining.is_empty() && job_of_join(config) == job);
    (positions, joining.map(|config| config.joining.len()).sum())
}

async fn jobs(state: &AdminState, controller: &ControllerHandle) -> Result<Answer, ControllerError> {
    let (map, policy) = view(controller).await?;
    let now = clock::unix_ms();
    // What is still to be begun: with the rebalance held, it is the drain's.
    let to_come = |held: bool| {
        let mut map = map.clone();
        map.operations.paused = if held { [JobKind::Rebalance].into() } else { [].into() };
        forecast(&policy, &map, &[], now).map(|told| told.positions + told.replicas)
    };
    let counted = map.placement_groups.len() <= GROUPS_FORECAST_MAX;
    let (drain, all) = if counted { (to_come(true)?, to_come(false)?) } else { (0, 0) };
    let list = JobKind::ALL.map(|job| {
        let (positions, replicas) = under_way(&map, job);
        let waiting = match job {
            JobKind::Repair => 0,
            JobKind::Drain => drain,
            JobKind::Rebalance => all.saturating_sub(drain),
        };
        let left = positions + replicas + waiting;
        let paused = map.operations.paused.contains(&job);
        let (done, rate) = state.pace.done(job, now);
        let eta_s = (left > 0 && rate > 0.0 && !paused).then(|| (left as f64 / rate).ceil());
        json!({
            "job": job, "state": if paused { "paused" } else if left > 0 { "running" } else { "idle" },
            "positions": positions, "replicas": replicas, "waiting": counted.then_some(waiting),
            "done_lately": done, "eta_s": eta_s,
            "bytes_here": state.metrics.rebuilt_bytes.get(), "budget": map.operations.bytes_per_second,
        })
    });
    Ok((StatusCode::OK, json!(list)))
}

/// How fast jobs are, seen from one map to the next.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<VecDeque<(u64, JobKind, usize)>>);

impl Pace {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, JobKind, usize)>> {
        self.0.lock().expect("nothing panics under this lock")
    }

    /// A newer map is known: what was under way in the one before and is not any more has been done.
    pub(super) fn note(&self, old: &ClusterMap, new: &ClusterMap, now_ms: u64) {
        let mut seen = self.lock();
        for job in JobKind::ALL {
            let groups = old.placement_groups.iter().filter(|(_, group)| job_of(old, group) == job);
            let ended = groups.map(|(pg, group)| {
                let now = new.placement_groups.get(pg).map(|group| &group.rebuilding);
                group.rebuilding.keys().filter(|at| now.is_none_or(|now| !now.contains_key(at))).count()
            });
            let ended: usize = ended.sum();
            if ended > 0 {
                seen.push_back((now_ms, job, ended));
            }
        }
        while seen.front().is_some_and(|(at, ..)| at + PACE_MS < now_ms) {
            seen.pop_front();
        }
    }

    /// Positions done of late, and how many a second.
    fn done(&self, job: JobKind, now_ms: u64) -> (usize, f64) {
        let seen = self.lock();
        let of_job = || seen.iter().filter(|(_, of, _)| *of == job);
        let done: usize = of_job().map(|(_, _, count)| count).sum();
        let since = of_job().next().map_or(now_ms, |(at, ..)| *at);
        (done, done as f64 * 1000.0 / now_ms.saturating_sub(since).max(1000) as f64)
    }
}
