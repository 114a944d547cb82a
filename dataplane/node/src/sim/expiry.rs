//! The job that deletes what is over, and that reads do not wait for it.

use std::{rc::Rc, time::Duration};

use quarry_object::{
    api::{
        ApiError, Attributes, BucketInfo, CompletedPart, Completion, Conditions, DocumentKind, ObjectStore,
        Selector, Versioning,
    },
    cluster::Cluster as _,
    lifecycle::{EXPIRES_ATTRIBUTE, Expiration, Filter, Lifecycle, Noncurrent, Rule},
    repair::Budget,
};

use super::{
    Random,
    clients::{BUCKET, put},
    history::Content,
    machine::{Limits, Machine, NodeParts},
};
use crate::{jobs::expiry, platform::Timer};

fn document(rules: &[(&str, Expiration)]) -> String {
    let rule = |(prefix, expiration): &(&str, Expiration)| Rule {
        id: (*prefix).to_owned(),
        enabled: true,
        filter: Filter { prefix: Some((*prefix).to_owned()), ..Filter::default() },
        expiration: Some(*expiration),
        ..Rule::default()
    };
    Lifecycle { rules: rules.iter().map(rule).collect() }.to_document()
}

async fn put_with(node: &NodeParts, key: &str, expires: &str) {
    let attributes = Attributes {
        headers: [(EXPIRES_ATTRIBUTE.to_owned(), expires.to_owned())].into(),
        ..Attributes::default()
    };
    let body = Content::new(&Random::new(7), 100).body();
    node.objects.put_object(BUCKET, key, attributes, Conditions::default(), body).await.unwrap();
}

async fn exists(node: &NodeParts, key: &str) -> bool {
    match node.objects.head_object(BUCKET, key, Selector::default(), Conditions::default()).await {
        Ok(_) => true,
        Err(ApiError::NoSuchKey | ApiError::DeleteMarker { .. }) => false,
        Err(other) => panic!("{key}: {other}"),
    }
}

/// Keys that the index still has, read or not.
async fn stored(node: &NodeParts) -> Vec<String> {
    let request = quarry_object::api::ListRequest {
        prefix: String::new(),
        delimiter: None,
        after: None,
        max_keys: 1000,
    };
    let page = node.objects.list_objects(BUCKET, request).await.unwrap();
    page.entries.iter().map(|entry| entry.name().to_owned()).collect()
}

#[test]
fn what_is_over_is_neither_read_nor_kept() {
    let machine = Machine::new("4+2", Limits::ROOMY, 3);
    let mut node = machine.start();
    node.run(|node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        let content = Content::new(&Random::new(1), 300_000);
        for key in ["kept", "log/a", "log/b", "new/c"] {
            put(&node, key, &content).await.unwrap();
        }
        let upload = node.objects.create_upload(BUCKET, "upload", Attributes::default(), None).await.unwrap();
        put_with(&node, "own", "+60").await;
        let budget = Budget::new(1 << 30);
        assert!(expiry::pass(&node.host, &node.cluster, &budget, node.cluster.now_ms()).await);
        assert_eq!(stored(&node).await, ["kept", "log/a", "log/b", "new/c", "own"]);
        let now_ms = node.cluster.now_ms();
        let rules = document(&[("log/", Expiration::AtMs(now_ms + 1000)), ("new/", Expiration::Days(1))]);
        node.objects.set_bucket_document(BUCKET, DocumentKind::Lifecycle, Some(rules)).await.unwrap();
        assert!(exists(&node, "log/a").await, "a second too early");
        node.timer.sleep(Duration::from_millis(1000)).await;
        assert!(!exists(&node, "log/a").await && exists(&node, "kept").await && exists(&node, "new/c").await);
        assert_eq!(stored(&node).await.len(), 5, "the job has not come by");
        // Not settled yet: the job leaves it, and says so.
        assert!(!expiry::pass(&node.host, &node.cluster, &budget, node.cluster.now_ms()).await);
        assert_eq!(stored(&node).await.len(), 5);
        node.timer.sleep(Duration::from_millis(expiry::SETTLED_MS)).await;
        // Written anew after its time: the rule has it at once, a rule in days does not.
        put(&node, "log/b", &content).await.unwrap();
        expiry::pass(&node.host, &node.cluster, &budget, node.cluster.now_ms()).await;
        assert_eq!(stored(&node).await, ["kept", "log/b", "new/c", "own"]);
        assert!(exists(&node, "own").await);
        node.timer.sleep(Duration::from_secs(60)).await;
        assert!(!exists(&node, "own").await);
        node.objects.list_parts(BUCKET, "upload", &upload, 0, 10).await.unwrap();
        let in_a_week = node.cluster.now_ms() + 8 * 24 * 3_600_000;
        assert!(expiry::pass(&node.host, &node.cluster, &budget, in_a_week).await);
        assert_eq!(stored(&node).await, ["kept"]);
        let gone = node.objects.list_parts(BUCKET, "upload", &upload, 0, 10).await;
        assert_eq!(gone.err(), Some(ApiError::NoSuchUpload), "the default of seven days");
    });
}

async fn versions(node: &NodeParts) -> Vec<String> {
    let request = quarry_object::api::ListRequest {
        prefix: String::new(),
        delimiter: None,
        after: None,
        max_keys: 1000,
    };
    let page = node.objects.list_versions(BUCKET, request, None).await.unwrap();
    page.entries.iter().map(|entry| entry.name().to_owned()).collect()
}

#[test]
fn uploads_do_not_keep_a_bucket_and_go_with_it() {
    let machine = Machine::new("2+1", Limits::ROOMY, 8);
    let mut node = machine.start();
    node.run(|node| async move {
        let objects = &node.objects;
        objects.create_bucket("other").await.unwrap();
        objects.create_bucket(BUCKET).await.unwrap();
        let budget = Budget::new(1 << 30);
        let mut uploads = Vec::new();
        for bucket in ["other", BUCKET] {
            let upload = objects.create_upload(bucket, "k", Attributes::default(), None).await.unwrap();
            let body = Content::new(&Random::new(2), 300_000).body();
            objects.put_part(bucket, "k", &upload, 1, body).await.unwrap();
            uploads.push(upload);
        }
        objects.delete_bucket(BUCKET).await.unwrap();
        // One of the same name is another bucket, whether or not the job has come by.
        objects.create_bucket(BUCKET).await.unwrap();
        let parts = Completion {
            parts: vec![CompletedPart { number: 1, etag: String::new(), checksums: Default::default() }],
            ..Completion::default()
        };
        let conditions = Conditions::default();
        let late = objects.complete_upload(BUCKET, "k", &uploads[1], parts, conditions).await;
        assert_eq!(late.err(), Some(ApiError::NoSuchUpload));
        let body = Content::new(&Random::new(2), 300_000).body();
        let late = objects.put_part(BUCKET, "k", &uploads[1], 2, body).await;
        assert_eq!(late.err(), Some(ApiError::NoSuchUpload));
        assert_eq!(node.cluster.metrics().uploads_expired.get(), 0);
        let now_ms = node.cluster.now_ms();
        assert!(expiry::pass_uploads(&node.host, &node.cluster, &budget, now_ms).await);
        assert_eq!(node.cluster.metrics().uploads_expired.get(), 1, "the upload of the bucket that is gone");
        assert!(expiry::pass_uploads(&node.host, &node.cluster, &budget, now_ms).await);
        assert_eq!(node.cluster.metrics().uploads_expired.get(), 1);
        objects.list_parts("other", "k", &uploads[0], 0, 10).await.unwrap();
    });
}

#[test]
fn older_versions_and_lone_markers_go() {
    let machine = Machine::new("2+1", Limits::ROOMY, 6);
    let mut node = machine.start();
    node.run(|node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        node.objects.set_versioning(BUCKET, Versioning::Enabled).await.unwrap();
        let content = Content::new(&Random::new(1), 1000);
        for key in ["a", "a", "a", "a", "b", "log/c"] {
            put(&node, key, &content).await.unwrap();
        }
        node.objects.delete_object(BUCKET, "b", None, Conditions::default()).await.unwrap();
        let now_ms = node.cluster.now_ms();
        let older = Rule {
            id: "older".into(),
            enabled: true,
            noncurrent: Some(Noncurrent { days: 1, keep: 1 }),
            expiration: Some(Expiration::LoneDeleteMarker),
            ..Rule::default()
        };
        let mut all =
            Rule { id: "all".into(), noncurrent: Some(Noncurrent { days: 1, keep: 0 }), ..older.clone() };
        all.filter.prefix = Some("b".into());
        let mut logs =
            Rule { id: "logs".into(), expiration: Some(Expiration::AtMs(now_ms)), ..older.clone() };
        logs.filter.prefix = Some("log/".into());
        let rules = Lifecycle { rules: vec![older, all, logs] }.to_document();
        node.objects.set_bucket_document(BUCKET, DocumentKind::Lifecycle, Some(rules)).await.unwrap();
        node.timer.sleep(Duration::from_millis(expiry::SETTLED_MS)).await;
        let budget = Budget::new(1 << 30);
        assert!(expiry::pass(&node.host, &node.cluster, &budget, node.cluster.now_ms()).await);
        // The log has a marker now; nothing is a day old.
        assert_eq!(versions(&node).await, ["a", "a", "a", "a", "b", "b", "log/c", "log/c"]);
        assert!(!exists(&node, "log/c").await);
        let later = node.cluster.now_ms() + 3 * 24 * 3_600_000;
        assert!(expiry::pass(&node.host, &node.cluster, &budget, later).await);
        // One older version of `a` is kept, and none under the marker of `b` or, by the other rule, of the log.
        assert_eq!(versions(&node).await, ["a", "a", "b", "log/c", "log/c"]);
        assert!(expiry::pass(&node.host, &node.cluster, &budget, later).await);
        assert_eq!(versions(&node).await, ["a", "a", "log/c", "log/c"], "a marker alone goes");
        assert!(exists(&node, "a").await);
    });
}

#[test]
fn a_configuration_is_acted_on_when_the_call_returns_and_after_a_restart() {
    let mut machine = Machine::new("2+1", Limits::ROOMY, 4);
    let mut node = machine.start();
    node.run(|node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        let config = |node: &Rc<NodeParts>| -> BucketInfo { node.objects.bucket(BUCKET).unwrap() };
        let before = config(&node);
        node.objects.set_bucket_document(BUCKET, DocumentKind::Tagging, Some("[]".into())).await.unwrap();
        assert_eq!(config(&node).config.document(DocumentKind::Tagging), Some("[]"));
        assert!(config(&node).revision > before.revision);
        node.objects.set_versioning(BUCKET, Versioning::Suspended).await.unwrap();
        assert_eq!(config(&node).config.versioning, Versioning::Suspended);
        let back = node.objects.set_versioning(BUCKET, Versioning::Unversioned).await;
        assert!(matches!(back, Err(ApiError::InvalidRequest { .. })), "{back:?}");
        let none = node.objects.set_bucket_document("none", DocumentKind::Cors, None).await;
        assert_eq!(none, Err(ApiError::NoSuchBucket));
    });
    let metastore = node.shutdown();
    let devices = machine.devices.all().to_vec();
    machine = machine.with(devices, metastore, 5);
    let mut node = machine.start();
    node.run(|node| async move {
        let config = node.objects.bucket(BUCKET).unwrap().config;
        assert_eq!(config.document(DocumentKind::Tagging), Some("[]"));
        assert_eq!(config.versioning, Versioning::Suspended);
    });
}
