//! `quarryctl device`

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{self, Format},
    plan::{self, Consent},
};

const COLUMNS: [&str; 8] =
    ["device", "node", "state", "drained", "places", "tier", "capacity_bytes", "location"];

const BLOCKS: [&str; 6] = ["path", "size_bytes", "model", "rotational", "available", "why_not"];

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists all devices; `places` are positions of placement groups and replicas of partitions.
    List {
        /// Block devices of the node that answers instead: those that could be given to it, and why the others not.
        #[arg(long)]
        available: bool,
    },
    /// Shows one device.
    Info {
        /// Its id, with or without `dev-`.
        device: String,
    },
    /// Empties it: everything on it moves to others.
    Drain {
        /// Its id.
        device: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Uses it again.
    Undrain {
        /// Its id.
        device: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Takes it out of the map; refused while it holds anything.
    Remove {
        /// Its id.
        device: String,
        #[command(flatten)]
        consent: Consent,
    },
}

fn number(device: &str) -> anyhow::Result<u64> {
    let digits = device.strip_prefix("dev-").unwrap_or(device);
    u64::from_str_radix(digits, 16).with_context(|| format!("{device:?} is not a device's id"))
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    let ask = |what: &str, device: &str, consent: &Consent| -> anyhow::Result<()> {
        let intent: Value = json!({ what: number(device)? });
        plan::ask(client, &intent, consent, format)
    };
    match verb {
        Verb::List { available: true } => output::rows(&client.get("/admin/blocks")?, &BLOCKS, format),
        Verb::List { available: false } => output::rows(&client.get("/admin/devices")?, &COLUMNS, format),
        Verb::Info { device } => {
            let devices = client.get("/admin/devices")?;
            let id = format!("dev-{:016x}", number(&device)?);
            let found = devices.as_array().into_iter().flatten().find(|entry| entry["device"] == id.as_str());
            output::one(found.with_context(|| format!("{id} is not in the map"))?, &COLUMNS, format)
        }
        Verb::Drain { device, consent } => ask("drain_device", &device, &consent),
        Verb::Undrain { device, consent } => ask("undrain_device", &device, &consent),
        Verb::Remove { device, consent } => ask("remove_device", &device, &consent),
    }
}
