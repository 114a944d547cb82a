//! When objects of a bucket expire: the document. `quarry_object::lifecycle` acts on it.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderName, HeaderValue, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use quarry_object::api::{DocumentKind, ObjectInfo, ObjectStore};
use quarry_object::lifecycle::{Candidate, Expiration, Expiry, Filter, Lifecycle, Noncurrent, Rule};
use s3s::dto::{
    AbortIncompleteMultipartUpload, DeleteBucketLifecycleInput, DeleteBucketLifecycleOutput,
    ExpirationStatus, GetBucketLifecycleConfigurationInput, GetBucketLifecycleConfigurationOutput,
    LifecycleExpiration, LifecycleRule, LifecycleRuleAndOperator, LifecycleRuleFilter,
    NoncurrentVersionExpiration, PutBucketLifecycleConfigurationInput, PutBucketLifecycleConfigurationOutput,
    Tag,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use sha2::{Digest as _, Sha256};

use super::{ID_BYTES_MAX, read, remove, tagging, transitions, write};
use crate::attributes::{http_date, timestamp, unix_ms};
use crate::backend::Core;
use crate::error::refuse;

/// Rules of one bucket, as in S3.
const RULES_MAX: usize = 1000;
/// Tags that a rule may ask for: as many as an object has.
const TAGS_MAX: usize = 10;
const KEY_BYTES_MAX: usize = 1024;
/// Versions that a rule may keep, as in S3.
pub(super) const KEEP_MAX: u32 = 100;
const DAY_MS: u64 = 24 * 3600 * 1000;
const EXPIRATION: HeaderName = HeaderName::from_static("x-amz-expiration");

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketLifecycleConfigurationInput>,
) -> S3Result<S3Response<GetBucketLifecycleConfigurationOutput>> {
    let lifecycle: Option<Lifecycle> = read(core, &request.input.bucket, DocumentKind::Lifecycle)?;
    let lifecycle = lifecycle.ok_or_else(|| {
        refuse(S3ErrorCode::NoSuchLifecycleConfiguration, "the lifecycle configuration does not exist")
    })?;
    Ok(S3Response::new(GetBucketLifecycleConfigurationOutput {
        rules: Some(lifecycle.rules.into_iter().map(to_xml).collect()),
        ..GetBucketLifecycleConfigurationOutput::default()
    }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketLifecycleConfigurationInput>,
) -> S3Result<S3Response<PutBucketLifecycleConfigurationOutput>> {
    let input = request.input;
    let rules = input.lifecycle_configuration.map(|configuration| configuration.rules).unwrap_or_default();
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(malformed("a lifecycle configuration has from 1 to 1000 rules"));
    }
    let mut ids = BTreeSet::new();
    let mut checked = Vec::with_capacity(rules.len());
    for (at, rule) in rules.into_iter().enumerate() {
        let rule = from_xml(rule, at)?;
        if !ids.insert(rule.id.clone()) {
            return Err(invalid("the IDs of rules must be unique"));
        }
        checked.push(rule);
    }
    write(core, &input.bucket, DocumentKind::Lifecycle, &Lifecycle { rules: checked }).await?;
    Ok(S3Response::new(PutBucketLifecycleConfigurationOutput::default()))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteBucketLifecycleInput>,
) -> S3Result<S3Response<DeleteBucketLifecycleOutput>> {
    remove(core, &request.input.bucket, DocumentKind::Lifecycle).await?;
    Ok(S3Response::with_status(DeleteBucketLifecycleOutput {}, StatusCode::NO_CONTENT))
}

/// The header that says when an object expires, and by which rule.
pub(crate) fn expiration<S: ObjectStore>(
    core: &Core<S>,
    bucket: &str,
    info: &ObjectInfo,
) -> Option<(HeaderName, HeaderValue)> {
    let rules = core.lifecycles.get(&core.store.bucket(bucket).ok()?)?;
    let tags = &info.attributes.tags;
    let (size_bytes, last_modified_ms) = (info.size_bytes, info.last_modified_ms);
    let object = Candidate { key: &info.key, size_bytes, last_modified_ms, tags };
    let Expiry { at_ms, rule } = rules.expiry(&object)?;
    let date = http_date(at_ms);
    let rule = utf8_percent_encode(rule, NON_ALPHANUMERIC);
    let text = format!("expiry-date=\"{}\", rule-id=\"{rule}\"", date.to_str().ok()?);
    Some((EXPIRATION, HeaderValue::try_from(text).ok()?))
}

pub(super) fn malformed(problem: &'static str) -> S3Error {
    refuse(S3ErrorCode::MalformedXML, problem)
}

pub(super) fn invalid(problem: &'static str) -> S3Error {
    refuse(S3ErrorCode::InvalidArgument, problem)
}

/// A number of days, bytes or versions from 1.
fn positive<T: TryInto<u32>>(number: T, problem: &'static str) -> S3Result<u32> {
    number.try_into().ok().filter(|number| *number > 0).ok_or_else(|| invalid(problem))
}

fn from_xml(rule: LifecycleRule, at: usize) -> S3Result<Rule> {
    let enabled = match rule.status.as_str() {
        ExpirationStatus::ENABLED => true,
        ExpirationStatus::DISABLED => false,
        _ => return Err(malformed("the status of a rule must be Enabled or Disabled")),
    };
    let id = rule.id.filter(|id| !id.is_empty());
    if id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
        return Err(invalid("the ID of a rule has at most 255 characters"));
    }
    let filter = match (rule.filter, rule.prefix) {
        (Some(filter), None) => filter_from_xml(filter)?,
        (None, Some(prefix)) => Filter { is_bare_prefix: true, prefix: Some(prefix), ..Filter::default() },
        _ => return Err(malformed("a rule needs either a Filter or a Prefix")),
    };
    if filter.prefix.as_ref().is_some_and(|prefix| prefix.len() > KEY_BYTES_MAX) {
        return Err(invalid("a prefix has at most 1024 bytes"));
    }
    let checked = Rule {
        id: id.unwrap_or_else(|| generated_id(at, &filter)),
        enabled,
        expiration: rule.expiration.map(expiration_from_xml).transpose()?.flatten(),
        noncurrent: rule.noncurrent_version_expiration.map(noncurrent_from_xml).transpose()?,
        abort_upload_days: rule.abort_incomplete_multipart_upload.map(abort_from_xml).transpose()?,
        transitions: transitions::from_xml(rule.transitions.unwrap_or_default())?,
        noncurrent_transitions: transitions::noncurrent_from_xml(
            rule.noncurrent_version_transitions.unwrap_or_default(),
        )?,
        filter,
    };
    transitions::check_rule(&checked)?;
    let by_key_only = checked.filter.tags.is_empty()
        && checked.filter.larger_than_bytes.is_none()
        && checked.filter.smaller_than_bytes.is_none();
    let about_keys =
        checked.abort_upload_days.is_some() || checked.expiration == Some(Expiration::LoneDeleteMarker);
    if about_keys && !by_key_only {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "uploads and delete markers have neither tags nor sizes that a rule could ask for",
        ));
    }
    let acts = checked.expiration.is_some()
        || checked.noncurrent.is_some()
        || checked.abort_upload_days.is_some()
        || !checked.transitions.is_empty()
        || !checked.noncurrent_transitions.is_empty();
    if !acts {
        return Err(refuse(S3ErrorCode::InvalidRequest, "a rule must have at least one action"));
    }
    Ok(checked)
}

/// A name for a rule that was given none: the same for the same rule in the same place.
fn generated_id(at: usize, filter: &Filter) -> String {
    let text = format!("{at} {filter:?}");
    hex::encode(&Sha256::digest(text.as_bytes())[..24])
}

/// All conditions of a filter must hold, whether they stand inside And, as S3 wants it where there are several, or beside each
/// other, as some clients send them.
fn filter_from_xml(filter: LifecycleRuleFilter) -> S3Result<Filter> {
    let LifecycleRuleFilter { and, object_size_greater_than, object_size_less_than, prefix, tag } = filter;
    let single = LifecycleRuleAndOperator {
        object_size_greater_than,
        object_size_less_than,
        prefix,
        tags: tag.map(|tag| vec![tag]),
    };
    let one = conditions(single)?;
    let (is_and, one_conditions) = (and.is_some(), one.conditions());
    let filter = match and {
        None => one,
        Some(and) => conditions(and)?,
    };
    if is_and && (one_conditions > 0 || filter.conditions() == 0) {
        return Err(malformed("And stands alone in its filter and has conditions"));
    }
    if let (Some(larger), Some(smaller)) = (filter.larger_than_bytes, filter.smaller_than_bytes)
        && larger >= smaller
    {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "ObjectSizeGreaterThan must be less than ObjectSizeLessThan",
        ));
    }
    Ok(filter)
}

fn conditions(given: LifecycleRuleAndOperator) -> S3Result<Filter> {
    let size = |bytes: Option<i64>| {
        let bytes = bytes.map(u64::try_from).transpose();
        bytes.map_err(|_| invalid("the size of an object is not negative"))
    };
    let tags: BTreeMap<String, String> =
        tagging::checked(given.tags.unwrap_or_default(), TAGS_MAX)?.into_iter().collect();
    Ok(Filter {
        is_bare_prefix: false,
        prefix: given.prefix,
        tags,
        larger_than_bytes: size(given.object_size_greater_than)?,
        smaller_than_bytes: size(given.object_size_less_than)?,
    })
}

fn expiration_from_xml(given: LifecycleExpiration) -> S3Result<Option<Expiration>> {
    let marker = given.expired_object_delete_marker;
    match (given.days, given.date, marker) {
        (Some(days), None, None) => {
            let days = positive(days, "'Days' for the Expiration action must be a positive integer")?;
            Ok(Some(Expiration::Days(days)))
        }
        (None, Some(date), None) => Ok(Some(Expiration::AtMs(midnight(unix_ms(date))?))),
        (None, None, Some(marker)) => Ok(marker.then_some(Expiration::LoneDeleteMarker)),
        _ => Err(malformed("an expiration has exactly one of Days, Date and ExpiredObjectDeleteMarker")),
    }
}

pub(super) fn midnight(at_ms: u64) -> S3Result<u64> {
    if at_ms.is_multiple_of(DAY_MS) { Ok(at_ms) } else { Err(invalid("'Date' must be at midnight GMT")) }
}

fn noncurrent_from_xml(given: NoncurrentVersionExpiration) -> S3Result<Noncurrent> {
    let problem = "'NoncurrentDays' for the NoncurrentVersionExpiration action must be a positive integer";
    let days = positive(given.noncurrent_days.ok_or_else(|| malformed(problem))?, problem)?;
    let problem = "'NewerNoncurrentVersions' must be a number from 1 to 100";
    let keep = given.newer_noncurrent_versions.map(|keep| positive(keep, problem)).transpose()?.unwrap_or(0);
    if keep > KEEP_MAX {
        return Err(invalid(problem));
    }
    Ok(Noncurrent { days, keep })
}

fn abort_from_xml(given: AbortIncompleteMultipartUpload) -> S3Result<u32> {
    let problem =
        "'DaysAfterInitiation' for the AbortIncompleteMultipartUpload action must be a positive integer";
    positive(given.days_after_initiation.ok_or_else(|| malformed(problem))?, problem)
}

fn to_xml(rule: Rule) -> LifecycleRule {
    let signed = |number: u32| i32::try_from(number).ok();
    let expiration = rule.expiration.map(|expiration| match expiration {
        Expiration::Days(days) => {
            LifecycleExpiration { days: signed(days), ..LifecycleExpiration::default() }
        }
        Expiration::AtMs(at_ms) => {
            LifecycleExpiration { date: Some(timestamp(at_ms)), ..LifecycleExpiration::default() }
        }
        Expiration::LoneDeleteMarker => {
            LifecycleExpiration { expired_object_delete_marker: Some(true), ..LifecycleExpiration::default() }
        }
    });
    let noncurrent_version_expiration = rule.noncurrent.map(|given| NoncurrentVersionExpiration {
        newer_noncurrent_versions: signed(given.keep).filter(|keep| *keep > 0),
        noncurrent_days: signed(given.days),
    });
    let abort_incomplete_multipart_upload = rule
        .abort_upload_days
        .map(|days| AbortIncompleteMultipartUpload { days_after_initiation: signed(days) });
    let status = if rule.enabled { ExpirationStatus::ENABLED } else { ExpirationStatus::DISABLED };
    let (filter, prefix) = match rule.filter {
        Filter { is_bare_prefix: true, prefix, .. } => (None, prefix),
        filter => (Some(filter_to_xml(filter)), None),
    };
    LifecycleRule {
        abort_incomplete_multipart_upload,
        expiration,
        filter,
        id: Some(rule.id),
        noncurrent_version_expiration,
        noncurrent_version_transitions: transitions::noncurrent_to_xml(rule.noncurrent_transitions),
        prefix,
        status: ExpirationStatus::from_static(status),
        transitions: transitions::to_xml(rule.transitions),
    }
}

fn filter_to_xml(filter: Filter) -> LifecycleRuleFilter {
    let size = |bytes: Option<u64>| bytes.and_then(|bytes| i64::try_from(bytes).ok());
    let several = filter.conditions() > 1;
    let mut tags = filter.tags.into_iter().map(|(key, value)| Tag { key: Some(key), value: Some(value) });
    let (object_size_greater_than, object_size_less_than) =
        (size(filter.larger_than_bytes), size(filter.smaller_than_bytes));
    if several {
        let tags: Vec<Tag> = tags.collect();
        let and = LifecycleRuleAndOperator {
            object_size_greater_than,
            object_size_less_than,
            prefix: filter.prefix,
            tags: (!tags.is_empty()).then_some(tags),
        };
        return LifecycleRuleFilter { and: Some(and), ..LifecycleRuleFilter::default() };
    }
    LifecycleRuleFilter {
        and: None,
        object_size_greater_than,
        object_size_less_than,
        prefix: filter.prefix,
        tag: tags.next(),
    }
}

#[cfg(test)]
mod tests {
    use s3s::dto::{Transition, TransitionStorageClass};

    use super::*;

    fn rule() -> LifecycleRule {
        LifecycleRule {
            abort_incomplete_multipart_upload: None,
            expiration: Some(LifecycleExpiration { days: Some(3), ..LifecycleExpiration::default() }),
            filter: Some(LifecycleRuleFilter { prefix: Some("a/".into()), ..LifecycleRuleFilter::default() }),
            id: Some("one".into()),
            noncurrent_version_expiration: None,
            noncurrent_version_transitions: None,
            prefix: None,
            status: ExpirationStatus::from_static(ExpirationStatus::ENABLED),
            transitions: None,
        }
    }

    fn tag(key: &str) -> Tag {
        Tag { key: Some(key.into()), value: Some("v".into()) }
    }

    #[test]
    fn rules_round_trip() {
        let and = LifecycleRuleAndOperator {
            object_size_greater_than: Some(5),
            object_size_less_than: Some(9),
            prefix: Some(String::new()),
            tags: Some(vec![tag("a"), tag("b")]),
        };
        let days = AbortIncompleteMultipartUpload { days_after_initiation: Some(2) };
        let noncurrent =
            NoncurrentVersionExpiration { newer_noncurrent_versions: Some(4), noncurrent_days: Some(5) };
        let date = LifecycleExpiration { date: Some(timestamp(DAY_MS)), ..LifecycleExpiration::default() };
        let marker = LifecycleExpiration {
            expired_object_delete_marker: Some(true),
            ..LifecycleExpiration::default()
        };
        for given in [
            rule(),
            LifecycleRule {
                filter: Some(LifecycleRuleFilter { and: Some(and), ..LifecycleRuleFilter::default() }),
                noncurrent_version_expiration: Some(noncurrent),
                ..rule()
            },
            LifecycleRule { filter: None, prefix: Some("p".into()), expiration: Some(date), ..rule() },
            LifecycleRule {
                filter: Some(LifecycleRuleFilter::default()),
                expiration: Some(marker),
                ..rule()
            },
            LifecycleRule { abort_incomplete_multipart_upload: Some(days), expiration: None, ..rule() },
            LifecycleRule {
                filter: Some(LifecycleRuleFilter { tag: Some(tag("a")), ..LifecycleRuleFilter::default() }),
                status: ExpirationStatus::from_static(ExpirationStatus::DISABLED),
                ..rule()
            },
        ] {
            let kept = from_xml(given.clone(), 0).unwrap();
            assert_eq!(to_xml(kept), given);
        }
        let generated = from_xml(LifecycleRule { id: None, ..rule() }, 0).unwrap().id;
        assert_eq!(generated.len(), 48);
    }

    #[test]
    fn conditions_beside_each_other_hold_together() {
        let beside = LifecycleRuleFilter {
            prefix: Some("b/".into()),
            object_size_greater_than: Some(5),
            tag: Some(tag("a")),
            ..LifecycleRuleFilter::default()
        };
        let LifecycleRuleFilter { prefix, object_size_greater_than, .. } = beside.clone();
        let and = LifecycleRuleAndOperator {
            prefix,
            object_size_greater_than,
            tags: Some(vec![tag("a")]),
            ..LifecycleRuleAndOperator::default()
        };
        let inside = LifecycleRuleFilter { and: Some(and), ..LifecycleRuleFilter::default() };
        let read = |filter| from_xml(LifecycleRule { filter: Some(filter), ..rule() }, 0).unwrap().filter;
        assert_eq!(read(beside), read(inside));
        let alone = LifecycleRuleAndOperator { tags: Some(vec![tag("a")]), ..Default::default() };
        let inside = LifecycleRuleFilter { and: Some(alone), ..LifecycleRuleFilter::default() };
        assert_eq!(read(inside).tags.len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let days = |days| LifecycleExpiration { days: Some(days), ..LifecycleExpiration::default() };
        let filter = |filter| Some(filter);
        let none = LifecycleRuleFilter::default;
        for (given, code) in [
            (LifecycleRule { expiration: Some(days(0)), ..rule() }, "InvalidArgument"),
            (LifecycleRule { expiration: None, ..rule() }, "InvalidRequest"),
            (LifecycleRule { expiration: Some(LifecycleExpiration::default()), ..rule() }, "MalformedXML"),
            (
                LifecycleRule {
                    expiration: Some(LifecycleExpiration { date: Some(timestamp(5)), ..days(1) }),
                    ..rule()
                },
                "MalformedXML",
            ),
            (
                LifecycleRule {
                    expiration: Some(LifecycleExpiration {
                        date: Some(timestamp(5_000)),
                        ..LifecycleExpiration::default()
                    }),
                    ..rule()
                },
                "InvalidArgument",
            ),
            (LifecycleRule { prefix: Some("x".into()), ..rule() }, "MalformedXML"),
            (LifecycleRule { filter: None, ..rule() }, "MalformedXML"),
            (LifecycleRule { id: Some("x".repeat(256)), ..rule() }, "InvalidArgument"),
            (LifecycleRule { status: ExpirationStatus::from_static("enabled"), ..rule() }, "MalformedXML"),
            (
                LifecycleRule {
                    filter: filter(LifecycleRuleFilter {
                        prefix: Some("b".into()),
                        and: Some(LifecycleRuleAndOperator {
                            tags: Some(vec![tag("a")]),
                            ..LifecycleRuleAndOperator::default()
                        }),
                        ..none()
                    }),
                    ..rule()
                },
                "MalformedXML",
            ),
            (
                LifecycleRule {
                    filter: filter(LifecycleRuleFilter {
                        object_size_greater_than: Some(5),
                        object_size_less_than: Some(5),
                        ..none()
                    }),
                    ..rule()
                },
                "InvalidRequest",
            ),
            (
                LifecycleRule {
                    filter: filter(LifecycleRuleFilter {
                        and: Some(LifecycleRuleAndOperator::default()),
                        ..none()
                    }),
                    ..rule()
                },
                "MalformedXML",
            ),
            (
                LifecycleRule {
                    filter: filter(LifecycleRuleFilter { tag: Some(tag("a")), ..none() }),
                    abort_incomplete_multipart_upload: Some(AbortIncompleteMultipartUpload {
                        days_after_initiation: Some(1),
                    }),
                    ..rule()
                },
                "InvalidRequest",
            ),
            (
                LifecycleRule {
                    transitions: Some(vec![Transition {
                        days: Some(1),
                        date: None,
                        storage_class: Some(TransitionStorageClass::from_static("DEEP_ARCHIVE")),
                    }]),
                    ..rule()
                },
                "NotImplemented",
            ),
        ] {
            let refused = from_xml(given.clone(), 0).expect_err("refused");
            assert_eq!(refused.code().as_str(), code, "{given:?}");
        }
    }
}
