//! What the node gives the gateway: credentials, limits, clock, request ids and an observer.

use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use quarry_identity::{Principal, UserTable};
use quarry_meter::stage::StageTimes;

use crate::host::Domains;

/// Everything a [`crate::Gateway`] needs besides the store.
pub struct GatewayOptions {
    /// Access key id of the root credential.
    pub access_key: String,
    /// Secret of the root credential. Never logged.
    pub secret_key: String,
    /// The users of this moment, for every request: no I/O.
    pub users: Rc<dyn Fn() -> Arc<UserTable>>,
    /// Answer of GetBucketLocation. A signature may name any region in its scope.
    pub region: String,
    /// What a bucket gets that is made without saying who owns its objects.
    pub object_ownership: ObjectOwnership,
    /// Names that lead to buckets and websites.
    pub domains: Domains,
    /// Bounds on what one request may cost.
    pub limits: Limits,
    /// Monotonic time since any fixed point; used for durations only.
    pub clock: Rc<dyn Fn() -> Duration>,
    /// Completes after a time on that clock; deadlines of clients are measured with both.
    pub sleep: Rc<dyn Fn(Duration) -> LocalBoxFuture<'static, ()>>,
    /// Milliseconds since 1970: what expires does so by this clock.
    pub unix_ms: Rc<dyn Fn() -> u64>,
    /// A new request id, unique in the cluster; visible ASCII, at most 64 bytes.
    pub request_ids: Rc<dyn Fn() -> String>,
    /// Told about every request once its response has ended.
    pub observer: Rc<dyn Observer>,
    /// Whether GET, HEAD and PUT of objects and parts take the fast way. Off in tests that compare the two.
    pub fast_front: bool,
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

/// Who owns objects, and whether access control lists count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ObjectOwnership {
    /// The bucket's owner; lists do not count. As in S3 the default.
    #[default]
    BucketOwnerEnforced,
    /// Who writes them with the list `bucket-owner-full-control` gives them to the bucket's owner.
    BucketOwnerPreferred,
    /// Who writes them.
    ObjectWriter,
}

/// The other end of a connection, as policies ask about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Client {
    /// Its address; `None` where there is none, then no condition on an address holds.
    pub address: Option<IpAddr>,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// Bounds on what clients may cost a core: memory first, then time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Header fields of one request. More answers `RequestHeaderSectionTooLarge`, and far more a bare 431.
    pub headers_max: usize,
    /// Bytes of all header names and values. S3 allows 8 KiB; presigned and chunked requests need about 2.
    pub header_bytes_max: usize,
    /// Bytes of the path and query as sent. A key has 1 KiB, three times that in percent-encoding; a presigned query 1.
    pub uri_bytes_max: usize,
    /// Bytes of user metadata, names and values: 2 KiB as in S3.
    pub user_metadata_bytes_max: usize,
    /// Bytes of a body that is XML and therefore held whole. 10,000 parts with every checksum take 4 MiB.
    pub xml_bytes_max: usize,
    /// Bytes of all such bodies that a core holds at once. More answers 503 `SlowDown`.
    pub xml_bytes_held_max: usize,
    /// Bytes of one PUT or part: 5 GiB as in S3.
    pub put_bytes_max: u64,
    /// Bytes of an unread request body that are read and dropped after an early error, so that the client gets to
    /// read the answer; above it the connection is closed.
    pub drain_bytes_max: u64,
    /// Requests that a core answers at once. More are answered with 503 `SlowDown`.
    pub requests_max: usize,
    /// Connections of a core on which no request is in progress; above it the one that is idle longest is closed.
    /// Each may hold a read buffer of 400 KiB.
    pub idle_connections_max: usize,
    /// From the first byte of a request, or from the beginning of the connection, to the end of the request's head.
    /// Then the connection is closed.
    pub head_wait_max: Duration,
    /// From the end of a response to the first byte of the next request. Then the connection is closed.
    pub idle_wait_max: Duration,
    /// How long a client may send nothing of a body that is waited for, or read nothing of a response. The first is
    /// answered with 408; both end the connection.
    pub stall_max: Duration,
    /// Below this rate a client counts as stalled too. Only the time is counted in which the client is waited for.
    pub bytes_per_second_min: u64,
    /// What that rate is averaged over.
    pub rate_window: Duration,
    /// How long an unread body is drained.
    pub drain_wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            headers_max: 128,
            header_bytes_max: 16 << 10,
            uri_bytes_max: 8 << 10,
            user_metadata_bytes_max: 2 << 10,
            xml_bytes_max: 4 << 20,
            xml_bytes_held_max: 64 << 20,
            put_bytes_max: 5 << 30,
            drain_bytes_max: 8 << 20,
            requests_max: 1024,
            idle_connections_max: 1024,
            head_wait_max: Duration::from_secs(30),
            idle_wait_max: Duration::from_secs(75),
            stall_max: Duration::from_secs(60),
            bytes_per_second_min: 1 << 10,
            rate_window: Duration::from_secs(300),
            drain_wait_max: Duration::from_secs(5),
        }
    }
}

/// Which way a request took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Front {
    /// It was answered before that was decided: refused at once, or a preflight, a form, or a page.
    #[default]
    Neither,
    /// The fast way.
    Fast,
    /// Through s3s.
    General(Fallback),
}

/// Why a request does not take the fast way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallback {
    /// The fast way is off.
    Off,
    /// Its method or path is not one of an object, or its name is not valid.
    Operation,
    /// Its query says something that is not understood there.
    Query,
    /// So does a header.
    Header,
    /// Its signature is not right, or written in an unusual way.
    Signature,
}

impl Front {
    /// Every way.
    pub const ALL: [Self; 7] = [
        Self::Neither,
        Self::Fast,
        Self::General(Fallback::Off),
        Self::General(Fallback::Operation),
        Self::General(Fallback::Query),
        Self::General(Fallback::Header),
        Self::General(Fallback::Signature),
    ];

    /// A label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Neither => "neither",
            Self::Fast => "fast",
            Self::General(Fallback::Off) => "off",
            Self::General(Fallback::Operation) => "operation",
            Self::General(Fallback::Query) => "query",
            Self::General(Fallback::Header) => "header",
            Self::General(Fallback::Signature) => "signature",
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
    /// Bucket, decoded, as the client names it; empty: none, or the path is not valid.
    pub bucket: &'a str,
    /// Whether there is such a bucket, as far as the request came: only then does its name say more than the client's word.
    pub bucket_exists: bool,
    /// Key, decoded; empty: none.
    pub key: &'a str,
    /// Who asked, once the signature was verified; `None`: the request did not come so far.
    pub principal: Option<&'a Principal>,
    /// Address of the client.
    pub client: Option<IpAddr>,
    /// Where the time went.
    pub stages: StageTimes,
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
    /// Which way it took.
    pub front: Front,
}

/// Told about every request once its response has ended.
pub trait Observer {
    /// Called on the core that served the request; must not block.
    fn request(&self, record: &RequestRecord<'_>);
}
