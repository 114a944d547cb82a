//! Requests that s3s does not route, and what it knows nothing of: preflights, websites, forms, and headers for other
//! origins.
//!
//! The connection's side does not know the store's type, so it holds this as an object.

use std::rc::Rc;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use http::HeaderMap;
use http::request::Parts;
use quarry_object::api::ObjectStore;
use s3s::{Body, HttpResponse, S3Result};

use crate::backend::Core;
use crate::cors::{self, Cors};
use crate::error::from_api;
use crate::exchange::Exchange;
use crate::host::Place;
use crate::inbound::Source;
use crate::{form, website};

/// See the module.
pub(crate) trait Unrouted {
    /// The answer to a preflight request; it needs no credentials.
    fn preflight(&self, bucket: &str, request: &HeaderMap) -> S3Result<HttpResponse>;

    /// What a page of another origin is told with any other answer.
    fn cors_headers(&self, bucket: &str, method: &str, request: &HeaderMap) -> HeaderMap;

    /// A page of a website.
    fn page<'a>(
        &'a self,
        parts: &'a Parts,
        place: &'a Place,
        exchange: &'a Exchange,
    ) -> LocalBoxFuture<'a, HttpResponse>;

    /// An upload by a form.
    fn form<'a>(
        &'a self,
        parts: &'a Parts,
        place: &'a Place,
        source: Rc<Source>,
        exchange: &'a Rc<Exchange>,
    ) -> LocalBoxFuture<'a, S3Result<HttpResponse>>;
}

impl<S: ObjectStore> Core<S> {
    fn cors_of(&self, bucket: &str) -> Option<Rc<Cors>> {
        self.cors.get(&self.store.bucket(bucket).ok()?)
    }
}

impl<S: ObjectStore> Unrouted for Core<S> {
    fn preflight(&self, bucket: &str, request: &HeaderMap) -> S3Result<HttpResponse> {
        let bucket = self.store.bucket(bucket).map_err(from_api)?;
        let mut response = HttpResponse::new(Body::empty());
        *response.headers_mut() = cors::preflight(self.cors.get(&bucket).as_deref(), request)?;
        Ok(response)
    }

    fn cors_headers(&self, bucket: &str, method: &str, request: &HeaderMap) -> HeaderMap {
        self.cors_of(bucket).map(|cors| cors.decorate(method, request)).unwrap_or_default()
    }

    fn page<'a>(
        &'a self,
        parts: &'a Parts,
        place: &'a Place,
        exchange: &'a Exchange,
    ) -> LocalBoxFuture<'a, HttpResponse> {
        website::serve(self, parts, place, exchange).boxed_local()
    }

    fn form<'a>(
        &'a self,
        parts: &'a Parts,
        place: &'a Place,
        source: Rc<Source>,
        exchange: &'a Rc<Exchange>,
    ) -> LocalBoxFuture<'a, S3Result<HttpResponse>> {
        form::receive(self, parts, place, source, exchange).boxed_local()
    }
}
