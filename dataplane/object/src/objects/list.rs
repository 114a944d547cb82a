//! Listings.

use quarry_partition::command::{self, Entry, Listed, Position, STORAGE_CLASS_HEADER, Stored};

use super::{Objects, convert, upload::upload_id};
use crate::{
    api::{ApiError, ListEntry, ListPage, ListRequest, ObjectInfo, VersionId},
    cluster::Cluster,
    metadata::Metadata,
};

impl<C: Cluster + Metadata> Objects<C> {
    pub(super) async fn list(
        &self,
        bucket: &str,
        listed: Listed,
        request: ListRequest,
        after_position: Option<Position>,
    ) -> Result<ListPage, ApiError> {
        let bucket = self.found(bucket)?;
        let max = u32::try_from(request.max_keys).unwrap_or(u32::MAX).min(command::LIST_ENTRIES_MAX);
        if max == 0 {
            return Ok(ListPage::default());
        }
        let list = command::List {
            bucket: bucket.id,
            listed,
            prefix: request.prefix,
            delimiter: request.delimiter,
            after_position: after_position.filter(|_| request.after.is_some()),
            after: request.after,
            max,
        };
        let (entries, truncated) = self.cluster.list(list).await?;
        Ok(ListPage { entries: entries.into_iter().map(entry).collect(), truncated })
    }
}

fn entry(entry: Entry) -> ListEntry {
    match entry {
        Entry::Object { key, stored, class } => ListEntry::Object(listed(&key, stored, class)),
        Entry::Version { key, version, is_latest, is_marker, stored, class } => {
            let mut info = listed(&key, stored, class);
            info.version = Some(version);
            ListEntry::Version { info, is_latest, is_marker }
        }
        Entry::Upload { key, upload, created_ms, checksum, class } => {
            ListEntry::Upload { key, upload: hex::encode(upload.0), created_ms, checksum, class }
        }
        Entry::Prefix(prefix) => ListEntry::Prefix(prefix),
    }
}

fn listed(key: &str, stored: Stored, class: Option<String>) -> ObjectInfo {
    let mut info = convert::stored_to_info(key, stored);
    info.attributes.headers.extend(class.map(|class| (STORAGE_CLASS_HEADER.to_owned(), class)));
    info
}

/// Where the versions after one of a key begin.
pub(super) fn after_version(version: VersionId) -> Position {
    match version {
        VersionId::Null => Position::NullVersion,
        VersionId::Named { version_ms, .. } => Position::Version(version_ms),
    }
}

/// Where the uploads after one of a key begin.
///
/// # Errors
/// Not one of our ids.
pub(super) fn after_upload(upload: &str) -> Result<Position, ApiError> {
    let id = upload_id(upload);
    id.map(Position::Upload)
        .map_err(|_| ApiError::InvalidRequest { problem: "the upload id marker is not an upload id".into() })
}
