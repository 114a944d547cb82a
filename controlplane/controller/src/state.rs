//! What the controller reads from the metastore before it decides.

use std::{collections::BTreeMap, sync::Arc};

use quarry_clustermap::{ClusterMap, PartitionId};
use quarry_identity::UserTable;
use quarry_metastore::{Entry, Metastore};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Bucket, BucketTable, ControllerError, Published, StoredMap, bucket::BucketCounters, user};

pub(crate) const ACTIVATED_PREFIX: &str = "activated/";
pub(crate) const COUNTERS_KEY: &str = "buckets";
pub(crate) const BUCKET_PREFIX: &str = "bucket/";
/// What the keys begin with whose changes make a new [`Published`] state: what nodes watch, and keep a copy of.
pub(crate) const TABLE_PREFIXES: [&str; 3] = ["map", "bucket", user::PREFIX];

/// Where the activation of a partition is recorded.
pub(crate) fn activated_key(partition: PartitionId) -> String {
    format!("{ACTIVATED_PREFIX}{:05}", partition.0)
}

/// Everything the metastore holds for the controller, with the entries to compare against.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) stored: Option<Arc<StoredMap>>,
    pub(crate) buckets: Arc<BucketTable>,
    pub(crate) counters: BucketCounters,
    pub(crate) counters_entry: Option<Entry>,
    pub(crate) users: Arc<UserTable>,
    pub(crate) users_entry: Option<Entry>,
}

impl Loaded {
    /// Reads everything that differs from `known`. One range covers the buckets and their counters, so that a table and
    /// its revision belong together.
    pub(crate) async fn read(
        metastore: &impl Metastore,
        known: Option<&Self>,
    ) -> Result<Self, ControllerError> {
        let stored = StoredMap::read(metastore, known.and_then(|known| known.stored.as_ref())).await?;
        let range = metastore.range("bucket").await.map_err(|error| ControllerError::from(&error))?;
        let counters_entry = range.entries.iter().find(|entry| entry.key == COUNTERS_KEY).cloned();
        let counters: BucketCounters = counters_entry.as_ref().map(parse).transpose()?.unwrap_or_default();
        let bucket = |entry: &Entry| Ok((entry.key[BUCKET_PREFIX.len()..].to_owned(), parse(entry)?));
        let of_buckets = range.entries.iter().filter(|entry| entry.key.starts_with(BUCKET_PREFIX));
        let by_name: BTreeMap<String, Bucket> =
            of_buckets.map(bucket).collect::<Result<_, ControllerError>>()?;
        let buckets =
            Arc::new(BucketTable { revision: counters.revision, last_id: counters.last_id, by_name });
        let (users, users_entry) = user::read(metastore).await?;
        Ok(Self { stored, buckets, counters, counters_entry, users: Arc::new(users), users_entry })
    }

    /// The committed map.
    pub(crate) fn map(&self) -> Option<Arc<ClusterMap>> {
        self.stored.as_ref().map(|stored| Arc::clone(&stored.map))
    }

    /// For the subscribers, once there is a map.
    pub(crate) fn published(&self) -> Option<Published> {
        Some(self.published_with(self.map()?))
    }

    /// For the subscribers, with another map.
    pub(crate) fn published_with(&self, map: Arc<ClusterMap>) -> Published {
        Published { map, buckets: self.buckets.clone(), users: self.users.clone() }
    }
}

pub(crate) fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, ControllerError> {
    serde_json::from_slice(&entry.value).map_err(|error| damaged(&entry.key, &error))
}

pub(crate) fn damaged(key: &str, error: &impl ToString) -> ControllerError {
    ControllerError::Damaged { key: key.to_owned(), reason: error.to_string() }
}

/// A value as it stands in the metastore.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our types have text keys and always serialise")
}
