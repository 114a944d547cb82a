//! How a bucket is served as a website: the document. `crate::website` acts on it.

use http::StatusCode;
use quarry_object::api::{DocumentKind, ObjectStore};
use s3s::dto::{
    Condition, DeleteBucketWebsiteInput, DeleteBucketWebsiteOutput, ErrorDocument, GetBucketWebsiteInput,
    GetBucketWebsiteOutput, IndexDocument, Protocol, PutBucketWebsiteInput, PutBucketWebsiteOutput, Redirect,
    RedirectAllRequestsTo, RoutingRule, WebsiteConfiguration,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::{read, remove, write};
use crate::backend::Core;
use crate::error::refuse;
use crate::website::rules::{Rule, Target, Website};

/// Routing rules of one bucket, as in S3.
const RULES_MAX: usize = 50;
const KEY_BYTES_MAX: usize = 1024;
const HOST_BYTES_MAX: usize = 255;

pub(crate) async fn get<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketWebsiteInput>,
) -> S3Result<S3Response<GetBucketWebsiteOutput>> {
    let website: Option<Website> = read(core, &request.input.bucket, DocumentKind::Website)?;
    let website = website.ok_or_else(|| {
        refuse(S3ErrorCode::NoSuchWebsiteConfiguration, "the bucket does not have a website configuration")
    })?;
    let rules: Vec<RoutingRule> = website.rules.into_iter().map(rule_to_xml).collect();
    Ok(S3Response::new(GetBucketWebsiteOutput {
        error_document: website.error_key.map(|key| ErrorDocument { key }),
        index_document: website.index.map(|suffix| IndexDocument { suffix }),
        redirect_all_requests_to: website.redirect_all.map(|target| RedirectAllRequestsTo {
            host_name: target.host.unwrap_or_default(),
            protocol: target.protocol.map(Protocol::from),
        }),
        routing_rules: (!rules.is_empty()).then_some(rules),
    }))
}

pub(crate) async fn put<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketWebsiteInput>,
) -> S3Result<S3Response<PutBucketWebsiteOutput>> {
    let input = request.input;
    let website = from_xml(input.website_configuration)?;
    write(core, &input.bucket, DocumentKind::Website, &website).await?;
    Ok(S3Response::new(PutBucketWebsiteOutput {}))
}

pub(crate) async fn delete<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<DeleteBucketWebsiteInput>,
) -> S3Result<S3Response<DeleteBucketWebsiteOutput>> {
    remove(core, &request.input.bucket, DocumentKind::Website).await?;
    Ok(S3Response::with_status(DeleteBucketWebsiteOutput {}, StatusCode::NO_CONTENT))
}

fn invalid(problem: &'static str) -> S3Error {
    refuse(S3ErrorCode::InvalidArgument, problem)
}

fn is_key(text: &str) -> bool {
    (1..=KEY_BYTES_MAX).contains(&text.len())
}

fn from_xml(given: WebsiteConfiguration) -> S3Result<Website> {
    let WebsiteConfiguration { error_document, index_document, redirect_all_requests_to, routing_rules } =
        given;
    if let Some(all) = redirect_all_requests_to {
        if error_document.is_some() || index_document.is_some() || routing_rules.is_some() {
            return Err(invalid("RedirectAllRequestsTo stands alone in a website configuration"));
        }
        let target = target(all.protocol, Some(all.host_name))?;
        return Ok(Website { redirect_all: Some(target), ..Website::default() });
    }
    let index =
        index_document.ok_or_else(|| invalid("a website configuration needs an IndexDocument"))?.suffix;
    if !is_key(&index) || index.contains('/') {
        return Err(invalid("the IndexDocument Suffix is not well formed"));
    }
    let error_key = error_document.map(|document| document.key);
    if error_key.as_deref().is_some_and(|key| !is_key(key)) {
        return Err(invalid("the key of the ErrorDocument is not well formed"));
    }
    let rules = routing_rules.unwrap_or_default();
    if rules.len() > RULES_MAX {
        return Err(invalid("a website configuration has at most 50 routing rules"));
    }
    let rules = rules.into_iter().map(rule_from_xml).collect::<S3Result<_>>()?;
    Ok(Website { index: Some(index), error_key, redirect_all: None, rules })
}

fn target(protocol: Option<Protocol>, host: Option<String>) -> S3Result<Target> {
    let protocol = protocol.map(|protocol| protocol.as_str().to_owned());
    if protocol.as_deref().is_some_and(|protocol| protocol != "http" && protocol != "https") {
        return Err(invalid("the protocol of a redirect must be http or https"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
    if host
        .as_ref()
        .is_some_and(|host| host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(allowed))
    {
        return Err(invalid("the host name of a redirect is not well formed"));
    }
    Ok(Target { protocol, host })
}

fn status(text: Option<String>, range: std::ops::RangeInclusive<u16>) -> S3Result<Option<u16>> {
    let Some(text) = text else { return Ok(None) };
    let status = text.parse().ok().filter(|status| range.contains(status));
    status.map(Some).ok_or_else(|| invalid("an HTTP status of a routing rule is not allowed there"))
}

fn rule_from_xml(given: RoutingRule) -> S3Result<Rule> {
    let condition = given.condition.unwrap_or_default();
    let redirect = given.redirect;
    let nothing = redirect.host_name.is_none()
        && redirect.http_redirect_code.is_none()
        && redirect.protocol.is_none()
        && redirect.replace_key_prefix_with.is_none()
        && redirect.replace_key_with.is_none();
    if nothing {
        return Err(invalid("a redirect must name at least one thing that changes"));
    }
    if redirect.replace_key_prefix_with.is_some() && redirect.replace_key_with.is_some() {
        return Err(invalid("a redirect has only one of ReplaceKeyPrefixWith and ReplaceKeyWith"));
    }
    let keys = [&condition.key_prefix_equals, &redirect.replace_key_prefix_with, &redirect.replace_key_with];
    if keys.into_iter().flatten().any(|key| key.len() > KEY_BYTES_MAX) {
        return Err(invalid("a key of a routing rule is longer than 1024 bytes"));
    }
    Ok(Rule {
        prefix: condition.key_prefix_equals,
        error: status(condition.http_error_code_returned_equals, 400..=599)?,
        target: target(redirect.protocol, redirect.host_name)?,
        status: status(redirect.http_redirect_code, 301..=399)?,
        replace_prefix: redirect.replace_key_prefix_with,
        replace_key: redirect.replace_key_with,
    })
}

fn rule_to_xml(rule: Rule) -> RoutingRule {
    let text = |status: Option<u16>| status.map(|status| status.to_string());
    let condition =
        Condition { http_error_code_returned_equals: text(rule.error), key_prefix_equals: rule.prefix };
    let is_conditional =
        condition.http_error_code_returned_equals.is_some() || condition.key_prefix_equals.is_some();
    RoutingRule {
        condition: is_conditional.then_some(condition),
        redirect: Redirect {
            host_name: rule.target.host,
            http_redirect_code: text(rule.status),
            protocol: rule.target.protocol.map(Protocol::from),
            replace_key_prefix_with: rule.replace_prefix,
            replace_key_with: rule.replace_key,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> WebsiteConfiguration {
        let index_document = Some(IndexDocument { suffix: "index.html".into() });
        WebsiteConfiguration { index_document, ..WebsiteConfiguration::default() }
    }

    fn with_rule(condition: Option<Condition>, redirect: Redirect) -> WebsiteConfiguration {
        WebsiteConfiguration { routing_rules: Some(vec![RoutingRule { condition, redirect }]), ..index() }
    }

    #[test]
    fn documents_are_validated() {
        let all = RedirectAllRequestsTo {
            host_name: "example.org".into(),
            protocol: Some("https".to_owned().into()),
        };
        let redirect = || Redirect { replace_key_with: Some("gone.html".into()), ..Redirect::default() };
        let prefix = Condition { key_prefix_equals: Some("old/".into()), ..Condition::default() };
        for good in [
            index(),
            WebsiteConfiguration {
                redirect_all_requests_to: Some(all.clone()),
                ..WebsiteConfiguration::default()
            },
            with_rule(Some(prefix), redirect()),
            with_rule(None, redirect()),
        ] {
            assert!(from_xml(good.clone()).is_ok(), "{good:?}");
        }
        let error = Condition { http_error_code_returned_equals: Some("200".into()), ..Condition::default() };
        for bad in [
            WebsiteConfiguration::default(),
            WebsiteConfiguration { redirect_all_requests_to: Some(all), ..index() },
            WebsiteConfiguration { index_document: Some(IndexDocument { suffix: "a/b".into() }), ..index() },
            WebsiteConfiguration { index_document: Some(IndexDocument { suffix: String::new() }), ..index() },
            WebsiteConfiguration { error_document: Some(ErrorDocument { key: String::new() }), ..index() },
            with_rule(None, Redirect::default()),
            with_rule(None, Redirect { replace_key_prefix_with: Some("x".into()), ..redirect() }),
            with_rule(None, Redirect { http_redirect_code: Some("200".into()), ..redirect() }),
            with_rule(None, Redirect { host_name: Some("a b\r\n".into()), ..redirect() }),
            with_rule(None, Redirect { protocol: Some("ftp".to_owned().into()), ..redirect() }),
            with_rule(Some(error), redirect()),
        ] {
            assert!(from_xml(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rules_round_trip() {
        let redirect = Redirect {
            host_name: Some("h".into()),
            http_redirect_code: Some("302".into()),
            protocol: Some("http".to_owned().into()),
            replace_key_prefix_with: Some("new/".into()),
            replace_key_with: None,
        };
        let condition = Condition {
            http_error_code_returned_equals: Some("404".into()),
            key_prefix_equals: Some("old/".into()),
        };
        let given = RoutingRule { condition: Some(condition), redirect };
        assert_eq!(rule_to_xml(rule_from_xml(given.clone()).unwrap()), given);
    }
}
