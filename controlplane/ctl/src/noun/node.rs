//! `quarryctl node`

use clap::Subcommand;

use crate::{
    client::Client,
    output::{self, Format},
};

const COLUMNS: [&str; 9] =
    ["node", "name", "alive", "devices_in", "devices_out", "primaries", "incarnation", "rack", "address"];

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists all nodes.
    List,
    /// Shows one node.
    Info {
        /// Its name, or its number.
        node: String,
    },
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    let nodes = client.get("/admin/nodes")?;
    match verb {
        Verb::List => output::rows(&nodes, &COLUMNS, format),
        Verb::Info { node } => {
            let mut all = nodes.as_array().into_iter().flatten();
            let number: Option<u64> = node.parse().ok();
            match all.find(|entry| {
                entry["name"] == node.as_str() || number.is_some_and(|number| entry["node"] == number)
            }) {
                Some(found) => output::one(found, &COLUMNS, format),
                None => anyhow::bail!("there is no node {node:?}"),
            }
        }
    }
}
