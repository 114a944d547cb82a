//! From `If-*` headers to [`Conditions`], with the precedence of RFC 9110, section 13.2.2.
//!
//! HTTP dates have whole seconds and objects milliseconds: a date stands for the end of its second, so that a
//! client which sends our `Last-Modified` back is told "not modified".

use quarry_object::api::Conditions;
use s3s::dto::{ETag, ETagCondition, Timestamp};

use crate::attributes::unix_ms;

/// See the module.
pub(crate) const REST_OF_SECOND_MS: u64 = 999;

/// Conditions of a read or of a copy source.
pub(crate) fn on_read(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
    if_modified_since: Option<Timestamp>,
    if_unmodified_since: Option<Timestamp>,
) -> Conditions {
    let if_match = if_match.map(etags);
    let if_none_match = if_none_match.map(etags);
    // An ETag decides alone where one is given: dates are the weaker validator.
    let if_unmodified_since_ms = if_unmodified_since.filter(|_| if_match.is_none()).map(end_of_second);
    let if_modified_since_ms = if_modified_since.filter(|_| if_none_match.is_none()).map(end_of_second);
    Conditions {
        if_match,
        if_none_match,
        if_modified_since_ms,
        if_unmodified_since_ms,
        ..Conditions::default()
    }
}

/// Conditions of a write.
pub(crate) fn on_write(if_match: Option<ETagCondition>, if_none_match: Option<ETagCondition>) -> Conditions {
    on_read(if_match, if_none_match, None, None)
}

/// Conditions of a delete. No object has a negative size.
pub(crate) fn on_delete(
    if_match: Option<ETagCondition>,
    last_modified: Option<Timestamp>,
    size_bytes: Option<i64>,
) -> Conditions {
    Conditions {
        if_match_last_modified_ms: last_modified.map(unix_ms),
        if_match_size_bytes: size_bytes.map(|size| u64::try_from(size).unwrap_or(u64::MAX)),
        ..on_write(if_match, None)
    }
}

fn etags(condition: ETagCondition) -> Vec<String> {
    match condition {
        ETagCondition::Any => vec!["*".to_owned()],
        ETagCondition::ETag(tag) => vec![tag.into_value()],
    }
}

fn end_of_second(time: Timestamp) -> u64 {
    unix_ms(time) + REST_OF_SECOND_MS
}

/// An ETag as s3s writes it, with quotes.
pub(crate) fn etag(value: String) -> ETag {
    ETag::Strong(value)
}

#[cfg(test)]
mod tests {
    use s3s::dto::TimestampFormat;

    use super::{Timestamp, on_read};

    #[test]
    fn dates_cover_their_second_and_yield_to_etags() {
        let date = || Timestamp::parse(TimestampFormat::HttpDate, "Thu, 01 Jan 1970 00:00:07 GMT").ok();
        let by_date = on_read(None, None, date(), date());
        assert_eq!(by_date.if_modified_since_ms, Some(7_999));
        assert_eq!(by_date.if_unmodified_since_ms, Some(7_999));
        let any = || Some(super::ETagCondition::Any);
        let by_etag = on_read(any(), any(), date(), date());
        assert_eq!(by_etag.if_match, Some(vec!["*".to_owned()]));
        assert_eq!((by_etag.if_modified_since_ms, by_etag.if_unmodified_since_ms), (None, None));
    }
}
