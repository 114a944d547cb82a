//! What everybody may do, without credentials: the decision for pages of websites and forms without a signature.

use http::HeaderMap;
use quarry_identity::{Action, Principal};
use quarry_object::api::{BucketInfo, ObjectStore};

use crate::access::{Caller, circumstances};
use crate::backend::Core;
use crate::exchange::Exchange;

/// Whether the anonymous sender of a request may read an object.
pub(crate) async fn may_read<S: ObjectStore>(
    core: &Core<S>,
    bucket: &BucketInfo,
    key: &str,
    headers: &HeaderMap,
    exchange: &Exchange,
) -> bool {
    let principal = Principal::Anonymous;
    let context = circumstances::of_connection(headers, exchange, &principal, (core.unix_ms)());
    let caller = Caller { principal, context };
    core.require(&caller, Action::GetObject, bucket, Some((key, None))).await.is_ok()
}
