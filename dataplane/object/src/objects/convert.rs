//! Between what the gateway sees and what the partition stores.

use std::collections::BTreeMap;

use quarry_partition::command::{self, Manifest, Pairs, Reply, Stored, StoredAttributes, VersionId};

use crate::api::{ApiError, Attributes, Conditions, ObjectInfo};

pub(super) fn to_pairs(map: BTreeMap<String, String>) -> Pairs {
    map.into_iter().collect()
}

pub(super) fn to_stored(attributes: Attributes) -> StoredAttributes {
    StoredAttributes { headers: to_pairs(attributes.headers), user: to_pairs(attributes.user) }
}

fn to_attributes(stored: StoredAttributes, tags: Pairs) -> Attributes {
    Attributes {
        headers: stored.headers.into_iter().collect(),
        user: stored.user.into_iter().collect(),
        tags: tags.into_iter().collect(),
    }
}

pub(super) fn to_conditions(conditions: Conditions) -> command::Conditions {
    command::Conditions {
        if_match: conditions.if_match,
        if_none_match: conditions.if_none_match,
        if_modified_since_ms: conditions.if_modified_since_ms,
        if_unmodified_since_ms: conditions.if_unmodified_since_ms,
        if_match_last_modified_ms: conditions.if_match_last_modified_ms,
        if_match_size_bytes: conditions.if_match_size_bytes,
    }
}

pub(super) fn to_info(key: &str, manifest: Manifest, version: Option<VersionId>) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        size_bytes: manifest.size_bytes,
        etag: manifest.etag,
        last_modified_ms: manifest.last_modified_ms,
        attributes: to_attributes(manifest.attributes, manifest.tags),
        checksums: manifest.checksums.into_iter().collect(),
        parts: manifest.parts,
        version,
    }
}

pub(super) fn stored_to_info(key: &str, stored: Stored) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        size_bytes: stored.size_bytes,
        etag: stored.etag,
        last_modified_ms: stored.last_modified_ms,
        attributes: Attributes::default(),
        checksums: stored.checksums.into_iter().collect(),
        parts: stored.parts,
        version: stored.version,
    }
}

/// A reply of another kind than the command's: a peer of another release, or our mistake.
pub(super) fn unexpected(reply: &Reply) -> ApiError {
    ApiError::Internal {
        detail: format!("the partition answered with an unexpected reply: {reply:?}")
            .chars()
            .take(200)
            .collect(),
    }
}
