//! `quarryctl policy`

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use crate::{
    client::Client,
    output::{self, Format},
};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists all policies, also those that are built in.
    List,
    /// Prints the document of a policy.
    Show {
        /// Name of the policy.
        name: String,
    },
    /// Stores a policy, or replaces it for all who have it.
    Put {
        /// Name of the policy.
        name: String,
        /// File with the document (JSON).
        file: PathBuf,
    },
    /// Deletes a policy that nobody has.
    Delete {
        /// Name of the policy.
        name: String,
    },
    /// Attaches a policy to a user.
    Attach {
        /// Name of the policy.
        name: String,
        /// Name of the user.
        user: String,
    },
    /// Takes a policy from a user.
    Detach {
        /// Name of the policy.
        name: String,
        /// Name of the user.
        user: String,
    },
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    match verb {
        Verb::List => output::rows(&client.get("/admin/policies")?, &["name", "built_in"], format),
        Verb::Show { name } => {
            let policy = client.get(&client.path(&["policies", &name])?)?;
            match format {
                Format::Json => output::one(&policy, &[], format),
                Format::Table => output::done(policy["document"].as_str().unwrap_or_default(), format),
            }
        }
        Verb::Put { name, file } => {
            let document = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
            client.send("PUT", &client.path(&["policies", &name])?, Some(&document))?;
            output::done(&format!("stored the policy {name}"), format)
        }
        Verb::Delete { name } => {
            client.send("DELETE", &client.path(&["policies", &name])?, None)?;
            output::done(&format!("deleted the policy {name}"), format)
        }
        Verb::Attach { name, user } => {
            client.send("PUT", &client.path(&["users", &user, "policies", &name])?, None)?;
            output::done(&format!("{user} has the policy {name}"), format)
        }
        Verb::Detach { name, user } => {
            client.send("DELETE", &client.path(&["users", &user, "policies", &name])?, None)?;
            output::done(&format!("{user} no longer has the policy {name}"), format)
        }
    }
}
