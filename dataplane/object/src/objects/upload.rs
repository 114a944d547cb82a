//! Multipart uploads. Parts are blobs of their own and live in the key's own partition.

use quarry_partition::command::{
    Command, Complete, CompletePart, PARTS_MAX, PutPart, Reply, UploadChecksum, UploadId,
};

use super::{Objects, convert};
use crate::{
    api::{
        ApiError, Attributes, Body, CompletedPart, Completion, Conditions, ObjectInfo, PartInfo, PartsPage,
    },
    cluster::Cluster,
    metadata::Metadata,
    tier::tier_of_class,
};

impl<C: Cluster + Metadata> Objects<C> {
    pub(super) async fn begin_upload(
        &self,
        bucket: &str,
        key: &str,
        mut attributes: Attributes,
        checksum: Option<UploadChecksum>,
    ) -> Result<String, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let mut upload = [0; 16];
        // Uploads of a key are listed by the time they began.
        upload[..8].copy_from_slice(&self.cluster.now_ms().to_be_bytes());
        upload[8..].copy_from_slice(&self.cluster.random().to_be_bytes());
        let command = Command::CreateUpload {
            bucket: bucket.id,
            key: key.to_owned(),
            upload: UploadId(upload),
            tags: convert::to_pairs(std::mem::take(&mut attributes.tags)),
            attributes: convert::to_stored(attributes),
            checksum,
        };
        match self.cluster.execute(partition, command).await? {
            Reply::Done => Ok(hex::encode(upload)),
            other => Err(convert::unexpected(&other)),
        }
    }

    /// What checksum the parts of an upload must have.
    pub(super) async fn upload_checksum(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
    ) -> Result<Option<UploadChecksum>, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let command =
            Command::GetUpload { bucket: bucket.id, key: key.to_owned(), upload: upload_id(upload)? };
        match self.cluster.execute(partition, command).await? {
            Reply::Upload(upload) => Ok(upload.checksum),
            other => Err(convert::unexpected(&other)),
        }
    }

    pub(super) async fn store_part<B: Body>(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u16,
        body: B,
    ) -> Result<PartInfo, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let upload = upload_id(upload)?;
        if !(1..=PARTS_MAX).contains(&number) {
            let problem = format!("the part number {number} is not between 1 and {PARTS_MAX}");
            return Err(ApiError::InvalidRequest { problem });
        }
        // An upload that does not exist must not cost a whole part.
        let get = Command::GetUpload { bucket: bucket.id, key: key.to_owned(), upload };
        let tier = match self.cluster.execute(partition, get).await? {
            Reply::Upload(upload) => tier_of_class(upload.attributes.storage_class()),
            other => return Err(convert::unexpected(&other)),
        };
        let (content, digests) = self.store_body(partition, tier, body).await?;
        let checksums = digests.checksums.clone();
        let command = Command::PutPart(PutPart {
            bucket: bucket.id,
            key: key.to_owned(),
            upload,
            number,
            md5: digests.md5,
            checksums: convert::to_pairs(digests.checksums),
            content: content.clone(),
        });
        match self.commit(partition, command, &content).await? {
            Reply::Stored(stored) => Ok(PartInfo {
                number,
                size_bytes: stored.size_bytes,
                etag: stored.etag,
                last_modified_ms: stored.last_modified_ms,
                checksums,
            }),
            other => Err(convert::unexpected(&other)),
        }
    }

    pub(super) async fn parts(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        after: u16,
        limit: usize,
    ) -> Result<PartsPage, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let upload = upload_id(upload)?;
        let command = Command::ListParts { bucket: bucket.id, key: key.to_owned(), upload, after, limit };
        match self.cluster.execute(partition, command).await? {
            Reply::Parts { parts, truncated, checksum, class } => {
                let parts = parts.into_iter().map(|part| PartInfo {
                    number: part.number,
                    size_bytes: part.size_bytes,
                    etag: hex::encode(part.md5),
                    last_modified_ms: part.last_modified_ms,
                    checksums: part.checksums.into_iter().collect(),
                });
                Ok(PartsPage { parts: parts.collect(), truncated, checksum, class })
            }
            other => Err(convert::unexpected(&other)),
        }
    }

    pub(super) async fn complete(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        completion: Completion,
        conditions: Conditions,
    ) -> Result<ObjectInfo, ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let command = Command::Complete(Complete {
            bucket: bucket.id,
            key: key.to_owned(),
            upload: upload_id(upload)?,
            parts: completion.parts.into_iter().map(named).collect(),
            checksums: convert::to_pairs(completion.checksums),
            full_object: completion.full_object,
            size_bytes: completion.size_bytes,
            conditions: convert::to_conditions(conditions),
        });
        match self.cluster.execute(partition, command).await? {
            Reply::Stored(stored) => Ok(convert::stored_to_info(key, stored)),
            other => Err(convert::unexpected(&other)),
        }
    }

    pub(super) async fn abort(&self, bucket: &str, key: &str, upload: &str) -> Result<(), ApiError> {
        let (bucket, partition) = self.owner(bucket, key)?;
        let command = Command::Abort { bucket: bucket.id, key: key.to_owned(), upload: upload_id(upload)? };
        match self.cluster.execute(partition, command).await? {
            Reply::Done => Ok(()),
            other => Err(convert::unexpected(&other)),
        }
    }
}

fn named(part: CompletedPart) -> CompletePart {
    let CompletedPart { number, etag, checksums } = part;
    CompletePart { number, etag, checksums: convert::to_pairs(checksums) }
}

/// An id that we did not make names no upload.
pub(super) fn upload_id(text: &str) -> Result<UploadId, ApiError> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id).map_err(|_| ApiError::NoSuchUpload)?;
    Ok(UploadId(id))
}
