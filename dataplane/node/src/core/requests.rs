//! The gateway of a core, and what becomes of the record of each request: metrics, log, audit log.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Instant};

use quarry_gateway::{Gateway, GatewayOptions, Limits, Observer, RequestRecord};
use quarry_object::objects::{ObjectOptions, Objects};

use super::{Production, Shared};
use crate::{
    audit::AuditSink,
    cluster::NodeCluster,
    metrics::{CoreGauges, RequestMeter},
};

/// Target of the lines of requests: `QUARRY_LOG=info,quarry::request=debug` shows every one.
const TARGET: &str = "quarry::request";

struct Log {
    meter: RequestMeter,
    audit: Option<AuditSink>,
}

impl Observer for Log {
    fn request(&self, record: &RequestRecord<'_>) {
        self.meter.observe(record);
        if let Some(audit) = &self.audit {
            audit.request(record);
        }
        let RequestRecord { operation, status, duration, bytes_in, bytes_out, .. } = *record;
        if (status >= 500 && status != 501) || !record.complete {
            tracing::warn!(
                target: TARGET,
                event = "request_failed",
                request_id = record.request_id,
                operation,
                method = record.method,
                path = record.path,
                status,
                error_code = record.error_code,
                complete = record.complete,
                duration_ms = duration.as_millis()
            );
        } else {
            tracing::debug!(
                target: TARGET,
                event = "request",
                request_id = record.request_id,
                operation,
                method = record.method,
                path = record.path,
                status,
                bytes_in,
                bytes_out,
                duration_us = duration.as_micros()
            );
        }
    }
}

/// The S3 front of a core.
pub(super) fn gateway(
    shared: &Shared,
    index: usize,
    cluster: &Rc<NodeCluster<Production>>,
    gauges: &Arc<CoreGauges>,
) -> Gateway {
    let options = ObjectOptions { inline_below_bytes: shared.config.inline_below_bytes };
    let objects = Objects::new(Rc::clone(cluster), options);
    let started = Instant::now();
    let clock = Rc::clone(cluster);
    let identities = Rc::clone(cluster);
    let unix_ms = move || quarry_object::cluster::Cluster::now_ms(&*clock);
    let (node, incarnation, count) = (shared.node, shared.incarnation, Cell::new(0_u64));
    let log = Log { meter: shared.metrics.requests_of(Arc::clone(gauges)), audit: shared.audit.clone() };
    Gateway::new(
        Rc::new(objects),
        GatewayOptions {
            access_key: shared.credentials.access_key.clone(),
            secret_key: shared.credentials.secret_key.clone(),
            users: Rc::new(move || identities.users()),
            region: shared.config.region.clone(),
            object_ownership: shared.config.object_ownership,
            domains: shared.config.domains.clone(),
            limits: Limits::default(),
            clock: Rc::new(move || started.elapsed()),
            unix_ms: Rc::new(unix_ms),
            sleep: Rc::new(|duration| Box::pin(glommio::timer::sleep(duration))),
            request_ids: Rc::new(move || {
                count.set(count.get() + 1);
                format!("{:04X}{:08X}{index:02X}{:010X}", node.0, incarnation.0, count.get())
            }),
            observer: Rc::new(log),
            fast_front: true,
        },
    )
}
