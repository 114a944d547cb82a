//! Which web pages may use a bucket: the document. `crate::cors` acts on it.

use http::StatusCode;
use quarry_object::api::{DocumentKind, ObjectStore};
use s3s::dto::{
    CORSRule, DeleteBucketCorsInput, DeleteBucketCorsOutput, GetBucketCorsInput, GetBucketCorsOutput,
    PutBucketCorsInput, PutBucketCorsOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::{ID_BYTES_MAX, read, remove, write};
use crate::backend::Core;
use crate::cors::{Cors, METHODS, Rule};
use crate::error::refuse;

/// Rules of one bucket, as in S3.
const RULES_MAX: usize = 100;

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketCorsInput>,
) -> S3Result<S3Response<GetBucketCorsOutput>> {
    let cors: Option<Cors> = read(core, &request.input.bucket, DocumentKind::Cors)?;
    let cors = cors.ok_or_else(|| {
        refuse(S3ErrorCode::NoSuchCORSConfiguration, "the CORS configuration does not exist")
    })?;
    let rules = cors.rules.into_iter().map(to_xml).collect();
    Ok(S3Response::new(GetBucketCorsOutput { cors_rules: Some(rules) }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketCorsInput>,
) -> S3Result<S3Response<PutBucketCorsOutput>> {
    let input = request.input;
    let rules = input.cors_configuration.cors_rules;
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(refuse(S3ErrorCode::MalformedXML, "a CORS configuration has from 1 to 100 rules"));
    }
    let rules = rules.into_iter().map(from_xml).collect::<S3Result<_>>()?;
    write(core, &input.bucket, DocumentKind::Cors, &Cors { rules }).await?;
    Ok(S3Response::new(PutBucketCorsOutput {}))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteBucketCorsInput>,
) -> S3Result<S3Response<DeleteBucketCorsOutput>> {
    remove(core, &request.input.bucket, DocumentKind::Cors).await?;
    Ok(S3Response::with_status(DeleteBucketCorsOutput {}, StatusCode::NO_CONTENT))
}

fn from_xml(rule: CORSRule) -> S3Result<Rule> {
    let invalid = |problem: String| Err(refuse(S3ErrorCode::InvalidRequest, problem));
    if rule.allowed_origins.is_empty() || rule.allowed_methods.is_empty() {
        return Err(refuse(S3ErrorCode::MalformedXML, "a CORS rule needs an origin and a method"));
    }
    if rule.id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
        return Err(refuse(S3ErrorCode::InvalidArgument, "the ID of a rule has at most 255 characters"));
    }
    let headers = rule.allowed_headers.unwrap_or_default();
    let expose = rule.expose_headers.unwrap_or_default();
    let wild = |text: &str| text.matches('*').count();
    if let Some(method) = rule.allowed_methods.iter().find(|method| !METHODS.contains(&method.as_str())) {
        return invalid(format!("found unsupported HTTP method in CORS config: {method}"));
    }
    if let Some(origin) = rule.allowed_origins.iter().find(|origin| wild(origin) > 1) {
        return invalid(format!("AllowedOrigin {origin:?} can not have more than one wildcard"));
    }
    if let Some(header) = headers.iter().find(|header| wild(header) > 1) {
        return invalid(format!("AllowedHeader {header:?} can not have more than one wildcard"));
    }
    if let Some(header) = expose.iter().find(|header| wild(header) > 0) {
        return invalid(format!("ExposeHeader {header:?} contains a wildcard, which is not supported"));
    }
    let text = rule.allowed_origins.iter().chain(&headers).chain(&expose);
    if let Some(text) = text.into_iter().find(|text| !text.bytes().all(|byte| byte.is_ascii_graphic())) {
        return invalid(format!("{text:?} can be no origin and no header"));
    }
    let max_age_seconds = rule.max_age_seconds.map(u32::try_from).transpose();
    let max_age_seconds = max_age_seconds
        .map_err(|_| refuse(S3ErrorCode::InvalidRequest, "MaxAgeSeconds must not be negative"))?;
    Ok(Rule {
        id: rule.id,
        origins: rule.allowed_origins,
        methods: rule.allowed_methods,
        headers,
        expose,
        max_age_seconds,
    })
}

fn to_xml(rule: Rule) -> CORSRule {
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    CORSRule {
        allowed_headers: some(rule.headers),
        allowed_methods: rule.methods,
        allowed_origins: rule.origins,
        expose_headers: some(rule.expose),
        id: rule.id,
        max_age_seconds: rule.max_age_seconds.and_then(|seconds| i32::try_from(seconds).ok()),
    }
}
