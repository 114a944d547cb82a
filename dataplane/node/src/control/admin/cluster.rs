//! What `quarryctl status`, `node`, `map` and `partition` ask, as JSON. Ids of devices are text, as they are in the log.
//!
//! | request | answer |
//! |---|---|
//! | `GET /admin/status` | the state of everything in a few numbers |
//! | `GET /admin/nodes` | a list |
//! | `GET /admin/devices`, `GET /admin/groups` | lists: the map, but for the partitions |
//! | `GET /admin/partitions`, `GET /admin/partitions/NUMBER` | a list, or one |
//!
//! All is read from the metastore: without it the answer is 503, and `GET /map` still tells what this node acts on.

use hyper::StatusCode;
use quarry_clustermap::{ClusterMap, DeviceId};
use quarry_controller::{
    ControllerHandle,
    cluster::{ClusterView, PartitionView},
};
use serde_json::{Value, json};

use super::identity::Answer;

/// Answers a request whose token was verified; `None`: it is about something else.
pub(super) async fn answer(controller: &ControllerHandle, method: &str, path: &str) -> Option<Answer> {
    let parts: Vec<&str> = path.split('/').collect();
    let show: fn(&ClusterView, &[&str]) -> Option<Value> = match (method, parts.as_slice()) {
        ("GET", ["status"]) => |view, _| Some(json!(view.status()?)),
        ("GET", ["nodes"]) => |view, _| Some(json!(view.nodes)),
        ("GET", ["devices"]) => |view, _| Some(devices(view.map.as_ref()?)),
        ("GET", ["groups"]) => |view, _| Some(groups(view.map.as_ref()?)),
        ("GET", ["partitions"]) => |view, _| Some(view.partitions().iter().map(partition).collect()),
        ("GET", ["partitions", _]) => |view, parts| {
            let wanted: usize = parts.last()?.parse().ok()?;
            Some(partition(view.partitions().get(wanted)?))
        },
        _ => return None,
    };
    Some(match controller.view().await {
        Ok(view) => show(&view, &parts).map_or(
            (StatusCode::NOT_FOUND, json!({ "error": "not found, or there is no map yet" })),
            |value| (StatusCode::OK, value),
        ),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": error.to_string() })),
    })
}

fn names(devices: &[DeviceId]) -> Vec<String> {
    devices.iter().map(ToString::to_string).collect()
}

fn partition(view: &PartitionView) -> Value {
    let PartitionView { partition, epoch, state, primary, replicas, joining, away } = view;
    json!({
        "partition": partition, "state": state, "epoch": epoch, "primary": primary.to_string(),
        "in_sync": names(replicas), "joining": names(joining), "away": names(away),
    })
}

fn devices(map: &ClusterMap) -> Value {
    let device = |(id, entry): (&DeviceId, &quarry_clustermap::DeviceEntry)| {
        json!({
            "device": id.to_string(), "node": entry.node, "state": entry.state, "tier": entry.tier,
            "drained": map.is_leaving(*id), "places": map.uses_of(*id),
            "capacity_bytes": entry.capacity_bytes, "location": entry.location,
        })
    };
    map.devices.iter().map(device).collect()
}

fn groups(map: &ClusterMap) -> Value {
    let group = |(id, group): (&quarry_clustermap::PgId, &quarry_clustermap::PlacementGroup)| {
        json!({
            "group": id, "state": group.state, "epoch": group.epoch, "tier": group.tier,
            "profile": group.profile.to_string(), "members": names(&group.members),
        })
    };
    map.placement_groups.iter().map(group).collect()
}
