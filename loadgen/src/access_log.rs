//! The command `record`: from an access log to a [`Trace`].
//!
//! Two formats, told apart line by line: Amazon S3's server access log, and the combined format of web servers for
//! requests with the bucket as the first part of the path. Both give times by the second only, so the requests of
//! one second are spread evenly over it. Requests that failed, or are nothing that can be replayed (settings of buckets,
//! single parts), are left out and counted. An object that is read before the log writes it has to be there
//! before: as large as the largest answer says.

use std::collections::BTreeMap;
use std::collections::HashMap;

use anyhow::{Context, Result, bail};

use crate::args::run::RecordArgs;
use crate::stats::Operation;
use crate::trace::{Recorded, Trace};

/// Size of objects that are read but whose size nothing tells.
const SIZE_UNKNOWN: u64 = 64 << 10;

/// One request of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    /// Seconds since 1970.
    second: u64,
    operation: Operation,
    bucket: String,
    key: String,
    /// Body bytes sent or received.
    bytes: u64,
    /// Size of the object, where the log has it.
    object_bytes: Option<u64>,
}

/// What a log held.
pub(crate) struct Recording {
    pub(crate) trace: Trace,
    /// Lines that are no requests, or none that can be replayed.
    pub(crate) left_out: u64,
}

/// Reads the log and writes the trace; returns what to tell the user.
pub(crate) fn record(args: &RecordArgs) -> Result<String> {
    let log = std::fs::read(&args.log).with_context(|| format!("cannot read {}", args.log.display()))?;
    let Recording { trace, left_out } = parse(&String::from_utf8_lossy(&log), args.bucket.as_deref())?;
    std::fs::write(&args.out, trace.text())
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    trace.operations.iter().for_each(|recorded| *counts.entry(recorded.operation.name()).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    Ok(format!(
        "{} operations in {:.0} s on {} objects ({}); {left_out} lines left out\n",
        trace.operations.len(),
        std::time::Duration::from_micros(trace.duration_us()).as_secs_f64(),
        trace.objects.len(),
        counts.join(", ")
    ))
}

fn parse(log: &str, bucket: Option<&str>) -> Result<Recording> {
    let mut requests = Vec::new();
    let mut left_out = 0;
    for line in log.lines() {
        match request(line).filter(|request| bucket.is_none_or(|bucket| bucket == request.bucket)) {
            Some(request) => requests.push(request),
            None => left_out += 1,
        }
    }
    if requests.is_empty() {
        bail!("the log has no request that can be replayed: use S3's access log or the combined format");
    }
    // Logs are written when requests end; the order within a second stays as it is.
    requests.sort_by_key(|request| request.second);
    Ok(Recording { trace: trace(&requests), left_out })
}

fn trace(requests: &[Request]) -> Trace {
    let mut numbers: HashMap<(&str, &str), u64> = HashMap::new();
    let mut trace = Trace::default();
    let mut in_second: HashMap<u64, (u64, u64)> = HashMap::new();
    requests.iter().for_each(|request| in_second.entry(request.second).or_default().0 += 1);
    let first = requests[0].second;
    for request in requests {
        let object = *numbers.entry((&request.bucket, &request.key)).or_insert_with(|| {
            trace.objects.push(0);
            trace.objects.len() as u64 - 1
        });
        let (count, done) = in_second.get_mut(&request.second).expect("counted above");
        let at_us = (request.second - first) * 1_000_000 + *done * 1_000_000 / *count;
        *done += 1;
        let reads = matches!(request.operation, Operation::Get | Operation::Range | Operation::Head);
        let size = request.object_bytes.unwrap_or(match request.operation {
            Operation::Head => SIZE_UNKNOWN,
            _ => request.bytes,
        });
        let index = usize::try_from(object).expect("counted in memory");
        let known = trace.objects[index];
        if reads || !request.operation.writes() {
            trace.objects[index] = known.max(if reads { size } else { 1 });
        } else if known == 0 {
            trace.objects[index] = size.max(1);
        }
        let Request { operation, bytes, .. } = *request;
        trace.operations.push(Recorded { at_us, operation, object, bytes, offset: None });
    }
    trace
}

fn request(line: &str) -> Option<Request> {
    let fields = fields(line);
    // Both have the time in brackets: third in S3's format (after owner and bucket), fourth in the combined one.
    match fields.iter().position(|field| field.starts_with('[')) {
        Some(2) => s3_request(&fields),
        Some(3) => combined_request(&fields),
        _ => None,
    }
}

/// Owner, bucket, time, address, requester, request id, operation, key, request line, status, error, bytes sent, object
/// size, and more.
fn s3_request(fields: &[&str]) -> Option<Request> {
    let status: u16 = fields.get(9)?.parse().ok()?;
    let sent: u64 = fields.get(11)?.parse().unwrap_or(0);
    let object_bytes = fields.get(12)?.parse().ok();
    let operation = match *fields.get(6)? {
        "REST.GET.OBJECT" if status == 206 => Operation::Range,
        "REST.GET.OBJECT" => Operation::Get,
        "REST.HEAD.OBJECT" => Operation::Head,
        "REST.PUT.OBJECT" | "REST.POST.UPLOAD" => Operation::Put,
        "REST.DELETE.OBJECT" => Operation::Delete,
        "REST.GET.BUCKET" => Operation::List,
        "REST.COPY.OBJECT" => Operation::Copy,
        _ => return None,
    };
    let bytes = if operation.writes() { object_bytes.unwrap_or(SIZE_UNKNOWN) } else { sent };
    (200..300)
        .contains(&status)
        .then(|| Request {
            second: seconds(fields[2]).unwrap_or(0),
            operation,
            bucket: fields[1].to_owned(),
            key: fields[7].to_owned(),
            bytes,
            object_bytes,
        })
        .filter(|request| request.second > 0)
}

/// Address, identity, user, time, request line, status, bytes sent, and more.
fn combined_request(fields: &[&str]) -> Option<Request> {
    let mut words = fields.get(4)?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let status: u16 = fields.get(5)?.parse().ok()?;
    let bytes: u64 = fields.get(6)?.parse().unwrap_or(0);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (bucket, key) =
        path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    let operation = match (method, key.is_empty()) {
        ("GET", true) => Operation::List,
        (_, true) => return None,
        _ if query.contains("uploadId=") || query.starts_with("uploads") => return None,
        ("GET", _) if status == 206 => Operation::Range,
        ("GET", _) => Operation::Get,
        ("HEAD", _) => Operation::Head,
        ("PUT", _) => Operation::Put,
        ("DELETE", _) => Operation::Delete,
        _ => return None,
    };
    // The format has the bytes of the answer, which says nothing about what a PUT brought.
    let bytes = if operation == Operation::Put { SIZE_UNKNOWN } else { bytes };
    let second = seconds(fields[3])?;
    (200..300).contains(&status).then(|| Request {
        second,
        operation,
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        bytes,
        object_bytes: None,
    })
}

/// Splits at spaces, except within brackets and quotes; quotes are left off.
fn fields(line: &str) -> Vec<&str> {
    let mut fields = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (field, after) = match rest.as_bytes()[0] {
            b'"' => rest[1..].split_once('"').unwrap_or((&rest[1..], "")),
            b'[' => match rest.find(']') {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, ""),
            },
            _ => rest.split_once(' ').unwrap_or((rest, "")),
        };
        fields.push(field);
        rest = after.trim_start();
    }
    fields
}

/// Seconds since 1970 of `[06/Feb/2026:00:00:38 +0100`.
fn seconds(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (time, zone) =
        text.trim_start_matches('[').split_once(' ').unwrap_or((text.trim_start_matches('['), "+0000"));
    let mut parts = time.split(['/', ':']);
    let mut part = || parts.next();
    let (day, name, year) = (part()?.parse::<i64>().ok()?, part()?, part()?.parse::<i64>().ok()?);
    let (hour, minute, second) =
        (part()?.parse::<i64>().ok()?, part()?.parse::<i64>().ok()?, part()?.parse::<i64>().ok()?);
    let month = i64::try_from(MONTHS.find(name).filter(|at| name.len() == 3 && at % 3 == 0)? / 3).ok()? + 1;
    // Days of the proleptic Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468;
    let zone: i64 = zone.parse().ok()?;
    let offset = (zone / 100) * 3600 + (zone % 100) * 60;
    u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second - offset).ok()
}

#[cfg(test)]
mod tests {
    use super::{parse, seconds};
    use crate::stats::Operation;

    const S3: &str = "\
79a5 media [06/Feb/2026:00:00:38 +0000] 192.0.2.3 79a5 3E57 REST.GET.OBJECT a/b.jpg \"GET /media/a/b.jpg HTTP/1.1\" 200 - 5000 5000 70 10 \"-\" \"agent x\" -
79a5 media [06/Feb/2026:00:00:38 +0000] 192.0.2.3 79a5 3E58 REST.GET.OBJECT a/b.jpg \"GET /media/a/b.jpg HTTP/1.1\" 206 - 100 5000 70 10 \"-\" \"agent\" -
79a5 media [06/Feb/2026:00:00:40 +0000] 192.0.2.3 79a5 3E59 REST.PUT.OBJECT c \"PUT /media/c HTTP/1.1\" 200 - - 777 70 10 \"-\" \"agent\" -
79a5 media [06/Feb/2026:00:00:41 +0000] 192.0.2.3 79a5 3E5A REST.GET.VERSIONING - \"GET /media?versioning HTTP/1.1\" 200 - 113 - 7 - \"-\" \"S3Console/0.4\" -
79a5 media [06/Feb/2026:00:00:41 +0000] 192.0.2.3 79a5 3E5B REST.GET.OBJECT gone \"GET /media/gone HTTP/1.1\" 404 NoSuchKey 297 - 38 - \"-\" \"agent\" -
";
    const COMBINED: &str = "\
192.0.2.1 - alice [10/Oct/2026:13:55:36 +0200] \"GET /site/index.html HTTP/1.1\" 200 2326 \"http://x/\" \"Mozilla/5.0 (X11)\"
192.0.2.1 - - [10/Oct/2026:13:55:37 +0200] \"HEAD /site/logo.png HTTP/1.1\" 200 0 \"-\" \"curl\"
192.0.2.1 - - [10/Oct/2026:13:55:38 +0200] \"PUT /site/new HTTP/1.1\" 200 0 \"-\" \"curl\"
192.0.2.1 - - [10/Oct/2026:13:55:38 +0200] \"GET /site?list-type=2 HTTP/1.1\" 200 900 \"-\" \"curl\"
192.0.2.1 - - [10/Oct/2026:13:55:39 +0200] \"PUT /other/x HTTP/1.1\" 200 0 \"-\" \"curl\"
garbage
";

    #[test]
    fn the_log_of_s3_becomes_a_trace() {
        let recording = parse(S3, None).unwrap();
        assert_eq!(recording.left_out, 2);
        let trace = recording.trace;
        let kinds: Vec<_> =
            trace.operations.iter().map(|r| (r.at_us, r.operation, r.object, r.bytes)).collect();
        assert_eq!(
            kinds,
            [
                (0, Operation::Get, 0, 5000),
                (500_000, Operation::Range, 0, 100),
                (2_000_000, Operation::Put, 1, 777)
            ]
        );
        assert_eq!(trace.objects, [5000, 777]);
        assert_eq!(crate::trace::Trace::parse(&trace.text()).unwrap(), trace);
    }

    #[test]
    fn the_combined_format_becomes_a_trace() {
        let recording = parse(COMBINED, Some("site")).unwrap();
        assert_eq!((recording.left_out, recording.trace.operations.len()), (2, 4));
        let kinds: Vec<_> = recording.trace.operations.iter().map(|r| r.operation).collect();
        assert_eq!(kinds, [Operation::Get, Operation::Head, Operation::Put, Operation::List]);
        assert_eq!(recording.trace.objects[0], 2326);
        assert!(parse("garbage\n", None).is_err());
    }

    #[test]
    fn times_have_zones() {
        assert_eq!(seconds("[01/Jan/1970:00:00:00 +0000"), Some(0));
        assert_eq!(seconds("[29/Feb/2000:23:59:59 +0000"), Some(951_868_799));
        assert_eq!(seconds("[10/Oct/2000:13:55:36 -0700"), Some(971_211_336));
        assert_eq!(seconds("[10/Okt/2000:13:55:36 -0700"), None);
    }
}
