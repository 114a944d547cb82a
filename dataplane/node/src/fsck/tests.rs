//! Faults of every class, planted one at a time on a node that was filled and stopped: fsck names each, where it is,
//! and nothing else; and nothing where nothing is planted.

mod node;
mod rows;
mod shards;
mod space;

use std::collections::BTreeMap;

use super::report::{Class, Report};

/// Exactly these classes were found, that often; `place` stands in an example of the first one. The verdict follows.
fn assert_found(report: &Report, expected: &[(Class, u64)], place: &str) {
    let found: BTreeMap<Class, u64> =
        report.errors.iter().chain(&report.info).map(|(class, count)| (*class, *count)).collect();
    assert_eq!(found, expected.iter().copied().collect(), "{report}");
    assert_eq!(report.clean, expected.iter().all(|(class, _)| is_info(*class)), "{report}");
    if let Some((first, _)) = expected.first() {
        let mut examples = report.examples.iter().filter(|example| example.class == *first);
        assert!(examples.any(|example| example.what.contains(place)), "not at {place}: {report}");
    }
}

/// Written out: the verdict must not follow from the same list as the report.
fn is_info(class: Class) -> bool {
    [Class::PendingCollection, Class::Degraded, Class::MissingDevice, Class::UnjudgedShard].contains(&class)
}

#[test]
fn nothing_is_found_where_nothing_is_planted() {
    let report = node::Node::new().fsck(true);
    assert_found(&report, &[], "");
    assert!(report.totals.objects > 20 && report.totals.blobs > 10, "{report}");
    assert_eq!(report.totals.shards, report.totals.blobs * 6, "{report}");
    assert_eq!(report.totals.verified_bytes, report.totals.bytes);
    assert!(report.devices.iter().all(|device| device.opened && device.shards > 0));
}
