//! `quarryctl node`

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{self, Format},
    plan::{self, Consent},
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
    /// Empties its devices: everything on them moves to others.
    Drain {
        /// Its name, or its number.
        node: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Uses its devices again.
    Undrain {
        /// Its name, or its number.
        node: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Takes it out of the map for good; refused while one of its devices holds anything.
    Remove {
        /// Its name, or its number.
        node: String,
        #[command(flatten)]
        consent: Consent,
    },
}

/// The entry of a node, by name or number.
fn find<'n>(nodes: &'n Value, wanted: &str) -> anyhow::Result<&'n Value> {
    let number: Option<u64> = wanted.parse().ok();
    let mut all = nodes.as_array().into_iter().flatten();
    let found =
        all.find(|entry| entry["name"] == wanted || number.is_some_and(|number| entry["node"] == number));
    found.with_context(|| format!("there is no node {wanted:?}"))
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    let nodes = client.get("/admin/nodes")?;
    match verb {
        Verb::List => output::rows(&nodes, &COLUMNS, format),
        Verb::Info { node } => output::one(find(&nodes, &node)?, &COLUMNS, format),
        Verb::Drain { node, consent } => {
            plan::ask(client, &json!({ "drain_node": find(&nodes, &node)?["node"] }), &consent, format)
        }
        Verb::Undrain { node, consent } => {
            plan::ask(client, &json!({ "undrain_node": find(&nodes, &node)?["node"] }), &consent, format)
        }
        Verb::Remove { node, consent } => {
            plan::ask(client, &json!({ "remove_node": find(&nodes, &node)?["node"] }), &consent, format)
        }
    }
}
