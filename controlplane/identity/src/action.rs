//! The actions of S3 that a policy may name, and sets of them.
//!
//! The list also has actions of operations that the gateway answers with `NotImplemented`, so that policies written for
//! S3 are understood; what is not in it is refused as a mistake in the policy.

use crate::pattern::Pattern;

/// What an action is done to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The account; the resource is written `arn:aws:s3:::*`.
    Account,
    /// A bucket.
    Bucket,
    /// An object.
    Object,
}

macro_rules! actions {
    ($($target:ident: $($name:ident)+;)+) => {
        /// An action, without its prefix `s3:`.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum Action {
            $($(
                #[doc = concat!("`s3:", stringify!($name), "`")]
                $name,
            )+)+
        }

        impl Action {
            /// Every action.
            pub const ALL: &[Self] = &[$($(Self::$name,)+)+];

            /// As in a policy, for example `s3:GetObject`.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$name => concat!("s3:", stringify!($name)),)+)+ }
            }

            /// What it is done to.
            pub const fn target(self) -> Target {
                match self { $($(Self::$name => Target::$target,)+)+ }
            }
        }
    };
}

actions! {
    Account: ListAllMyBuckets GetAccountPublicAccessBlock PutAccountPublicAccessBlock;
    Bucket: CreateBucket DeleteBucket ListBucket ListBucketVersions ListBucketMultipartUploads GetBucketLocation
        GetBucketPolicy PutBucketPolicy DeleteBucketPolicy GetBucketPolicyStatus
        GetBucketPublicAccessBlock PutBucketPublicAccessBlock
        GetBucketOwnershipControls PutBucketOwnershipControls GetBucketAcl PutBucketAcl
        GetBucketVersioning PutBucketVersioning GetBucketTagging PutBucketTagging GetBucketCORS PutBucketCORS
        GetBucketWebsite PutBucketWebsite DeleteBucketWebsite GetLifecycleConfiguration PutLifecycleConfiguration
        GetBucketLogging PutBucketLogging GetBucketNotification PutBucketNotification
        GetBucketRequestPayment PutBucketRequestPayment GetEncryptionConfiguration PutEncryptionConfiguration
        GetReplicationConfiguration PutReplicationConfiguration GetAccelerateConfiguration
        PutAccelerateConfiguration GetBucketObjectLockConfiguration PutBucketObjectLockConfiguration
        GetAnalyticsConfiguration PutAnalyticsConfiguration GetInventoryConfiguration PutInventoryConfiguration
        GetMetricsConfiguration PutMetricsConfiguration GetIntelligentTieringConfiguration
        PutIntelligentTieringConfiguration;
    Object: GetObject GetObjectVersion PutObject DeleteObject DeleteObjectVersion
        GetObjectAttributes GetObjectVersionAttributes GetObjectAcl GetObjectVersionAcl PutObjectAcl
        PutObjectVersionAcl GetObjectTagging GetObjectVersionTagging PutObjectTagging PutObjectVersionTagging
        DeleteObjectTagging DeleteObjectVersionTagging AbortMultipartUpload ListMultipartUploadParts
        RestoreObject GetObjectTorrent GetObjectVersionTorrent GetObjectRetention PutObjectRetention
        GetObjectLegalHold PutObjectLegalHold BypassGovernanceRetention GetObjectVersionForReplication
        ReplicateObject ReplicateDelete ReplicateTags ObjectOwnerOverrideToBucketOwner;
}

const _: () = assert!(Action::ALL.len() <= 128, "a set of actions is 128 bits");

/// A set of actions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ActionSet(u128);

impl ActionSet {
    /// The actions that a name with wildcards means; `None` if it is not written as an action of S3. Empty if it
    /// matches none.
    pub(crate) fn matching(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        if lower != "*" && !lower.starts_with("s3:") {
            return None;
        }
        let pattern = Pattern::wildcards(&lower);
        let mut set = Self::default();
        for action in Action::ALL {
            if pattern.matches(&action.name().to_ascii_lowercase()) {
                set.0 |= 1 << (*action as u8);
            }
        }
        Some(set)
    }

    pub(crate) fn contains(self, action: Action) -> bool {
        self.0 & (1 << (action as u8)) != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn complement(self) -> Self {
        Self(
            Action::ALL
                .iter()
                .filter(|action| !self.contains(**action))
                .fold(0, |bits, action| bits | 1 << (*action as u8)),
        )
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Action> {
        Action::ALL.iter().copied().filter(move |action| self.contains(*action))
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, ActionSet};

    #[test]
    fn names_with_wildcards() {
        let count = |name| ActionSet::matching(name).map(|set| set.iter().count());
        assert_eq!(count("*"), Some(Action::ALL.len()));
        assert_eq!(count("s3:*"), Some(Action::ALL.len()));
        assert_eq!(count("S3:GETOBJECT"), Some(1));
        assert_eq!(count("s3:GetObject"), Some(1));
        assert_eq!(count("s3:GetObjec?"), Some(1));
        assert_eq!(count("s3:Nothing"), Some(0));
        assert_eq!(count("ec2:Run"), None);
        assert_eq!(count("GetObject"), None);
        assert!(ActionSet::matching("s3:Put*").unwrap().contains(Action::PutObjectAcl));
        assert!(!ActionSet::matching("s3:Put*").unwrap().contains(Action::GetObject));
    }
}
