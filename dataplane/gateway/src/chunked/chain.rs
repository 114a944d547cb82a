//! The chain of signatures over the chunks and trailers of a body (Signature Version 4).
//!
//! Each signature covers the one before it; the first is that of the request. Only what follows a verified request
//! is here: s3s or `front` verifies the request's own signature, with the same key, before a body is looked at.

use hmac::Mac as _;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use s3s::auth::SecretKey;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::front::{SigningKey, derive};

/// Hexadecimal digits of a signature.
pub(crate) const SIGNATURE_LEN: usize = 64;

const CHUNK: &str = "AWS4-HMAC-SHA256-PAYLOAD";
const TRAILER: &str = "AWS4-HMAC-SHA256-TRAILER";

/// Key, scope and the newest verified signature.
pub(crate) struct Chain {
    key: SigningKey,
    /// `date LF scope LF`, a part of everything that is signed.
    context: String,
    previous: String,
    /// The digest of nothing stands in every chunk's string.
    empty_sha256: String,
}

impl Chain {
    /// The chain that begins at the signature of a request. `scope` is `date/region/service/aws4_request`.
    pub(crate) fn new(secret_key: &SecretKey, amz_date: &str, scope: &str, seed_signature: &str) -> Self {
        Self::of_key(derive(secret_key, scope), amz_date, scope, seed_signature)
    }

    /// As [`Chain::new`], with the key of the scope.
    pub(crate) fn of_key(key: SigningKey, amz_date: &str, scope: &str, seed_signature: &str) -> Self {
        Self {
            key,
            context: format!("{amz_date}\n{scope}\n"),
            previous: seed_signature.to_owned(),
            empty_sha256: hex::encode(Sha256::digest(b"")),
        }
    }

    /// The chain of a request whose signature was found right; `None` where the header is not what it must be then.
    pub(crate) fn of_request(headers: &HeaderMap, secret_key: &SecretKey) -> Option<Self> {
        let authorization = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let amz_date = headers.get("x-amz-date")?.to_str().ok()?;
        let (_, credential) = authorization.split_once("Credential=")?;
        let (credential, _) = credential.split_once(',')?;
        let (_, scope) = credential.split_once('/')?;
        let (_, seed) = authorization.rsplit_once("Signature=")?;
        Some(Self::new(secret_key, amz_date, scope, seed.trim_end()))
    }

    /// Whether `signature` is that of the next chunk, whose data has this digest; if so the chain goes on from it.
    #[must_use]
    pub(crate) fn verify_chunk(&mut self, signature: &[u8], data_sha256: &[u8]) -> bool {
        let digests = format!("{}\n{}", self.empty_sha256, hex::encode(data_sha256));
        self.verify(CHUNK, signature, &digests)
    }

    /// Whether `signature` is that of the trailers in their canonical form.
    #[must_use]
    pub(crate) fn verify_trailers(&mut self, signature: &[u8], canonical: &[u8]) -> bool {
        self.verify(TRAILER, signature, &hex::encode(Sha256::digest(canonical)))
    }

    fn verify(&mut self, kind: &str, signature: &[u8], digests: &str) -> bool {
        let computed = self.sign(kind, digests);
        let matches = bool::from(computed.as_bytes().ct_eq(signature));
        if matches {
            self.previous = computed;
        }
        matches
    }

    fn sign(&self, kind: &str, digests: &str) -> String {
        let text = format!("{kind}\n{}{}\n{digests}", self.context, self.previous);
        hex::encode(self.key.clone().chain_update(text.as_bytes()).finalize().into_bytes())
    }

    /// Signs the next chunk, as a client does.
    #[cfg(test)]
    pub(crate) fn sign_chunk(&mut self, data: &[u8]) -> String {
        let digests = format!("{}\n{}", self.empty_sha256, hex::encode(Sha256::digest(data)));
        self.previous = self.sign(CHUNK, &digests);
        self.previous.clone()
    }

    /// Signs the trailers, as a client does.
    #[cfg(test)]
    pub(crate) fn sign_trailers(&mut self, canonical: &[u8]) -> String {
        self.sign(TRAILER, &hex::encode(Sha256::digest(canonical)))
    }
}
