//! Access control lists: who was granted what on a bucket or an object, and whether that allows an action.
//!
//! A list only ever allows. Its owner is no entry of its own: what owners may do follows from the grants here, and from
//! policies. People are named by their canonical ids; to this module those are opaque.

use serde::{Deserialize, Serialize};

use crate::action::Action;

/// Grants of one list, as in S3.
pub const GRANTS_MAX: usize = 100;

/// To whom something is granted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grantee {
    /// Signed or not.
    Everyone,
    /// Whoever signs.
    SignedIn,
    /// S3's service of access logs, which there is none of: it is kept and given back.
    LogDelivery,
    /// By canonical id.
    User(String),
}

/// What is granted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Listing a bucket; reading an object.
    Read,
    /// Writing and deleting objects of a bucket; nothing on an object.
    Write,
    /// Reading the list.
    ReadAcp,
    /// Changing the list.
    WriteAcp,
    /// All of these.
    FullControl,
}

/// One entry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// To whom.
    pub grantee: Grantee,
    /// What.
    pub permission: Permission,
}

/// A list.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Acl {
    /// In the order in which they were given.
    pub grants: Vec<Grant>,
}

/// What a list is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listed {
    /// A bucket.
    Bucket,
    /// An object.
    Object,
}

/// What has to be granted on a bucket or an object for an action; `None`: no list of that kind grants it.
fn needed(listed: Listed, action: Action) -> Option<Permission> {
    match (listed, action) {
        (
            Listed::Bucket,
            Action::ListBucket | Action::ListBucketVersions | Action::ListBucketMultipartUploads,
        )
        | (Listed::Object, Action::GetObject | Action::GetObjectVersion) => Some(Permission::Read),
        (Listed::Bucket, Action::PutObject | Action::DeleteObject) => Some(Permission::Write),
        (Listed::Bucket, Action::GetBucketAcl)
        | (Listed::Object, Action::GetObjectAcl | Action::GetObjectVersionAcl) => Some(Permission::ReadAcp),
        (Listed::Bucket, Action::PutBucketAcl)
        | (Listed::Object, Action::PutObjectAcl | Action::PutObjectVersionAcl) => Some(Permission::WriteAcp),
        _ => None,
    }
}

/// Whether the list of an object can allow an action at all.
pub fn of_object_can_allow(action: Action) -> bool {
    needed(Listed::Object, action).is_some()
}

impl Acl {
    /// The list of a name that S3 has for it; `None`: there is none of that name. `bucket_owner` counts for objects alone.
    pub fn canned(name: &str, owner: &str, bucket_owner: &str) -> Option<Self> {
        let user = |id: &str, permission| Grant { grantee: Grantee::User(id.to_owned()), permission };
        let group = |grantee, permission| Grant { grantee, permission };
        let more = match name {
            "private" => vec![],
            "public-read" => vec![group(Grantee::Everyone, Permission::Read)],
            "public-read-write" => {
                vec![group(Grantee::Everyone, Permission::Read), group(Grantee::Everyone, Permission::Write)]
            }
            "authenticated-read" => vec![group(Grantee::SignedIn, Permission::Read)],
            "log-delivery-write" => vec![
                group(Grantee::LogDelivery, Permission::Write),
                group(Grantee::LogDelivery, Permission::ReadAcp),
            ],
            "bucket-owner-read" => vec![user(bucket_owner, Permission::Read)],
            "bucket-owner-full-control" => vec![user(bucket_owner, Permission::FullControl)],
            _ => return None,
        };
        let more = more.into_iter().filter(|grant| grant.grantee != Grantee::User(owner.to_owned()));
        Some(Self { grants: [user(owner, Permission::FullControl)].into_iter().chain(more).collect() })
    }

    /// Whether it allows an action. `who` is the canonical id of the caller, if the request is signed.
    pub fn allows(&self, listed: Listed, action: Action, who: Option<&str>) -> bool {
        let Some(needed) = needed(listed, action) else { return false };
        self.grants.iter().any(|grant| {
            let is_meant = match &grant.grantee {
                Grantee::Everyone => true,
                Grantee::SignedIn => who.is_some(),
                Grantee::LogDelivery => false,
                Grantee::User(id) => who == Some(id),
            };
            is_meant && (grant.permission == needed || grant.permission == Permission::FullControl)
        })
    }

    /// Whether it grants anything to people without a name.
    pub fn is_public(&self) -> bool {
        self.grants.iter().any(|grant| matches!(grant.grantee, Grantee::Everyone | Grantee::SignedIn))
    }

    /// What is left where public lists do not count.
    #[must_use]
    pub fn without_public(mut self) -> Self {
        self.grants.retain(|grant| !matches!(grant.grantee, Grantee::Everyone | Grantee::SignedIn));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::{Acl, Listed};
    use crate::Action;

    /// Every canned list, and who may do what by it: owner, bucket owner, another user, nobody.
    #[test]
    fn canned_lists_against_a_table() {
        let who = [Some("owner"), Some("bucket owner"), Some("other"), None];
        let on_object = [
            ("private", "RA------"),
            ("public-read", "RAR-R-R-"),
            ("public-read-write", "RAR-R-R-"),
            ("authenticated-read", "RAR-R---"),
            ("bucket-owner-read", "RAR-----"),
            ("bucket-owner-full-control", "RARA----"),
            ("log-delivery-write", "RA------"),
        ];
        for (name, expected) in on_object {
            let list = Acl::canned(name, "owner", "bucket owner").unwrap();
            let mut found = String::new();
            for who in who {
                let may =
                    |action, letter| if list.allows(Listed::Object, action, who) { letter } else { '-' };
                found.push(may(Action::GetObject, 'R'));
                found.push(may(Action::PutObjectAcl, 'A'));
                // Never by the list of an object.
                assert!(!list.allows(Listed::Object, Action::PutObject, who), "{name}");
                assert!(!list.allows(Listed::Object, Action::DeleteObject, who), "{name}");
            }
            assert_eq!(found, expected, "{name}");
        }
        let on_bucket = [
            ("private", "LWA---------"),
            ("public-read", "LWAL--L--L--"),
            ("public-read-write", "LWALW-LW-LW-"),
            ("authenticated-read", "LWAL--L-----"),
        ];
        for (name, expected) in on_bucket {
            let list = Acl::canned(name, "owner", "owner").unwrap();
            let mut found = String::new();
            for who in who {
                let may =
                    |action, letter| if list.allows(Listed::Bucket, action, who) { letter } else { '-' };
                found.push(may(Action::ListBucket, 'L'));
                found.push(may(Action::PutObject, 'W'));
                found.push(may(Action::PutBucketAcl, 'A'));
                for never in [Action::GetObject, Action::DeleteBucket, Action::PutBucketPolicy] {
                    assert!(!list.allows(Listed::Bucket, never, who), "{name}");
                }
            }
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(Acl::canned("public", "owner", "owner"), None);
    }

    #[test]
    fn public_grants_can_be_taken_out() {
        let list = Acl::canned("public-read-write", "owner", "owner").unwrap();
        assert!(list.is_public());
        let rest = list.without_public();
        assert!(!rest.is_public() && rest.allows(Listed::Bucket, Action::PutObject, Some("owner")));
        assert!(!rest.allows(Listed::Bucket, Action::ListBucket, None));
    }
}
