//! Who asks, and whom a bucket policy names.

use crate::parse::PolicyError;

/// The one account, in the form of the ids of accounts.
pub const ACCOUNT: &str = "000000000000";

/// Who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Principal {
    /// The root credential.
    Root,
    /// A user, by name.
    User(String),
    /// A request without a signature.
    Anonymous,
}

impl Principal {
    /// Its ARN; none for anonymous requests.
    pub fn arn(&self) -> Option<String> {
        match self {
            Self::Root => Some(format!("arn:aws:iam::{ACCOUNT}:root")),
            Self::User(name) => Some(format!("arn:aws:iam::{ACCOUNT}:user/{name}")),
            Self::Anonymous => None,
        }
    }
}

/// One entry of `Principal` or `NotPrincipal`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Named {
    /// `*`.
    Everyone,
    /// The account: its root, and where it is denied all its users. An allow is for the account to pass on by policies
    /// of users, as in S3.
    Account,
    User(String),
}

impl Named {
    /// An entry under `AWS`.
    pub(crate) fn parse(text: &str, place: &str) -> Result<Self, PolicyError> {
        let refuse = || PolicyError::Principal { place: place.to_owned(), principal: text.to_owned() };
        if text == "*" {
            return Ok(Self::Everyone);
        }
        if text == ACCOUNT {
            return Ok(Self::Account);
        }
        let name = text.strip_prefix("arn:aws:iam::").ok_or_else(refuse)?;
        let (account, name) = name.split_once(':').ok_or_else(refuse)?;
        if account != ACCOUNT && !account.is_empty() {
            return Err(refuse());
        }
        match name.strip_prefix("user/") {
            Some(user) if !user.is_empty() && !user.contains(['*', '?', '/', '$']) => {
                Ok(Self::User(user.to_owned()))
            }
            None if name == "root" => Ok(Self::Account),
            _ => Err(refuse()),
        }
    }
}

/// To whom a statement of a bucket policy applies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Principals {
    /// Policies of users have none: whoever they are attached to.
    Holder,
    These(Vec<Named>),
    /// Everyone else. Only in denials.
    AllBut(Vec<Named>),
}

impl Principals {
    pub(crate) fn name(&self, principal: &Principal, denies: bool) -> bool {
        let named = |names: &[Named], account_means_users: bool| {
            names.iter().any(|name| match (name, principal) {
                (Named::Everyone, _) | (Named::Account, Principal::Root) => true,
                (Named::Account, Principal::User(_)) => account_means_users,
                (Named::User(name), Principal::User(user)) => name == user,
                _ => false,
            })
        };
        match self {
            Self::Holder => true,
            Self::These(names) => named(names, denies),
            Self::AllBut(names) => !named(names, false),
        }
    }

    /// Means everyone, signed or not.
    pub(crate) fn is_everyone(&self) -> bool {
        matches!(self, Self::These(names) if names.contains(&Named::Everyone))
    }
}
