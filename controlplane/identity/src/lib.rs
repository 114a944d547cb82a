//! Who may do what: users, access keys, policies in the language of IAM, and the decision about one request.
//!
//! Pure: no clock, no I/O, nothing of ours. A policy is parsed once, when it is stored or published
//! ([`Policy::of_user`], [`Policy::of_bucket`]), and [`decide`] only compares: an action is one bit of a set, a
//! resource one run of the wildcard matcher.
//!
//! Invariants:
//! - what a policy says is either understood whole or refused with a reason ([`PolicyError`]): an element, operator,
//!   action or condition key that is not known is never skipped;
//! - an explicit deny wins, whatever the order of policies and statements;
//! - a request for which nothing says allow is denied, but those of the root credential;
//! - deciding takes at most (length of all patterns) x (length of the value) steps.
//!
//! There is one account, [`ACCOUNT`]: its root is the root credential of the node, and users belong to it. A bucket has an
//! owner, who made it: the root or a user. That alone gives a user nothing; policies may ask for it by the condition key
//! `quarry:BucketOwner`, as the built-in policy `tenant` does.

mod acl;
mod action;
mod builtin;
mod condition;
mod context;
mod date;
mod decide;
mod json;
mod parse;
mod pattern;
mod policy;
mod principal;
mod public;
mod user;

pub use acl::{Acl, GRANTS_MAX, Grant, Grantee, Listed, Permission, of_object_can_allow};
pub use action::{Action, Target};
pub use builtin::{BUILT_IN, built_in};
pub use context::Context;
pub use decide::{Decision, Request, decide};
pub use parse::{
    BUCKET_POLICY_BYTES_MAX, DEPTH_MAX, PATTERN_CHARS_MAX, PolicyError, STATEMENTS_MAX,
    USER_POLICY_BYTES_MAX, VALUES_MAX,
};
pub use policy::Policy;
pub use principal::{ACCOUNT, Principal};
pub use user::{
    AccessKey, Change, KEYS_PER_USER_MAX, NamedPolicy, POLICIES_MAX, POLICIES_PER_USER_MAX, Secret,
    USERS_MAX, User, UserError, UserTable,
};

/// What stands before bucket and key in the name of a resource.
pub const ARN_PREFIX: &str = "arn:aws:s3:::";
