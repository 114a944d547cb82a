//! The first look at a request: what is refused before any work (`screen`), and the fast way for the requests that make up
//! nearly all traffic: GET and HEAD of an object, PUT of an object, UploadPart.
//!
//! The fast way only ever says yes. It takes a request if it understands every part of it (`plan`: path, query, headers)
//! and finds its signature right (`signature`), or there is none; then it judges it as `access` does for s3s, and calls the
//! very functions that s3s calls (`serve`). Everything else, also a wrong signature, goes to s3s untouched: it knows what
//! to answer. So the two can differ only where the fast way takes a request that s3s would refuse or read otherwise;
//! `tests/front.rs` sends the same requests to both and compares.
//!
//! What s3s gets wrong about ranges is set right before it serves a request (`range`).

mod keys;
mod plan;
pub(crate) mod range;
mod screen;
mod serve;
mod signature;

use std::rc::Rc;

use futures::future::LocalBoxFuture;
use http::request::Parts;
use quarry_meter::stage::Stage;
use quarry_object::api::ObjectStore;
use s3s::HttpResponse;

pub(crate) use self::keys::{SigningKey, SigningKeys, derive};
pub(crate) use self::screen::{name_date, screen, screen_size};
use crate::backend::Core;
use crate::exchange::Exchange;
use crate::host::Place;
use crate::inbound::Source;
use crate::options::Fallback;

/// A request as the connection has it.
#[derive(Clone, Copy)]
pub(crate) struct Arrived<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) place: &'a Place,
    pub(crate) source: &'a Rc<Source>,
    pub(crate) exchange: &'a Rc<Exchange>,
}

/// See the module. The connection's side does not know the store's type, so it holds this as an object.
pub(crate) trait Front {
    /// The answer to a request that was screened, or why s3s must give it.
    fn take<'a>(&'a self, arrived: Arrived<'a>) -> Result<LocalBoxFuture<'a, HttpResponse>, Fallback>;
}

impl<S: ObjectStore> Front for Core<S> {
    fn take<'a>(&'a self, arrived: Arrived<'a>) -> Result<LocalBoxFuture<'a, HttpResponse>, Fallback> {
        let query = plan::Query::of(arrived.parts)?;
        let wanted = plan::Wanted::of(arrived.parts, arrived.place, &query)?;
        arrived.exchange.stages.end(Stage::Parse);
        arrived.exchange.stages.begin(Stage::Auth);
        let Some(signer) = self.verify(arrived.parts, &query, &wanted) else {
            arrived.exchange.stages.end(Stage::Auth);
            return Err(Fallback::Signature);
        };
        Ok(Box::pin(serve::answer(self, arrived, wanted, signer)))
    }
}
