//! One HTTP/1.1 connection: keep-alive, no pipelining, and every request fenced against panics.
//!
//! Requests follow one another on a connection: a pipelined one waits, unread but for hyper's read buffer, until the
//! response before it was handed over. hyper's own deadlines are not used, they want a timer that is `Send`; ours are
//! in `stream` (head, idle, response) and `inbound` (body). Heads that hyper itself refuses (not HTTP, over
//! `HEAD_BYTES_MAX`, more fields than `HYPER_HEADERS_FACTOR` times our limit, a URI over 64 KiB) get its bare 400,
//! 431 or 414 without a document; up to there our smaller limits answer as S3 does.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use http::header::{CONNECTION, EXPECT, HeaderValue, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use quarry_meter::stage::{self, Stage};
use quarry_object::api::ObjectStore;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{HttpRequest, HttpResponse, S3Result};
use send_wrapper::SendWrapper;

use crate::access::{Access, Authentication};
use crate::backend::{Backend, Core, owner_id};
use crate::checksum::Checks;
use crate::deadline::Timer;
use crate::error::{Fault, from_fault, slow_down};
use crate::exchange::{Exchange, ExchangeHandle};
use crate::form;
use crate::front::{self, Arrived, range};
use crate::host::{Hosts, Place};
use crate::inbound::{Inbound, Source};
use crate::load::{Load, Slot};
use crate::options::{Client, Fallback, Front, GatewayOptions};
use crate::outbound::Outbound;
use crate::reply;
use crate::stream::{ConnectionState, Watched};
use crate::unrouted::Unrouted;

/// Bytes of a head that hyper collects before it gives up: above what our limits allow, so that we answer.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// hyper takes so many times the header fields that we allow, so that we answer. Memory for all of them is taken anew for
/// each request.
const HYPER_HEADERS_FACTOR: usize = 2;

/// A connection that ended other than by an orderly close: mostly clients that left.
#[derive(Debug, thiserror::Error)]
#[error("the connection failed")]
pub struct ConnectionError(#[from] hyper::Error);

impl ConnectionError {
    /// The client closed or broke the connection in the middle of a message, or was not waited for any longer; that is
    /// nobody's fault here.
    pub fn is_client_gone(&self) -> bool {
        let io = std::error::Error::source(&self.0).and_then(|cause| cause.downcast_ref::<std::io::Error>());
        io.is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
            || self.0.is_incomplete_message()
            || self.0.is_canceled()
            || self.0.is_closed()
            || self.0.is_body_write_aborted()
    }
}

/// The S3 front of one core. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Rc<Shared>,
    client: Client,
}

struct Shared {
    service: S3Service,
    unrouted: Rc<dyn Unrouted>,
    front: Rc<dyn front::Front>,
    timer: Timer,
    load: Rc<Load>,
    options: GatewayOptions,
}

impl Gateway {
    /// A gateway over `store`.
    pub fn new<S: ObjectStore>(store: Rc<S>, options: GatewayOptions) -> Self {
        let core = Rc::new(Core::new(store, owner_id(&options.access_key), &options));
        let mut builder = S3ServiceBuilder::new(Backend::new(Rc::clone(&core)));
        builder.set_host(Hosts(options.domains.clone()));
        builder.set_auth(Authentication(SendWrapper::new(Rc::clone(&core.identities))));
        builder.set_access(Access(SendWrapper::new(Rc::clone(&core))));
        builder.set_route(range::Verifier);
        let mut config = S3Config::default();
        config.xml_max_body_size = options.limits.xml_bytes_max;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        let (timer, load) = (Timer::new(&options), Load::new(options.limits));
        let service = builder.build();
        let (unrouted, front) = (Rc::clone(&core) as Rc<dyn Unrouted>, core);
        let shared = Rc::new(Shared { service, unrouted, front, timer, load, options });
        Self { shared, client: Client::default() }
    }

    /// The same gateway, for a connection from this client.
    pub fn of_client(&self, client: Client) -> Self {
        Self { shared: Rc::clone(&self.shared), client }
    }

    /// Serves requests from `io` until the client closes or `shutdown` completes; then the request in progress is
    /// finished first.
    ///
    /// # Errors
    /// When the connection breaks or the client does not speak HTTP/1.1.
    pub async fn serve_connection<I, F>(&self, io: I, shutdown: F) -> Result<(), ConnectionError>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
        F: Future<Output = ()>,
    {
        let limits = self.shared.options.limits;
        let mut builder = http1::Builder::new();
        builder.half_close(true).keep_alive(true).max_header_size(HEAD_BYTES_MAX);
        builder.max_headers(limits.headers_max * HYPER_HEADERS_FACTOR);
        let state = ConnectionState::begin(
            self.shared.timer.clone(),
            limits,
            Rc::clone(&self.shared.load),
            self.client,
        );
        let service = service_fn(|request| {
            let (shared, state) = (Rc::clone(&self.shared), Rc::clone(&state));
            async move { Ok::<_, std::convert::Infallible>(shared.answer(request, &state).await) }
        });
        let io = Watched::new(io, Rc::clone(&state));
        let mut connection = pin!(builder.serve_connection(io, service));
        let mut shutdown = pin!(shutdown.fuse());
        let mut draining = false;
        poll_fn(|cx| {
            if !draining && shutdown.as_mut().poll(cx).is_ready() {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await
        .map_err(ConnectionError)
    }
}

impl Shared {
    async fn answer(
        &self,
        request: Request<Incoming>,
        connection: &Rc<ConnectionState>,
    ) -> Response<Outbound> {
        let options = &self.options;
        let exchange = Exchange::begin(&request, options, Slot::take(&self.load), connection);
        let (parts, incoming) = request.into_parts();
        let expects_continue = parts.headers.contains_key(EXPECT);
        let is_bodyless = incoming.is_end_stream();
        let place = Place::of(&parts, &options.domains).map(Rc::new);
        exchange.place.replace(place.clone());
        let cors_headers = self.cors_headers(&parts, place.as_deref());
        let source = Source::new(incoming, self.timer.clone(), &options.limits);
        exchange.stages.begin(Stage::Parse);
        let work = Box::pin(self.dispatch(parts, place, Rc::clone(&source), &exchange));
        let work = stage::within(Rc::clone(&exchange.stages), work);
        let response = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(
                event = "request_panic",
                request_id = exchange.request_id,
                operation = &*exchange.operation.borrow()
            );
            reply::internal_error()
        });
        // Of a request that was refused on the way.
        exchange.stages.end(Stage::Parse);
        exchange.stages.end(Stage::Auth);
        let mut response = reply::complete(response, &exchange);
        response.headers_mut().extend(cors_headers);
        if expects_continue && (is_bodyless || source.is_untold()) {
            // Nobody said "100 Continue". Some clients send no body now and the next request at once, whose first bytes
            // would be taken for the body; others, which announced an empty one, misread the next answer.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if response.status().as_u16() >= 400 {
            source.drain(expects_continue, &options.limits).await;
        }
        response
    }

    /// For the answer to a request from a web page, whatever becomes of it. A preflight's answer has its own.
    fn cors_headers(&self, parts: &Parts, place: Option<&Place>) -> HeaderMap {
        match place {
            Some(place) if parts.headers.contains_key(ORIGIN) && parts.method != Method::OPTIONS => {
                self.unrouted.cors_headers(&place.bucket, parts.method.as_str(), &parts.headers)
            }
            _ => HeaderMap::new(),
        }
    }

    async fn dispatch(
        &self,
        parts: Parts,
        place: Option<Rc<Place>>,
        source: Rc<Source>,
        exchange: &Rc<Exchange>,
    ) -> HttpResponse {
        if let Some(place) = &place
            && let Some(response) = self.dispatch_unrouted(&parts, place, &source, exchange).await
        {
            return response;
        }
        let handle = ExchangeHandle::new(exchange, &source);
        let inbound = match self.admit(&parts, Rc::clone(&source), exchange) {
            Ok(inbound) => inbound,
            Err(refused) => return reply::from_error(refused),
        };
        match self.take(&parts, place.as_deref(), &source, exchange) {
            Ok(answer) => {
                exchange.front.set(Front::Fast);
                return answer.await;
            }
            Err(fallback) => exchange.front.set(Front::General(fallback)),
        }
        let mut parts = parts;
        front::name_date(&mut parts.headers);
        let mut request = HttpRequest::from_parts(parts, s3s::Body::http_body(inbound));
        request.extensions_mut().insert(handle);
        match range::serve(&self.service, request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(event = "request_failed", request_id = exchange.request_id, ?error);
                reply::internal_error()
            }
        }
    }

    fn take<'a>(
        &'a self,
        parts: &'a Parts,
        place: Option<&'a Place>,
        source: &'a Rc<Source>,
        exchange: &'a Rc<Exchange>,
    ) -> Result<LocalBoxFuture<'a, HttpResponse>, Fallback> {
        if !self.options.fast_front {
            return Err(Fallback::Off);
        }
        let place = place.ok_or(Fallback::Operation)?;
        self.front.take(Arrived { parts, place, source, exchange })
    }

    /// What s3s does not see: preflights and pages, which need no credentials, and forms, which bring their own.
    async fn dispatch_unrouted(
        &self,
        parts: &Parts,
        place: &Place,
        source: &Rc<Source>,
        exchange: &Rc<Exchange>,
    ) -> Option<HttpResponse> {
        let is_preflight = parts.method == Method::OPTIONS && !place.bucket.is_empty();
        let is_form = !place.is_website && form::is_form(parts);
        if !is_preflight && !is_form && !place.is_website {
            return None;
        }
        let admitted = if exchange.slot.is_beyond_limit() {
            Err(slow_down())
        } else {
            front::screen_size(parts, &self.options.limits)
        };
        if let Err(refused) = admitted {
            return Some(reply::from_error(refused));
        }
        if is_preflight {
            exchange.operation.replace("Preflight".to_owned());
            let answer = self.unrouted.preflight(&place.bucket, &parts.headers);
            return Some(answer.unwrap_or_else(reply::from_error));
        }
        if is_form {
            let answer = self.unrouted.form(parts, place, Rc::clone(source), exchange).await;
            return Some(answer.unwrap_or_else(reply::from_error));
        }
        Some(self.unrouted.page(parts, place, exchange).await)
    }

    fn admit(&self, parts: &Parts, source: Rc<Source>, exchange: &Rc<Exchange>) -> S3Result<Inbound> {
        if exchange.slot.is_beyond_limit() {
            return Err(slow_down());
        }
        front::screen(parts, &self.options.limits)?;
        // A Complete's checksum headers are those of the object, not of the document.
        let mut checks = if carries_checked_document(parts) {
            Some(Checks::of_body(&parts.headers)?)
        } else if parts.method == Method::POST {
            Some(Checks::of_signed_document(&parts.headers))
        } else {
            None
        };
        // Of a body without bytes s3s sees the end before we do, and takes a wrong digest for an error of ours.
        if source.is_empty()
            && let Some(checks) = checks.take()
        {
            checks.finish(None).map_err(|error| from_fault(&Fault::Body(error)))?;
        }
        Ok(Inbound::new(source, Rc::clone(exchange), checks))
    }
}

/// Subresources whose documents a client may give digests of.
const DOCUMENTS: [&str; 10] = [
    "versioning",
    "tagging",
    "cors",
    "website",
    "lifecycle",
    "policy",
    "acl",
    "publicAccessBlock",
    "ownershipControls",
    "delete",
];

fn carries_checked_document(parts: &Parts) -> bool {
    let names = parts.uri.query().unwrap_or("").split('&').map(|pair| pair.split('=').next().unwrap_or(pair));
    let by_method = |name: &str| (name == "delete") == (parts.method == Method::POST);
    (parts.method == Method::PUT || parts.method == Method::POST)
        && names.into_iter().any(|name| DOCUMENTS.contains(&name) && by_method(name))
}
