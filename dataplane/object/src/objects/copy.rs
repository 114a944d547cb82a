//! Copies: the source's bytes become the body of a new object or part. Nothing shares blobs.

use bytes::Bytes;
use futures::{StreamExt, stream::LocalBoxStream};
use quarry_digest::Md5;

use super::Objects;
use crate::{
    api::{
        ApiError, Body, BodyDigests, BodyError, ChecksumAlgorithm, ChecksumHasher, CopySource, ObjectInfo,
        RangeRequest, Selector,
    },
    cluster::Cluster,
    metadata::Metadata,
    reader::ReadMemory,
};

impl<C: Cluster + Metadata> Objects<C> {
    /// The source, and its bytes as a body with a checksum: the one asked for, or else the source's own kind.
    pub(super) async fn open_source(
        &self,
        source: CopySource,
        checksum: Option<ChecksumAlgorithm>,
    ) -> Result<(ObjectInfo, CopyBody), ApiError> {
        let selector = Selector { version: source.version, part: None, range: source.range };
        let content =
            self.get(&source.bucket, &source.key, selector, source.conditions, ReadMemory::Heap).await;
        let content = content.map_err(|error| match error {
            // A copy has no 304: a condition that does not hold fails it.
            ApiError::NotModified { .. } => ApiError::PreconditionFailed,
            other => other,
        })?;
        // A range is copied whole or not at all: the caller would not learn that it got less.
        if let Some(RangeRequest::Inclusive { last, .. }) = source.range
            && last >= content.info.size_bytes
        {
            return Err(ApiError::InvalidRange { size_bytes: content.info.size_bytes });
        }
        let own = content.info.checksums.keys().find_map(|name| ChecksumAlgorithm::by_name(name));
        let algorithm = checksum.or(own).unwrap_or(ChecksumAlgorithm::Crc64Nvme);
        let body = CopyBody {
            len_bytes: content.range.1,
            stream: content.stream,
            md5: Md5::new(),
            checksum: Some((algorithm, algorithm.hasher())),
        };
        Ok((content.info, body))
    }
}

/// Bytes on their way from one object to another.
pub(super) struct CopyBody {
    len_bytes: u64,
    stream: LocalBoxStream<'static, Result<Bytes, ApiError>>,
    md5: Md5,
    /// Taken at the end.
    checksum: Option<(ChecksumAlgorithm, ChecksumHasher)>,
}

impl Body for CopyBody {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        match self.stream.next().await? {
            Ok(bytes) => {
                self.md5.update(bytes.clone());
                if let Some((_, hasher)) = &mut self.checksum {
                    hasher.update(&bytes);
                }
                Some(Ok(bytes))
            }
            Err(error) => Some(Err(BodyError::Source { problem: error.to_string() })),
        }
    }

    fn digests(&mut self) -> BodyDigests {
        let checksums =
            self.checksum.take().map(|(algorithm, hasher)| (algorithm.name().to_owned(), hasher.finish()));
        BodyDigests {
            md5: std::mem::take(&mut self.md5).finish(),
            checksums: checksums.into_iter().collect(),
        }
    }
}
