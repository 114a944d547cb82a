//! Conditional requests, in the order of RFC 9110, section 13.2.2.

use super::manifest::Manifest;
use super::message::{Conditions, Refusal};

/// Whether the condition is on a read or on a write: they fail differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    Write,
}

/// Checks conditions against the object that exists now.
pub(super) fn check(
    conditions: &Conditions,
    access: Access,
    current: Option<&Manifest>,
) -> Result<(), Refusal> {
    let Some(current) = current else {
        // S3 answers 404, not 412, where If-Match meets nothing.
        let missed = access == Access::Read || conditions.if_match.is_some();
        return if missed { Err(Refusal::NoSuchKey) } else { Ok(()) };
    };
    if let Some(etags) = &conditions.if_match {
        if !matches_any(etags, current) {
            return Err(Refusal::PreconditionFailed);
        }
    } else if conditions
        .if_unmodified_since_ms
        .is_some_and(|since| seconds(current.last_modified_ms) > seconds(since))
    {
        return Err(Refusal::PreconditionFailed);
    }
    let unchanged = match (&conditions.if_none_match, conditions.if_modified_since_ms) {
        (Some(etags), _) => matches_any(etags, current),
        (None, Some(since)) if access == Access::Read => seconds(current.last_modified_ms) <= seconds(since),
        (None, _) => false,
    };
    match (unchanged, access) {
        (false, _) => Ok(()),
        (true, Access::Write) => Err(Refusal::PreconditionFailed),
        (true, Access::Read) => Err(Refusal::NotModified {
            etag: current.etag.clone(),
            last_modified_ms: current.last_modified_ms,
        }),
    }
}

/// Checks conditions of a delete. Those on time and size are met by nothing, as S3 has it for the buckets that know them,
/// and a delete marker is something: of no bytes, and of its own time.
pub(super) fn check_delete(conditions: &Conditions, current: Option<&Manifest>) -> Result<(), Refusal> {
    check(conditions, Access::Write, current.filter(|current| !current.kind.is_marker()))?;
    let Some(current) = current else { return Ok(()) };
    let other_time = conditions
        .if_match_last_modified_ms
        .is_some_and(|time| seconds(time) != seconds(current.last_modified_ms));
    let other_size = conditions.if_match_size_bytes.is_some_and(|size| size != current.size_bytes);
    if other_time || other_size { Err(Refusal::PreconditionFailed) } else { Ok(()) }
}

fn matches_any(etags: &[String], current: &Manifest) -> bool {
    etags.iter().any(|etag| etag == "*" || *etag == current.etag)
}

/// Times in HTTP have whole seconds: what a client was told and sends back must count as unmodified.
fn seconds(ms: u64) -> u64 {
    ms / 1000
}
