//! Storage classes and tiers: where the bytes of a class lie, and how a version gets from one tier to the other.
//!
//! A class is what the client or a lifecycle rule asked for; it is kept and shown as given. The tier is where blobs lie,
//! and follows from their placement groups. The cold classes ask for the cold tier. A store without one, or whose cold
//! devices take nothing, keeps the bytes on the hot tier under the same class, and moves them when it can: the class
//! promises a price, not a place. Bytes that ride inside the metadata (small bodies) stay there whatever the class.

mod moves;

use quarry_clustermap::{ClusterMap, Tier};
pub use quarry_partition::command::STORAGE_CLASS_HEADER;
use quarry_partition::{
    BlobRef,
    command::{Manifest, Segment},
};

pub use self::moves::{MoveError, MoveJob, Moved};

/// The class of an object that was given none.
pub const CLASS_DEFAULT: &str = "STANDARD";
/// The attribute with the time of the last move between tiers, Unix milliseconds in decimal.
pub const MOVED_ATTRIBUTE: &str = "x-quarry-moved";
/// Classes whose bytes are read without a restore; those that need one are refused.
pub const CLASSES: [&str; 6] =
    [CLASS_DEFAULT, "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"];
/// Classes that ask for the cold tier.
const COLD: [&str; 3] = ["STANDARD_IA", "ONEZONE_IA", "GLACIER_IR"];

/// The tier that a class asks for.
#[must_use]
pub fn tier_of_class(class: Option<&str>) -> Tier {
    if class.is_some_and(|class| COLD.contains(&class)) { Tier::Cold } else { Tier::Hot }
}

/// Whether new blobs find a group in a tier.
#[must_use]
pub fn is_open(map: &ClusterMap, tier: Tier) -> bool {
    map.open_groups(tier).next().is_some()
}

/// The tier of a blob; `None`: the map does not know its group.
#[must_use]
pub fn tier_of_blob(map: &ClusterMap, blob: &BlobRef) -> Option<Tier> {
    map.placement_groups.get(&blob.pg).map(|group| group.tier)
}

/// When a version was moved last.
#[must_use]
pub fn moved_ms(manifest: &Manifest) -> Option<u64> {
    let moved = manifest.attributes.headers.iter().find(|(name, _)| name == MOVED_ATTRIBUTE);
    moved.and_then(|(_, value)| value.parse().ok())
}

/// The blobs among some segments that lie in another tier than `tier`.
pub fn elsewhere<'m>(
    map: &'m ClusterMap,
    segments: &'m [Segment],
    tier: Tier,
) -> impl Iterator<Item = BlobRef> + 'm {
    segments.iter().filter_map(move |segment| match segment {
        Segment::Blob(blob) if tier_of_blob(map, blob).is_some_and(|found| found != tier) => Some(*blob),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_ask_for_the_tier_that_the_documents_say() {
        let cold = CLASSES.into_iter().filter(|class| tier_of_class(Some(class)) == Tier::Cold);
        assert_eq!(cold.collect::<Vec<_>>(), ["STANDARD_IA", "ONEZONE_IA", "GLACIER_IR"]);
        assert_eq!(tier_of_class(None), Tier::Hot);
        assert_eq!(tier_of_class(Some("GLACIER")), Tier::Hot);
    }
}
