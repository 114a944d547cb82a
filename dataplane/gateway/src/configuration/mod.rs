//! What the owner of a bucket configures: one file per kind of document, and `absent` for what cannot be configured.
//!
//! A document is parsed by s3s, validated here by the rules of S3, and stored as the JSON of a type of ours. Clients get
//! it back in XML, with the same meaning though not the same bytes.

pub(crate) mod absent;
pub(crate) mod cors;
pub(crate) mod lifecycle;
pub(crate) mod tagging;
mod transitions;
pub(crate) mod versioning;
pub(crate) mod website;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use quarry_object::api::{BucketInfo, DocumentKind, ObjectStore};
use s3s::{S3ErrorCode, S3Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::Core;
use crate::error::{from_api, refuse};

/// Bytes of the name of a rule.
const ID_BYTES_MAX: usize = 255;
/// Parsed documents of one kind that a core keeps.
const CACHED_MAX: usize = 256;

/// The document of a bucket. `None`: it is not set.
///
/// # Errors
/// `NoSuchBucket`.
pub(crate) fn read<S: ObjectStore, T: DeserializeOwned>(
    core: &Core<S>,
    bucket: &str,
    kind: DocumentKind,
) -> S3Result<Option<T>> {
    parse(&core.store.bucket(bucket).map_err(from_api)?, kind)
}

pub(crate) fn parse<T: DeserializeOwned>(bucket: &BucketInfo, kind: DocumentKind) -> S3Result<Option<T>> {
    let parsed = bucket.config.document(kind).map(serde_json::from_str).transpose();
    parsed.map_err(|error| {
        tracing::error!(event = "bucket_document_damaged", bucket = bucket.name, ?kind, %error);
        refuse(S3ErrorCode::InternalError, "the configuration of the bucket cannot be read")
    })
}

/// A document as it is stored.
pub(crate) fn as_json(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect("plain data with text keys")
}

/// Sets the document of a bucket.
pub(crate) async fn write<S: ObjectStore>(
    core: &Core<S>,
    bucket: &str,
    kind: DocumentKind,
    document: &impl Serialize,
) -> S3Result<()> {
    core.store.set_bucket_document(bucket, kind, Some(as_json(document))).await.map_err(from_api)
}

/// Removes the document of a bucket; one that is not set is no error.
pub(crate) async fn remove<S: ObjectStore>(core: &Core<S>, bucket: &str, kind: DocumentKind) -> S3Result<()> {
    core.store.set_bucket_document(bucket, kind, None).await.map_err(from_api)
}

/// Parsed documents of one kind, by bucket and revision.
pub(crate) struct Cache<T> {
    kind: DocumentKind,
    parsed: RefCell<BTreeMap<String, (u64, Rc<T>)>>,
}

impl<T: DeserializeOwned> Cache<T> {
    pub(crate) fn new(kind: DocumentKind) -> Self {
        Self { kind, parsed: RefCell::default() }
    }

    /// The document of a bucket, if it is set.
    pub(crate) fn get(&self, bucket: &BucketInfo) -> Option<Rc<T>> {
        bucket.config.document(self.kind)?;
        let mut parsed = self.parsed.borrow_mut();
        if let Some((revision, document)) = parsed.get(&bucket.name)
            && *revision == bucket.revision
        {
            return Some(Rc::clone(document));
        }
        let document = Rc::new(parse(bucket, self.kind).ok().flatten()?);
        if parsed.len() >= CACHED_MAX {
            parsed.clear();
        }
        parsed.insert(bucket.name.clone(), (bucket.revision, Rc::clone(&document)));
        Some(document)
    }
}
