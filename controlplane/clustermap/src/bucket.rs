//! What an owner configures of a bucket, as both planes know it.
//!
//! The control plane keeps it and the data plane acts on it. Documents are text that the gateway has parsed, validated
//! and written in its own canonical form; nobody else looks inside.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bytes of one document. S3 allows 1,000 lifecycle rules, which fit with about 128 bytes each.
pub const DOCUMENT_BYTES_MAX: usize = 128 << 10;

/// Whether a bucket keeps older versions of its objects.
///
/// ```text
///   Unversioned ---> Enabled <---> Suspended
///        |                             ^
///        +-----------------------------+
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Versioning {
    /// Never was versioned: a write replaces the object.
    #[default]
    Unversioned,
    /// A write adds a version.
    Enabled,
    /// A write replaces the null version; other versions stay.
    Suspended,
}

/// Which document of a bucket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentKind {
    /// Tags of the bucket.
    Tagging,
    /// Which origins browsers may use it from.
    Cors,
    /// How it is served as a website.
    Website,
    /// When objects expire.
    Lifecycle,
    /// Who may do what.
    Policy,
    /// Limits to what a policy may grant to everyone.
    PublicAccessBlock,
    /// Whether access control lists count.
    Ownership,
    /// An access control list.
    Acl,
    /// The user who made it; absent: the root.
    Owner,
}

/// The configuration of a bucket.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BucketConfig {
    /// See [`Versioning`].
    #[serde(default)]
    pub versioning: Versioning,
    /// What is set, each at most [`DOCUMENT_BYTES_MAX`] long.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub documents: BTreeMap<DocumentKind, String>,
}

impl BucketConfig {
    /// A document, if it is set.
    #[must_use]
    pub fn document(&self, kind: DocumentKind) -> Option<&str> {
        self.documents.get(&kind).map(String::as_str)
    }
}
