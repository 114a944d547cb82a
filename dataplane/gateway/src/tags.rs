//! Tags of objects: the header and the document that set them, and the operations on them.

use quarry_object::api::{ObjectStore, Selector, TAG_CHARS_MAX, TAGS_MAX, Tags};
use s3s::dto::{
    DeleteObjectTaggingInput, DeleteObjectTaggingOutput, GetObjectTaggingInput, GetObjectTaggingOutput,
    PutObjectTaggingInput, PutObjectTaggingOutput, Tag, Tagging,
};
use s3s::xml::{Deserialize as _, Deserializer};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::backend::Core;
use crate::error::{from_api, refuse};
use crate::versions::version;

/// Characters of tags beside letters, digits and spaces.
const TAG_PUNCTUATION: &str = "+-=._:/@";
/// Keys of the service itself.
const RESERVED_PREFIX: &str = "aws:";

fn invalid(problem: &'static str) -> s3s::S3Error {
    refuse(S3ErrorCode::InvalidTag, problem)
}

fn check_text(text: &str, chars_max: usize) -> S3Result<()> {
    let allowed = |c: char| c.is_alphanumeric() || c.is_whitespace() || TAG_PUNCTUATION.contains(c);
    if text.chars().count() > chars_max || !text.chars().all(allowed) {
        return Err(invalid("a tag is too long, or has characters that tags cannot have"));
    }
    Ok(())
}

/// Tags within the limits of S3, each key once.
///
/// # Errors
/// `InvalidTag`.
pub(crate) fn checked(pairs: impl IntoIterator<Item = (String, String)>) -> S3Result<Tags> {
    let mut tags = Tags::new();
    for (key, value) in pairs {
        check_text(&key, TAG_CHARS_MAX.0)?;
        check_text(&value, TAG_CHARS_MAX.1)?;
        if key.is_empty() || key.starts_with(RESERVED_PREFIX) {
            return Err(invalid("a tag needs a key, and it must not begin with aws:"));
        }
        if tags.insert(key, value).is_some() {
            return Err(invalid("cannot provide multiple tags with the same key"));
        }
    }
    if tags.len() > TAGS_MAX {
        return Err(invalid("object tags cannot be more than 10"));
    }
    Ok(tags)
}

/// Tags in the form of a query, as in `x-amz-tagging`.
///
/// # Errors
/// `InvalidTag`, and `InvalidArgument` for what is no such form.
pub(crate) fn from_header(header: &str) -> S3Result<Tags> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let decoded = percent_encoding::percent_decode_str(&text).decode_utf8();
        decoded.map(|decoded| decoded.into_owned()).map_err(|_| {
            refuse(S3ErrorCode::InvalidArgument, "the header x-amz-tagging must be encoded as a query")
        })
    };
    let pairs = header.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decode(key)?, decode(value)?))
    });
    checked(pairs.collect::<S3Result<Vec<_>>>()?)
}

/// Tags in the form of a document, as in the field `tagging` of a form.
///
/// # Errors
/// `InvalidTag`, and `MalformedXML` for what is no such document.
pub(crate) fn from_document(document: &str) -> S3Result<Tags> {
    let malformed = || refuse(S3ErrorCode::MalformedXML, "the tagging document is not valid");
    let tagging =
        Tagging::deserialize(&mut Deserializer::new(document.as_bytes())).map_err(|_| malformed())?;
    of_set(tagging.tag_set)
}

fn of_set(set: Vec<Tag>) -> S3Result<Tags> {
    let pairs = set.into_iter().map(|tag| match (tag.key, tag.value) {
        (Some(key), Some(value)) => Ok((key, value)),
        _ => Err(refuse(S3ErrorCode::MalformedXML, "every tag needs a Key and a Value")),
    });
    checked(pairs.collect::<S3Result<Vec<_>>>()?)
}

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetObjectTaggingInput>,
) -> S3Result<S3Response<GetObjectTaggingOutput>> {
    let input = request.input;
    let selector = Selector { version: version(input.version_id.as_deref())?, ..Selector::default() };
    let head = core.store.head_object(&input.bucket, &input.key, selector, Default::default());
    let info = head.await.map_err(from_api)?.info;
    let tag = |(key, value)| Tag { key: Some(key), value: Some(value) };
    Ok(S3Response::new(GetObjectTaggingOutput {
        tag_set: info.attributes.tags.into_iter().map(tag).collect(),
        version_id: info.version.map(|version| version.to_string()),
    }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutObjectTaggingInput>,
) -> S3Result<S3Response<PutObjectTaggingOutput>> {
    let input = request.input;
    let tags = of_set(input.tagging.tag_set)?;
    let version = version(input.version_id.as_deref())?;
    let set = core.store.set_tags(&input.bucket, &input.key, version, tags).await.map_err(from_api)?;
    Ok(S3Response::new(PutObjectTaggingOutput { version_id: set.map(|version| version.to_string()) }))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteObjectTaggingInput>,
) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
    let input = request.input;
    let version = version(input.version_id.as_deref())?;
    let set = core.store.set_tags(&input.bucket, &input.key, version, Tags::new());
    let set = set.await.map_err(from_api)?;
    let output = DeleteObjectTaggingOutput { version_id: set.map(|version| version.to_string()) };
    Ok(S3Response::with_status(output, http::StatusCode::NO_CONTENT))
}

#[cfg(test)]
mod tests {
    use super::from_header;

    #[test]
    fn headers_are_queries_within_limits() {
        let tags = from_header("a=1&b+c=%C3%A9%2F&d&").unwrap();
        let pairs: Vec<_> = tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("a", "1"), ("b c", "é/"), ("d", "")]);
        let many: String = (0..11).map(|n| format!("k{n}=v&")).collect();
        let long = format!("{}=v", "k".repeat(129));
        for bad in ["a=1&a=2", "=v", "aws:x=1", "a=%00", many.as_str(), long.as_str()] {
            assert_eq!(from_header(bad).unwrap_err().code().as_str(), "InvalidTag", "{bad}");
        }
        assert_eq!(from_header("a=%FF").unwrap_err().code().as_str(), "InvalidArgument");
        assert!(from_header(&format!("{}={}", "k".repeat(128), "é".repeat(256))).is_ok());
    }
}
