//! Copies: the source's bytes become the body of a new object or part. Nothing shares blobs.

use bytes::Bytes;
use futures::{StreamExt, stream::LocalBoxStream};
use md5::{Digest, Md5};

use super::Objects;
use crate::{
    api::{ApiError, Attributes, Body, BodyDigests, BodyError, CopySource},
    cluster::Cluster,
    metadata::Metadata,
    reader::ReadMemory,
};

impl<C: Cluster + Metadata> Objects<C> {
    /// The attributes of the source and its bytes as a body.
    pub(super) async fn open_source(&self, source: CopySource) -> Result<(Attributes, CopyBody), ApiError> {
        let content =
            self.get(&source.bucket, &source.key, source.range, source.conditions, ReadMemory::Heap).await;
        let content = content.map_err(|error| match error {
            // A copy has no 304: a condition that does not hold fails it.
            ApiError::NotModified { .. } => ApiError::PreconditionFailed,
            other => other,
        })?;
        let body = CopyBody { len_bytes: content.range.1, stream: content.stream, md5: Md5::new() };
        Ok((content.info.attributes, body))
    }
}

/// Bytes on their way from one object to another.
pub(super) struct CopyBody {
    len_bytes: u64,
    stream: LocalBoxStream<'static, Result<Bytes, ApiError>>,
    md5: Md5,
}

impl Body for CopyBody {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        match self.stream.next().await? {
            Ok(bytes) => {
                self.md5.update(&bytes);
                Some(Ok(bytes))
            }
            Err(error) => Some(Err(BodyError::Source { problem: error.to_string() })),
        }
    }

    fn digests(&mut self) -> BodyDigests {
        BodyDigests { md5: self.md5.finalize_reset().into(), checksums: Default::default() }
    }
}
