//! The decision about one request.

use crate::action::Action;
use crate::context::Context;
use crate::policy::Policy;
use crate::principal::Principal;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// What is to be done.
    pub action: Action,
    /// To what: `arn:aws:s3:::BUCKET`, `arn:aws:s3:::BUCKET/KEY`, or `arn:aws:s3:::*` for the account.
    pub resource: &'a str,
    /// What conditions ask about.
    pub context: &'a Context,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// A statement allows it and none denies it.
    Allow,
    /// A statement denies it.
    Deny,
    /// Nothing is said about it.
    ImplicitDeny,
}

/// Decides. `held` are the policies of the user who asks; they say nothing about others. `bucket` is the policy of the
/// bucket.
///
/// The root credential is allowed what no bucket policy denies; the policy itself it may always read, replace and
/// delete, so that nobody is locked out of a bucket.
pub fn decide<'a>(
    held: impl IntoIterator<Item = &'a Policy>,
    bucket: Option<&Policy>,
    request: &Request<'_>,
) -> Decision {
    let is_root = *request.principal == Principal::Root;
    if is_root && edits_policy(request.action) {
        return Decision::Allow;
    }
    let mut allowed = is_root;
    let mut denied = false;
    let mut weigh = |policy: &Policy| {
        for statement in policy.statements.iter().filter(|statement| statement.applies(request)) {
            denied |= statement.denies;
            allowed |= !statement.denies;
        }
    };
    if let Some(policy) = bucket {
        weigh(policy);
    }
    if matches!(request.principal, Principal::User(_)) {
        held.into_iter().for_each(weigh);
    }
    match (denied, allowed) {
        (true, _) => Decision::Deny,
        (false, true) => Decision::Allow,
        (false, false) => Decision::ImplicitDeny,
    }
}

fn edits_policy(action: Action) -> bool {
    matches!(action, Action::GetBucketPolicy | Action::PutBucketPolicy | Action::DeleteBucketPolicy)
}
