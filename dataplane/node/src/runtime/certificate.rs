//! When a certificate ends: the one field of X.509 that a metric needs, found in its DER without a parser of the rest.
//!
//! ```text
//! Certificate ::= SEQUENCE { tbs SEQUENCE { [0] version, serial, algorithm, issuer, validity SEQUENCE { from, until } ...
//! ```

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Tag and content of the first element, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        let (bytes, rest) = rest.split_at_checked(count)?;
        let len = (1..=4)
            .contains(&count)
            .then(|| bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)))?;
        (len, rest)
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

fn inside(der: &[u8], tag: u8) -> Option<&[u8]> {
    element(der).filter(|(found, ..)| *found == tag).map(|(_, content, _)| content)
}

/// Unix seconds of the end of a certificate; `None`: it is not one.
pub(super) fn expiry_s(der: &[u8]) -> Option<i64> {
    let mut fields = inside(inside(der, SEQUENCE)?, SEQUENCE)?;
    if element(fields)?.0 == VERSION {
        fields = element(fields)?.2;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (_, _, until) = element(inside(fields, SEQUENCE)?)?;
    let (tag, text, _) = element(until)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    match tag {
        // Two digits of the year: 1950 to 2049.
        UTC_TIME => {
            let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            unix_s(&format!("{century}{text}"))
        }
        GENERALIZED_TIME => unix_s(text),
        _ => None,
    }
}

/// Of `YYYYMMDDHHMMSS`.
fn unix_s(text: &str) -> Option<i64> {
    let field = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (field(0, 4)?, field(4, 6)?, field(6, 8)?);
    let (hour, minute, second) = (field(8, 10)?, field(10, 12)?, field(12, 14)?);
    // Days since 1970, with years that begin in March: the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_found() {
        let key = rcgen::KeyPair::generate().unwrap();
        // UTCTime, and GeneralizedTime from 2050 on.
        for (year, expected) in [(2027, 1_804_204_800), (2050, 2_530_051_200)] {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 3, 5);
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(expiry_s(certificate.der()), Some(expected));
            for end in 0..certificate.der().len().min(200) {
                let _ = expiry_s(&certificate.der()[..end]);
            }
        }
        assert_eq!((unix_s("19700101000000"), unix_s("20000301000001")), (Some(0), Some(951_868_801)));
    }
}
