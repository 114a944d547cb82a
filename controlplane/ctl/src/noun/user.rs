//! `quarryctl user`

use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{self, Format},
};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists all users.
    List,
    /// Creates a user, who may do nothing until a policy is attached.
    Create {
        /// Name of the user.
        name: String,
    },
    /// Deletes a user and the keys of the user.
    Delete {
        /// Name of the user.
        name: String,
    },
    /// Shows a user with keys and policies.
    Info {
        /// Name of the user.
        name: String,
    },
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    match verb {
        Verb::List => {
            let mut users = client.get("/admin/users")?;
            shorten(&mut users);
            output::rows(&users, &["name", "keys", "policies"], format)
        }
        Verb::Create { name } => {
            client.send("POST", "/admin/users", Some(&json!({ "name": name }).to_string()))?;
            output::done(&format!("created the user {name}"), format)
        }
        Verb::Delete { name } => {
            client.send("DELETE", &client.path(&["users", &name])?, None)?;
            output::done(&format!("deleted the user {name}"), format)
        }
        Verb::Info { name } => {
            output::one(&client.get(&client.path(&["users", &name])?)?, &["name", "policies", "keys"], format)
        }
    }
}

/// The list shows ids of keys only.
fn shorten(users: &mut Value) {
    for user in users.as_array_mut().into_iter().flatten() {
        let ids = user["keys"].as_array().into_iter().flatten().map(|key| key["id"].clone()).collect();
        user["keys"] = Value::Array(ids);
    }
}
