//! Listing.

use quarry_partition::command::{self, Entry};

use super::{Objects, convert};
use crate::{
    api::{ApiError, ListEntry, ListPage, ListRequest},
    cluster::Cluster,
    metadata::Metadata,
};

impl<C: Cluster + Metadata> Objects<C> {
    pub(super) async fn list(&self, bucket: &str, request: ListRequest) -> Result<ListPage, ApiError> {
        let bucket = self.found(bucket)?;
        let max = u32::try_from(request.max_keys).unwrap_or(u32::MAX).min(command::LIST_ENTRIES_MAX);
        if max == 0 {
            return Ok(ListPage::default());
        }
        let list = command::List {
            bucket: bucket.id,
            prefix: request.prefix,
            delimiter: request.delimiter,
            after: request.after,
            max,
        };
        let (entries, truncated) = self.cluster.list(list).await?;
        let entries = entries.into_iter().map(|entry| match entry {
            Entry::Object { key, stored } => ListEntry::Object(convert::stored_to_info(&key, stored)),
            Entry::Prefix(prefix) => ListEntry::Prefix(prefix),
        });
        Ok(ListPage { entries: entries.collect(), truncated })
    }
}
