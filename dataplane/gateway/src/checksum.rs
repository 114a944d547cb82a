//! Digests and checksums of a body: what the client announced, computed while the bytes pass, compared at the end.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use quarry_digest::Md5;
use quarry_object::api::{
    BodyDigests, BodyError, ChecksumAlgorithm as Algorithm, ChecksumHasher, decode_checksum,
};
use s3s::dto::{ChecksumAlgorithm, ChecksumType};
use s3s::{S3ErrorCode, S3Result};
use sha2::{Digest as _, Sha256};

use crate::error::{CONTENT_SHA256, refuse};

/// What S3 computes where a client announces nothing.
const UNASKED: Algorithm = Algorithm::Crc64Nvme;

/// The header of a checksum.
fn header(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Crc32 => "x-amz-checksum-crc32",
        Algorithm::Crc32c => "x-amz-checksum-crc32c",
        Algorithm::Crc64Nvme => "x-amz-checksum-crc64nvme",
        Algorithm::Sha1 => "x-amz-checksum-sha1",
        Algorithm::Sha256 => "x-amz-checksum-sha256",
    }
}

/// Checksums by algorithm, to be taken into the fields of an answer.
pub(crate) struct Named(pub(crate) BTreeMap<String, String>);

impl Named {
    pub(crate) fn take(&mut self, algorithm: &str) -> Option<String> {
        self.0.remove(algorithm)
    }
}

/// Checksums from the fields of a request.
pub(crate) fn given(fields: [Option<String>; 5]) -> BTreeMap<String, String> {
    let named = Algorithm::ALL.into_iter().zip(fields);
    named.filter_map(|(algorithm, value)| Some((algorithm.name().to_owned(), value?))).collect()
}

/// Of what kind the checksum of an object is.
pub(crate) fn kind(checksums: &BTreeMap<String, String>) -> Option<ChecksumType> {
    // A checksum of checksums carries the number of parts behind a dash.
    let composite = checksums.values().next()?.contains('-');
    Some(ChecksumType::from_static(type_name(!composite)))
}

/// The name of a kind of checksum.
pub(crate) fn type_name(full_object: bool) -> &'static str {
    if full_object { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE }
}

/// The checksums of an object as listings name them.
pub(crate) fn listed(
    checksums: &BTreeMap<String, String>,
) -> (Option<Vec<ChecksumAlgorithm>>, Option<ChecksumType>) {
    let names = checksums.keys().map(|name| ChecksumAlgorithm::from(name.to_uppercase()));
    ((!checksums.is_empty()).then(|| names.collect()), kind(checksums))
}

/// What the client announced of one checksum.
enum Announced {
    /// In a header, base64.
    Value(String),
    /// In a trailer that follows the body.
    Trailer,
    /// Nothing: it is computed to be stored.
    Nothing,
}

/// Checks on one body.
pub(crate) struct Checks {
    md5: Md5,
    content_md5: Option<[u8; 16]>,
    additional: Option<(Algorithm, ChecksumHasher, Announced)>,
    /// `x-amz-content-sha256`, if it is a digest.
    content_sha256: Option<(Sha256, Vec<u8>)>,
}

impl Checks {
    /// Checks of a body: everything that the headers announce.
    ///
    /// # Errors
    /// `InvalidDigest` or `InvalidRequest` for values that cannot be right.
    pub(crate) fn of_body(headers: &HeaderMap) -> S3Result<Self> {
        let content_md5 = match headers.get("content-md5") {
            None => None,
            Some(value) => Some(
                BASE64
                    .decode(value.as_bytes())
                    .ok()
                    .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
                    .ok_or_else(|| refuse(S3ErrorCode::InvalidDigest, "the Content-MD5 is not valid"))?,
            ),
        };
        let content_sha256 = signed_sha256(headers);
        let unasked = || (UNASKED, UNASKED.hasher(), Announced::Nothing);
        let additional = Some(announced(headers)?.unwrap_or_else(unasked));
        Ok(Self { md5: Md5::new(), content_md5, additional, content_sha256 })
    }

    /// Checks of a document by its signed SHA-256 alone, where other headers speak of something else.
    pub(crate) fn of_signed_document(headers: &HeaderMap) -> Self {
        Self { md5: Md5::new(), content_md5: None, additional: None, content_sha256: signed_sha256(headers) }
    }

    pub(crate) fn update(&mut self, data: &Bytes) {
        self.md5.update(data.clone());
        if let Some((_, hasher, _)) = &mut self.additional {
            hasher.update(data);
        }
        if let Some((hasher, _)) = &mut self.content_sha256 {
            hasher.update(data);
        }
    }

    /// Compares everything; `trailers` are those that followed the body.
    ///
    /// # Errors
    /// [`BodyError::Mismatch`], or [`BodyError::Malformed`] for a trailer that was announced and did not come.
    pub(crate) fn finish(self, trailers: Option<&HeaderMap>) -> Result<BodyDigests, BodyError> {
        let mismatch = |what: &str| Err(BodyError::Mismatch { what: what.to_owned() });
        if let Some((hasher, expected)) = self.content_sha256
            && hasher.finalize().as_slice() != expected
        {
            return mismatch(CONTENT_SHA256);
        }
        let md5 = self.md5.finish();
        if self.content_md5.is_some_and(|expected| expected != md5) {
            return mismatch("Content-MD5");
        }
        let mut digests = BodyDigests { md5, ..BodyDigests::default() };
        if let Some((algorithm, hasher, announced)) = self.additional {
            let expected = match announced {
                Announced::Value(value) => Some(value),
                Announced::Trailer => Some(trailer(trailers, algorithm)?),
                Announced::Nothing => None,
            };
            let computed = hasher.finish();
            if expected.is_some_and(|expected| computed != expected) {
                return mismatch(header(algorithm));
            }
            digests.checksums.insert(algorithm.name().to_owned(), computed);
        }
        Ok(digests)
    }
}

fn signed_sha256(headers: &HeaderMap) -> Option<(Sha256, Vec<u8>)> {
    let expected = headers.get(CONTENT_SHA256).and_then(|value| hex::decode(value.as_bytes()).ok())?;
    Some((Sha256::new(), expected))
}

fn trailer(trailers: Option<&HeaderMap>, algorithm: Algorithm) -> Result<String, BodyError> {
    let value = trailers.and_then(|trailers| trailers.get(header(algorithm))?.to_str().ok());
    value.map(str::to_owned).ok_or_else(|| BodyError::Malformed {
        problem: format!("the trailer {} was announced and did not come", header(algorithm)),
    })
}

/// The trailers that a request announces.
pub(crate) fn announced_trailers(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all("x-amz-trailer").iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok()).collect()
}

/// The one additional checksum that a request announces, by header or by trailer.
fn announced(headers: &HeaderMap) -> S3Result<Option<(Algorithm, ChecksumHasher, Announced)>> {
    let trailers = announced_trailers(headers);
    let mut found = None;
    for algorithm in Algorithm::ALL {
        let announced = match headers.get(header(algorithm)) {
            Some(value) => {
                let value = value.to_str().unwrap_or("").trim();
                if decode_checksum(algorithm, value).is_none() {
                    return Err(refuse(
                        S3ErrorCode::InvalidRequest,
                        format!("value for {} header is invalid", header(algorithm)),
                    ));
                }
                Announced::Value(value.to_owned())
            }
            None if trailers.iter().any(|name| name == header(algorithm)) => Announced::Trailer,
            None => continue,
        };
        if found.is_some() {
            return Err(refuse(S3ErrorCode::InvalidRequest, "expecting a single x-amz-checksum- header"));
        }
        found = Some((algorithm, algorithm.hasher(), announced));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
