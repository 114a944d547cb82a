//! Cross-origin requests: which rule of a bucket allows one, and the headers that tell a browser so.
//!
//! Nothing here protects data: a browser keeps what it was not allowed from the page that asked. So answers carry the
//! headers whatever they say, and an error is as readable to the page as an object.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use s3s::S3Result;
use serde::{Deserialize, Serialize};

use crate::error::custom;

/// Methods that a rule can allow.
pub(crate) const METHODS: [&str; 5] = ["GET", "PUT", "HEAD", "POST", "DELETE"];
/// What an answer depends on.
const VARIES: HeaderValue =
    HeaderValue::from_static("Origin, Access-Control-Request-Headers, Access-Control-Request-Method");

/// The rules of a bucket.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cors {
    pub(crate) rules: Vec<Rule>,
}

/// One rule. Origins and headers hold at most one `*`, which stands for any text.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rule {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    pub(crate) origins: Vec<String>,
    pub(crate) methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) headers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) expose: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_age_seconds: Option<u32>,
}

/// What a browser says of a cross-origin request, or before one.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Asked {
    origin: String,
    method: String,
    /// In lower case.
    headers: Vec<String>,
}

impl Asked {
    /// `None`: the request comes from no web page of another origin.
    fn of(headers: &HeaderMap, method: &str) -> Option<Self> {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let listed = text(ACCESS_CONTROL_REQUEST_HEADERS).unwrap_or("").split(',');
        Some(Self {
            origin: text(ORIGIN)?.to_owned(),
            method: text(ACCESS_CONTROL_REQUEST_METHOD).unwrap_or(method).to_owned(),
            headers: listed
                .map(|name| name.trim().to_ascii_lowercase())
                .filter(|name| !name.is_empty())
                .collect(),
        })
    }
}

impl Rule {
    fn allows(&self, asked: &Asked) -> bool {
        self.origins.iter().any(|pattern| matches(pattern, &asked.origin))
            && self.methods.contains(&asked.method)
            && asked
                .headers
                .iter()
                .all(|name| self.headers.iter().any(|pattern| matches(&pattern.to_ascii_lowercase(), name)))
    }

    fn answer(&self, asked: &Asked) -> HeaderMap {
        let mut answer = HeaderMap::new();
        let mut add = |name: HeaderName, value: String| {
            // What came from a client or a document may be no legal header.
            if let Ok(value) = HeaderValue::try_from(value) {
                answer.insert(name, value);
            }
        };
        if self.origins.iter().any(|origin| origin == "*") {
            add(ACCESS_CONTROL_ALLOW_ORIGIN, "*".into());
        } else {
            add(ACCESS_CONTROL_ALLOW_ORIGIN, asked.origin.clone());
            add(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true".into());
        }
        add(ACCESS_CONTROL_ALLOW_METHODS, self.methods.join(", "));
        if !asked.headers.is_empty() {
            add(ACCESS_CONTROL_ALLOW_HEADERS, asked.headers.join(", "));
        }
        if !self.expose.is_empty() {
            add(ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.join(", "));
        }
        if let Some(seconds) = self.max_age_seconds {
            add(ACCESS_CONTROL_MAX_AGE, seconds.to_string());
        }
        answer.insert(VARY, VARIES);
        answer
    }
}

impl Cors {
    fn answer(&self, asked: &Asked) -> Option<HeaderMap> {
        self.rules.iter().find(|rule| rule.allows(asked)).map(|rule| rule.answer(asked))
    }

    /// Headers of the answer to any request but a preflight.
    pub(crate) fn decorate(&self, method: &str, request: &HeaderMap) -> HeaderMap {
        let Some(asked) = Asked::of(request, method) else { return HeaderMap::new() };
        // A cache must not give the answer to one origin to another, even if it allows nothing.
        self.answer(&asked).unwrap_or_else(|| HeaderMap::from_iter([(VARY, VARIES)]))
    }
}

/// Headers of the answer to a preflight request.
///
/// # Errors
/// `BadRequest` for a request that is no preflight, `AccessForbidden` for one that no rule allows.
pub(crate) fn preflight(cors: Option<&Cors>, request: &HeaderMap) -> S3Result<HeaderMap> {
    let lacking = |what: &str| {
        let problem = format!("insufficient information: {what} is needed");
        custom("BadRequest", http::StatusCode::BAD_REQUEST, problem)
    };
    let asked = Asked::of(request, "").ok_or_else(|| lacking("the request header Origin"))?;
    if asked.method.is_empty() {
        return Err(lacking("the request header Access-Control-Request-Method"));
    }
    let forbidden = |problem| custom("AccessForbidden", http::StatusCode::FORBIDDEN, problem);
    let cors = cors.ok_or_else(|| forbidden("CORSResponse: CORS is not enabled for this bucket"))?;
    cors.answer(&asked).ok_or_else(|| forbidden("CORSResponse: no rule of the bucket allows this request"))
}

/// Whether a text has the form of a pattern with at most one `*`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((begin, end)) => {
            text.len() >= begin.len() + end.len() && text.starts_with(begin) && text.ends_with(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "http://a", true),
            ("http://*.a.org", "http://x.a.org", true),
            ("http://*.a.org", "http://a.org", false),
            ("http://*.a.org", "http://x.y.a.org", true),
            ("http://*.a.org", "https://x.a.org", false),
            ("ab*ba", "aba", false),
            ("ab*ba", "abba", true),
            ("http://a", "http://a", true),
            ("http://a", "http://A", false),
            ("http://a", "http://a:80", false),
            ("x-amz-*", "x-amz-date", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    fn rule(origins: &[&str], methods: &[&str], headers: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Rule { origins: owned(origins), methods: owned(methods), headers: owned(headers), ..Rule::default() }
    }

    fn request(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn shown(headers: &HeaderMap) -> String {
        let mut lines: Vec<String> = headers
            .iter()
            .filter(|(name, _)| *name != VARY)
            .map(|(name, value)| {
                let short = name.as_str().trim_start_matches("access-control-");
                format!("{short}={}", value.to_str().unwrap())
            })
            .collect();
        lines.sort();
        lines.join(" ")
    }

    #[test]
    fn preflights_are_answered_by_the_first_rule_that_allows_them() {
        let mut last = rule(&["*"], &["GET", "HEAD"], &["*"]);
        last.max_age_seconds = Some(30);
        last.expose = vec!["ETag".into()];
        let cors = Cors {
            rules: vec![rule(&["http://a"], &["PUT"], &[]), rule(&["http://a"], &["PUT"], &["X-*"]), last],
        };
        for (origin, method, headers, expected) in [
            ("http://a", "PUT", "", "allow-credentials=true allow-methods=PUT allow-origin=http://a"),
            (
                "http://a",
                "PUT",
                "X-one, x-Two",
                "allow-credentials=true allow-headers=x-one, x-two allow-methods=PUT allow-origin=http://a",
            ),
            ("http://a", "PUT", "y", "AccessForbidden"),
            ("http://b", "PUT", "", "AccessForbidden"),
            (
                "http://b",
                "GET",
                "y",
                "allow-headers=y allow-methods=GET, HEAD allow-origin=* expose-headers=ETag max-age=30",
            ),
            ("http://b", "PATCH", "", "AccessForbidden"),
            ("http://b", "", "", "BadRequest"),
        ] {
            let mut pairs = vec![("origin", origin), ("access-control-request-headers", headers)];
            if !method.is_empty() {
                pairs.push(("access-control-request-method", method));
            }
            let answer = preflight(Some(&cors), &request(&pairs));
            let answer =
                answer.map_or_else(|error| error.code().as_str().to_owned(), |headers| shown(&headers));
            assert_eq!(answer, expected, "{origin} {method} {headers}");
        }
        let allowed = request(&[("origin", "http://a"), ("access-control-request-method", "PUT")]);
        assert_eq!(preflight(None, &allowed).unwrap_err().status_code().map(|code| code.as_u16()), Some(403));
        assert!(preflight(Some(&cors), &request(&[])).is_err());
    }

    #[test]
    fn other_requests_are_decorated() {
        let cors = Cors { rules: vec![rule(&["http://*.a"], &["GET"], &[])] };
        assert!(cors.decorate("GET", &request(&[])).is_empty(), "not from a web page");
        let allowed = cors.decorate("GET", &request(&[("origin", "http://x.a")]));
        assert_eq!(shown(&allowed), "allow-credentials=true allow-methods=GET allow-origin=http://x.a");
        let refused = cors.decorate("PUT", &request(&[("origin", "http://x.a")]));
        assert_eq!((shown(&refused).as_str(), refused.contains_key(VARY)), ("", true));
    }
}
