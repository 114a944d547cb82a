//! Users, their access keys and policies: one table with one revision, and its changes.
//!
//! Invariants: a key belongs to a user of the table; an attached policy is built in or in the table; a secret is shown by
//! nothing here but [`Secret::reveal`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::builtin::built_in;
use crate::parse::PolicyError;
use crate::policy::Policy;

/// Users of a cluster: the table is one value in the memory of every node.
pub const USERS_MAX: usize = 10_000;
/// Stored policies.
pub const POLICIES_MAX: usize = 1000;
/// Keys of one user: two to rotate, and a few more.
pub const KEYS_PER_USER_MAX: usize = 10;
/// Policies attached to one user, as in IAM.
pub const POLICIES_PER_USER_MAX: usize = 10;
const NAME_CHARS_MAX: usize = 64;

/// The secret of an access key. SigV4 is a keyed hash, so it has to be stored as it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself: to verify a signature, or to tell it once to who created it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(..)")
    }
}

/// A user.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct User {
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Names of the attached policies.
    #[serde(default)]
    pub policies: BTreeSet<String>,
}

/// An access key, without its id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AccessKey {
    /// Whose it is.
    pub user: String,
    /// For signatures.
    pub secret: Secret,
    /// Whether it may be used.
    pub enabled: bool,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// A stored policy: the document as given, and parsed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(from = "StoredPolicy", into = "StoredPolicy")]
pub struct NamedPolicy {
    document: String,
    updated_ms: u64,
    parsed: Arc<Policy>,
}

/// As it stands in the metastore.
#[derive(Serialize, Deserialize)]
struct StoredPolicy {
    document: String,
    updated_ms: u64,
}

impl From<StoredPolicy> for NamedPolicy {
    /// One that is not understood, say by an older version, denies everything.
    fn from(StoredPolicy { document, updated_ms }: StoredPolicy) -> Self {
        let parsed = Arc::new(Policy::of_user(&document).unwrap_or_else(|_| Policy::deny_all()));
        Self { document, updated_ms, parsed }
    }
}

impl From<NamedPolicy> for StoredPolicy {
    fn from(NamedPolicy { document, updated_ms, .. }: NamedPolicy) -> Self {
        Self { document, updated_ms }
    }
}

impl NamedPolicy {
    /// As given.
    pub fn document(&self) -> &str {
        &self.document
    }

    /// When it was put, milliseconds since 1970.
    pub fn updated_ms(&self) -> u64 {
        self.updated_ms
    }
}

/// All of it at one revision.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct UserTable {
    /// Grows by one with every committed change of the table.
    pub revision: u64,
    /// By name.
    pub users: BTreeMap<String, User>,
    /// By id.
    pub keys: BTreeMap<String, AccessKey>,
    /// By name, without those that are built in.
    pub policies: BTreeMap<String, NamedPolicy>,
}

/// A requested change.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new user without keys and policies.
    CreateUser {
        /// The user.
        name: String,
        /// Milliseconds since 1970.
        now_ms: u64,
    },
    /// Removes a user and the keys of the user.
    DeleteUser {
        /// The user.
        name: String,
    },
    /// A new key of a user.
    CreateKey {
        /// Its id, new.
        id: String,
        /// The rest.
        key: AccessKey,
    },
    /// Removes a key.
    DeleteKey {
        /// Its id.
        id: String,
    },
    /// Enables or disables a key.
    SetKeyEnabled {
        /// Its id.
        id: String,
        /// Whether it may be used.
        enabled: bool,
    },
    /// Stores a policy, or another one under its name.
    PutPolicy {
        /// Its name.
        name: String,
        /// JSON.
        document: String,
        /// Milliseconds since 1970.
        now_ms: u64,
    },
    /// Removes a policy that is attached to nobody.
    DeletePolicy {
        /// Its name.
        name: String,
    },
    /// Attaches a policy to a user. Repeating it is fine.
    Attach {
        /// Its name.
        policy: String,
        /// The user.
        user: String,
    },
    /// Takes a policy from a user.
    Detach {
        /// Its name.
        policy: String,
        /// The user.
        user: String,
    },
}

/// Why a change was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UserError {
    /// A name that breaks the rules.
    #[error("{name:?} is not a name: 1 to {NAME_CHARS_MAX} letters, digits and any of +=,.@_-")]
    Name {
        /// As given.
        name: String,
    },
    /// A key id or secret that breaks the rules.
    #[error(
        "an access key id has 3 to 128 and a secret 8 to 128 visible ASCII characters, the id without '/'"
    )]
    KeyForm,
    /// It exists already.
    #[error("the {what} {name:?} exists")]
    Exists {
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// It does not exist.
    #[error("the {what} {name:?} does not exist")]
    NotFound {
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// More than the limit.
    #[error("there may be {limit} {what} at most")]
    TooMany {
        /// What it is.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// Attached policies are not deleted.
    #[error("the policy {policy:?} is attached to the user {user:?}")]
    Attached {
        /// The policy.
        policy: String,
        /// One of the users.
        user: String,
    },
    /// Built-in policies cannot be changed.
    #[error("the policy {name:?} is built in")]
    BuiltIn {
        /// Its name.
        name: String,
    },
    /// The document is refused.
    #[error("malformed policy: {0}")]
    Policy(#[from] PolicyError),
}

impl UserTable {
    /// The policies of a user, parsed. One that is missing denies everything.
    pub fn policies_of<'a>(&'a self, user: &str) -> impl Iterator<Item = Arc<Policy>> + 'a {
        let attached = self.users.get(user).map(|user| &user.policies);
        attached.into_iter().flatten().map(|name| {
            let stored = self.policies.get(name).map(|policy| Arc::clone(&policy.parsed));
            stored.or_else(|| built_in(name)).unwrap_or_else(|| Arc::new(Policy::deny_all()))
        })
    }

    /// The ids of a user's keys.
    pub fn keys_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = (&'a String, &'a AccessKey)> {
        self.keys.iter().filter(move |(_, key)| key.user == user)
    }

    /// Applies a change; the revision is the caller's.
    ///
    /// # Errors
    /// The table is unchanged then.
    pub fn apply(&mut self, change: &Change) -> Result<(), UserError> {
        match change {
            Change::CreateUser { name, now_ms } => self.create_user(name, *now_ms),
            Change::DeleteUser { name } => {
                self.users.remove(name).ok_or_else(|| no_such("user", name))?;
                self.keys.retain(|_, key| key.user != *name);
                Ok(())
            }
            Change::CreateKey { id, key } => self.create_key(id, key),
            Change::DeleteKey { id } => {
                self.keys.remove(id).map(drop).ok_or_else(|| no_such("access key", id))
            }
            Change::SetKeyEnabled { id, enabled } => {
                self.keys.get_mut(id).ok_or_else(|| no_such("access key", id))?.enabled = *enabled;
                Ok(())
            }
            Change::PutPolicy { name, document, now_ms } => self.put_policy(name, document, *now_ms),
            Change::DeletePolicy { name } => self.delete_policy(name),
            Change::Attach { policy, user } => self.attach(policy, user),
            Change::Detach { policy, user } => {
                let found = self.users.get_mut(user).ok_or_else(|| no_such("user", user))?;
                let removed = found.policies.remove(policy);
                if removed { Ok(()) } else { Err(no_such("attached policy", policy)) }
            }
        }
    }

    fn create_user(&mut self, name: &str, created_ms: u64) -> Result<(), UserError> {
        check_name(name)?;
        if self.users.contains_key(name) {
            return Err(UserError::Exists { what: "user", name: name.to_owned() });
        }
        room(self.users.len(), USERS_MAX, "users")?;
        self.users.insert(name.to_owned(), User { created_ms, policies: BTreeSet::new() });
        Ok(())
    }

    fn create_key(&mut self, id: &str, key: &AccessKey) -> Result<(), UserError> {
        let fits = |text: &str, least| {
            (least..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !fits(id, 3) || id.contains('/') || !fits(key.secret.reveal(), 8) {
            return Err(UserError::KeyForm);
        }
        if !self.users.contains_key(&key.user) {
            return Err(no_such("user", &key.user));
        }
        if self.keys.contains_key(id) {
            return Err(UserError::Exists { what: "access key", name: id.to_owned() });
        }
        room(self.keys_of(&key.user).count(), KEYS_PER_USER_MAX, "access keys of a user")?;
        self.keys.insert(id.to_owned(), key.clone());
        Ok(())
    }

    fn put_policy(&mut self, name: &str, document: &str, updated_ms: u64) -> Result<(), UserError> {
        check_name(name)?;
        if built_in(name).is_some() {
            return Err(UserError::BuiltIn { name: name.to_owned() });
        }
        let parsed = Arc::new(Policy::of_user(document)?);
        if !self.policies.contains_key(name) {
            room(self.policies.len(), POLICIES_MAX, "policies")?;
        }
        let policy = NamedPolicy { document: document.to_owned(), updated_ms, parsed };
        self.policies.insert(name.to_owned(), policy);
        Ok(())
    }

    fn delete_policy(&mut self, name: &str) -> Result<(), UserError> {
        if built_in(name).is_some() {
            return Err(UserError::BuiltIn { name: name.to_owned() });
        }
        if let Some((user, _)) = self.users.iter().find(|(_, user)| user.policies.contains(name)) {
            return Err(UserError::Attached { policy: name.to_owned(), user: user.clone() });
        }
        self.policies.remove(name).map(drop).ok_or_else(|| no_such("policy", name))
    }

    fn attach(&mut self, policy: &str, user: &str) -> Result<(), UserError> {
        if built_in(policy).is_none() && !self.policies.contains_key(policy) {
            return Err(no_such("policy", policy));
        }
        let found = self.users.get_mut(user).ok_or_else(|| no_such("user", user))?;
        if !found.policies.contains(policy) {
            room(found.policies.len(), POLICIES_PER_USER_MAX, "policies of a user")?;
            found.policies.insert(policy.to_owned());
        }
        Ok(())
    }
}

fn no_such(what: &'static str, name: &str) -> UserError {
    UserError::NotFound { what, name: name.to_owned() }
}

fn room(count: usize, limit: usize, what: &'static str) -> Result<(), UserError> {
    if count < limit { Ok(()) } else { Err(UserError::TooMany { what, limit }) }
}

fn check_name(name: &str) -> Result<(), UserError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
    if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(UserError::Name { name: name.chars().take(100).collect() })
}
