//! PUT and DELETE of whole objects.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use quarry_clustermap::{BucketId, PartitionId, Tier};
use quarry_partition::command::{Command, Content, Lookup, Put, Refusal, Reply};

use super::{BODY_BYTES_MAX, Objects, convert};
use crate::{
    api::{ApiError, Attributes, Body, BodyDigests, Conditions, Deleted, ObjectInfo, Tags, VersionId},
    cluster::Cluster,
    metadata::{ExecuteError, Metadata},
    tier::{STORAGE_CLASS_HEADER, tier_of_class},
    writer::{WriteError, free_blob, write_blob},
};

impl<C: Cluster + Metadata> Objects<C> {
    pub(super) async fn put<B: Body>(
        &self,
        bucket: &str,
        key: &str,
        mut attributes: Attributes,
        conditions: Conditions,
        body: B,
    ) -> Result<ObjectInfo, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        if conditions != Conditions::default() {
            self.refuse_early(bucket.id, key, partition, &conditions).await?;
        }
        let tier = tier_of_class(attributes.headers.get(STORAGE_CLASS_HEADER).map(String::as_str));
        let (content, digests) = self.store_body(partition, tier, body).await?;
        let checksums = digests.checksums.clone();
        let attributes_copy = attributes.clone();
        let command = Command::Put(Put {
            bucket: bucket.id,
            key: key.to_owned(),
            etag: hex::encode(digests.md5),
            tags: convert::to_pairs(std::mem::take(&mut attributes.tags)),
            attributes: convert::to_stored(attributes),
            checksums: convert::to_pairs(digests.checksums),
            content: content.clone(),
            conditions: convert::to_conditions(conditions),
        });
        match self.commit(partition, command, &content).await? {
            Reply::Stored(stored) => {
                let info = convert::stored_to_info(key, stored);
                Ok(ObjectInfo { attributes: attributes_copy, checksums, ..info })
            }
            other => Err(convert::unexpected(&other)),
        }
    }

    /// A condition that fails already need not cost the whole body; the commit decides for good.
    async fn refuse_early(
        &self,
        bucket: BucketId,
        key: &str,
        partition: PartitionId,
        conditions: &Conditions,
    ) -> Result<(), ApiError> {
        let head = Command::Head(Lookup::newest(bucket, key));
        let current = match self.cluster.execute(partition, head).await {
            Ok(Reply::Object { manifest, .. }) => Some(manifest.etag),
            Err(ExecuteError::Refused(Refusal::NoSuchKey | Refusal::DeleteMarker { .. })) => None,
            Ok(other) => return Err(convert::unexpected(&other)),
            Err(error) => return Err(error.into()),
        };
        let lists = |tags: &[String], etag: &str| tags.iter().any(|tag| tag == "*" || tag == etag);
        if let Some(tags) = &conditions.if_match {
            match &current {
                None => return Err(ApiError::NoSuchKey),
                Some(etag) if !lists(tags, etag) => return Err(ApiError::PreconditionFailed),
                Some(_) => {}
            }
        }
        match (&conditions.if_none_match, &current) {
            (Some(tags), Some(etag)) if lists(tags, etag) => Err(ApiError::PreconditionFailed),
            _ => Ok(()),
        }
    }

    /// Puts a body where its size says: inline, or on the devices of a placement group, flushed. The group is one of
    /// `tier`, or of the hot tier if that takes nothing.
    pub(super) async fn store_body<B: Body>(
        &self,
        partition: PartitionId,
        tier: Tier,
        mut body: B,
    ) -> Result<(Content, BodyDigests), ApiError> {
        let size_bytes = body.len_bytes();
        if size_bytes > BODY_BYTES_MAX {
            return Err(ApiError::EntityTooLarge { size_bytes, limit_bytes: BODY_BYTES_MAX });
        }
        if size_bytes < self.options.inline_below_bytes || size_bytes == 0 {
            let bytes = collect(&mut body, size_bytes).await?;
            let request = self.cluster.next_blob_id();
            return Ok((Content::Inline { request, bytes: bytes.into() }, body.digests()));
        }
        let blob = match write_blob(&self.cluster, tier, partition, &mut body).await {
            // Both are known before the first byte of the body is taken.
            Err(error @ (WriteError::NoGroup | WriteError::OutOfSpace)) if tier != Tier::Hot => {
                tracing::debug!(event = "tier_takes_nothing", tier = tier.name(), %error);
                write_blob(&self.cluster, Tier::Hot, partition, &mut body).await?
            }
            written => written?,
        };
        Ok((Content::Blobs(vec![blob]), body.digests()))
    }

    /// Commits; frees the blobs if the commit cannot have happened.
    pub(super) async fn commit(
        &self,
        partition: PartitionId,
        command: Command,
        content: &Content,
    ) -> Result<Reply, ApiError> {
        let result = self.cluster.execute(partition, command).await;
        if let (Err(error), Content::Blobs(blobs)) = (&result, content)
            && !error.is_outcome_unknown()
        {
            for blob in blobs {
                let (cluster, blob) = (Rc::clone(&self.cluster), *blob);
                self.cluster.spawn(Box::pin(async move {
                    if let Err(error) = free_blob(&cluster, &blob).await {
                        // The collector will find it: no manifest names the blob.
                        tracing::warn!(event = "blob_left_to_the_collector", blob = %blob.blob, %error);
                    }
                }));
            }
        }
        Ok(result?)
    }

    pub(super) async fn delete(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        conditions: Conditions,
    ) -> Result<Deleted, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let conditions = convert::to_conditions(conditions);
        let request = self.cluster.next_blob_id();
        let command =
            Command::Delete { bucket: bucket.id, key: key.to_owned(), version, request, conditions };
        match self.cluster.execute(partition, command).await? {
            Reply::Deleted { version, is_marker } => Ok(Deleted { version, is_marker }),
            other => Err(convert::unexpected(&other)),
        }
    }

    pub(super) async fn tag(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        tags: Tags,
    ) -> Result<Option<VersionId>, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let tags = convert::to_pairs(tags);
        let command = Command::SetTags { bucket: bucket.id, key: key.to_owned(), version, tags };
        match self.cluster.execute(partition, command).await? {
            Reply::Tagged(version) => Ok(version),
            other => Err(convert::unexpected(&other)),
        }
    }

    pub(super) async fn set_one_header(
        &self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        (name, value): (&str, Option<String>),
    ) -> Result<Option<VersionId>, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let (key, name) = (key.to_owned(), name.to_owned());
        let command = Command::SetHeader { bucket: bucket.id, key, version, name, value };
        match self.cluster.execute(partition, command).await? {
            Reply::Tagged(version) => Ok(version),
            other => Err(convert::unexpected(&other)),
        }
    }
}

async fn collect<B: Body>(body: &mut B, size_bytes: u64) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::with_capacity(usize::try_from(size_bytes).expect("inline bodies are small"));
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    if bytes.len() as u64 != size_bytes {
        return Err(crate::api::BodyError::Incomplete.into());
    }
    Ok(bytes.freeze())
}
