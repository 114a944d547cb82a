//! Whether a request has the signature that its credential would give it (Signature Version 4, header or query).
//!
//! Only the canonical spelling is taken: signed headers lower-case, in order, each once and present; a signature in
//! lower-case hexadecimal. Clients write nothing else; what else is valid, and what is wrong, s3s finds out.

use std::borrow::Cow;
use std::fmt::Write as _;

use hmac::Mac as _;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use quarry_identity::Principal;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::keys::SigningKey;
use super::plan::{AUTHENTICATION, Query, Wanted};
use crate::backend::Core;
use crate::chunked::{Chain, Framing, SIGNATURE_LEN};
use crate::error::CONTENT_SHA256;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far a client's clock may be off, as in S3.
const SKEW_MAX_MS: i64 = 15 * 60 * 1000;
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Who sent a request.
pub(super) struct Signer {
    pub(super) principal: Principal,
    /// `None`: nobody signed it.
    pub(super) access_key: Option<String>,
    /// For a body in signed chunks.
    pub(super) chain: Option<Chain>,
}

/// What a request says about its signature.
struct Claim<'a> {
    access_key: &'a str,
    /// `access key/date/region`.
    credential: &'a str,
    /// `date/region/s3/aws4_request`.
    scope: &'a str,
    amz_date: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
    /// In the place of the payload's digest.
    payload: &'a str,
}

impl<S> Core<S> {
    /// Who signed a request. `None`: its signature is not right, or not written as here.
    pub(super) fn verify(&self, parts: &Parts, query: &Query<'_>, wanted: &Wanted) -> Option<Signer> {
        let now_ms = i64::try_from((self.unix_ms)()).ok()?;
        let payload = match parts.headers.get(CONTENT_SHA256) {
            Some(value) => Some(value.to_str().ok().filter(|value| is_payload(value))?),
            None => None,
        };
        let framing = payload.and_then(|payload| Framing::of(payload.as_bytes()));
        if framing.is_some() && !may_be_chunked(&parts.headers, wanted, framing) {
            return None;
        }
        if query.has("X-Amz-Signature") {
            let (credential, signed_headers) =
                (query.get("X-Amz-Credential")?, query.get("X-Amz-SignedHeaders")?);
            let (amz_date, signature) = (query.get("X-Amz-Date")?, query.get("X-Amz-Signature")?);
            let claim = Claim::new(&credential, &amz_date, &signed_headers, &signature, UNSIGNED)?;
            let age_ms = now_ms - unix_ms(&amz_date)?;
            let lives_ms =
                query.get("X-Amz-Expires")?.parse::<u32>().map(|seconds| i64::from(seconds) * 1000);
            let algorithm = query.get("X-Amz-Algorithm")?;
            if algorithm != ALGORITHM
                || framing.is_some()
                || age_ms < -SKEW_MAX_MS
                || age_ms > lives_ms.ok()?
            {
                return None;
            }
            return self.signer(&claim, parts, query, None);
        }
        if query.pairs.iter().any(|(name, _)| name.starts_with(AUTHENTICATION)) {
            return None;
        }
        let Some(authorization) = parts.headers.get(AUTHORIZATION) else {
            let anonymous = Signer { principal: Principal::Anonymous, access_key: None, chain: None };
            return framing.is_none().then_some(anonymous);
        };
        let amz_date = parts.headers.get("x-amz-date")?.to_str().ok()?;
        let claim = Claim::of_header(authorization.to_str().ok()?, amz_date, payload?)?;
        if (now_ms - unix_ms(amz_date)?).abs() > SKEW_MAX_MS {
            return None;
        }
        self.signer(&claim, parts, query, framing)
    }

    fn signer(
        &self,
        claim: &Claim<'_>,
        parts: &Parts,
        query: &Query<'_>,
        framing: Option<Framing>,
    ) -> Option<Signer> {
        let (principal, secret) = self.identities.find(claim.access_key).ok()?;
        let (key, is_kept) = self.signing_keys.get(claim.credential, &secret, claim.scope);
        let canonical = canonical_request(claim, parts, query)?;
        let computed = sign(key.clone(), claim, &canonical);
        if !bool::from(computed.as_bytes().ct_eq(claim.signature.as_bytes())) {
            return None;
        }
        if !is_kept {
            self.signing_keys.keep(claim.credential, &secret, &key);
        }
        let chain = framing
            .filter(|framing| framing.is_signed())
            .map(|_| Chain::of_key(key, claim.amz_date, claim.scope, claim.signature));
        Some(Signer { principal, access_key: Some(claim.access_key.to_owned()), chain })
    }
}

fn is_payload(value: &str) -> bool {
    value == UNSIGNED || Framing::of(value.as_bytes()).is_some() || is_hex(value)
}

fn is_hex(value: &str) -> bool {
    value.len() == SIGNATURE_LEN && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Chunks are for bodies; their lengths and trailers must be announced.
fn may_be_chunked(headers: &HeaderMap, wanted: &Wanted, framing: Option<Framing>) -> bool {
    !matches!(wanted, Wanted::Read(_))
        && headers.contains_key("x-amz-decoded-content-length")
        && (framing.is_none_or(|framing| !framing.has_trailers()) || headers.contains_key("x-amz-trailer"))
}

impl<'a> Claim<'a> {
    fn of_header(authorization: &'a str, amz_date: &'a str, payload: &'a str) -> Option<Self> {
        let fields = authorization.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        let (credential, fields) = fields.strip_prefix("Credential=")?.split_once(',')?;
        let fields = fields.trim_start_matches(' ').strip_prefix("SignedHeaders=")?;
        let (signed_headers, fields) = fields.split_once(',')?;
        let signature = fields.trim_start_matches(' ').strip_prefix("Signature=")?;
        Self::new(credential, amz_date, signed_headers, signature, payload)
    }

    fn new(
        credential: &'a str,
        amz_date: &'a str,
        signed_headers: &'a str,
        signature: &'a str,
        payload: &'a str,
    ) -> Option<Self> {
        let (access_key, scope) = credential.split_once('/')?;
        let credential = credential.strip_suffix("/s3/aws4_request")?;
        let (date, region) = scope.strip_suffix("/s3/aws4_request")?.split_once('/')?;
        let is_region =
            region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let is_dated = date.len() == 8 && amz_date.starts_with(date);
        if region.is_empty() || !is_region || !is_dated || !is_hex(signature) {
            return None;
        }
        Some(Self { access_key, credential, scope, amz_date, signed_headers, signature, payload })
    }
}

fn sign(key: SigningKey, claim: &Claim<'_>, canonical: &str) -> String {
    let mut digest = [0; SIGNATURE_LEN];
    let encoded = hex::encode_to_slice(Sha256::digest(canonical), &mut digest);
    encoded.expect("a SHA-256 has half as many bytes as digits");
    let key = key.chain_update(ALGORITHM).chain_update("\n").chain_update(claim.amz_date);
    let key = key.chain_update("\n").chain_update(claim.scope).chain_update("\n").chain_update(digest);
    hex::encode(key.finalize().into_bytes())
}

/// What is signed. `None`: the signed headers are not in order, or not all there.
fn canonical_request(claim: &Claim<'_>, parts: &Parts, query: &Query<'_>) -> Option<String> {
    let mut text = String::with_capacity(1024);
    text.push_str(parts.method.as_str());
    text.push('\n');
    encode(&mut text, parts.uri.path(), true);
    text.push('\n');
    let signed = query.pairs.iter().filter(|(name, _)| *name != "X-Amz-Signature");
    for (index, (name, value)) in signed.enumerate() {
        text.push_str(if index == 0 { "" } else { "&" });
        text.push_str(name);
        text.push('=');
        encode(&mut text, value, false);
    }
    text.push('\n');
    let mut before = "";
    for name in claim.signed_headers.split(';') {
        if name <= before || name == "authorization" || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        before = name;
        text.push_str(name);
        text.push(':');
        push_words(&mut text, parts.headers.get(name)?.to_str().ok()?);
        text.push('\n');
    }
    text.push('\n');
    text.push_str(claim.signed_headers);
    text.push('\n');
    text.push_str(claim.payload);
    Some(text)
}

/// A header's value with single spaces.
fn push_words(text: &mut String, value: &str) {
    for (index, word) in value.split_ascii_whitespace().enumerate() {
        text.push_str(if index == 0 { "" } else { " " });
        text.push_str(word);
    }
}

/// Decodes and encodes again, so that every spelling of the same text is one.
fn encode(text: &mut String, sent: &str, keep_slash: bool) {
    let mut decoded: Cow<'_, [u8]> = sent.as_bytes().into();
    if sent.contains('%') {
        decoded = percent_encoding::percent_decode_str(sent).into();
    }
    for byte in decoded.iter() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'~' | b'.' => {
                text.push(char::from(*byte))
            }
            b'/' if keep_slash => text.push('/'),
            byte => {
                let written = write!(text, "%{byte:02X}");
                written.expect("a string takes everything");
            }
        }
    }
}

/// Unix milliseconds of `YYYYMMDDThhmmssZ`.
fn unix_ms(amz_date: &str) -> Option<i64> {
    let bytes = amz_date.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| {
        bytes[from..to].iter().try_fold(0_i64, |number, byte| {
            byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0'))
        })
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=days_of_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years that begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

#[cfg(test)]
mod tests {
    use super::{encode, push_words, unix_ms};

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(unix_ms("19700101T000000Z"), Some(0));
        assert_eq!(unix_ms("20130524T000000Z"), Some(1_369_353_600_000));
        assert_eq!(unix_ms("20240229T235959Z"), Some(1_709_251_199_000));
        assert_eq!(unix_ms("20261123T030405Z"), Some(1_795_403_045_000));
        for wrong in [
            "20230229T000000Z",
            "20241301T000000Z",
            "20240001T000000Z",
            "20240132T000000Z",
            "20240101T240000Z",
            "20240101T006000Z",
            "2024010 T000000Z",
            "20240101t000000Z",
            "20240101T000000",
            "",
        ] {
            assert_eq!(unix_ms(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn texts_are_canonical() {
        let encoded = |sent: &str, keep| {
            let mut text = String::new();
            encode(&mut text, sent, keep);
            text
        };
        assert_eq!(encoded("/b/a%2fb%zz%C3%BC~+ *", true), "/b/a/b%25zz%C3%BC~%2B%20%2A");
        assert_eq!(encoded("a/b%20c", false), "a%2Fb%20c");
        let mut words = String::new();
        push_words(&mut words, "  a \t b  ");
        assert_eq!(words, "a b");
    }
}
