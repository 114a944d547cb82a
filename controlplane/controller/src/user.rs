//! Users, access keys and policies in the metastore: one row each, and one revision for all of them.
//!
//! Every change compares and replaces the revision, so the rows of one revision belong together and no change is lost.
//! Secrets stand in the rows of keys as they are, since signatures cannot be verified without them: who reads the
//! metastore can sign (docs/security.md).

use std::{collections::BTreeMap, sync::Arc};

use quarry_identity::{Change, UserTable};
use quarry_metastore::{Entry, Metastore, Transaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    ControllerError,
    batch::Decided,
    state::{Loaded, parse, to_json},
};

/// What all keys of this table begin with, and the key of its revision.
pub(crate) const PREFIX: &str = "identity";
const REVISION_KEY: &str = PREFIX;
const USER_PREFIX: &str = "identity/user/";
const KEY_PREFIX: &str = "identity/key/";
const POLICY_PREFIX: &str = "identity/policy/";

/// What stands under [`REVISION_KEY`].
#[derive(Serialize, Deserialize)]
struct Counter {
    revision: u64,
}

/// Reads the table, and the entry to compare a change against. One range, so that all of it is of one revision.
pub(crate) async fn read(metastore: &impl Metastore) -> Result<(UserTable, Option<Entry>), ControllerError> {
    let range = metastore.range(PREFIX).await.map_err(|error| ControllerError::from(&error))?;
    let entry = range.entries.iter().find(|entry| entry.key == REVISION_KEY).cloned();
    let counter: Option<Counter> = entry.as_ref().map(parse).transpose()?;
    let table = UserTable {
        revision: counter.map_or(0, |counter| counter.revision),
        users: rows(&range.entries, USER_PREFIX)?,
        keys: rows(&range.entries, KEY_PREFIX)?,
        policies: rows(&range.entries, POLICY_PREFIX)?,
    };
    Ok((table, entry))
}

fn rows<T: DeserializeOwned>(
    entries: &[Entry],
    prefix: &str,
) -> Result<BTreeMap<String, T>, ControllerError> {
    let of_prefix = entries.iter().filter_map(|entry| Some((entry.key.strip_prefix(prefix)?, entry)));
    of_prefix.map(|(name, entry)| Ok((name.to_owned(), parse(entry)?))).collect()
}

/// Applies a change to what was loaded.
pub(crate) fn decide(
    change: &Change,
    loaded: Loaded,
) -> Result<Decided<Transaction, Arc<UserTable>>, ControllerError> {
    let mut table = (*loaded.users).clone();
    table.apply(change)?;
    if table == *loaded.users {
        let unchanged = Arc::clone(&loaded.users);
        return Ok((None, loaded, unchanged));
    }
    table.revision += 1;
    let mut transaction = Transaction::default()
        .expect(REVISION_KEY, loaded.users_entry.as_ref())
        .put(REVISION_KEY, to_json(&Counter { revision: table.revision }));
    transaction = difference(transaction, USER_PREFIX, &loaded.users.users, &table.users);
    transaction = difference(transaction, KEY_PREFIX, &loaded.users.keys, &table.keys);
    transaction = difference(transaction, POLICY_PREFIX, &loaded.users.policies, &table.policies);
    let table = Arc::new(table);
    Ok((Some(transaction), Loaded { users: Arc::clone(&table), ..loaded }, table))
}

fn difference<T: PartialEq + Serialize>(
    mut transaction: Transaction,
    prefix: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
) -> Transaction {
    for (name, row) in new.iter().filter(|(name, row)| old.get(*name) != Some(*row)) {
        transaction = transaction.put(&format!("{prefix}{name}"), to_json(row));
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        transaction = transaction.delete(&format!("{prefix}{name}"));
    }
    transaction
}
