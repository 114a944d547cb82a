//! `quarryctl map`

use clap::Subcommand;

use crate::{
    client::Client,
    output::{self, Format},
};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists the devices.
    Devices,
    /// Lists the placement groups: which devices hold the shards of a blob.
    Groups,
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    match verb {
        Verb::Devices => {
            let columns =
                ["device", "node", "state", "drained", "places", "tier", "capacity_bytes", "location"];
            output::rows(&client.get("/admin/devices")?, &columns, format)
        }
        Verb::Groups => {
            let columns = ["group", "state", "profile", "epoch", "members"];
            output::rows(&client.get("/admin/groups")?, &columns, format)
        }
    }
}
