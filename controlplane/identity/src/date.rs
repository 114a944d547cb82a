//! Dates in conditions: ISO 8601 as W3C profiles it, or seconds since 1970.

/// Milliseconds since 1970 of `2026-01-31`, `2026-01-31T10:00Z`, `2026-01-31T10:00:00.5+01:00`, or of a number of
/// seconds.
pub(crate) fn parse_ms(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<i64>() {
        return seconds.checked_mul(1000);
    }
    let (date, time) = text.split_once('T').map_or((text, None), |(date, time)| (date, Some(time)));
    let days = days_since_1970(date)?;
    let within_ms = time.map_or(Some(0), time_ms)?;
    Some(days * 86_400_000 + within_ms)
}

fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn days_since_1970(date: &str) -> Option<i64> {
    let mut fields = date.split('-');
    let (year, month, day) =
        (digits(fields.next()?, 4)?, digits(fields.next()?, 2)?, digits(fields.next()?, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if fields.next().is_some() || !(1..=longest).contains(&day) {
        return None;
    }
    // Years from March to February, so that the leap day is the last of a year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    Some(365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468)
}

fn time_ms(time: &str) -> Option<i64> {
    let (clock, offset_minutes) = if let Some(clock) = time.strip_suffix('Z') {
        (clock, 0)
    } else {
        let at = time.rfind(['+', '-'])?;
        let sign = if time.as_bytes()[at] == b'-' { -1 } else { 1 };
        let (hours, minutes) = time[at + 1..].split_once(':')?;
        (&time[..at], sign * (60 * digits(hours, 2)? + digits(minutes, 2)?))
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction_ms = format!("{fraction:0<3}")[..3].parse::<i64>().ok()?;
    let mut fields = clock.split(':');
    let (hours, minutes) = (digits(fields.next()?, 2)?, digits(fields.next()?, 2)?);
    let seconds = fields.next().map_or(Some(0), |field| digits(field, 2))?;
    if fields.next().is_some() || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    Some(((hours * 60 + minutes - offset_minutes) * 60 + seconds) * 1000 + fraction_ms)
}

#[cfg(test)]
mod tests {
    use super::parse_ms;

    #[test]
    fn dates() {
        assert_eq!(parse_ms("1970-01-01"), Some(0));
        assert_eq!(parse_ms("2000-02-29T00:00:00Z"), Some(951_782_400_000));
        assert_eq!(parse_ms("2026-11-22T23:32:05.25Z"), Some(1_795_390_325_250));
        assert_eq!(parse_ms("2026-11-23T00:32:05+01:00"), Some(1_795_390_325_000));
        assert_eq!(parse_ms("1795390325"), Some(1_795_390_325_000));
        for bad in ["", "2026-13-01", "2026-02-29", "2026-01-01T", "2026-01-01T25:00Z", "2026-1-1", "now"] {
            assert_eq!(parse_ms(bad), None, "{bad}");
        }
    }
}
