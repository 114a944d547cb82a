//! `quarryctl tier`

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{self, Format},
    plan::{self, Consent},
};

const TIER_COLUMNS: [&str; 5] = ["tier", "profile", "groups_open", "capacity_bytes_here", "used_bytes_here"];
const PLAN_FIELDS: [&str; 4] = ["demote", "promote", "hot_device_bytes_saved", "cold_device_bytes_taken"];

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Shows profiles and the policy, and what the node that answers has on its tiers.
    Status,
    /// Shows what the policy would move now and save, on the node that answers; it moves nothing. Works with the policy off.
    Plan {
        /// For clarity: a plan is never carried out by this command.
        #[arg(long)]
        dry_run: bool,
    },
    /// Changes the automatic policy; what is not given stays as it is.
    Policy {
        #[command(flatten)]
        changes: Changes,
        #[command(flatten)]
        consent: Consent,
    },
    /// Sets the erasure profile of new blobs of the cold tier.
    Profile {
        /// k+m.
        profile: String,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Switch {
    /// It moves.
    On,
    /// It does not.
    Off,
}

#[derive(Args)]
pub(crate) struct Changes {
    /// Whether it acts.
    state: Option<Switch>,
    /// Percent of the hot tier that may be used before versions are demoted.
    #[arg(long)]
    high_percent: Option<u8>,
    /// Demotion goes on down to so many percent.
    #[arg(long)]
    low_percent: Option<u8>,
    /// Seconds without a read or write before a version may be demoted.
    #[arg(long)]
    idle_s: Option<u64>,
    /// Reads in an hour (decayed) that promote a version.
    #[arg(long)]
    promote_reads_per_hour: Option<u32>,
    /// Seconds in which no version moves twice.
    #[arg(long)]
    cool_down_s: Option<u64>,
    /// Smaller versions stay where they are.
    #[arg(long)]
    size_bytes_min: Option<u64>,
    /// Bytes per second that moves may read and write on each node.
    #[arg(long)]
    bytes_per_second: Option<u64>,
}

impl Changes {
    fn apply(&self, policy: &mut Value) {
        let numbers = [
            ("high-percent", self.high_percent.map(u64::from)),
            ("low-percent", self.low_percent.map(u64::from)),
            ("idle-s", self.idle_s),
            ("promote-reads-per-hour", self.promote_reads_per_hour.map(u64::from)),
            ("cool-down-s", self.cool_down_s),
            ("size-bytes-min", self.size_bytes_min),
            ("bytes-per-second", self.bytes_per_second),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                policy[name] = json!(value);
            }
        }
        if let Some(state) = self.state {
            policy["enabled"] = json!(matches!(state, Switch::On));
        }
    }
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    match verb {
        Verb::Status => {
            let status = client.get("/admin/tiers")?;
            if format == Format::Json {
                return output::one(&status, &[], format);
            }
            output::rows(&status["tiers"], &TIER_COLUMNS, format)?;
            output::print("")?;
            let policy = status["policy"].as_object().into_iter().flatten();
            for (name, value) in policy.map(|(name, value)| (name.as_str(), value)) {
                output::print(&format!("policy {name:<24} {value}"))?;
            }
            output::print(&format!("reads are counted of        {} versions", status["watched_versions"]))
        }
        Verb::Plan { .. } => {
            let plan = client.send("POST", "/admin/tiers/plan", None)?;
            output::one(&plan, &PLAN_FIELDS, format)?;
            if format != Format::Json {
                output::rows(&plan["moves"], &["bucket", "key", "to", "size_bytes"], format)?;
            }
            Ok(())
        }
        Verb::Policy { changes, consent } => {
            let mut policy = client.get("/admin/tiers")?["policy"].clone();
            changes.apply(&mut policy);
            plan::ask(client, &json!({ "tier_policy": policy }), &consent, format)
        }
        Verb::Profile { profile, consent } => {
            let (data, parity) = profile
                .split_once('+')
                .and_then(|(data, parity)| Some((data.parse::<u8>().ok()?, parity.parse::<u8>().ok()?)))
                .ok_or_else(|| anyhow::anyhow!("{profile:?} is not a profile: write for example 8+3"))?;
            let profile = json!({ "data_shards": data, "parity_shards": parity });
            plan::ask(client, &json!({ "cold_profile": profile }), &consent, format)
        }
    }
}
