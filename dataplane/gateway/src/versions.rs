//! Version ids in requests, and the listing of versions.

use quarry_object::api::{ListEntry, ListRequest, ObjectStore, VersionId};
use s3s::dto::{
    CommonPrefix, DeleteMarkerEntry, ListObjectVersionsInput, ListObjectVersionsOutput, ObjectVersion,
    ObjectVersionStorageClass, Owner,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::attributes::{storage_class, timestamp};
use crate::backend::Core;
use crate::checksum::listed;
use crate::conditions::etag;
use crate::error::{from_api, refuse};
use crate::list::{Encoding, given, owner, page_size};

/// The version that a request names.
///
/// # Errors
/// `InvalidArgument` for what no version is called.
pub(crate) fn version(text: Option<&str>) -> S3Result<Option<VersionId>> {
    let parse = |text| {
        VersionId::parse(text)
            .ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "invalid version id specified"))
    };
    text.map(parse).transpose()
}

/// What a write tells of the version it made. Where versions are suspended that is the null version, which S3 does not name
/// here, but where it is read or deleted.
pub(crate) fn written(version: Option<VersionId>) -> Option<String> {
    version.filter(|version| *version != VersionId::Null).map(|version| version.to_string())
}

/// The marker that goes on after a version. That of the null version names its place, which stays when it goes.
fn marker(version: VersionId, version_ms: u64) -> String {
    match version {
        VersionId::Null => VersionId::Named { version_ms, unique: [0; 16] }.to_string(),
        named @ VersionId::Named { .. } => named.to_string(),
    }
}

pub(crate) async fn list<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<ListObjectVersionsInput>,
) -> S3Result<S3Response<ListObjectVersionsOutput>> {
    let input = request.input;
    let encoding = Encoding::new(input.encoding_type.as_ref())?;
    let (keys, max_keys) = page_size(input.max_keys)?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = given(input.delimiter.as_ref());
    let after = given(input.key_marker.as_ref());
    let after_version = version(given(input.version_id_marker.as_ref()).as_deref())?;
    if after_version.is_some() && after.is_none() {
        return Err(refuse(
            S3ErrorCode::InvalidArgument,
            "a version-id marker cannot be specified without a key marker",
        ));
    }
    let owner = owner(core, &input.bucket)?;
    let list = ListRequest { prefix: prefix.clone(), delimiter: delimiter.clone(), after, max_keys };
    let page = core.store.list_versions(&input.bucket, list, after_version).await.map_err(from_api)?;
    let last = page.entries.last().filter(|_| page.truncated);
    let mut output = ListObjectVersionsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.name(&prefix)),
        key_marker: Some(encoding.name(&input.key_marker.unwrap_or_default())),
        version_id_marker: Some(input.version_id_marker.unwrap_or_default()),
        max_keys: Some(keys),
        is_truncated: Some(page.truncated),
        next_key_marker: last.map(|entry| encoding.name(entry.name())),
        next_version_id_marker: last.and_then(|entry| match entry {
            ListEntry::Version { info, .. } => {
                info.version.map(|version| marker(version, info.last_modified_ms))
            }
            _ => None,
        }),
        delimiter: delimiter.map(|delimiter| encoding.name(&delimiter)),
        encoding_type: input.encoding_type,
        ..ListObjectVersionsOutput::default()
    };
    page.entries.into_iter().for_each(|entry| add(&mut output, entry, encoding, &owner));
    Ok(S3Response::new(output))
}

fn add(output: &mut ListObjectVersionsOutput, entry: ListEntry, encoding: Encoding, owner: &Owner) {
    match entry {
        ListEntry::Version { info, is_latest, is_marker: true } => {
            output.delete_markers.get_or_insert_default().push(DeleteMarkerEntry {
                is_latest: Some(is_latest),
                key: Some(encoding.name(&info.key)),
                last_modified: Some(timestamp(info.last_modified_ms)),
                owner: Some(owner.clone()),
                version_id: info.version.map(|version| version.to_string()),
            });
        }
        ListEntry::Version { info, is_latest, is_marker: false } => {
            let (checksum_algorithm, checksum_type) = listed(&info.checksums);
            let class = ObjectVersionStorageClass::from(storage_class(&info.attributes).to_owned());
            output.versions.get_or_insert_default().push(ObjectVersion {
                checksum_algorithm,
                checksum_type,
                e_tag: Some(etag(info.etag)),
                is_latest: Some(is_latest),
                key: Some(encoding.name(&info.key)),
                last_modified: Some(timestamp(info.last_modified_ms)),
                owner: Some(owner.clone()),
                size: i64::try_from(info.size_bytes).ok(),
                storage_class: Some(class),
                version_id: info.version.map(|version| version.to_string()),
                ..ObjectVersion::default()
            });
        }
        ListEntry::Prefix(prefix) => {
            let prefix = CommonPrefix { prefix: Some(encoding.name(&prefix)) };
            output.common_prefixes.get_or_insert_default().push(prefix);
        }
        ListEntry::Object(_) | ListEntry::Upload { .. } => {}
    }
}
