//! The file of a form on its way to the object layer.
//!
//! The object layer wants to know a body's length before it begins, and a form does not say that of its file. A file of
//! up to [`HELD_BYTES_MAX`] is held whole. A longer one becomes an object of two parts: all but what the end of the form
//! may take at most, which has a known length, and the rest.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use quarry_object::api::{
    Attributes, Body, BodyDigests, BodyError, CompletedPart, Completion, Conditions, ObjectInfo, ObjectStore,
};
use s3s::{S3ErrorCode, S3Result};

use super::fields::FileReader;
use crate::backend::Core;
use crate::checksum::Checks;
use crate::error::{Fault, from_api_write, from_fault, refuse};
use crate::exchange::Exchange;
use crate::inbound::Source;

/// What may follow the file: fields that mean nothing, and the end of the form.
const TAIL_BYTES_MAX: u64 = 64 << 10;
/// The least size of a part that is not the last.
const PART_BYTES_MIN: u64 = 5 << 20;
/// See the module.
const HELD_BYTES_MAX: u64 = PART_BYTES_MIN + TAIL_BYTES_MAX;

/// The file as it comes.
pub(super) struct File {
    source: Rc<Source>,
    exchange: Rc<Exchange>,
    reader: FileReader,
    /// Came and was not taken yet.
    pending: Bytes,
    checks: Checks,
    taken_bytes: u64,
}

impl File {
    /// `headers` are the form's fields that are headers elsewhere: digests among them are verified.
    pub(super) fn new(
        source: Rc<Source>,
        exchange: Rc<Exchange>,
        mut reader: FileReader,
        rest: &[u8],
        headers: &HeaderMap,
    ) -> S3Result<Self> {
        let pending = reader.feed(rest);
        let checks = Checks::of_body(headers)?;
        Ok(Self { source, exchange, reader, pending, checks, taken_bytes: 0 })
    }

    /// The next bytes, at most so many; `None` at the end of the file.
    async fn take(&mut self, bytes_max: u64) -> Option<Result<Bytes, Fault>> {
        while self.pending.is_empty() {
            if self.reader.has_ended() {
                return None;
            }
            match self.source.next().await {
                None => return Some(Err(Fault::Body(BodyError::Incomplete))),
                Some(Err(fault)) => return Some(Err(fault)),
                Some(Ok(data)) => {
                    self.exchange.count_in(&data);
                    self.pending = self.reader.feed(&data);
                }
            }
        }
        let count = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(self.pending.len());
        let data = self.pending.split_to(count);
        self.checks.update(&data);
        self.taken_bytes += data.len() as u64;
        Some(Ok(data))
    }

    /// The rest of the file, held whole.
    async fn rest(&mut self) -> Result<Bytes, Fault> {
        let mut all = BytesMut::new();
        while let Some(data) = self.take(u64::MAX).await {
            let data = data?;
            if !self.exchange.slot.hold(data.len()) {
                return Err(Fault::Overload);
            }
            all.extend_from_slice(&data);
        }
        Ok(all.freeze())
    }

    /// Reads what follows the file, so that the connection can be used again.
    async fn finish(&mut self) -> Result<(), Fault> {
        let mut left = TAIL_BYTES_MAX;
        while let Some(data) = self.source.next().await {
            let data = data?;
            self.exchange.count_in(&data);
            let problem =
                || BodyError::Malformed { problem: "too much follows the file of the form".to_owned() };
            left = left.checked_sub(data.len() as u64).ok_or_else(|| Fault::Body(problem()))?;
        }
        Ok(())
    }

    fn verify(self) -> S3Result<BodyDigests> {
        self.checks.finish(None).map_err(|error| from_fault(&Fault::Body(error)))
    }
}

/// Where the file goes, and how long it may be.
pub(super) struct Destination<'a> {
    pub(super) bucket: &'a str,
    pub(super) key: &'a str,
    pub(super) attributes: Attributes,
    pub(super) length_range: (u64, u64),
}

impl Destination<'_> {
    fn check_length(&self, bytes: u64) -> S3Result<()> {
        let (min, max) = self.length_range;
        if bytes > max {
            return Err(refuse(
                S3ErrorCode::EntityTooLarge,
                format!("the file is larger than the {max} bytes that the policy allows"),
            ));
        }
        if bytes < min {
            return Err(refuse(
                S3ErrorCode::EntityTooSmall,
                format!("the file is smaller than the {min} bytes that the policy asks for"),
            ));
        }
        Ok(())
    }
}

/// Stores the file. `left_bytes` of the form are left, from the file's first byte.
pub(super) async fn store<S: ObjectStore>(
    core: &Core<S>,
    to: Destination<'_>,
    mut file: File,
    left_bytes: u64,
) -> S3Result<ObjectInfo> {
    let long_bytes = left_bytes.saturating_sub(TAIL_BYTES_MAX);
    if long_bytes > to.length_range.1 || long_bytes > core.limits.put_bytes_max {
        to.check_length(long_bytes)?;
        return Err(refuse(S3ErrorCode::EntityTooLarge, "the file is larger than one upload can be"));
    }
    if left_bytes > HELD_BYTES_MAX {
        return store_long(core, to, file, long_bytes).await;
    }
    let whole = async {
        let data = file.rest().await?;
        file.finish().await?;
        Ok(data)
    };
    let data = whole.await.map_err(|fault: Fault| from_fault(&fault))?;
    to.check_length(data.len() as u64)?;
    let body = Held { len_bytes: data.len() as u64, data: Some(data), digests: file.verify()? };
    let Destination { bucket, key, attributes, .. } = to;
    let stored = core.store.put_object(bucket, key, attributes, Conditions::default(), body);
    stored.await.map_err(from_api_write)
}

async fn store_long<S: ObjectStore>(
    core: &Core<S>,
    mut to: Destination<'_>,
    file: File,
    long_bytes: u64,
) -> S3Result<ObjectInfo> {
    let attributes = std::mem::take(&mut to.attributes);
    let upload =
        core.store.create_upload(to.bucket, to.key, attributes, None).await.map_err(from_api_write)?;
    let parts = match store_parts(core, &to, &upload, file, long_bytes).await {
        Ok(parts) => parts,
        Err(error) => {
            // What is left behind goes with the uploads that nobody completes.
            let _ = core.store.abort_upload(to.bucket, to.key, &upload).await;
            return Err(error);
        }
    };
    let completion = Completion { parts, ..Completion::default() };
    let done = core.store.complete_upload(to.bucket, to.key, &upload, completion, Conditions::default());
    done.await.map_err(from_api_write)
}

async fn store_parts<S: ObjectStore>(
    core: &Core<S>,
    to: &Destination<'_>,
    upload: &str,
    mut file: File,
    long_bytes: u64,
) -> S3Result<Vec<CompletedPart>> {
    let exchange = Rc::clone(&file.exchange);
    let first =
        Streamed { file: &mut file, len_bytes: long_bytes, left_bytes: long_bytes, checks: Some(plain()?) };
    let first = core.store.put_part(to.bucket, to.key, upload, 1, first).await;
    let first = first.map_err(|error| match exchange.fault.borrow().as_ref() {
        Some(fault) => from_fault(fault),
        None => from_api_write(error),
    })?;
    let rest = async {
        let data = file.rest().await?;
        file.finish().await?;
        Ok(data)
    };
    let data = rest.await.map_err(|fault: Fault| from_fault(&fault))?;
    to.check_length(file.taken_bytes)?;
    file.verify()?;
    let mut parts = vec![completed(1, first.etag)];
    if !data.is_empty() {
        let mut checks = plain()?;
        checks.update(&data);
        let digests = checks.finish(None).expect("nothing was announced");
        let body = Held { len_bytes: data.len() as u64, data: Some(data), digests };
        let last = core.store.put_part(to.bucket, to.key, upload, 2, body).await.map_err(from_api_write)?;
        parts.push(completed(2, last.etag));
    }
    Ok(parts)
}

fn completed(number: u16, etag: String) -> CompletedPart {
    CompletedPart { number, etag, checksums: BTreeMap::new() }
}

/// Digests that are compared with nothing.
fn plain() -> S3Result<Checks> {
    Checks::of_body(&HeaderMap::new())
}

/// A body that is in memory, its digests computed.
struct Held {
    len_bytes: u64,
    data: Option<Bytes>,
    digests: BodyDigests,
}

impl Body for Held {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.data.take().filter(|data| !data.is_empty()).map(Ok)
    }

    fn digests(&mut self) -> BodyDigests {
        std::mem::take(&mut self.digests)
    }
}

/// The first bytes of a file, so many as are certain to come.
struct Streamed<'a> {
    file: &'a mut File,
    len_bytes: u64,
    left_bytes: u64,
    checks: Option<Checks>,
}

impl Body for Streamed<'_> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.left_bytes == 0 {
            return None;
        }
        let next = self.file.take(self.left_bytes).await.unwrap_or_else(|| {
            let problem = "too much follows the file of the form".to_owned();
            Err(Fault::Body(BodyError::Malformed { problem }))
        });
        match next {
            Ok(data) => {
                self.left_bytes -= data.len() as u64;
                if let Some(checks) = &mut self.checks {
                    checks.update(&data);
                }
                Some(Ok(data))
            }
            Err(fault) => Some(Err(self.file.exchange.fail(fault))),
        }
    }

    fn digests(&mut self) -> BodyDigests {
        let checks = self.checks.take().expect("digests are asked for once");
        checks.finish(None).expect("nothing was announced")
    }
}
