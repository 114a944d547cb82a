//! Keys of a partition's rows. Their bytewise order is the order of their fields.
//!
//! ```text
//! kind  fields                                             value
//! 0x01  bucket u64, key, !version_ms u64                   Manifest: versions newest first
//! 0x02  bucket u64, key, !version_ms u64, segment u32      bytes of an inline segment
//! 0x03  bucket u64, key, !version_ms u64, n u32            SegmentRun: continuation of a manifest
//! 0x04  bucket u64, key                                    NullVersion: only if it is not the newest version
//! 0x05  bucket u64, key, !version_ms u64, n u32            PartRun: parts of a manifest
//! 0x10  bucket u64, key, upload 16                         Upload
//! 0x11  upload 16, number u16                              Part
//! 0x12  upload 16, number u16                              bytes of an inline part
//! 0x13  upload 16                                          CompletedUpload
//! 0x20  blob 16                                            BlobOwner
//! 0x21  blob 16                                            BlobRef: the free list
//! 0x22  blob 16                                            BlobRef: degraded blobs
//! 0x23  writer u32                                         RevokedWriter
//! 0x30  due_ms u64, kind u8, blob or upload 16             empty: a row of that kind and id to expire
//! ```
//! Integers are big-endian. A key ends with `00 01`, and a 0 byte in it is `00 FF`: no key is a prefix of another
//! one's encoding, and `00 01` sorts below every continuation. 0x31 and above are not used yet.

use quarry_clustermap::{BlobId, BucketId, NodeId};

use super::manifest::UploadId;

pub(super) const VERSION: u8 = 0x01;
pub(super) const BODY: u8 = 0x02;
pub(super) const CONTINUATION: u8 = 0x03;
pub(super) const NULL_VERSION: u8 = 0x04;
pub(super) const PART_RUN: u8 = 0x05;
pub(super) const UPLOAD: u8 = 0x10;
pub(super) const PART: u8 = 0x11;
pub(super) const PART_BODY: u8 = 0x12;
pub(super) const COMPLETED: u8 = 0x13;
pub(super) const OWNER: u8 = 0x20;
pub(super) const FREE: u8 = 0x21;
pub(super) const DEGRADED: u8 = 0x22;
pub(super) const REVOKED: u8 = 0x23;
pub(super) const EXPIRY: u8 = 0x30;

/// Longest escaped key: with the longest other fields (kind, bucket, terminator, upload: 27 bytes) and the 3 bytes
/// that the index puts before it, a row key stays within the 2,048 bytes of an index key.
pub(super) const ESCAPED_KEY_BYTES_MAX: usize = 2048 - 3 - 27;

/// Rows from the first (inclusive) to the second (exclusive).
pub(super) type KeyRange = (Vec<u8>, Vec<u8>);

fn of_bucket(kind: u8, bucket: BucketId) -> Vec<u8> {
    let mut row = Vec::with_capacity(64);
    row.push(kind);
    row.extend_from_slice(&bucket.0.to_be_bytes());
    row
}

pub(super) fn escaped_len(key: &str) -> usize {
    key.len() + key.bytes().filter(|byte| *byte == 0).count()
}

fn push_escaped(row: &mut Vec<u8>, key: &[u8]) {
    for byte in key {
        row.push(*byte);
        if *byte == 0 {
            row.push(0xFF);
        }
    }
}

fn of_key(kind: u8, bucket: BucketId, key: &str) -> Vec<u8> {
    let mut row = of_bucket(kind, bucket);
    push_escaped(&mut row, key.as_bytes());
    row.extend_from_slice(&[0x00, 0x01]);
    row
}

fn of_version(kind: u8, bucket: BucketId, key: &str, version_ms: u64) -> Vec<u8> {
    let mut row = of_key(kind, bucket, key);
    row.extend_from_slice(&(!version_ms).to_be_bytes());
    row
}

fn of_id(kind: u8, id: &[u8; 16]) -> Vec<u8> {
    let mut row = Vec::with_capacity(19);
    row.push(kind);
    row.extend_from_slice(id);
    row
}

/// The least row key above all that begin with `prefix`.
fn end_of(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if let Some(next) = last.checked_add(1) {
            prefix.push(next);
            return prefix;
        }
    }
    unreachable!("every prefix begins with a kind, and no kind is 0xFF")
}

fn range_of(prefix: Vec<u8>) -> KeyRange {
    let end = end_of(prefix.clone());
    (prefix, end)
}

pub(super) fn version(bucket: BucketId, key: &str, version_ms: u64) -> Vec<u8> {
    of_version(VERSION, bucket, key, version_ms)
}

/// All versions of a key, newest first.
pub(super) fn versions(bucket: BucketId, key: &str) -> KeyRange {
    all_of(VERSION, bucket, key)
}

/// Sets `past` to the least row key above all versions of the key that a version row is of.
pub(super) fn past_versions(version_row: &[u8], past: &mut Vec<u8>) {
    past.clear();
    past.extend_from_slice(&version_row[..version_row.len() - VERSION_MS_BYTES]);
    // The end of a key is 00 01.
    *past.last_mut().expect("a row has a kind") += 1;
}

/// All rows of a kind ([`VERSION`] or [`UPLOAD`]) of a key.
pub(super) fn all_of(kind: u8, bucket: BucketId, key: &str) -> KeyRange {
    range_of(of_key(kind, bucket, key))
}

/// All versions of keys that begin with `prefix`.
pub(super) fn versions_below(bucket: BucketId, prefix: &str) -> KeyRange {
    below(VERSION, bucket, prefix)
}

/// All rows of a kind ([`VERSION`] or [`UPLOAD`]) of keys that begin with `prefix`.
pub(super) fn below(kind: u8, bucket: BucketId, prefix: &str) -> KeyRange {
    let mut row = of_bucket(kind, bucket);
    push_escaped(&mut row, prefix.as_bytes());
    range_of(row)
}

/// Bytes of the time at the end of a version's row key.
pub const VERSION_MS_BYTES: usize = 8;

/// The key of the row that would name the null version of the key that a version row is of.
///
/// # Panics
/// If it is not the key of a version row.
pub fn null_version_row(version_row: &[u8]) -> Vec<u8> {
    let of_key = &version_row[1..version_row.len() - VERSION_MS_BYTES];
    [&[NULL_VERSION], of_key].concat()
}

/// Which version is the null version.
pub(super) fn null_version(bucket: BucketId, key: &str) -> Vec<u8> {
    of_key(NULL_VERSION, bucket, key)
}

/// Bucket, key and version of a version row.
pub(super) fn parse_version(row: &[u8]) -> Option<(BucketId, String, u64)> {
    let (bucket, key, rest) = parse_key(VERSION, row)?;
    Some((bucket, key, !u64::from_be_bytes(rest.try_into().ok()?)))
}

pub(super) fn parse_key(kind: u8, row: &[u8]) -> Option<(BucketId, String, &[u8])> {
    let (bucket, mut rest) = row.strip_prefix(&[kind])?.split_first_chunk::<8>()?;
    let mut key = Vec::with_capacity(rest.len());
    loop {
        let (byte, after) = rest.split_first()?;
        rest = after;
        if *byte != 0 {
            key.push(*byte);
            continue;
        }
        let (escape, after) = rest.split_first()?;
        rest = after;
        match escape {
            0xFF => key.push(0),
            0x01 => return Some((BucketId(u64::from_be_bytes(*bucket)), String::from_utf8(key).ok()?, rest)),
            _ => return None,
        }
    }
}

pub(super) fn body(bucket: BucketId, key: &str, version_ms: u64, segment: u32) -> Vec<u8> {
    let mut row = of_version(BODY, bucket, key, version_ms);
    row.extend_from_slice(&segment.to_be_bytes());
    row
}

pub(super) fn continuation(bucket: BucketId, key: &str, version_ms: u64, n: u32) -> Vec<u8> {
    let mut row = of_version(CONTINUATION, bucket, key, version_ms);
    row.extend_from_slice(&n.to_be_bytes());
    row
}

pub(super) fn part_run(bucket: BucketId, key: &str, version_ms: u64, n: u32) -> Vec<u8> {
    let mut row = of_version(PART_RUN, bucket, key, version_ms);
    row.extend_from_slice(&n.to_be_bytes());
    row
}

pub(super) fn upload(bucket: BucketId, key: &str, upload: UploadId) -> Vec<u8> {
    let mut row = of_key(UPLOAD, bucket, key);
    row.extend_from_slice(&upload.0);
    row
}

/// All uploads of a bucket.
pub(super) fn uploads(bucket: BucketId) -> KeyRange {
    range_of(of_bucket(UPLOAD, bucket))
}

/// Bucket, key and id of an upload row.
pub(super) fn parse_upload(row: &[u8]) -> Option<(BucketId, String, UploadId)> {
    let (bucket, key, rest) = parse_key(UPLOAD, row)?;
    Some((bucket, key, UploadId(rest.try_into().ok()?)))
}

pub(super) fn part(upload: UploadId, number: u16) -> Vec<u8> {
    let mut row = of_id(PART, &upload.0);
    row.extend_from_slice(&number.to_be_bytes());
    row
}

/// Parts of an upload with a number above `after`.
pub(super) fn parts(upload: UploadId, after: u16) -> KeyRange {
    let end = end_of(of_id(PART, &upload.0));
    let mut from = part(upload, after);
    from.push(0);
    (from, end)
}

/// Number of a part row.
pub(super) fn parse_part(row: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(row.strip_prefix(&[PART])?.get(16..)?.try_into().ok()?))
}

pub(super) fn part_body(upload: UploadId, number: u16) -> Vec<u8> {
    let mut row = of_id(PART_BODY, &upload.0);
    row.extend_from_slice(&number.to_be_bytes());
    row
}

pub(super) fn completed(upload: UploadId) -> Vec<u8> {
    of_id(COMPLETED, &upload.0)
}

pub(super) fn owner(blob: BlobId) -> Vec<u8> {
    of_id(OWNER, &blob.to_bytes())
}

/// Where the rows of uploads begin; versions and what belongs to them stand before.
pub const UPLOAD_ROWS: [u8; 1] = [UPLOAD];

/// Whether a row is an entry of the free list: proposing one gives the freer work.
pub fn is_free_list_row(key: &[u8]) -> bool {
    key.first() == Some(&FREE)
}

pub(super) fn free(blob: BlobId) -> Vec<u8> {
    of_id(FREE, &blob.to_bytes())
}

/// The free list above `after`.
pub(super) fn free_after(after: Option<BlobId>) -> KeyRange {
    after_blob(FREE, after)
}

pub(super) fn degraded(blob: BlobId) -> Vec<u8> {
    of_id(DEGRADED, &blob.to_bytes())
}

/// Degraded blobs above `after`.
pub(super) fn degraded_after(after: Option<BlobId>) -> KeyRange {
    after_blob(DEGRADED, after)
}

fn after_blob(kind: u8, after: Option<BlobId>) -> KeyRange {
    let (mut from, end) = range_of(vec![kind]);
    if let Some(blob) = after {
        from = of_id(kind, &blob.to_bytes());
        from.push(0);
    }
    (from, end)
}

pub(super) fn revoked(writer: NodeId) -> Vec<u8> {
    let mut row = vec![REVOKED];
    row.extend_from_slice(&writer.0.to_be_bytes());
    row
}

/// Marks the row of `kind` ([`OWNER`] or [`COMPLETED`]) and `id` for removal at `due_ms`.
pub(super) fn expiry(due_ms: u64, kind: u8, id: &[u8; 16]) -> Vec<u8> {
    let mut row = vec![EXPIRY];
    row.extend_from_slice(&due_ms.to_be_bytes());
    row.push(kind);
    row.extend_from_slice(id);
    row
}

/// All that is due at `now_ms`.
pub(super) fn expiries_due(now_ms: u64) -> KeyRange {
    let mut end = vec![EXPIRY];
    end.extend_from_slice(&now_ms.to_be_bytes());
    (vec![EXPIRY], end_of(end))
}

/// The row that an expiry row is about.
pub(super) fn parse_expiry(row: &[u8]) -> Option<Vec<u8>> {
    let target = row.strip_prefix(&[EXPIRY])?.get(8..)?;
    (target.len() == 17 && matches!(target[0], OWNER | COMPLETED)).then(|| target.to_vec())
}
