//! The S3 protocol over the object layer.
//!
//! [`Gateway::serve_connection`] speaks HTTP/1.1 on any byte stream and turns every request into calls of
//! [`quarry_object::api::ObjectStore`]. `s3s` gives the breadth of the protocol (routing, XML, Signature
//! Version 4, aws-chunked framing); this crate adds what it leaves open: limits, digests and checksums of
//! bodies, ranges and conditions, error documents with resource and request id, and the record of each request.
//!
//! Path of a request: `connection` (hyper) -> `front` (what is refused before any work) -> `inbound` (raw body,
//! limits on framing) -> s3s (signature, routing, XML) -> `backend` and one module per family of operations
//! -> `reply` (headers and error documents) -> `outbound` (body, then the record for the observer). Reads and writes of
//! objects and parts that `front` understands to the last header go from there to the same operations, past s3s.
//!
//! Invariants: nothing but the object layer decides about data; every response carries a request id; a body that
//! fails its announced length or digest never reaches a commit; a response body never ends short in silence.
//! Failure model: clients are hostile or broken, connections end anywhere; a panic costs one request.
//! Everything is single-threaded: the futures are not `Send`, `SendWrapper` satisfies the bounds of s3s.

mod access;
mod attributes;
mod backend;
mod body;
mod bucket;
mod checksum;
mod chunked;
mod conditions;
mod configuration;
mod connection;
mod copy;
mod cors;
mod deadline;
mod describe;
mod error;
mod exchange;
mod form;
mod front;
mod host;
mod inbound;
mod list;
mod load;
mod multipart;
mod object;
mod options;
mod outbound;
mod public;
mod reply;
mod stream;
mod tags;
mod unrouted;
mod versions;
mod website;

pub use connection::{ConnectionError, Gateway};
#[doc(hidden)]
pub use form::reads_form;
pub use host::Domains;
pub use options::{
    Client, Fallback, Front, GatewayOptions, Limits, ObjectOwnership, Observer, RequestRecord,
};
