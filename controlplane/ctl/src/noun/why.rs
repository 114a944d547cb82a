//! `quarryctl why`

use clap::Args;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{self, Format},
};

const FIELDS: [&str; 12] = [
    "partition",
    "epoch",
    "map_version",
    "problem",
    "version_id",
    "size_bytes",
    "last_modified_ms",
    "storage_class",
    "last_read_ms",
    "reads_per_hour",
    "lookup_us",
    "blobs_all",
];
const SHARDS: [&str; 8] = ["shard", "sort", "device", "node", "location", "state", "moves_to", "asked_us"];

#[derive(Args)]
pub(crate) struct Asked {
    /// BUCKET/KEY.
    object: String,
    /// Another version than the newest.
    #[arg(long)]
    version_id: Option<String>,
}

pub(crate) fn run(asked: &Asked, client: &Client, format: Format) -> anyhow::Result<()> {
    let (bucket, key) = asked
        .object
        .split_once('/')
        .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
        .ok_or_else(|| anyhow::anyhow!("{:?} is not BUCKET/KEY", asked.object))?;
    let body = json!({ "bucket": bucket, "key": key, "version_id": asked.version_id });
    let told = client.send("POST", "/admin/why", Some(&body.to_string()))?;
    if format == Format::Json {
        return output::one(&told, &[], format);
    }
    output::one(&told, &FIELDS, format)?;
    output::print("")?;
    let mut members = vec![told["primary"].clone()];
    members[0]["is"] = json!("primary");
    for (role, field) in [("in sync", "in_sync"), ("joining", "joining")] {
        for member in told[field].as_array().into_iter().flatten() {
            if *member != told["primary"] {
                let mut member = member.clone();
                member["is"] = json!(role);
                members.push(member);
            }
        }
    }
    output::rows(&Value::Array(members), &["device", "node", "in", "is"], format)?;
    for reason in told["why"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::print(&format!("why: {reason}"))?;
    }
    for blob in told["blobs"].as_array().into_iter().flatten() {
        let text = |field: &str| blob[field].to_string().replace('"', "");
        output::print(&format!(
            "\nblob {} of {} bytes, {} on group {} ({}, epoch {}, {} tier)",
            text("blob"),
            text("size_bytes"),
            text("profile"),
            text("group"),
            text("group_state"),
            text("group_epoch"),
            text("tier"),
        ))?;
        output::rows(&blob["shards"], &SHARDS, format)?;
    }
    Ok(())
}
