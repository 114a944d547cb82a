//! What a website answers with, as a function of its document and of what was found: no I/O.
//!
//! ```text
//! request -> all redirected? -> a rule by prefix alone? -> key (with the index document) -> object
//!     object found -> its own redirect, or its bytes
//!     not readable -> a rule by error code? -> the index document below it? -> the error document -> a page of ours
//! ```

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

/// What a path in a `Location` keeps.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/')
    .remove(b'!')
    .remove(b'*')
    .remove(b'(')
    .remove(b')')
    .remove(b'\'')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b',');
const MOVED_PERMANENTLY: u16 = 301;
const FOUND: u16 = 302;

/// How a bucket is served.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Website {
    /// Appended to keys that end in a slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<String>,
    /// The key of the page that goes with errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_key: Option<String>,
    /// Everything is somewhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) redirect_all: Option<Target>,
    /// In order: the first that applies decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) rules: Vec<Rule>,
}

/// Where a redirect leads; what is missing is as in the request.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Target {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<String>,
}

/// A routing rule.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rule {
    /// Only for keys that begin with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
    /// Only for this error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<u16>,
    pub(crate) target: Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replace_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replace_key: Option<String>,
}

/// The request as the rules see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asked<'a> {
    /// `http` or `https`.
    pub(crate) protocol: &'a str,
    /// With its port.
    pub(crate) host: &'a str,
    /// Decoded path without its first slash.
    pub(crate) path: &'a str,
}

/// A redirect to answer with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Redirection {
    pub(crate) status: u16,
    pub(crate) location: String,
}

impl Target {
    fn location(&self, asked: &Asked<'_>, key: &str) -> String {
        let protocol = self.protocol.as_deref().unwrap_or(asked.protocol);
        let host = self.host.as_deref().unwrap_or(asked.host);
        format!("{protocol}://{host}/{}", utf8_percent_encode(key, PATH))
    }
}

impl Rule {
    fn applies(&self, asked: &Asked<'_>, error: Option<u16>) -> bool {
        self.error == error && self.prefix.as_deref().is_none_or(|prefix| asked.path.starts_with(prefix))
    }

    fn redirection(&self, asked: &Asked<'_>) -> Redirection {
        let key = match (&self.replace_key, &self.replace_prefix) {
            (Some(key), _) => key.clone(),
            (None, Some(new)) => {
                let old = self.prefix.as_deref().unwrap_or("");
                format!("{new}{}", asked.path.strip_prefix(old).unwrap_or(asked.path))
            }
            (None, None) => asked.path.to_owned(),
        };
        let status = self.status.unwrap_or(MOVED_PERMANENTLY);
        Redirection { status, location: self.target.location(asked, &key) }
    }
}

impl Website {
    /// A redirect that needs no look at objects.
    pub(crate) fn redirect_early(&self, asked: &Asked<'_>) -> Option<Redirection> {
        if let Some(all) = &self.redirect_all {
            return Some(Redirection {
                status: MOVED_PERMANENTLY,
                location: all.location(asked, asked.path),
            });
        }
        self.rule(asked, None)
    }

    /// A redirect for an error.
    pub(crate) fn redirect_error(&self, asked: &Asked<'_>, error: u16) -> Option<Redirection> {
        self.rule(asked, Some(error))
    }

    fn rule(&self, asked: &Asked<'_>, error: Option<u16>) -> Option<Redirection> {
        self.rules.iter().find(|rule| rule.applies(asked, error)).map(|rule| rule.redirection(asked))
    }

    /// The key of the object that a path means.
    pub(crate) fn key(&self, path: &str) -> String {
        match &self.index {
            Some(index) if path.is_empty() || path.ends_with('/') => format!("{path}{index}"),
            _ => path.to_owned(),
        }
    }

    /// The key of the index document that a path without a slash at its end would have with one.
    pub(crate) fn index_below(&self, path: &str) -> Option<String> {
        let index = self.index.as_deref().filter(|_| !path.is_empty() && !path.ends_with('/'))?;
        Some(format!("{path}/{index}"))
    }
}

/// The redirect to a path with a slash at its end, within the site.
pub(crate) fn with_slash(path: &str) -> Redirection {
    Redirection { status: FOUND, location: format!("/{}/", utf8_percent_encode(path, PATH)) }
}

/// The redirect that an object asks for by its `x-amz-website-redirect-location`.
pub(crate) fn of_object(location: &str) -> Redirection {
    Redirection { status: MOVED_PERMANENTLY, location: location.to_owned() }
}

/// A page for an error without a page of its own. Its texts are ours, its values are escaped.
pub(crate) fn error_page(status: http::StatusCode, details: &[(&str, &str)]) -> String {
    let escape = |text: &str| {
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    let title = escape(&status.to_string());
    let items: String = details
        .iter()
        .map(|(name, value)| format!("<li>{}: {}</li>\n", escape(name), escape(value)))
        .collect();
    format!(
        "<!DOCTYPE html>\n<html>\n<head><meta charset=\"utf-8\"><title>{title}</title></head>\n<body>\n\
         <h1>{title}</h1>\n<ul>\n{items}</ul>\n</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str) -> Asked<'_> {
        Asked { protocol: "http", host: "b.site.example:8080", path }
    }

    fn site(rules: Vec<Rule>) -> Website {
        Website { index: Some("index.html".into()), rules, ..Website::default() }
    }

    #[test]
    fn keys_and_index_documents() {
        let site = site(Vec::new());
        for (path, key, below) in [
            ("", "index.html", None),
            ("a/", "a/index.html", None),
            ("a", "a", Some("a/index.html")),
            ("a/b.html", "a/b.html", Some("a/b.html/index.html")),
        ] {
            assert_eq!((site.key(path).as_str(), site.index_below(path).as_deref()), (key, below), "{path}");
        }
        assert_eq!(with_slash("a b/ü"), Redirection { status: 302, location: "/a%20b/%C3%BC/".into() });
    }

    #[test]
    fn rules_apply_in_order() {
        let rule = |prefix: Option<&str>, error| Rule {
            prefix: prefix.map(str::to_owned),
            error,
            ..Rule::default()
        };
        let site = site(vec![
            Rule { replace_prefix: Some("new/".into()), ..rule(Some("old/"), None) },
            Rule { replace_key: Some("gone.html".into()), status: Some(302), ..rule(Some("x/"), Some(404)) },
            Rule {
                target: Target { protocol: Some("https".into()), host: Some("other.example".into()) },
                ..rule(None, Some(404))
            },
        ]);
        let early = |path| site.redirect_early(&asked(path)).map(|to| (to.status, to.location));
        let late = |path, error| site.redirect_error(&asked(path), error).map(|to| (to.status, to.location));
        assert_eq!(early("old/a b"), Some((301, "http://b.site.example:8080/new/a%20b".into())));
        assert_eq!(early("x/1"), None);
        assert_eq!(late("x/1", 404), Some((302, "http://b.site.example:8080/gone.html".into())));
        assert_eq!(late("y", 404), Some((301, "https://other.example/y".into())));
        assert_eq!(late("y", 403), None);
    }

    #[test]
    fn everything_may_be_elsewhere() {
        let target = Target { protocol: None, host: Some("example.org".into()) };
        let all = Website { redirect_all: Some(target), ..Website::default() };
        let to = all.redirect_early(&asked("a/b")).unwrap();
        assert_eq!((to.status, to.location.as_str()), (301, "http://example.org/a/b"));
        // Nothing that a client sends can break out of the header or the page.
        let to = all.redirect_early(&asked("\r\nx: y?<")).unwrap();
        assert_eq!(to.location, "http://example.org/%0D%0Ax:%20y%3F%3C");
        let page = error_page(http::StatusCode::NOT_FOUND, &[("Key", "<script>")]);
        assert!(
            page.contains("404 Not Found") && page.contains("&lt;script&gt;") && !page.contains("<script>")
        );
    }
}
