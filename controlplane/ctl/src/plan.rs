//! Changes of the cluster: what they lead to is shown first, and done when that is agreed to.

use std::io::Write;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{self, Format},
};

/// Whether to go on when the plan was shown.
#[derive(clap::Args)]
pub(crate) struct Consent {
    /// Only show what would happen.
    #[arg(long)]
    dry_run: bool,
    /// Do it without asking.
    #[arg(long, short)]
    yes: bool,
}

/// Shows what an intent leads to, and does it if wanted.
pub(crate) fn ask(client: &Client, intent: &Value, consent: &Consent, format: Format) -> anyhow::Result<()> {
    let body = json!({ "intents": [intent] }).to_string();
    let plan = client.send("POST", "/admin/plan", Some(&body))?;
    if format == Format::Json {
        if consent.dry_run {
            return output::one(&plan, &[], format);
        }
    } else {
        output::print(&shown(&plan))?;
    }
    if consent.dry_run {
        return Ok(());
    }
    if !consent.yes && !agreed()? {
        bail!("nothing was done: give --yes, or answer yes");
    }
    client.send("POST", "/admin/operate", Some(&body))?;
    output::done(&format!("asked for {intent}"), format)
}

fn shown(plan: &Value) -> String {
    let number = |field: &str| plan[field].as_u64().unwrap_or_default();
    let mut lines = vec![format!(
        "In {} steps {} of {} positions of placement groups and {} replicas of partitions move.",
        number("plans"),
        number("positions"),
        number("positions_all"),
        number("replicas"),
    )];
    if number("stuck") > 0 {
        let stuck = number("stuck");
        lines.push(format!("{stuck} places cannot be moved away: there are too few other devices."));
    }
    let remains = plan["remains"].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.extend(remains.map(|reason| format!("At the end: {reason}")));
    lines.push("The first step:".to_owned());
    lines.extend(plan["first"].as_str().map(|first| first.trim_end().to_owned()));
    lines.join("\n")
}

fn agreed() -> anyhow::Result<bool> {
    write!(std::io::stderr(), "Go on? [yes/no] ").context("cannot ask")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the answer")?;
    Ok(line.trim() == "yes")
}
