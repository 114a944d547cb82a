//! What the node gives the gateway: credentials, limits, clock, request ids and an observer.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// Everything a [`crate::Gateway`] needs besides the store.
pub struct GatewayOptions {
    /// Access key id of the root credential.
    pub access_key: String,
    /// Secret of the root credential. Never logged.
    pub secret_key: String,
    /// Answer of GetBucketLocation. A signature may name any region in its scope.
    pub region: String,
    /// Bounds on what one request may cost.
    pub limits: Limits,
    /// Monotonic time since any fixed point; used for durations only.
    pub clock: Rc<dyn Fn() -> Duration>,
    /// A new request id, unique in the cluster; visible ASCII, at most 64 bytes.
    pub request_ids: Rc<dyn Fn() -> String>,
    /// Told about every request once its response has ended.
    pub observer: Rc<dyn Observer>,
}

impl fmt::Debug for GatewayOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("GatewayOptions")
            .field("access_key", &self.access_key)
            .field("region", &self.region)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Bounds on what one request may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Header fields of one request. More answers 431.
    pub headers_max: usize,
    /// Bytes of all header names and values. S3 allows 8 KiB; presigned and chunked requests need about 2.
    pub header_bytes_max: usize,
    /// Bytes of user metadata, names and values: 2 KiB as in S3.
    pub user_metadata_bytes_max: usize,
    /// Bytes of a body that is XML and therefore held whole. 10,000 parts with every checksum take 4 MiB.
    pub xml_bytes_max: usize,
    /// Bytes of one aws-chunked chunk, which s3s holds whole before it passes it on. Clients send 64 KiB to 1 MiB.
    pub chunk_bytes_max: u64,
    /// Bytes of one PUT or part: 5 GiB as in S3.
    pub put_bytes_max: u64,
    /// Bytes of an unread request body that are read and dropped after an early error, so that the client gets to
    /// read the answer; above it the connection is closed.
    pub drain_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            headers_max: 128,
            header_bytes_max: 16 << 10,
            user_metadata_bytes_max: 2 << 10,
            xml_bytes_max: 4 << 20,
            chunk_bytes_max: 8 << 20,
            put_bytes_max: 5 << 30,
            drain_bytes_max: 8 << 20,
        }
    }
}

/// What happened to one request, for metrics and the access log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestRecord<'a> {
    /// As in `x-amz-request-id`.
    pub request_id: &'a str,
    /// S3 operation, for example `PutObject`; `Unknown` where the request failed before it was routed.
    pub operation: &'a str,
    /// HTTP method.
    pub method: &'a str,
    /// Path as sent, percent-encoded, without the query (which may hold a signature).
    pub path: &'a str,
    /// HTTP status that was answered.
    pub status: u16,
    /// S3 error code of an error answer.
    pub error_code: Option<&'a str>,
    /// Bytes of the request body as received, framing included.
    pub bytes_in: u64,
    /// Bytes of the response body that were handed to the connection.
    pub bytes_out: u64,
    /// From the last header byte to the end of the response body.
    pub duration: Duration,
    /// The whole response body was handed over; false when the client left or the read failed in the middle.
    pub complete: bool,
}

/// Told about every request once its response has ended.
pub trait Observer {
    /// Called on the core that served the request; must not block.
    fn request(&self, record: &RequestRecord<'_>);
}
