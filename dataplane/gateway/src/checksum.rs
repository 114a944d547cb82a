//! Digests and checksums of a body: what the client announced, computed while the bytes pass, compared at the end.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use http::{HeaderMap, HeaderName};
use md5::{Digest as _, Md5};
use quarry_object::api::{BodyDigests, BodyError};
use s3s::{S3ErrorCode, S3Result};
use sha1::Sha1;
use sha2::Sha256;

use crate::error::{CONTENT_SHA256, refuse};

/// An additional checksum of S3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// As stored with the object.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "crc32",
            Self::Crc32c => "crc32c",
            Self::Crc64Nvme => "crc64nvme",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    fn len_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    fn hasher(self) -> Hasher {
        match self {
            Self::Crc32 => Hasher::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc)),
            Self::Crc32c => Hasher::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi)),
            Self::Crc64Nvme => Hasher::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme)),
            Self::Sha1 => Hasher::Sha1(Sha1::new()),
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
        }
    }
}

enum Hasher {
    Crc(crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Crc(digest) => digest.update(data),
            Self::Sha1(digest) => digest.update(data),
            Self::Sha256(digest) => digest.update(data),
        }
    }

    /// Base64 as in the header.
    fn finish(self, algorithm: Algorithm) -> String {
        match self {
            // Big-endian, in as many bytes as the checksum has.
            Self::Crc(digest) => BASE64.encode(&digest.finalize().to_be_bytes()[8 - algorithm.len_bytes()..]),
            Self::Sha1(digest) => BASE64.encode(digest.finalize()),
            Self::Sha256(digest) => BASE64.encode(digest.finalize()),
        }
    }
}

/// What the client announced of one checksum.
enum Announced {
    /// In a header, base64.
    Value(String),
    /// In a trailer that follows the body.
    Trailer,
}

/// Checks on one body.
pub(crate) struct Checks {
    md5: Md5,
    content_md5: Option<[u8; 16]>,
    additional: Option<(Algorithm, Hasher, Announced)>,
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
        Ok(Self { md5: Md5::new(), content_md5, additional: announced(headers)?, content_sha256 })
    }

    /// Checks of a document by its signed SHA-256 alone, where other headers speak of something else.
    pub(crate) fn of_signed_document(headers: &HeaderMap) -> Self {
        Self { md5: Md5::new(), content_md5: None, additional: None, content_sha256: signed_sha256(headers) }
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        self.md5.update(data);
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
        let md5: [u8; 16] = self.md5.finalize().into();
        if self.content_md5.is_some_and(|expected| expected != md5) {
            return mismatch("Content-MD5");
        }
        let mut digests = BodyDigests { md5, ..BodyDigests::default() };
        if let Some((algorithm, hasher, announced)) = self.additional {
            let expected = match announced {
                Announced::Value(value) => value,
                Announced::Trailer => trailer(trailers, algorithm)?,
            };
            let computed = hasher.finish(algorithm);
            if computed != expected {
                return mismatch(algorithm.header());
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
    let value = trailers.and_then(|trailers| trailers.get(algorithm.header())?.to_str().ok());
    value.map(str::to_owned).ok_or_else(|| BodyError::Malformed {
        problem: format!("the trailer {} was announced and did not come", algorithm.header()),
    })
}

/// The trailers that a request announces.
pub(crate) fn announced_trailers(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all("x-amz-trailer").iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok()).collect()
}

/// The one additional checksum that a request announces, by header or by trailer.
fn announced(headers: &HeaderMap) -> S3Result<Option<(Algorithm, Hasher, Announced)>> {
    let trailers = announced_trailers(headers);
    let mut found = None;
    for algorithm in Algorithm::ALL {
        let announced = match headers.get(algorithm.header()) {
            Some(value) => {
                let value = value.to_str().unwrap_or("").trim();
                if BASE64.decode(value).map(|bytes| bytes.len()) != Ok(algorithm.len_bytes()) {
                    return Err(refuse(
                        S3ErrorCode::InvalidRequest,
                        format!("value for {} header is invalid", algorithm.header()),
                    ));
                }
                Announced::Value(value.to_owned())
            }
            None if trailers.iter().any(|name| name == algorithm.header()) => Announced::Trailer,
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
