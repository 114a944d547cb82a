//! What is over is not there: asked at every read of an object, so that nobody depends on the job that deletes it.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use quarry_clustermap::{BucketId, DocumentKind};
use quarry_partition::command::{Manifest, VersionId};

use super::Objects;
use crate::{
    api::ApiError,
    cluster::Cluster,
    lifecycle::{Candidate, EXPIRES_ATTRIBUTE, Lifecycle, expiry_ms},
    metadata::{Bucket, Metadata},
};

/// Buckets whose rules a core keeps parsed.
const RULES_MAX: usize = 256;

/// Parsed rules by bucket, with the revision that they are of.
#[derive(Default)]
pub(super) struct RulesOfBuckets(RefCell<BTreeMap<BucketId, (u64, Rc<Lifecycle>)>>);

impl RulesOfBuckets {
    fn get(&self, bucket: &Bucket) -> Option<Rc<Lifecycle>> {
        let document = bucket.config.document(DocumentKind::Lifecycle)?;
        let mut parsed = self.0.borrow_mut();
        if let Some((revision, rules)) = parsed.get(&bucket.id)
            && *revision == bucket.revision
        {
            return Some(Rc::clone(rules));
        }
        let rules = Lifecycle::parse(document).inspect_err(|error| {
            tracing::error!(event = "lifecycle_damaged", bucket = bucket.name, %error);
        });
        let rules = Rc::new(rules.ok()?);
        if parsed.len() >= RULES_MAX {
            parsed.clear();
        }
        parsed.insert(bucket.id, (bucket.revision, Rc::clone(&rules)));
        Some(rules)
    }
}

impl<C: Cluster + Metadata> Objects<C> {
    /// Fails for the newest version if it is over. One that is asked for by name stays readable while it is there.
    pub(super) fn refuse_expired(
        &self,
        bucket: &str,
        key: &str,
        named: Option<VersionId>,
        manifest: &Manifest,
    ) -> Result<(), ApiError> {
        if named.is_some() {
            return Ok(());
        }
        let own = manifest.attributes.headers.iter().find(|(name, _)| name == EXPIRES_ATTRIBUTE);
        let rules = self.rules.get(&self.found(bucket)?);
        if own.is_none() && rules.is_none() {
            return Ok(());
        }
        let tags = manifest.tags.iter().cloned().collect();
        let (size_bytes, last_modified_ms) = (manifest.size_bytes, manifest.last_modified_ms);
        let object = Candidate { key, size_bytes, last_modified_ms, tags: &tags };
        match expiry_ms(rules.as_deref(), &object, own.map(|(_, value)| value.as_str())) {
            Some(at_ms) if at_ms <= self.cluster.now_ms() => Err(ApiError::NoSuchKey),
            _ => Ok(()),
        }
    }
}
