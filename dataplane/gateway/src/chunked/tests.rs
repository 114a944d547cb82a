use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{collection::vec, proptest};

use super::{Chain, ChunkError, Decoder, Framing};

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const DATE: &str = "20130524T000000Z";
const SCOPE: &str = "20130524/us-east-1/s3/aws4_request";
const SEED: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
const CHECKSUM: &str = "x-amz-checksum-crc32c";

fn chain(seed: &str) -> Chain {
    Chain::new(&SECRET.into(), DATE, SCOPE, seed)
}

fn decoder(framing: Framing, len_bytes: usize, seed: &str) -> Decoder {
    let announced = if framing.has_trailers() { vec![HeaderName::from_static(CHECKSUM)] } else { Vec::new() };
    Decoder::new(framing, len_bytes as u64, announced, framing.is_signed().then(|| chain(seed)))
}

/// Payload and trailers of a body that arrives cut into pieces of these lengths, over and over.
fn decode(mut decoder: Decoder, body: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, HeaderMap), ChunkError> {
    let (mut payload, mut rest) = (Vec::new(), body);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
        rest = later;
        let mut input = Bytes::copy_from_slice(piece);
        while let Some(data) = decoder.feed(&mut input)? {
            assert!(!data.is_empty());
            payload.extend_from_slice(&data);
        }
        assert!(decoder.line.held() <= super::TRAILER_LINE_BYTES_MAX);
    }
    decoder.finish().map(|trailers| (payload, trailers))
}

/// What a client sends.
fn encode(framing: Framing, chunks: &[Vec<u8>], trailer: &str) -> Vec<u8> {
    let mut chain = chain(SEED);
    let mut body = Vec::new();
    for data in chunks.iter().map(Vec::as_slice).chain([&b""[..]]) {
        body.extend(format!("{:x}", data.len()).bytes());
        if framing.is_signed() {
            body.extend(format!(";chunk-signature={}", chain.sign_chunk(data)).bytes());
        }
        body.extend(b"\r\n");
        if !data.is_empty() {
            body.extend([data, b"\r\n"].concat());
        }
    }
    if framing.has_trailers() {
        body.extend(format!("{CHECKSUM}:{trailer}\r\n").bytes());
    }
    if framing == Framing::SignedTrailer {
        let signature = chain.sign_trailers(format!("{CHECKSUM}:{trailer}\n").as_bytes());
        body.extend(format!("x-amz-trailer-signature:{signature}\r\n").bytes());
    }
    body.extend(b"\r\n");
    body
}

fn framings() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::Signed), Just(Framing::SignedTrailer), Just(Framing::UnsignedTrailer)]
}

/// A body of 64 KiB and 1 KiB of the letter `a`, with the signatures that AWS documents for it.
fn documented(signatures: [&str; 3], end: &str) -> Vec<u8> {
    let [first, second, last] = signatures;
    let line = |size: &str, signature: &str| format!("{size};chunk-signature={signature}\r\n");
    let (long, short) = ("a".repeat(65_536), "a".repeat(1024));
    let body = [
        line("10000", first),
        long,
        "\r\n".into(),
        line("400", second),
        short,
        "\r\n".into(),
        line("0", last),
    ];
    [body.concat(), end.to_owned()].concat().into_bytes()
}

#[test]
fn documented_example_is_accepted() {
    let signatures = [
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ];
    let body = documented(signatures, "\r\n");
    assert_eq!(body.len(), 66_824);
    let (payload, _) = decode(decoder(Framing::Signed, 66_560, SEED), &body, &[1000]).unwrap();
    assert_eq!(payload, "a".repeat(66_560).into_bytes());
}

#[test]
fn documented_example_with_trailer_is_accepted() {
    let seed = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e";
    let signatures = [
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ];
    let signature = "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435";
    for gap in ["\r\n", "\n\r\n"] {
        let end = format!("{CHECKSUM}:sOO8/Q=={gap}x-amz-trailer-signature:{signature}\r\n\r\n");
        let body = documented(signatures, &end);
        let decoded = decode(decoder(Framing::SignedTrailer, 66_560, seed), &body, &[7, 8192]);
        assert_eq!(decoded.unwrap().1[CHECKSUM], "sOO8/Q==");
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    #[test]
    fn what_is_encoded_is_decoded_however_it_is_cut(
        framing in framings(),
        chunks in vec(vec(any::<u8>(), 1..300), 0..6),
        cuts in vec(1_usize..200, 1..8),
    ) {
        let body = encode(framing, &chunks, "AAAAAA==");
        let payload = chunks.concat();
        let (decoded, trailers) = decode(decoder(framing, payload.len(), SEED), &body, &cuts).unwrap();
        assert_eq!(decoded, payload);
        let expected = framing.has_trailers().then(|| HeaderValue::from_static("AAAAAA=="));
        assert_eq!(trailers.get(CHECKSUM), expected.as_ref());
    }

    #[test]
    fn garbage_is_judged_the_same_however_it_is_cut(
        framing in framings(),
        chunks in vec(vec(any::<u8>(), 1..40), 0..4),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cuts in vec(1_usize..50, 1..8),
    ) {
        let mut body = encode(framing, &chunks, "AAAAAA==");
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let whole = decode(decoder(framing, chunks.concat().len(), SEED), &body, &[usize::MAX]);
        assert_eq!(decode(decoder(framing, chunks.concat().len(), SEED), &body, &cuts), whole);
    }
}

#[test]
fn every_changed_or_missing_byte_is_refused_where_all_is_signed() {
    let chunks = [b"some data".to_vec(), b"more".to_vec()];
    for framing in [Framing::Signed, Framing::SignedTrailer] {
        let body = encode(framing, &chunks, "AAAAAA==");
        let judge = |body: &[u8]| decode(decoder(framing, 13, SEED), body, &[usize::MAX]);
        judge(&body).unwrap();
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 0x01;
            assert!(judge(&changed).is_err(), "{framing:?} byte {at}");
            assert!(judge(&body[..at]).is_err(), "{framing:?} cut at {at}");
        }
        let longer = [&body[..], b"x"].concat();
        assert_eq!(judge(&longer), Err(ChunkError::Framing { problem: "there are bytes after the end" }));
    }
}

#[test]
fn payload_passes_before_its_signature_but_the_end_does_not() {
    let mut body = encode(Framing::Signed, &[b"payload".to_vec()], "");
    let at = body.windows(7).position(|window| window == b"payload").unwrap();
    body[at] = b'q';
    let mut decoder = decoder(Framing::Signed, 7, SEED);
    let mut input = Bytes::from(body[..at + 4].to_vec());
    assert_eq!(decoder.feed(&mut input), Ok(Some(Bytes::from_static(b"qayl"))));
    let mut input = Bytes::from(body[at + 4..].to_vec());
    assert_eq!(decoder.feed(&mut input), Err(ChunkError::Signature));
    assert_eq!(decoder.finish(), Err(ChunkError::Incomplete));
}

#[test]
fn lengths_are_exact() {
    let body = encode(Framing::UnsignedTrailer, &[vec![1; 10]], "AAAAAA==");
    let judge =
        |len_bytes| decode(decoder(Framing::UnsignedTrailer, len_bytes, SEED), &body, &[3]).map(|_| ());
    assert_eq!(judge(10), Ok(()));
    assert_eq!(judge(11), Err(ChunkError::Incomplete));
    assert!(matches!(judge(9), Err(ChunkError::Framing { .. })));
}

#[test]
fn framing_that_no_client_should_send_is_refused() {
    let refused = |framing: Framing, body: &str| {
        decode(decoder(framing, 3, SEED), body.as_bytes(), &[5]).map(|_| ()).unwrap_err()
    };
    let malformed = [
        "\r\n",
        "xyz\r\n",
        "-3\r\nabc",
        "3\nabc\r\n",
        "3 \r\nabc\r\n",
        "00000000000000003\r\nabc",
        "ffffffffffffffff\r\nabc",
        "4\r\nabcd",
        "3;chunk-signature=00\r\nabc",
        "3;other=1\r\nabc",
        "3\r\nabcd\r\n",
    ];
    for body in malformed {
        let error = refused(Framing::UnsignedTrailer, body);
        assert!(matches!(error, ChunkError::Framing { .. }), "{body:?}: {error:?}");
    }
    let long = format!("3;{}", "x".repeat(200));
    assert!(matches!(refused(Framing::UnsignedTrailer, &long), ChunkError::Framing { .. }));
    assert!(matches!(refused(Framing::Signed, "3\r\nabc\r\n"), ChunkError::Framing { .. }));
    let trailers = [
        "\r\n",
        "no colon\r\n\r\n",
        "x-amz-checksum-sha1:not announced\r\n\r\n",
        "x-amz-checksum-crc32c:a\r\nx-amz-checksum-sha1:not announced either\r\n\r\n",
        "x-amz-checksum-crc32c:a\r\nx-amz-checksum-crc32c:b\r\n\r\n",
        "x-amz-checksum-crc32c:\u{1}\r\n\r\n",
        "x-amz-trailer-signature:00\r\n\r\n",
    ];
    for trailer in trailers {
        let error = refused(Framing::UnsignedTrailer, &format!("3\r\nabc\r\n0\r\n{trailer}"));
        assert!(matches!(error, ChunkError::Trailer { .. }), "{trailer:?}: {error:?}");
    }
    let endless = format!("3\r\nabc\r\n0\r\n{CHECKSUM}:{}", "A".repeat(5000));
    assert!(matches!(refused(Framing::UnsignedTrailer, &endless), ChunkError::Trailer { .. }));
    let unsigned = encode(Framing::SignedTrailer, &[b"abc".to_vec()], "AAAAAA==");
    let at = unsigned.windows(15).position(|window| window == b"x-amz-trailer-s").unwrap();
    let unsigned = [&unsigned[..at], b"\r\n\r\n"].concat();
    let error = refused(Framing::SignedTrailer, std::str::from_utf8(&unsigned).unwrap());
    assert!(matches!(error, ChunkError::Trailer { .. }), "{error:?}");
}

#[test]
fn a_trailer_behind_the_signature_of_the_trailers_is_refused() {
    let other = "x-amz-checksum-sha1";
    let announced = || vec![HeaderName::from_static(CHECKSUM), HeaderName::from_static(other)];
    let decoder = || Decoder::new(Framing::SignedTrailer, 3, announced(), Some(chain(SEED)));
    let body = encode(Framing::SignedTrailer, &[b"abc".to_vec()], "AAAAAA==");
    let late = [&body[..body.len() - 2], format!("{other}:a\r\n\r\n").as_bytes()].concat();
    let missing = decode(decoder(), &body, &[7]).unwrap_err();
    assert!(matches!(missing, ChunkError::Trailer { .. }), "{missing:?}");
    let error = decode(decoder(), &late, &[7]).unwrap_err();
    assert!(matches!(error, ChunkError::Trailer { .. }), "{error:?}");
}

#[test]
fn a_giant_chunk_passes_in_small_pieces_and_nothing_is_held() {
    const GIB: u64 = 1 << 30;
    let mut decoder = decoder(Framing::UnsignedTrailer, usize::try_from(GIB).unwrap(), SEED);
    let mut input = Bytes::from_static(b"40000000\r\n");
    assert_eq!(decoder.feed(&mut input), Ok(None));
    let piece = Bytes::from(vec![7_u8; 48 << 10]);
    let mut left = GIB;
    while left > 0 {
        let mut input = piece.slice(..usize::try_from(left.min(piece.len() as u64)).unwrap());
        let data = decoder.feed(&mut input).unwrap().unwrap();
        // The very memory that came in, so none is held.
        assert_eq!(data.as_ptr(), piece.as_ptr());
        assert_eq!(decoder.line.held(), 0);
        left -= data.len() as u64;
    }
    let mut input = Bytes::from(format!("\r\n0\r\n{CHECKSUM}:AAAAAA==\r\n\r\n"));
    assert_eq!(decoder.feed(&mut input), Ok(None));
    assert_eq!(decoder.finish().unwrap()[CHECKSUM], "AAAAAA==");
}
