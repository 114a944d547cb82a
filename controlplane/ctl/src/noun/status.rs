//! `quarryctl status`

use crate::{
    client::Client,
    output::{self, Format},
};

const FIELDS: [&str; 18] = [
    "cluster",
    "profile",
    "map_version",
    "leader",
    "controllers",
    "reports_waiting",
    "nodes",
    "nodes_not_alive",
    "devices_in",
    "devices_out",
    "partitions",
    "partitions_with_joiner",
    "redundancy",
    "partitions_short",
    "groups_short",
    "groups_open",
    "groups_sealed",
    "groups_moving",
];

pub(crate) fn run(client: &Client, format: Format) -> anyhow::Result<()> {
    output::one(&client.get("/admin/status")?, &FIELDS, format)
}
