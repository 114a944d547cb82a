//! `quarryctl plan what-if`

use anyhow::Context;
use clap::{Args, Subcommand};
use quarry_clustermap::{ClusterMap, ErasureProfile};
use quarry_planner::{
    Policy, REBUILD_AFTER_MS, groups_per_device,
    whatif::{Additions, Demand, Hardware, Trials, envelope, with_additions, worth},
};
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{self, Format},
};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// What the hot tier is worth, as it is or with other devices; changes nothing.
    WhatIf(Box<Asked>),
}

#[derive(Args)]
pub(crate) struct Asked {
    /// Nodes to add, each with as many devices as the others have.
    #[arg(long, default_value_t = 0)]
    add_node: usize,
    /// Devices to add to the nodes that there are.
    #[arg(long, default_value_t = 0)]
    add_device: usize,
    /// Bytes of each new device; else the mean of the others.
    #[arg(long)]
    device_size: Option<u64>,
    /// Another profile, k+m: the map is laid out anew.
    #[arg(long)]
    profile: Option<ErasureProfile>,
    /// Percent of the devices that die in a year.
    #[arg(long, default_value_t = 1.5)]
    afr: f64,
    /// Bytes per second that repair reads and writes on a device.
    #[arg(long, default_value_t = 50e6)]
    rebuild_rate: f64,
    /// Bytes per second of repair on a node's network.
    #[arg(long, default_value_t = 1.25e9)]
    nic: f64,
    /// How full devices are, percent.
    #[arg(long, default_value_t = 80.0)]
    fill: f64,
    /// Price of a terabyte of devices.
    #[arg(long, default_value_t = 0.0)]
    cost_per_tb: f64,
    /// Cycles to simulate.
    #[arg(long, default_value_t = 20_000)]
    trials: u64,
    /// Of the simulation: equal seeds, equal results.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Users; 0: no estimate of what they need.
    #[arg(long, default_value_t = 0.0)]
    users: f64,
    /// Requests of a user in a day.
    #[arg(long, default_value_t = 10.0)]
    requests_per_user: f64,
    /// Bytes of an object.
    #[arg(long, default_value_t = 1e6)]
    object_size: f64,
    /// Percent of requests that write a new object.
    #[arg(long, default_value_t = 10.0)]
    write_percent: f64,
    /// Years for which everything is kept.
    #[arg(long, default_value_t = 5.0)]
    years: f64,
}

const FIELDS: [&str; 17] = [
    "profile",
    "nodes",
    "devices",
    "raw_bytes",
    "usable_bytes",
    "first_full_bytes",
    "rebuild_hours",
    "rebuild_bound_by",
    "mttdl_years",
    "mttdl_years_95_percent",
    "annual_loss_probability",
    "mttdl_years_groups_apart",
    "trials",
    "trials_lost",
    "cost",
    "cost_per_usable_tb",
    "positions_moved",
];
const ENVELOPE: [&str; 8] = [
    "requests_per_s",
    "peak_requests_per_s",
    "peak_bytes_per_s",
    "peak_device_bytes_per_s",
    "objects",
    "object_bytes",
    "device_bytes",
    "times_this_cluster",
];

impl Asked {
    fn check(&self) -> anyhow::Result<()> {
        let positive = [self.afr, self.rebuild_rate, self.nic];
        if positive.iter().any(|value| !value.is_finite() || *value <= 0.0) || self.trials == 0 {
            anyhow::bail!("--afr, --rebuild-rate, --nic and --trials must be above 0");
        }
        if !(0.0..=100.0).contains(&self.fill) || !(0.0..=100.0).contains(&self.write_percent) {
            anyhow::bail!("--fill and --write-percent are percent");
        }
        Ok(())
    }
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    let Verb::WhatIf(asked) = verb;
    asked.check()?;
    let map: ClusterMap =
        serde_json::from_value(client.get("/map")?).context("the node's map is not one of this version")?;
    let told = judge(&map, &asked)?;
    output::one(&told, &FIELDS, format)?;
    if format != Format::Json && asked.users > 0.0 {
        output::print("")?;
        output::one(&told["envelope"], &ENVELOPE, format)?;
    }
    Ok(())
}

fn judge(map: &ClusterMap, asked: &Asked) -> anyhow::Result<Value> {
    let standalone = map.nodes.values().all(|node| node.address.is_empty());
    let profile = asked.profile.unwrap_or(map.hot_profile);
    let policy = Policy {
        cluster: map.cluster,
        hot_profile: profile,
        cold_profile: None,
        partition_count: map.partition_count(),
        rebuild_after_ms: REBUILD_AFTER_MS,
        groups_per_device: if standalone { 1 } else { groups_per_device(profile) },
    };
    let additions = Additions {
        nodes: asked.add_node,
        devices_per_node: None,
        devices: asked.add_device,
        device_bytes: asked.device_size,
        profile: asked.profile,
    };
    let changes = asked.add_node + asked.add_device > 0 || asked.profile.is_some();
    let (map, moved) = match changes {
        true => with_additions(map, &policy, &additions, 0).map(|(map, told)| (map, told.positions))?,
        false => (map.clone(), 0),
    };
    let hardware = Hardware {
        afr: asked.afr / 100.0,
        rebuild_bytes_per_s: asked.rebuild_rate,
        nic_bytes_per_s: asked.nic,
        wait_s: REBUILD_AFTER_MS as f64 / 1000.0,
        fill: asked.fill / 100.0,
        cost_per_tb: asked.cost_per_tb,
    };
    let worth = worth(&map, &hardware, Trials { count: asked.trials, seed: asked.seed })
        .context("no placement group of the hot tier is open")?;
    let loss = worth.loss;
    let demand = Demand {
        users: asked.users,
        requests_per_user: asked.requests_per_user,
        object_bytes: asked.object_size,
        write_share: asked.write_percent / 100.0,
        years: asked.years,
    };
    let needs = envelope(&demand, worth.profile);
    Ok(json!({
        "profile": worth.profile.to_string(), "nodes": worth.nodes, "devices": worth.devices,
        "raw_bytes": worth.raw_bytes, "usable_bytes": worth.usable_bytes,
        "first_full_bytes": worth.first_full_bytes, "rebuild_hours": worth.rebuild_hours,
        "rebuild_bound_by": if worth.nic_bound { "network" } else { "devices" },
        "mttdl_years": loss.mttdl_years,
        "mttdl_years_95_percent": [loss.mttdl_years_low, loss.mttdl_years_high],
        "annual_loss_probability": loss.annual_probability,
        "mttdl_years_groups_apart": loss.groups_apart_years,
        "trials": loss.trials, "trials_lost": loss.losses, "cost": worth.cost,
        "cost_per_usable_tb": worth.cost_per_usable_tb, "positions_moved": moved,
        "envelope": {
            "requests_per_s": needs.requests_per_s, "peak_requests_per_s": needs.peak_requests_per_s,
            "peak_bytes_per_s": needs.peak_bytes_per_s,
            "peak_device_bytes_per_s": needs.peak_device_bytes_per_s,
            "objects": needs.objects, "object_bytes": needs.object_bytes, "device_bytes": needs.device_bytes,
            "times_this_cluster": needs.device_bytes / worth.raw_bytes.max(1) as f64,
        },
    }))
}
