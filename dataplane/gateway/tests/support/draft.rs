//! Requests as a client writes them, signed or almost so: every step of signing can be spoilt.

use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};

use super::{ACCESS_KEY, SECRET_KEY};

pub fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Where the signature stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authentication {
    Header,
    Query,
    None,
}

/// How the body is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// Signed as a whole.
    Whole,
    Unsigned,
    Chunks,
    ChunksTrailer,
    UnsignedTrailer,
}

/// A request to be.
#[derive(Clone, Debug)]
pub struct Draft {
    pub method: &'static str,
    /// As sent.
    pub path: String,
    /// As sent.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub authentication: Authentication,
    pub framing: Framing,
    pub access_key: &'static str,
    pub secret: &'static str,
    /// Seconds that the client's clock is ahead.
    pub ahead: i64,
    pub region: &'static str,
    pub service: &'static str,
    pub expires: &'static str,
    /// Bytes of a chunk.
    pub chunk_bytes: usize,
    /// With this trailer instead of the right one.
    pub trailer: Option<(&'static str, String)>,
    pub spoilt: Spoilt,
}

/// What is wrong or unusual about the signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoilt {
    Nothing,
    Signature,
    UpperSignature,
    UnsortedHeaders,
    UpperHeaders,
    AbsentHeader,
    ExtraSpaces,
    NoSpaces,
    FieldOrder,
    OtherAlgorithm,
    OtherScopeDate,
    NoPayloadHash,
    OtherPayloadHash,
    UpperPayloadHash,
    NoHost,
    UnsignedHeader,
    NoDate,
    BadDate,
    Both,
    ChunkSignature,
    ChunkSize,
    DecodedLength,
    NoDecodedLength,
    NoTrailerHeader,
    Truncated,
    Longer,
    NoLength,
    ChunkedTransfer,
}

pub const SPOILT: [Spoilt; 28] = [
    Spoilt::Nothing,
    Spoilt::Signature,
    Spoilt::UpperSignature,
    Spoilt::UnsortedHeaders,
    Spoilt::UpperHeaders,
    Spoilt::AbsentHeader,
    Spoilt::ExtraSpaces,
    Spoilt::NoSpaces,
    Spoilt::FieldOrder,
    Spoilt::OtherAlgorithm,
    Spoilt::OtherScopeDate,
    Spoilt::NoPayloadHash,
    Spoilt::OtherPayloadHash,
    Spoilt::UpperPayloadHash,
    Spoilt::NoHost,
    Spoilt::UnsignedHeader,
    Spoilt::NoDate,
    Spoilt::BadDate,
    Spoilt::Both,
    Spoilt::ChunkSignature,
    Spoilt::ChunkSize,
    Spoilt::DecodedLength,
    Spoilt::NoDecodedLength,
    Spoilt::NoTrailerHeader,
    Spoilt::Truncated,
    Spoilt::Longer,
    Spoilt::NoLength,
    Spoilt::ChunkedTransfer,
];

fn canonical(sent: &str, keep_slash: bool) -> String {
    let mut text = String::new();
    for byte in percent_decode_str(sent) {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'~' | b'.' => {
                text.push(char::from(byte));
            }
            b'/' if keep_slash => text.push('/'),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn amz_date(ahead: i64) -> String {
    let now = std::time::UNIX_EPOCH + std::time::UNIX_EPOCH.elapsed().unwrap();
    let shift = std::time::Duration::from_secs(ahead.unsigned_abs());
    let at = if ahead < 0 { now - shift } else { now + shift };
    let mut text = Vec::new();
    s3s::dto::Timestamp::from(at).format(s3s::dto::TimestampFormat::DateTime, &mut text).unwrap();
    let iso = String::from_utf8(text).unwrap().replace(['-', ':'], "");
    format!("{}Z", &iso[..15])
}

impl Draft {
    pub fn new(method: &'static str, path: &str, body: &[u8]) -> Self {
        Self {
            method,
            path: path.to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: body.to_vec(),
            authentication: Authentication::Header,
            framing: Framing::Whole,
            access_key: ACCESS_KEY,
            secret: SECRET_KEY,
            ahead: 0,
            region: "us-east-1",
            service: "s3",
            expires: "600",
            chunk_bytes: 8192,
            trailer: None,
            spoilt: Spoilt::Nothing,
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    fn payload(&self) -> &'static str {
        match self.framing {
            Framing::Whole | Framing::Unsigned => "UNSIGNED-PAYLOAD",
            Framing::Chunks => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            Framing::ChunksTrailer => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            Framing::UnsignedTrailer => "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        }
    }

    fn trailer_line(&self) -> (&'static str, String) {
        let sum = crc32c_base64(&self.body);
        self.trailer.clone().unwrap_or(("x-amz-checksum-crc32c", sum))
    }

    /// The bytes to send.
    pub fn finish(mut self) -> Vec<u8> {
        let date = match self.spoilt {
            Spoilt::BadDate => "20260230T000000Z".to_owned(),
            _ => amz_date(self.ahead),
        };
        let day = if self.spoilt == Spoilt::OtherScopeDate { "20200101" } else { &date[..8] };
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        self.add_headers(&date);
        let secret = format!("AWS4{}", self.secret).into_bytes();
        let key = scope.split('/').fold(secret, |key, part| mac(&key, part));
        let (signed, hidden) = self.signed_headers();
        if self.authentication == Authentication::Query {
            let credential = format!("{}%2F{}", self.access_key, scope.replace('/', "%2F"));
            let algorithm =
                if self.spoilt == Spoilt::OtherAlgorithm { "AWS4-HMAC-SHA1" } else { "AWS4-HMAC-SHA256" };
            for (name, value) in [
                ("X-Amz-Algorithm", algorithm),
                ("X-Amz-Credential", &credential),
                ("X-Amz-Date", &date),
                ("X-Amz-Expires", self.expires),
                ("X-Amz-SignedHeaders", &signed.replace(';', "%3B")),
            ] {
                self.query.push((name.to_owned(), value.to_owned()));
            }
        }
        let canonical = self.canonical_request(&signed);
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let seed = hex::encode(mac(&key, &text));
        let shown = match self.spoilt {
            Spoilt::Signature => seed.replace(['0', '1', '2', '3'], "f"),
            Spoilt::UpperSignature => seed.to_uppercase(),
            _ => seed.clone(),
        };
        self.authorize(&scope, &signed, &shown);
        self.headers.extend(hidden);
        let body = self.framed(&key, &date, &scope, &seed);
        self.write(body)
    }

    fn add_headers(&mut self, date: &str) {
        if self.spoilt != Spoilt::NoHost {
            self.headers.push(("host".into(), "test".into()));
        }
        if self.authentication == Authentication::Header {
            let hash = match (self.framing, self.spoilt) {
                (_, Spoilt::OtherPayloadHash) => sha256_hex(b"something else"),
                (_, Spoilt::UpperPayloadHash) => sha256_hex(&self.body).to_uppercase(),
                (Framing::Whole, _) => sha256_hex(&self.body),
                _ => self.payload().to_owned(),
            };
            if self.spoilt != Spoilt::NoPayloadHash {
                self.headers.push(("x-amz-content-sha256".into(), hash));
            }
            if self.spoilt != Spoilt::NoDate {
                self.headers.push(("x-amz-date".into(), date.into()));
            }
        }
        let is_chunked = !matches!(self.framing, Framing::Whole | Framing::Unsigned);
        if is_chunked && self.spoilt != Spoilt::NoDecodedLength {
            let wrong = usize::from(self.spoilt == Spoilt::DecodedLength);
            let length = (self.body.len() + wrong).to_string();
            self.headers.push(("x-amz-decoded-content-length".into(), length));
        }
        let has_trailer = matches!(self.framing, Framing::ChunksTrailer | Framing::UnsignedTrailer);
        if has_trailer && self.spoilt != Spoilt::NoTrailerHeader {
            self.headers.push(("x-amz-trailer".into(), "x-amz-checksum-crc32c".into()));
        }
    }

    /// Their list, and headers that are sent unsigned.
    fn signed_headers(&self) -> (String, Vec<(String, String)>) {
        let mut names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if self.spoilt == Spoilt::AbsentHeader {
            names.push("x-amz-zzz");
        }
        if self.spoilt == Spoilt::UnsortedHeaders {
            names.reverse();
        }
        let mut signed = names.join(";");
        if self.spoilt == Spoilt::UpperHeaders {
            signed = signed.to_uppercase();
        }
        let hidden = self.spoilt == Spoilt::UnsignedHeader;
        (signed, hidden.then(|| ("x-amz-meta-hidden".into(), "1".into())).into_iter().collect())
    }

    fn canonical_request(&self, signed: &str) -> String {
        let mut pairs: Vec<_> = self
            .query
            .iter()
            .map(|(name, value)| (canonical(name, false), canonical(value, false)))
            .collect();
        pairs.sort();
        let query: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut names: Vec<&str> = signed.split(';').collect();
        names.sort_unstable();
        let line = |name: &&str| {
            let values = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
            let values: Vec<_> = values
                .map(|(_, value)| value.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
                .collect();
            format!("{}:{}\n", name.to_lowercase(), values.join(","))
        };
        let lines: String = names.iter().filter(|name| **name != "x-amz-zzz").map(line).collect();
        let payload = self.headers.iter().find(|(name, _)| name == "x-amz-content-sha256");
        let payload = payload.filter(|_| self.authentication == Authentication::Header);
        let payload = payload.map_or("UNSIGNED-PAYLOAD", |(_, value)| value.as_str());
        let signed: Vec<&str> = names.into_iter().filter(|name| *name != "x-amz-zzz").collect();
        format!(
            "{}\n{}\n{}\n{lines}\n{}\n{payload}",
            self.method,
            canonical(&self.path, true),
            query.join("&"),
            signed.join(";").to_lowercase()
        )
    }

    fn authorize(&mut self, scope: &str, signed: &str, signature: &str) {
        let key = self.access_key;
        let header = match self.spoilt {
            Spoilt::ExtraSpaces => format!(
                "AWS4-HMAC-SHA256  Credential={key}/{scope},   SignedHeaders={signed},  Signature={signature}"
            ),
            Spoilt::NoSpaces => format!(
                "AWS4-HMAC-SHA256 Credential={key}/{scope},SignedHeaders={signed},Signature={signature}"
            ),
            Spoilt::FieldOrder => format!(
                "AWS4-HMAC-SHA256 SignedHeaders={signed}, Credential={key}/{scope}, Signature={signature}"
            ),
            Spoilt::OtherAlgorithm => format!(
                "AWS4-HMAC-SHA512 Credential={key}/{scope}, SignedHeaders={signed}, Signature={signature}"
            ),
            _ => format!(
                "AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={signed}, Signature={signature}"
            ),
        };
        if self.authentication == Authentication::Query {
            self.query.push(("X-Amz-Signature".into(), signature.into()));
        }
        if self.authentication == Authentication::Header || self.spoilt == Spoilt::Both {
            self.headers.push(("authorization".into(), header));
        }
    }

    fn framed(&self, key: &[u8], date: &str, scope: &str, seed: &str) -> Vec<u8> {
        if matches!(self.framing, Framing::Whole | Framing::Unsigned) {
            return self.body.clone();
        }
        let is_signed = self.framing != Framing::UnsignedTrailer;
        let mut previous = seed.to_owned();
        let mut body = Vec::new();
        let mut sign = |kind: &str, digests: &str| {
            let text = format!("AWS4-HMAC-SHA256-{kind}\n{date}\n{scope}\n{previous}\n{digests}");
            previous = hex::encode(mac(key, &text));
            previous.clone()
        };
        let chunks: Vec<&[u8]> = self.body.chunks(self.chunk_bytes).chain([&b""[..]]).collect();
        for (index, chunk) in chunks.iter().enumerate() {
            let wrong = usize::from(self.spoilt == Spoilt::ChunkSize && index == 0);
            body.extend(format!("{:x}", chunk.len() + wrong).into_bytes());
            if is_signed {
                let mut signature = sign("PAYLOAD", &format!("{}\n{}", sha256_hex(b""), sha256_hex(chunk)));
                if self.spoilt == Spoilt::ChunkSignature && index + 1 == chunks.len() {
                    signature = signature.replace(['0', '1', '2', '3'], "f");
                }
                body.extend(format!(";chunk-signature={signature}").into_bytes());
            }
            body.extend(b"\r\n");
            body.extend(*chunk);
            if !chunk.is_empty() {
                body.extend(b"\r\n");
            }
        }
        if self.framing != Framing::Chunks {
            let (name, value) = self.trailer_line();
            body.extend(format!("{name}:{value}\r\n").into_bytes());
            if is_signed {
                let digest = sha256_hex(format!("{name}:{value}\n").as_bytes());
                let signature = sign("TRAILER", &digest);
                body.extend(format!("x-amz-trailer-signature:{signature}\r\n").into_bytes());
            }
        }
        body.extend(b"\r\n");
        body
    }

    fn write(&self, mut body: Vec<u8>) -> Vec<u8> {
        let announced = body.len();
        match self.spoilt {
            Spoilt::Truncated => body.truncate(announced.saturating_sub(7)),
            Spoilt::Longer => body.extend(b"trailing"),
            _ => {}
        }
        let query: Vec<_> = self
            .query
            .iter()
            .map(|(name, value)| if value == "\0" { name.clone() } else { format!("{name}={value}") })
            .collect();
        let separator = if query.is_empty() { "" } else { "?" };
        let mut head = format!("{} {}{separator}{} HTTP/1.1\r\n", self.method, self.path, query.join("&"));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let is_read = matches!(self.method, "GET" | "HEAD");
        match self.spoilt {
            Spoilt::NoLength => {}
            Spoilt::ChunkedTransfer => {
                head.push_str("transfer-encoding: chunked\r\n");
                body = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
            }
            _ if is_read && body.is_empty() => {}
            _ => head.push_str(&format!("content-length: {announced}\r\n")),
        }
        head.push_str("connection: close\r\n\r\n");
        [head.as_bytes(), &body].concat()
    }
}

pub fn crc32c_base64(data: &[u8]) -> String {
    use base64::Engine as _;
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, data);
    let sum = u32::try_from(sum).unwrap();
    base64::engine::general_purpose::STANDARD.encode(sum.to_be_bytes())
}
