//! Metrics of quarry-controller: how its etcd answers, and what it shows of its leading.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quarry_controller::cluster::LeaderNumbers;
use quarry_metastore::{Entry, LeaseId, Metastore, MetastoreError, Range, Revision, Transaction, Watch};
use quarry_meter::{
    Counter, Histogram,
    page::{Family, Page},
    process,
};

const BUILD: Family = Family::gauge("quarry_controller_build_info", "1, with the version as a label");
const LEADER: Family = Family::gauge("quarry_controller_leader", "1 while this one leads");
const TERMS: Family = Family::counter("quarry_controller_terms_total", "Elections won");
const MAP_VERSION: Family =
    Family::gauge("quarry_controller_map_version", "Version of the map that the leader knows");
const NODES: Family =
    Family::gauge("quarry_controller_nodes", "Nodes of the map, and nodes whose lease lasts");
const REPORTS: Family =
    Family::gauge("quarry_controller_reports_waiting", "Reports of nodes at the last look");
const PLANS: Family =
    Family::counter("quarry_controller_plans_total", "Plans of reports, by what became of them");
const GROUPS: Family = Family::gauge("quarry_controller_placement_groups", "Placement groups by state");
const ETCD_SECONDS: Family = Family::histogram(
    "quarry_controller_etcd_request_duration_seconds",
    "Requests to etcd that were answered",
);
const ETCD_ERRORS: Family =
    Family::counter("quarry_controller_etcd_errors_total", "Requests to etcd that were not");

#[cfg(test)]
const OWN: [Family; 10] =
    [BUILD, LEADER, TERMS, MAP_VERSION, NODES, REPORTS, PLANS, GROUPS, ETCD_SECONDS, ETCD_ERRORS];

/// Requests of one kind.
#[derive(Debug, Default)]
struct Requests {
    took: Histogram,
    errors: Counter,
}

/// What is asked of etcd, in the order of [`EtcdMeter`].
const OPERATIONS: [&str; 5] = ["read", "transact", "watch", "connect", "lease"];
const READ: usize = 0;
const TRANSACT: usize = 1;
const WATCH: usize = 2;
const CONNECT: usize = 3;
const LEASE: usize = 4;

/// All requests. The controller's one thread counts.
#[derive(Debug, Default)]
pub(crate) struct EtcdMeter([Requests; OPERATIONS.len()]);

impl EtcdMeter {
    /// Counts one request. A conflict is an answer.
    async fn count<T>(
        &self,
        operation: usize,
        request: impl Future<Output = Result<T, MetastoreError>> + Send,
    ) -> Result<T, MetastoreError> {
        let began = Instant::now();
        let result = request.await;
        let requests = &self.0[operation];
        match &result {
            Ok(_) | Err(MetastoreError::Conflict | MetastoreError::LeaseLost) => {
                requests.took.observe(began.elapsed())
            }
            Err(_) => requests.errors.add(1),
        }
        result
    }

    /// Counts a connection that is made.
    pub(crate) async fn connecting<T>(
        &self,
        request: impl Future<Output = Result<T, MetastoreError>> + Send,
    ) -> Result<T, MetastoreError> {
        self.count(CONNECT, request).await
    }
}

/// A metastore whose requests are counted.
#[derive(Debug)]
pub(crate) struct Metered<M> {
    pub(crate) inner: M,
    pub(crate) meter: Arc<EtcdMeter>,
}

impl<M: Metastore> Metastore for Metered<M> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, MetastoreError> {
        self.meter.count(READ, self.inner.get(key)).await
    }

    async fn range(&self, prefix: &str) -> Result<Range, MetastoreError> {
        self.meter.count(READ, self.inner.range(prefix)).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, MetastoreError> {
        self.meter.count(READ, self.inner.keys(prefix)).await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Revision, MetastoreError> {
        self.meter.count(TRANSACT, self.inner.transact(transaction)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetastoreError> {
        self.meter.count(WATCH, self.inner.watch(prefix, from)).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetastoreError> {
        self.meter.count(LEASE, self.inner.grant_lease(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        self.meter.count(LEASE, self.inner.keep_alive(lease)).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        self.meter.count(LEASE, self.inner.revoke_lease(lease)).await
    }
}

/// The page for Prometheus; `numbers` are there once etcd has answered.
pub(crate) fn page(etcd: &EtcdMeter, numbers: Option<&LeaderNumbers>) -> Result<Vec<u8>, prometheus::Error> {
    let mut page = Page::default();
    page.count(&BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let none = LeaderNumbers::default();
    let numbers = numbers.unwrap_or(&none);
    let leads = numbers.leads.get() == 1;
    page.count(&LEADER, &[], u64::from(leads));
    page.count(&TERMS, &[], numbers.terms.get());
    if leads {
        page.count(&MAP_VERSION, &[], numbers.map_version.get());
        page.count(&REPORTS, &[], numbers.reports_waiting.get());
        for (state, count) in [("registered", &numbers.nodes), ("alive", &numbers.nodes_alive)] {
            page.count(&NODES, &[("state", state)], count.get());
        }
        for (state, count) in ["open", "sealed", "moving"].into_iter().zip(&numbers.groups) {
            page.count(&GROUPS, &[("state", state)], count.get());
        }
    }
    for (result, count) in [
        ("done", &numbers.plans_done),
        ("waits", &numbers.plans_waiting),
        ("conflict", &numbers.plans_in_conflict),
        ("failed", &numbers.plans_failed),
    ] {
        page.count(&PLANS, &[("result", result)], count.get());
    }
    for (operation, requests) in OPERATIONS.into_iter().zip(&etcd.0) {
        page.histogram(&ETCD_SECONDS, &[("operation", operation)], &requests.took.read());
        page.count(&ETCD_ERRORS, &[("operation", operation)], requests.errors.get());
    }
    process::add(&mut page);
    page.text(&[])
}

#[cfg(test)]
mod tests {
    use quarry_meter::page::undocumented;

    use super::*;

    #[test]
    fn every_family_is_documented_and_every_documented_one_is_there() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let document = std::fs::read_to_string(path).unwrap();
        let all: Vec<Family> = OWN.iter().chain(&process::FAMILIES).copied().collect();
        assert_eq!(undocumented(&all, &document, "Controller"), [""; 0]);
    }

    #[tokio::test]
    async fn what_etcd_refuses_is_an_answer_and_silence_an_error() {
        let meter = EtcdMeter::default();
        let conflict = meter.count(TRANSACT, async { Err::<(), _>(MetastoreError::Conflict) }).await;
        assert!(matches!(conflict, Err(MetastoreError::Conflict)));
        let silent = MetastoreError::Unavailable { operation: "transact", reason: "gone".into() };
        assert!(meter.count(TRANSACT, async { Err::<(), _>(silent) }).await.is_err());
        let numbers = LeaderNumbers::default();
        let shown = |numbers| String::from_utf8(page(&meter, Some(numbers)).unwrap()).unwrap();
        let text = shown(&numbers);
        assert!(text.contains("etcd_errors_total{operation=\"transact\"} 1\n"), "{text}");
        assert!(text.contains("duration_seconds_count{operation=\"transact\"} 1\n"), "{text}");
        assert!(
            text.contains("quarry_controller_leader 0\n") && !text.contains("quarry_controller_map_version")
        );
        numbers.leads.set(1);
        assert!(shown(&numbers).contains("quarry_controller_map_version"));
    }
}
