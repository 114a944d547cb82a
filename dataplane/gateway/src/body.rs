//! The body of an object or part on its way to the object layer.
//!
//! Invariant: `next` answers `None` only after exactly the announced number of bytes, with every digest, checksum
//! and signature verified; after an error it repeats that error.

use futures::StreamExt as _;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use quarry_object::api::{ApiError, Body, BodyDigests, BodyError};
use s3s::dto::StreamingBlob;
use s3s::{S3ErrorCode, S3Request, S3Result, StdError, TrailingHeaders};

use bytes::Bytes;

use crate::checksum::Checks;
use crate::error::{CHUNK_SIGNATURE, CONTENT_SHA256, from_api, refuse};
use crate::exchange::ExchangeHandle;

const DECODED_LENGTH: &str = "x-amz-decoded-content-length";

/// A request body that s3s has freed of its framing.
pub(crate) struct RequestBody {
    stream: StreamingBlob,
    trailers: Option<TrailingHeaders>,
    exchange: Option<ExchangeHandle>,
    len_bytes: u64,
    seen_bytes: u64,
    progress: Progress,
}

enum Progress {
    Reading(Box<Checks>),
    Verified(BodyDigests),
    Failed(BodyError),
    Taken,
}

impl RequestBody {
    /// The body of `request`, which was taken out of its input.
    ///
    /// # Errors
    /// `MissingContentLength` (411), `EntityTooLarge`, or digests that cannot be right.
    pub(crate) fn new<T>(
        request: &S3Request<T>,
        stream: Option<StreamingBlob>,
        len_bytes_max: u64,
    ) -> S3Result<Self> {
        let len_bytes = announced_length(&request.headers)?;
        if len_bytes > len_bytes_max {
            let too_large = ApiError::EntityTooLarge { size_bytes: len_bytes, limit_bytes: len_bytes_max };
            return Err(from_api(too_large));
        }
        Ok(Self {
            stream: stream.unwrap_or_else(|| StreamingBlob::from(s3s::Body::empty())),
            trailers: request.trailing_headers.clone(),
            exchange: request.extensions.get::<ExchangeHandle>().cloned(),
            len_bytes,
            seen_bytes: 0,
            progress: Progress::Reading(Box::new(Checks::of_object(&request.headers)?)),
        })
    }

    fn fail(&mut self, error: BodyError) -> Option<Result<Bytes, BodyError>> {
        self.progress = Progress::Failed(error.clone());
        Some(Err(error))
    }

    /// s3s keeps its error types private: they are told apart by name, and what our own layer below found wins.
    fn classify(&self, error: &StdError) -> BodyError {
        let below = self.exchange.as_ref().and_then(|exchange| exchange.0.fault.borrow().clone());
        if let Some(fault) = below {
            return fault;
        }
        let text = error.to_string();
        let mismatch = |what: &str| BodyError::Mismatch { what: what.to_owned() };
        if text.contains("Sha256Mismatch") {
            mismatch(CONTENT_SHA256)
        } else if text.contains("SignatureMismatch") {
            mismatch(CHUNK_SIGNATURE)
        } else if text.contains("Incomplete") {
            BodyError::Incomplete
        } else {
            BodyError::Malformed { problem: text }
        }
    }

    fn finish(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.seen_bytes < self.len_bytes {
            return self.fail(BodyError::Incomplete);
        }
        let Progress::Reading(checks) = std::mem::replace(&mut self.progress, Progress::Taken) else {
            unreachable!("a body finishes once");
        };
        let trailers = self.trailers.as_ref().and_then(TrailingHeaders::take);
        match checks.finish(trailers.as_ref()) {
            Ok(digests) => {
                self.progress = Progress::Verified(digests);
                None
            }
            Err(error) => self.fail(error),
        }
    }
}

impl Body for RequestBody {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            match &self.progress {
                Progress::Failed(error) => return Some(Err(error.clone())),
                Progress::Verified(_) | Progress::Taken => return None,
                Progress::Reading(_) => {}
            }
            let data = match self.stream.next().await {
                None => return self.finish(),
                Some(Err(error)) => {
                    let error = self.classify(&error);
                    return self.fail(error);
                }
                Some(Ok(data)) if data.is_empty() => continue,
                Some(Ok(data)) => data,
            };
            self.seen_bytes += data.len() as u64;
            if self.seen_bytes > self.len_bytes {
                let problem = format!("it is longer than the announced {} bytes", self.len_bytes);
                return self.fail(BodyError::Malformed { problem });
            }
            if let Progress::Reading(checks) = &mut self.progress {
                checks.update(&data);
            }
            return Some(Ok(data));
        }
    }

    fn digests(&mut self) -> BodyDigests {
        match std::mem::replace(&mut self.progress, Progress::Taken) {
            Progress::Verified(digests) => digests,
            Progress::Reading(_) | Progress::Failed(_) | Progress::Taken => {
                panic!("digests of a body were asked for before its verified end, or twice")
            }
        }
    }
}

fn announced_length(headers: &HeaderMap) -> S3Result<u64> {
    let value = headers.get(DECODED_LENGTH).or_else(|| headers.get(CONTENT_LENGTH));
    let value = value
        .ok_or_else(|| refuse(S3ErrorCode::MissingContentLength, "the length of the body must be given"))?;
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "the length of the body is not a number"))
}
