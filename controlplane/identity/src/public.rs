//! Whether a bucket policy is public: what PublicAccessBlock forbids and GetBucketPolicyStatus tells.
//!
//! As in S3, an allow for everyone is public unless a condition ties it to values that are written out and belong to
//! somebody: addresses (no huge networks) or principals.

use crate::condition::{Condition, Test, Values};
use crate::policy::{Policy, Statement};

/// Keys whose values belong to somebody.
const TYING_KEYS: [&str; 4] = ["aws:principalaccount", "aws:principalarn", "aws:userid", "aws:username"];

impl Policy {
    /// Whether it allows anything to everyone.
    pub fn is_public(&self) -> bool {
        self.statements.iter().any(is_public)
    }
}

fn is_public(statement: &Statement) -> bool {
    !statement.denies && statement.principals.is_everyone() && !statement.conditions.iter().any(ties)
}

fn ties(condition: &Condition) -> bool {
    if !condition.is_positive() || condition.operator.test == Test::Null {
        return false;
    }
    match &condition.values {
        Values::Networks(networks) => networks.iter().all(|network| !network.is_broad()),
        Values::Texts(texts) => {
            let exact = condition.operator.test == Test::Equal;
            let fixed = |text: &crate::pattern::Pattern| text.is_fixed() || (exact && text.text().is_some());
            TYING_KEYS.contains(&condition.key.as_str()) && texts.iter().all(fixed)
        }
        _ => false,
    }
}
