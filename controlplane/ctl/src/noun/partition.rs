//! `quarryctl partition`

use clap::Subcommand;
use serde_json::Value;

use crate::{
    client::Client,
    output::{self, Format},
};

const COLUMNS: [&str; 7] = ["partition", "state", "epoch", "primary", "in_sync", "joining", "away"];

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists the metadata partitions.
    List {
        /// Only those in this state: serving, starting, waiting or lost.
        #[arg(long)]
        state: Option<String>,
    },
    /// Shows one partition.
    Info {
        /// Its number.
        partition: u16,
    },
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    match verb {
        Verb::List { state } => {
            let mut partitions = client.get("/admin/partitions")?;
            if let (Some(state), Some(list)) = (state, partitions.as_array_mut()) {
                list.retain(|entry: &Value| entry["state"] == state.as_str());
            }
            output::rows(&partitions, &COLUMNS, format)
        }
        Verb::Info { partition } => {
            let one = client.get(&client.path(&["partitions", &partition.to_string()])?)?;
            output::one(&one, &COLUMNS, format)
        }
    }
}
