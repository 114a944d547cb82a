//! What the controller reads from the metastore before it decides.

use std::{collections::BTreeMap, sync::Arc};

use quarry_clustermap::{ClusterMap, Epoch};
use quarry_identity::UserTable;
use quarry_metastore::{Entry, Metastore};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Bucket, BucketTable, ControllerError, Published, bucket::BucketCounters, user};

pub(crate) const MAP_KEY: &str = "map";
pub(crate) const ACTIVATED_KEY: &str = "activated";
pub(crate) const COUNTERS_KEY: &str = "buckets";
pub(crate) const BUCKET_PREFIX: &str = "bucket/";

/// Everything the metastore holds for the controller, with the entries to compare against.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) map: Option<Arc<ClusterMap>>,
    pub(crate) map_entry: Option<Entry>,
    /// Indexed by partition; shorter than the partitions means epoch 0 for the rest.
    pub(crate) activated: Vec<Epoch>,
    pub(crate) activated_entry: Option<Entry>,
    pub(crate) buckets: Arc<BucketTable>,
    pub(crate) counters: BucketCounters,
    pub(crate) counters_entry: Option<Entry>,
    pub(crate) users: Arc<UserTable>,
    pub(crate) users_entry: Option<Entry>,
}

impl Loaded {
    /// Reads everything. One range covers the buckets and their counters, so that a table and its revision belong
    /// together.
    pub(crate) async fn read(metastore: &impl Metastore) -> Result<Self, ControllerError> {
        let get =
            |key| async move { metastore.get(key).await.map_err(|error| ControllerError::from(&error)) };
        let map_entry = get(MAP_KEY).await?;
        let activated_entry = get(ACTIVATED_KEY).await?;
        let map: Option<ClusterMap> = map_entry.as_ref().map(parse).transpose()?;
        if let Some(map) = &map {
            map.validate().map_err(|error| damaged(MAP_KEY, &error))?;
        }
        let range = metastore.range("bucket").await.map_err(|error| ControllerError::from(&error))?;
        let counters_entry = range.entries.iter().find(|entry| entry.key == COUNTERS_KEY).cloned();
        let counters: BucketCounters = counters_entry.as_ref().map(parse).transpose()?.unwrap_or_default();
        let bucket = |entry: &Entry| Ok((entry.key[BUCKET_PREFIX.len()..].to_owned(), parse(entry)?));
        let of_buckets = range.entries.iter().filter(|entry| entry.key.starts_with(BUCKET_PREFIX));
        let by_name: BTreeMap<String, Bucket> =
            of_buckets.map(bucket).collect::<Result<_, ControllerError>>()?;
        let (users, users_entry) = user::read(metastore).await?;
        Ok(Self {
            map: map.map(Arc::new),
            activated: activated_entry.as_ref().map(parse).transpose()?.unwrap_or_default(),
            buckets: Arc::new(BucketTable { revision: counters.revision, by_name }),
            map_entry,
            activated_entry,
            counters,
            counters_entry,
            users: Arc::new(users),
            users_entry,
        })
    }

    /// For the subscribers, once there is a map.
    pub(crate) fn published(&self) -> Option<Published> {
        Some(Published { map: self.map.clone()?, buckets: self.buckets.clone(), users: self.users.clone() })
    }
}

pub(crate) fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, ControllerError> {
    serde_json::from_slice(&entry.value).map_err(|error| damaged(&entry.key, &error))
}

fn damaged(key: &str, error: &impl ToString) -> ControllerError {
    ControllerError::Damaged { key: key.to_owned(), reason: error.to_string() }
}

/// A value as it stands in the metastore.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our types have text keys and always serialise")
}
