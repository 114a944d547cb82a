//! Tags of a bucket, and the rules for all tags.

use std::collections::BTreeSet;

use http::StatusCode;
use quarry_object::api::{DocumentKind, ObjectStore};
use s3s::dto::{
    DeleteBucketTaggingInput, DeleteBucketTaggingOutput, GetBucketTaggingInput, GetBucketTaggingOutput,
    PutBucketTaggingInput, PutBucketTaggingOutput, Tag,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::{read, remove, write};
use crate::backend::Core;
use crate::error::{custom, refuse};

/// Tags of one bucket, as in S3.
const BUCKET_TAGS_MAX: usize = 50;
const KEY_CHARACTERS_MAX: usize = 128;
const VALUE_CHARACTERS_MAX: usize = 256;
/// What is kept for S3's own use.
const RESERVED_PREFIX: &str = "aws:";

/// Names and values, in the order in which they were given.
type Tags = Vec<(String, String)>;

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketTaggingInput>,
) -> S3Result<S3Response<GetBucketTaggingOutput>> {
    let tags: Option<Tags> = read(core, &request.input.bucket, DocumentKind::Tagging)?;
    let tags = tags.ok_or_else(|| refuse(S3ErrorCode::NoSuchTagSet, "the bucket has no tags"))?;
    let tag_set = tags.into_iter().map(|(key, value)| Tag { key: Some(key), value: Some(value) });
    Ok(S3Response::new(GetBucketTaggingOutput { tag_set: tag_set.collect() }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketTaggingInput>,
) -> S3Result<S3Response<PutBucketTaggingOutput>> {
    let input = request.input;
    let tags = checked(input.tagging.tag_set, BUCKET_TAGS_MAX)?;
    write(core, &input.bucket, DocumentKind::Tagging, &tags).await?;
    Ok(S3Response::with_status(PutBucketTaggingOutput {}, StatusCode::NO_CONTENT))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteBucketTaggingInput>,
) -> S3Result<S3Response<DeleteBucketTaggingOutput>> {
    remove(core, &request.input.bucket, DocumentKind::Tagging).await?;
    Ok(S3Response::with_status(DeleteBucketTaggingOutput {}, StatusCode::NO_CONTENT))
}

/// Tags by the rules of S3.
///
/// # Errors
/// `MalformedXML` for half a tag, `BadRequest` for too many, `InvalidTag` for names and values that are not allowed.
pub(super) fn checked(tags: Vec<Tag>, tags_max: usize) -> S3Result<Tags> {
    if tags.len() > tags_max {
        let problem = format!("there can be at most {tags_max} tags");
        return Err(custom("BadRequest", StatusCode::BAD_REQUEST, problem));
    }
    let mut names = BTreeSet::new();
    let mut checked = Vec::with_capacity(tags.len());
    for tag in tags {
        let (Some(key), Some(value)) = (tag.key, tag.value) else {
            return Err(refuse(S3ErrorCode::MalformedXML, "a tag needs a Key and a Value"));
        };
        check(&key, &value)?;
        if !names.insert(key.clone()) {
            return Err(refuse(S3ErrorCode::InvalidTag, "there are several tags of the same key"));
        }
        checked.push((key, value));
    }
    Ok(checked)
}

fn check(key: &str, value: &str) -> S3Result<()> {
    let invalid = |problem: &'static str| Err(refuse(S3ErrorCode::InvalidTag, problem));
    let allowed = |c: char| c.is_alphanumeric() || c.is_whitespace() || "+-=._:/@".contains(c);
    if key.is_empty() || key.chars().count() > KEY_CHARACTERS_MAX {
        return invalid("the key of a tag has 1 to 128 characters");
    }
    if value.chars().count() > VALUE_CHARACTERS_MAX {
        return invalid("the value of a tag has up to 256 characters");
    }
    if key.to_ascii_lowercase().starts_with(RESERVED_PREFIX) {
        return invalid("the keys of tags that begin with aws: are reserved");
    }
    if !key.chars().chain(value.chars()).all(allowed) {
        return invalid("a tag has letters, digits, spaces and + - = . _ : / @ only");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Tag, checked};

    #[test]
    fn tags_follow_the_rules() {
        let tag = |key: &str, value: &str| Tag { key: Some(key.into()), value: Some(value.into()) };
        let check = |tags: Vec<Tag>| checked(tags, 2).map_err(|error| error.code().as_str().to_owned());
        assert_eq!(check(vec![tag("ä b", ""), tag("x", "+-=._:/@")]).unwrap().len(), 2);
        for (tags, code) in [
            (vec![tag("a", ""), tag("b", ""), tag("c", "")], "BadRequest"),
            (vec![tag("a", "1"), tag("a", "2")], "InvalidTag"),
            (vec![tag("", "1")], "InvalidTag"),
            (vec![tag(&"a".repeat(129), "1")], "InvalidTag"),
            (vec![tag("a", &"b".repeat(257))], "InvalidTag"),
            (vec![tag("AWS:x", "1")], "InvalidTag"),
            (vec![tag("a", "<")], "InvalidTag"),
            (vec![Tag { key: Some("a".into()), value: None }], "MalformedXML"),
        ] {
            assert_eq!(check(tags).unwrap_err(), code);
        }
    }
}
