//! The body of an object or part on its way to the object layer, read past s3s straight from the connection.
//!
//! s3s or `front` has verified the request's signature by then. Its own handling of bodies is not used: it holds an aws-chunked
//! chunk whole, compares signatures of chunks in variable time, and derives the signing key for each of them.
//!
//! Invariant: `next` answers `None` only after exactly the announced number of bytes, with every digest, checksum
//! and signature verified; after an error it repeats that error.

use std::rc::Rc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use quarry_meter::stage::{self, Stage};
use quarry_object::api::{ApiError, Body, BodyDigests, BodyError};
use s3s::{S3ErrorCode, S3Request, S3Result};

use crate::checksum::{Checks, announced_trailers};
use crate::chunked::{Chain, Decoder, Framing};
use crate::error::{CONTENT_SHA256, Fault, from_api, refuse};
use crate::exchange::{Exchange, ExchangeHandle};
use crate::inbound::Source;

const DECODED_LENGTH: &str = "x-amz-decoded-content-length";

/// Whether a request says that its body is in one of the aws-chunked framings.
pub(crate) fn is_aws_chunked(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_SHA256).is_some_and(|value| value.as_bytes().starts_with(b"STREAMING-"))
}

/// A request body, freed of its framing.
pub(crate) struct RequestBody {
    source: Rc<Source>,
    exchange: Rc<Exchange>,
    /// There for aws-chunked bodies.
    decoder: Option<Box<Decoder>>,
    /// What was received and not decoded yet.
    input: Bytes,
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

/// A request whose signature was verified, as far as its body is concerned.
pub(crate) struct BodyOrigin<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) source: &'a Rc<Source>,
    pub(crate) exchange: &'a Rc<Exchange>,
    /// There for signed chunks.
    pub(crate) chain: Option<Chain>,
}

impl RequestBody {
    /// The body of a request that came through s3s.
    ///
    /// # Errors
    /// As [`RequestBody::of`].
    pub(crate) fn new<T>(request: &S3Request<T>, len_bytes_max: u64) -> S3Result<Self> {
        let handle = request.extensions.get::<ExchangeHandle>().expect("every request carries its exchange");
        let (source, exchange, headers) = (&*handle.source, &*handle.exchange, &request.headers);
        let is_signed = framing(headers).is_some_and(Framing::is_signed);
        let credentials = request.credentials.as_ref().filter(|_| is_signed);
        let chain = credentials.and_then(|found| Chain::of_request(headers, &found.secret_key));
        Self::of(BodyOrigin { headers, source, exchange, chain }, len_bytes_max)
    }

    /// The body of a request.
    ///
    /// # Errors
    /// `MissingContentLength` (411), `EntityTooLarge`, a framing that we do not have, or digests that cannot be right.
    pub(crate) fn of(origin: BodyOrigin<'_>, len_bytes_max: u64) -> S3Result<Self> {
        let BodyOrigin { headers, source, exchange, chain } = origin;
        let length_header = if is_aws_chunked(headers) { DECODED_LENGTH } else { CONTENT_LENGTH.as_str() };
        let len_bytes = announced_length(headers, length_header)?;
        if len_bytes > len_bytes_max {
            let too_large = ApiError::EntityTooLarge { size_bytes: len_bytes, limit_bytes: len_bytes_max };
            return Err(from_api(too_large));
        }
        Ok(Self {
            source: Rc::clone(source),
            exchange: Rc::clone(exchange),
            decoder: decoder(headers, chain, len_bytes)?.map(Box::new),
            input: Bytes::new(),
            len_bytes,
            seen_bytes: 0,
            progress: Progress::Reading(Box::new(Checks::of_body(headers)?)),
        })
    }

    fn fail(&mut self, fault: Fault) -> Option<Result<Bytes, BodyError>> {
        let error = self.exchange.fail(fault);
        self.progress = Progress::Failed(error.clone());
        Some(Err(error))
    }

    /// The next piece of payload, not checked yet.
    async fn read(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(decoder) = &mut self.decoder
                && let Some(data) = decoder.feed(&mut self.input).map_err(Fault::Chunked)?
            {
                return Ok(Some(data));
            }
            let data = match self.source.next().await {
                None => return Ok(None),
                Some(data) => data?,
            };
            self.exchange.count_in(&data);
            match self.decoder {
                Some(_) => self.input = data,
                None if data.is_empty() => {}
                None => return Ok(Some(data)),
            }
        }
    }

    fn finish(&mut self) -> Result<(), Fault> {
        let trailers = match &mut self.decoder {
            Some(decoder) => Some(decoder.finish().map_err(Fault::Chunked)?),
            None => None,
        };
        if self.seen_bytes < self.len_bytes {
            return Err(Fault::Body(BodyError::Incomplete));
        }
        let Progress::Reading(checks) = std::mem::replace(&mut self.progress, Progress::Taken) else {
            unreachable!("a body finishes once");
        };
        let finish = || checks.finish(trailers.as_ref()).map_err(Fault::Body);
        let digests = stage::run(Stage::Checksum, finish)?;
        self.progress = Progress::Verified(digests);
        Ok(())
    }
}

impl Body for RequestBody {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        match &self.progress {
            Progress::Failed(error) => return Some(Err(error.clone())),
            Progress::Verified(_) | Progress::Taken => return None,
            Progress::Reading(_) => {}
        }
        let data = match self.read().await {
            Ok(Some(data)) => data,
            Ok(None) => return self.finish().err().and_then(|fault| self.fail(fault)),
            Err(fault) => return self.fail(fault),
        };
        self.seen_bytes += data.len() as u64;
        if self.seen_bytes > self.len_bytes {
            let problem = format!("it is longer than the announced {} bytes", self.len_bytes);
            return self.fail(Fault::Body(BodyError::Malformed { problem }));
        }
        if let Progress::Reading(checks) = &mut self.progress {
            stage::run(Stage::Checksum, || checks.update(&data));
        }
        Some(Ok(data))
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

fn framing(headers: &HeaderMap) -> Option<Framing> {
    headers.get(CONTENT_SHA256).and_then(|value| Framing::of(value.as_bytes()))
}

/// What takes the framing off the body, if it has any.
fn decoder(headers: &HeaderMap, chain: Option<Chain>, len_bytes: u64) -> S3Result<Option<Decoder>> {
    if !is_aws_chunked(headers) {
        return Ok(None);
    }
    let framing = framing(headers).ok_or_else(|| {
        refuse(S3ErrorCode::NotImplemented, "this way of signing chunks is not implemented")
    })?;
    if framing.is_signed() && chain.is_none() {
        let message = "the signatures of chunks need that of the request in its Authorization header";
        return Err(refuse(S3ErrorCode::InvalidRequest, message));
    }
    let announced = if framing.has_trailers() { announced_trailers(headers) } else { Vec::new() };
    Ok(Some(Decoder::new(framing, len_bytes, announced, chain)))
}

fn announced_length(headers: &HeaderMap, name: &str) -> S3Result<u64> {
    let value = headers
        .get(name)
        .ok_or_else(|| refuse(S3ErrorCode::MissingContentLength, "the length of the body must be given"))?;
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "the length of the body is not a number"))
}
