//! What CompleteMultipartUpload compares and computes of its parts, without a look at rows.

use std::collections::BTreeMap;

use md5::{Digest, Md5};

use super::invalid;
use crate::checksum::{ChecksumAlgorithm, combined, composite, decode_checksum};
use crate::command::PART_BYTES_MIN;
use crate::command::manifest::{ObjectPart, Pairs, Part, UploadChecksum};
use crate::command::message::{Complete, Refusal};

/// What an upload gets that was announced without a checksum, if its parts have it.
const UNANNOUNCED: UploadChecksum =
    UploadChecksum { algorithm: ChecksumAlgorithm::Crc64Nvme, full_object: true };

fn of(checksums: &Pairs, algorithm: ChecksumAlgorithm) -> Option<&str> {
    checksums.iter().find(|(name, _)| name == algorithm.name()).map(|(_, value)| value.as_str())
}

/// Refuses a part without the checksum that its upload was announced to have.
pub(super) fn check_part(announced: Option<UploadChecksum>, checksums: &Pairs) -> Result<(), Refusal> {
    let Some(UploadChecksum { algorithm, .. }) = announced else { return Ok(()) };
    match of(checksums, algorithm) {
        Some(text) if decode_checksum(algorithm, text).is_some() => Ok(()),
        _ => {
            let actual = checksums.first().map_or("null", |(name, _)| name);
            let expected = algorithm.name();
            Err(invalid(&format!(
                "checksum type mismatch occurred, expected checksum type: {expected}, actual checksum type: {actual}"
            )))
        }
    }
}

/// Checks the list of a Complete against the stored parts; takes the chosen ones out of `parts`.
pub(super) fn choose(
    complete: &Complete,
    announced: Option<UploadChecksum>,
    parts: &mut BTreeMap<u16, Part>,
) -> Result<Vec<(u16, Part)>, Refusal> {
    if complete.parts.is_empty() {
        return Err(invalid("no parts are named"));
    }
    if !complete.parts.is_sorted_by(|a, b| a.number < b.number) {
        return Err(Refusal::InvalidPartOrder);
    }
    let composite = announced.filter(|checksum| !checksum.full_object);
    let mut chosen = Vec::with_capacity(complete.parts.len());
    for named in &complete.parts {
        let number = named.number;
        let same = |part: &Part| {
            let unlike = |(name, value): &(String, String)| {
                part.checksums.iter().any(|(other, stored)| other == name && stored != value)
            };
            named.etag.eq_ignore_ascii_case(&hex::encode(part.md5)) && !named.checksums.iter().any(unlike)
        };
        let part = parts.remove(&number).filter(same).ok_or(Refusal::InvalidPart { number })?;
        if let Some(UploadChecksum { algorithm, .. }) = composite
            && of(&named.checksums, algorithm).is_none()
        {
            return Err(invalid(&format!(
                "the upload was created using a {} checksum; the complete request must include the checksum for \
                 each part; it was missing for part {number}",
                algorithm.name()
            )));
        }
        chosen.push((number, part));
    }
    let all_but_last = &chosen[..chosen.len() - 1];
    if let Some((number, _)) = all_but_last.iter().find(|(_, part)| part.size_bytes() < PART_BYTES_MIN) {
        return Err(Refusal::EntityTooSmall { number: *number });
    }
    let size_bytes: u64 = chosen.iter().map(|(_, part)| part.size_bytes()).sum();
    if complete.size_bytes.is_some_and(|given| given != size_bytes) {
        return Err(invalid(&format!(
            "the object has {size_bytes} bytes, not what x-amz-mp-object-size says"
        )));
    }
    Ok(chosen)
}

/// `hex(md5 of the part MD5s)-parts`.
pub(super) fn etag(parts: &[(u16, Part)]) -> String {
    let mut md5 = Md5::new();
    for (_, part) in parts {
        md5.update(part.md5);
    }
    format!("{}-{}", hex::encode(md5.finalize()), parts.len())
}

/// The digests of all parts, if all have one.
fn digests(algorithm: ChecksumAlgorithm, parts: &[(u16, Part)]) -> Option<Vec<Vec<u8>>> {
    parts.iter().map(|(_, part)| decode_checksum(algorithm, of(&part.checksums, algorithm)?)).collect()
}

/// The checksum to store with the object, compared with what the client gave.
pub(super) fn checksums(
    complete: &Complete,
    announced: Option<UploadChecksum>,
    parts: &[(u16, Part)],
) -> Result<Pairs, Refusal> {
    let UploadChecksum { algorithm, full_object } = announced.unwrap_or(UNANNOUNCED);
    if announced.is_some() && complete.full_object.is_some_and(|given| given != full_object) {
        return Err(invalid("the checksum type is not that with which the upload was created"));
    }
    let digests = digests(algorithm, parts);
    let computed = digests.map(|digests| {
        if full_object {
            let sizes = parts.iter().map(|(_, part)| part.size_bytes());
            combined(algorithm, digests.iter().map(Vec::as_slice).zip(sizes))
        } else {
            composite(algorithm, digests.iter().map(Vec::as_slice))
        }
    });
    for (name, given) in &complete.checksums {
        let whole = |computed: &String| computed == given || computed.split('-').next() == Some(given);
        match &computed {
            Some(computed) if name == algorithm.name() && whole(computed) => {}
            Some(_) if name == algorithm.name() => return Err(Refusal::ChecksumMismatch { algorithm }),
            _ => {
                return Err(invalid(&format!("the parts have no {name} to compare that of the object with")));
            }
        }
    }
    Ok(computed.map(|computed| (algorithm.name().to_owned(), computed)).into_iter().collect())
}

/// What has to be kept of parts that does not follow from the segments; nothing if everything does.
pub(super) fn described(announced: Option<UploadChecksum>, parts: &[(u16, Part)]) -> Vec<ObjectPart> {
    let numbered = (1..).zip(parts).all(|(number, (other, _))| number == *other);
    if announced.is_none() && numbered {
        return Vec::new();
    }
    let algorithm = announced.unwrap_or(UNANNOUNCED).algorithm;
    let digest = |part: &Part| decode_checksum(algorithm, of(&part.checksums, algorithm)?);
    let described = |(number, part): &(u16, Part)| ObjectPart {
        number: *number,
        size_bytes: part.size_bytes(),
        checksum: digest(part).unwrap_or_default(),
    };
    parts.iter().map(described).collect()
}
