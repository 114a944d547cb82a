//! `quarryctl key`

use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{self, Format},
};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists the access keys of a user.
    List {
        /// Name of the user.
        user: String,
    },
    /// Creates an access key. Its secret is shown now and never again.
    Create {
        /// Name of the user.
        user: String,
    },
    /// Deletes an access key.
    Delete {
        /// Id of the key.
        id: String,
    },
    /// Lets an access key be used again.
    Enable {
        /// Id of the key.
        id: String,
    },
    /// Refuses requests with an access key until it is enabled.
    Disable {
        /// Id of the key.
        id: String,
    },
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    match verb {
        Verb::List { user } => {
            let keys = client.get(&client.path(&["users", &user])?)?["keys"].take();
            output::rows(&keys, &["id", "enabled", "created_ms"], format)
        }
        Verb::Create { user } => {
            let key = client.send("POST", "/admin/keys", Some(&json!({ "user": user }).to_string()))?;
            output::one(&key, &["user", "id", "secret"], format)
        }
        Verb::Delete { id } => {
            client.send("DELETE", &client.path(&["keys", &id])?, None)?;
            output::done(&format!("deleted the access key {id}"), format)
        }
        Verb::Enable { id } => set(client, &id, true, format),
        Verb::Disable { id } => set(client, &id, false, format),
    }
}

fn set(client: &Client, id: &str, enabled: bool, format: Format) -> anyhow::Result<()> {
    let state: Value = json!({ "enabled": enabled });
    client.send("PUT", &client.path(&["keys", id])?, Some(&state.to_string()))?;
    let what = if enabled { "enabled" } else { "disabled" };
    output::done(&format!("{what} the access key {id}"), format)
}
