//! Which bucket and key a request is about: by its path, by its host, or as a page of a website.
//!
//! Virtual-host style: `BUCKET.DOMAIN`. Everything else, also a name that we do not know, is path style, so that a node
//! answers under any name and address that leads to it. Names are compared without case and without a port.

use http::header::HOST;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

/// Names under which this node serves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Domains {
    /// `BUCKET.DOMAIN` is a bucket, for these domains.
    pub api: Vec<String>,
    /// `BUCKET.DOMAIN` is the website of a bucket, for these domains.
    pub website: Vec<String>,
}

impl Domains {
    fn bucket<'a>(domains: &[String], host: &'a str) -> Option<&'a str> {
        domains.iter().find_map(|domain| {
            let at = host.len().checked_sub(domain.len())?;
            let (bucket, rest) = (host.get(..at)?, host.get(at..)?);
            let bucket = bucket.strip_suffix('.').filter(|bucket| !bucket.is_empty())?;
            rest.eq_ignore_ascii_case(domain).then_some(bucket)
        })
    }
}

/// The name in a `Host` header, without its port.
fn name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn host(parts: &Parts) -> &str {
    parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("")
}

/// [`Domains`] as s3s asks for them.
pub(crate) struct Hosts(pub(crate) Domains);

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let virtual_host = VirtualHost::new(host);
        Ok(match Domains::bucket(&self.0.api, name(host)) {
            Some(bucket) => virtual_host.with_bucket(bucket.to_ascii_lowercase()),
            None => virtual_host,
        })
    }
}

/// What a request is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// Empty: the service.
    pub(crate) bucket: String,
    /// Empty: the bucket.
    pub(crate) key: String,
    /// It is a page of the bucket's website.
    pub(crate) is_website: bool,
}

impl Place {
    /// `None`: the path is not valid.
    pub(crate) fn of(parts: &Parts, domains: &Domains) -> Option<Self> {
        let path = percent_decode_str(parts.uri.path()).decode_utf8().ok()?;
        let path = path.strip_prefix('/')?;
        let host = name(host(parts));
        let website = Domains::bucket(&domains.website, host);
        if let Some(bucket) = website.or_else(|| Domains::bucket(&domains.api, host)) {
            let bucket = bucket.to_ascii_lowercase();
            return Some(Self { bucket, key: path.to_owned(), is_website: website.is_some() });
        }
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        Some(Self { bucket: bucket.to_owned(), key: key.to_owned(), is_website: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_paths() {
        let domains =
            Domains { api: vec!["s3.example".into(), "alt".into()], website: vec!["site.example".into()] };
        for (host, target, expected) in [
            ("s3.example", "/b/k/l?x", ("b", "k/l", false)),
            ("B.s3.example:9000", "/k/l", ("b", "k/l", false)),
            ("a.b.S3.Example", "/", ("a.b", "", false)),
            ("b.alt", "/k%20%C3%BC", ("b", "k ü", false)),
            ("b.site.example", "/", ("b", "", true)),
            ("site.example", "/b/k", ("b", "k", false)),
            (".s3.example", "/b", ("b", "", false)),
            ("xs3.example", "/b", ("b", "", false)),
            ("localhost:9000", "/", ("", "", false)),
            ("[::1]:9000", "/b/", ("b", "", false)),
            ("192.0.2.1", "/b", ("b", "", false)),
        ] {
            let (parts, ()) =
                http::Request::builder().uri(target).header(HOST, host).body(()).unwrap().into_parts();
            let place = Place::of(&parts, &domains).unwrap();
            assert_eq!(
                (place.bucket.as_str(), place.key.as_str(), place.is_website),
                expected,
                "{host} {target}"
            );
        }
        let hosts = Hosts(domains.clone());
        for (host, bucket) in
            [("B.s3.example:9000", Some("b")), ("s3.example", None), ("localhost:9000", None)]
        {
            assert_eq!(hosts.parse_host_header(host).unwrap().bucket(), bucket, "{host}");
        }
        let (parts, ()) = http::Request::builder().uri("/b/%ff").body(()).unwrap().into_parts();
        assert_eq!(Place::of(&parts, &domains), None);
    }
}
