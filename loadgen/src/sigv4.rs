//! AWS Signature Version 4 for S3, header form, and the credentials it needs.
//!
//! Paths must hold only characters that need no escaping (args.rs sees to that for buckets and prefixes); query strings
//! come in their canonical form, sorted and escaped ([`canonical_query`]). The signing key is derived once a day.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Payload hash of a request whose body is not part of the signature.
pub(crate) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// SHA-256 of nothing: payload hash of a request without a body.
pub(crate) const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// An access key pair, with the token of a temporary session if there is one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) session_token: Option<String>,
}

/// What is signed of one request.
pub(crate) struct Parts<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) host: &'a str,
    pub(crate) payload_hash: &'a str,
    /// Value of x-amz-copy-source, which has to be signed.
    pub(crate) copy_source: Option<&'a str>,
}

/// Signs requests of one account in one region.
#[derive(Clone)]
pub(crate) struct Signer {
    credentials: Credentials,
    region: String,
    day_key: Option<(String, [u8; 32])>,
}

impl Signer {
    pub(crate) fn new(credentials: Credentials, region: String) -> Self {
        Self { credentials, region, day_key: None }
    }

    /// The headers to add to the request (besides `host`), at `unix_seconds`.
    pub(crate) fn headers(&mut self, parts: &Parts<'_>, unix_seconds: u64) -> Vec<(&'static str, String)> {
        let time = amz_time(unix_seconds);
        let day = &time[..8];
        // In the order of their names, as the canonical request has them.
        let mut headers = vec![("x-amz-content-sha256", parts.payload_hash.to_owned())];
        headers.extend(parts.copy_source.map(|source| ("x-amz-copy-source", source.to_owned())));
        headers.push(("x-amz-date", time.clone()));
        if let Some(token) = &self.credentials.session_token {
            headers.push(("x-amz-security-token", token.clone()));
        }
        let mut lines = format!("host:{}\n", parts.host);
        let mut names = "host".to_owned();
        for (name, value) in &headers {
            lines.push_str(&format!("{name}:{value}\n"));
            names.push_str(&format!(";{name}"));
        }
        let canonical = format!(
            "{}\n{}\n{}\n{lines}\n{names}\n{}",
            parts.method, parts.path, parts.query, parts.payload_hash
        );
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
            hex::encode(Sha256::digest(canonical.as_bytes()))
        );
        let signature = hex::encode(hmac(&self.signing_key(day), to_sign.as_bytes()));
        let access_key = &self.credentials.access_key;
        headers.push((
            "authorization",
            format!(
                "AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
            ),
        ));
        headers
    }

    fn signing_key(&mut self, day: &str) -> [u8; 32] {
        if let Some((cached_day, key)) = &self.day_key
            && cached_day == day
        {
            return *key;
        }
        let secret = format!("AWS4{}", self.credentials.secret_key);
        let key = [day, &self.region, "s3", "aws4_request"]
            .iter()
            .fold(secret.into_bytes(), |key, part| hmac(&key, part.as_bytes()).to_vec());
        let key: [u8; 32] = key.try_into().expect("an HMAC-SHA256 has 32 bytes");
        self.day_key = Some((day.to_owned(), key));
        key
    }
}

/// Sorted `name=value` pairs joined by `&`, with everything but unreserved characters escaped.
pub(crate) fn canonical_query(pairs: &[(&str, &str)]) -> String {
    let mut escaped: Vec<(String, String)> =
        pairs.iter().map(|(name, value)| (escape(name), escape(value))).collect();
    escaped.sort();
    escaped.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// `20130524T000000Z`
fn amz_time(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Days since 0000-03-01 of the proleptic Gregorian calendar, in eras of 400 years (146,097 days).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::{Credentials, EMPTY_SHA256, Parts, Signer, amz_time, canonical_query};

    fn signature(query: &str) -> String {
        let credentials = Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        };
        let parts = Parts {
            method: "GET",
            path: "/",
            query,
            host: "examplebucket.s3.amazonaws.com",
            payload_hash: EMPTY_SHA256,
            copy_source: None,
        };
        let headers = Signer::new(credentials, "us-east-1".into()).headers(&parts, 1_369_353_600);
        let authorization = &headers.last().unwrap().1;
        authorization.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// The examples of the S3 documentation, "Signature Calculations for the Authorization Header".
    #[test]
    fn published_examples() {
        assert_eq!(
            signature("lifecycle="),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature(&canonical_query(&[("prefix", "J"), ("max-keys", "2")])),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn times_and_escapes() {
        assert_eq!(amz_time(1_369_353_600), "20130524T000000Z");
        assert_eq!(amz_time(951_868_799), "20000229T235959Z");
        assert_eq!(amz_time(4_107_542_399), "21000228T235959Z");
        assert_eq!(canonical_query(&[("b", "x/y z"), ("a", "~")]), "a=~&b=x%2Fy%20z");
    }
}
