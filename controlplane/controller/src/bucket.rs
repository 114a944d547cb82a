//! Buckets: names, the table, and the life cycle.
//!
//! ```text
//!            create            mark                remove
//!   (none) ---------> Active <-------> Deleting ---------> (none)
//!                             unmark
//! ```
//!
//! Deleting: every primary refuses writes; then the caller checks that the bucket has no objects anywhere, and removes it or
//! takes the mark back. Uploads in progress do not keep a bucket: what is left of them belongs to an id that never comes
//! back, and every node frees it in its partitions. Both name the id, so that a late caller cannot touch a bucket made anew; so does every change of
//! the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use quarry_clustermap::{BucketConfig, BucketId, DOCUMENT_BYTES_MAX, DocumentKind, Versioning};
use serde::{Deserialize, Serialize};

use crate::{ControllerError, state::to_json};

/// Bytes of one bucket in the metastore, documents and all: two fit into one request to etcd, which takes 1.5 MiB.
pub const BUCKET_BYTES_MAX: usize = 512 << 10;

/// Whether a bucket takes writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BucketState {
    /// In use.
    Active,
    /// Refuses writes while it is checked to be empty.
    Deleting,
}

/// One bucket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bucket {
    /// Never given again.
    pub id: BucketId,
    /// When it was created, milliseconds since 1970.
    pub created_ms: u64,
    /// See [`BucketState`].
    pub state: BucketState,
    /// Revision of the table at which this bucket last changed.
    #[serde(default)]
    pub revision: u64,
    /// What its owner has set. Shared: a table is copied with every change of it.
    #[serde(default, with = "shared")]
    pub config: Arc<BucketConfig>,
}

/// [`Arc`] as what it holds.
mod shared {
    use super::{Arc, Deserialize, Serialize};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, to)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

/// All buckets at one revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BucketTable {
    /// Grows by one with every committed change of the table.
    pub revision: u64,
    /// The newest id given.
    pub last_id: BucketId,
    /// By name.
    pub by_name: BTreeMap<String, Bucket>,
}

impl BucketTable {
    /// The ids of the buckets that exist, whatever their state.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<BucketId> {
        self.by_name.values().map(|bucket| bucket.id).collect()
    }

    /// How many buckets were removed until this revision.
    #[must_use]
    pub fn removed(&self) -> u64 {
        // Ids are given from 1 on, without gaps.
        self.last_id.0.saturating_sub(self.by_name.len() as u64)
    }
}

/// What the metastore holds beside the buckets themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct BucketCounters {
    pub(crate) revision: u64,
    /// The newest bucket id given.
    pub(crate) last_id: BucketId,
}

/// A requested change of one bucket.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) kind: ChangeKind,
}

#[derive(Clone, Debug)]
pub(crate) enum ChangeKind {
    Create { now_ms: u64, documents: BTreeMap<DocumentKind, String> },
    Mark,
    Unmark { id: BucketId },
    Remove { id: BucketId },
    SetVersioning { id: BucketId, versioning: Versioning },
    SetDocument { id: BucketId, kind: DocumentKind, document: Option<String> },
}

/// Applies a change to the table. The answer is the bucket after it (before it, for a removal).
pub(crate) fn apply(
    buckets: &mut BTreeMap<String, Bucket>,
    counters: &mut BucketCounters,
    change: &Change,
) -> Result<Bucket, ControllerError> {
    let name = &change.name;
    let no_such = || ControllerError::NoSuchBucket { name: name.clone() };
    let found = |buckets: &BTreeMap<String, Bucket>, id| {
        buckets.get(name).filter(|bucket| bucket.id == id).cloned().ok_or_else(no_such)
    };
    let revision = counters.revision + 1;
    let next = match &change.kind {
        ChangeKind::Create { now_ms, documents } => {
            check_bucket_name(name)?;
            if buckets.contains_key(name) {
                return Err(ControllerError::BucketExists { name: name.clone() });
            }
            let mut config = BucketConfig::default();
            for (kind, document) in documents {
                set_document(&mut config, *kind, Some(document))?;
            }
            counters.last_id.0 += 1;
            Bucket {
                id: counters.last_id,
                created_ms: *now_ms,
                state: BucketState::Active,
                revision,
                config: Arc::new(config),
            }
        }
        ChangeKind::Mark => {
            let bucket = buckets.get(name).cloned().ok_or_else(no_such)?;
            Bucket { state: BucketState::Deleting, ..bucket }
        }
        ChangeKind::Unmark { id } => Bucket { state: BucketState::Active, ..found(buckets, *id)? },
        ChangeKind::Remove { id } => {
            let bucket = found(buckets, *id)?;
            if bucket.state != BucketState::Deleting {
                return Err(ControllerError::BucketNotMarked { name: name.clone() });
            }
            buckets.remove(name);
            return Ok(bucket);
        }
        ChangeKind::SetVersioning { id, versioning } => {
            let bucket = found(buckets, *id)?;
            if *versioning == Versioning::Unversioned && bucket.config.versioning != Versioning::Unversioned {
                return Err(ControllerError::VersioningStays { name: name.clone() });
            }
            let config = BucketConfig { versioning: *versioning, ..(*bucket.config).clone() };
            Bucket { config: Arc::new(config), ..bucket }
        }
        ChangeKind::SetDocument { id, kind, document } => {
            let bucket = found(buckets, *id)?;
            let mut config = (*bucket.config).clone();
            set_document(&mut config, *kind, document.as_deref())?;
            Bucket { config: Arc::new(config), ..bucket }
        }
    };
    if buckets.get(name) == Some(&next) {
        return Ok(next);
    }
    let next = Bucket { revision, ..next };
    let bytes = to_json(&next).len();
    if bytes > BUCKET_BYTES_MAX {
        return Err(ControllerError::ConfigurationTooLarge { bytes, limit: BUCKET_BYTES_MAX });
    }
    buckets.insert(name.clone(), next.clone());
    Ok(next)
}

fn set_document(
    config: &mut BucketConfig,
    kind: DocumentKind,
    document: Option<&str>,
) -> Result<(), ControllerError> {
    match document {
        Some(text) if text.len() > DOCUMENT_BYTES_MAX => {
            return Err(ControllerError::ConfigurationTooLarge {
                bytes: text.len(),
                limit: DOCUMENT_BYTES_MAX,
            });
        }
        Some(text) => config.documents.insert(kind, text.to_owned()),
        None => config.documents.remove(&kind),
    };
    Ok(())
}

/// Which rule of S3 a bucket name breaks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BucketNameError {
    /// Too short or too long.
    #[error("a bucket name has 3 to 63 characters, not {bytes}")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// A character that is not allowed.
    #[error("a bucket name has only a-z, 0-9, '.' and '-', not {character:?}")]
    Character {
        /// The first such character.
        character: char,
    },
    /// It begins or ends with a dot or a hyphen.
    #[error("a bucket name begins and ends with a letter or digit")]
    Ends,
    /// Two dots in a row.
    #[error("a bucket name has no two dots in a row")]
    DoubleDot,
    /// A part between dots that begins or ends with a hyphen.
    #[error("a bucket name has no hyphen next to a dot")]
    Label,
    /// Formatted as an IPv4 address.
    #[error("a bucket name is not formatted as an IP address")]
    Address,
    /// A prefix or suffix that S3 keeps for itself.
    #[error("a bucket name does not begin or end with {affix:?}")]
    Reserved {
        /// The prefix or suffix.
        affix: &'static str,
    },
}

const RESERVED_PREFIXES: [&str; 3] = ["xn--", "sthree-", "amzn-s3-demo-"];
const RESERVED_SUFFIXES: [&str; 4] = ["-s3alias", "--ol-s3", "--x-s3", ".mrap"];

/// Checks a bucket name by the rules of S3 for general purpose buckets.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_bucket_name(name: &str) -> Result<(), BucketNameError> {
    if !(3..=63).contains(&name.len()) {
        return Err(BucketNameError::Length { bytes: name.len() });
    }
    let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    if let Some(character) = name.chars().find(|c| !allowed(c)) {
        return Err(BucketNameError::Character { character });
    }
    if name.starts_with(['.', '-']) || name.ends_with(['.', '-']) {
        return Err(BucketNameError::Ends);
    }
    if name.contains("..") {
        return Err(BucketNameError::DoubleDot);
    }
    if name.contains(".-") || name.contains("-.") {
        return Err(BucketNameError::Label);
    }
    if name.parse::<Ipv4Addr>().is_ok() || is_dotted_quad(name) {
        return Err(BucketNameError::Address);
    }
    let prefix = RESERVED_PREFIXES.into_iter().find(|prefix| name.starts_with(prefix));
    let suffix = RESERVED_SUFFIXES.into_iter().find(|suffix| name.ends_with(suffix));
    match prefix.or(suffix) {
        Some(affix) => Err(BucketNameError::Reserved { affix }),
        None => Ok(()),
    }
}

/// Four groups of digits: S3 refuses the format, whatever the numbers.
fn is_dotted_quad(name: &str) -> bool {
    let groups: Vec<&str> = name.split('.').collect();
    groups.len() == 4 && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["abc", "a.b-c.1", "123", "1.2.3", "my-bucket", &"a".repeat(63)] {
            assert_eq!(check_bucket_name(good), Ok(()), "{good}");
        }
        let refused = |name: &str| check_bucket_name(name).unwrap_err();
        assert_eq!(refused("ab"), BucketNameError::Length { bytes: 2 });
        assert_eq!(refused(&"a".repeat(64)), BucketNameError::Length { bytes: 64 });
        assert_eq!(refused("aBc"), BucketNameError::Character { character: 'B' });
        assert_eq!(refused("a_c"), BucketNameError::Character { character: '_' });
        assert_eq!(refused("a/é"), BucketNameError::Character { character: '/' });
        for ends in ["-abc", "abc-", ".abc", "abc."] {
            assert_eq!(refused(ends), BucketNameError::Ends);
        }
        assert_eq!(refused("a..b"), BucketNameError::DoubleDot);
        assert_eq!(refused("a.-b"), BucketNameError::Label);
        assert_eq!(refused("a-.b"), BucketNameError::Label);
        assert_eq!(refused("192.168.0.1"), BucketNameError::Address);
        assert_eq!(refused("999.168.0.001"), BucketNameError::Address);
        assert_eq!(refused("xn--abc"), BucketNameError::Reserved { affix: "xn--" });
        assert_eq!(refused("abc-s3alias"), BucketNameError::Reserved { affix: "-s3alias" });
    }
}
