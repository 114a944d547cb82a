use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use quarry_object::api::BodyError;

use super::Checks;

/// Check values of the CRC catalogue and of FIPS 180 for "123456789", base64.
const KNOWN: [(&str, &str); 5] = [
    ("crc32", "y/Q5Jg=="),
    ("crc32c", "4waSgw=="),
    ("crc64nvme", "rosUhgp5mIg="),
    ("sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
    ("sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
];

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
    };
    fields.iter().map(pair).collect()
}

fn check(request: &[(&str, &str)], trailers: Option<&[(&str, &str)]>) -> Result<String, BodyError> {
    let mut checks = Checks::of_body(&headers(request)).unwrap();
    checks.update(&Bytes::from_static(b"12345"));
    checks.update(&Bytes::from_static(b"6789"));
    let digests = checks.finish(trailers.map(headers).as_ref())?;
    Ok(digests.checksums.into_values().next().unwrap_or_default())
}

#[test]
fn known_checksums_match_in_header_and_trailer() {
    for (name, value) in KNOWN {
        let header = format!("x-amz-checksum-{name}");
        assert_eq!(check(&[(&header, value)], None), Ok(value.to_owned()), "{name}");
        let announced = [("x-amz-trailer", header.as_str())];
        assert_eq!(check(&announced, Some(&[(&header, value)])), Ok(value.to_owned()), "{name}");
        assert!(matches!(check(&announced, None), Err(BodyError::Malformed { .. })), "{name}");
    }
}

#[test]
fn wrong_values_are_told_apart() {
    let mismatch = |what: &str| Err(BodyError::Mismatch { what: what.to_owned() });
    assert_eq!(check(&[("x-amz-checksum-crc32", "AAAAAA==")], None), mismatch("x-amz-checksum-crc32"));
    assert_eq!(check(&[("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")], None), mismatch("Content-MD5"));
    assert_eq!(check(&[("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==")], None), Ok("rosUhgp5mIg=".to_owned()));
    let zeros = "0".repeat(64);
    assert_eq!(check(&[("x-amz-content-sha256", &zeros)], None), mismatch("x-amz-content-sha256"));
}

#[test]
fn values_that_cannot_be_right_are_refused() {
    for bad in [
        &[("content-md5", "short")][..],
        &[("x-amz-checksum-crc32", "AAAA")],
        &[("x-amz-checksum-crc32", "y/Q5Jg=="), ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE=")],
    ] {
        assert!(Checks::of_body(&headers(bad)).is_err(), "{bad:?}");
    }
}
