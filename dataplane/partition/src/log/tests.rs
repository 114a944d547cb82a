use super::*;
use crate::FRAME_HEADER_BYTES;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Deterministic damage: bits flipped, bytes dropped and added, and pure noise.
pub(crate) fn damaged(frame: &[u8], count: u64) -> impl Iterator<Item = Vec<u8>> + '_ {
    let mut state = 0x1234_5678_9abc_def1_u64;
    (0..count).map(move |round| {
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % bound as u64).unwrap()
        };
        let mut bytes = frame.to_vec();
        match round % 4 {
            0 => bytes.truncate(below(frame.len())),
            1 => bytes.extend((0..=below(40)).map(|byte| u8::try_from(byte).unwrap())),
            2 => (0..=below(64)).for_each(|_| bytes[below(frame.len())] ^= 1 << below(8)),
            _ => {
                (0..below(8) + 1).for_each(|_| bytes[below(frame.len())] = u8::try_from(below(256)).unwrap())
            }
        }
        bytes
    })
}

/// Gives a damaged body a right length and checksum, so that the archive's validation is what stands.
pub(crate) fn resealed(frame: &[u8], kind: FrameKind) -> Bytes {
    Bytes::from(kind.seal(frame.get(FRAME_HEADER_BYTES..).unwrap_or_default()))
}

fn sample() -> Payload {
    Payload::Mutations(vec![
        Row { key: b"bucket/key".to_vec(), value: Some(b"manifest".to_vec()) },
        Row { key: b"gone".to_vec(), value: None },
    ])
}

#[test]
fn payloads_round_trip() {
    let pages = Payload::Backfill(vec![Row { key: Vec::new(), value: Some(vec![7; 1 << 20]) }]);
    for payload in [sample(), pages, Payload::Backfill(Vec::new()), Payload::Noop] {
        let frame = payload.encode().unwrap();
        assert_eq!(Payload::decode(&frame).unwrap(), payload);
        assert_eq!(Payload::check(&frame), Ok(()));
    }
}

#[test]
fn golden() {
    assert_eq!(
        hex(&sample().encode().unwrap()),
        "515259500100010041000000cbf4cc466275636b65742f6b65796d616e6966657374676f6e65eaffffff0a00000001ebffffff\
         08000000ebffffff0400000000000000000000000000ddffffff02000000"
    );
    assert_eq!(hex(&Payload::Noop.encode().unwrap()), "515259500100010009000000149eabf2020000000000000000");
}

#[test]
fn limits_are_refused() {
    let row = |key_bytes, value_bytes| Row { key: vec![0; key_bytes], value: Some(vec![0; value_bytes]) };
    let long_key = Payload::Mutations(vec![row(ROW_KEY_BYTES_MAX + 1, 0)]);
    assert!(matches!(long_key.encode(), Err(FrameError::Rule { .. })));
    let many_rows = Payload::Mutations(vec![row(0, 0); PAYLOAD_ROWS_MAX + 1]);
    assert!(matches!(many_rows.encode(), Err(FrameError::Rule { .. })));
    let long = Payload::Mutations(vec![row(1, PAYLOAD_BYTES_MAX)]);
    assert!(matches!(long.encode(), Err(FrameError::TooLong { .. })));
    assert!(matches!(Payload::decode(&vec![0; PAYLOAD_BYTES_MAX + 1]), Err(FrameError::TooLong { .. })));
}

#[test]
fn damage_is_refused() {
    let frame = sample().encode().unwrap();
    for bytes in damaged(&frame, 20_000).filter(|bytes| bytes[..] != frame[..]) {
        assert!(Payload::decode(&bytes).is_err(), "{}", hex(&bytes));
        let _ = Payload::decode(&resealed(&bytes, PAYLOAD));
    }
}

#[test]
fn other_frames_are_named() {
    let newer = FrameKind { version: 2, ..PAYLOAD }.seal(&[]);
    assert_eq!(Payload::decode(&newer), Err(FrameError::Version { kind: 1, found: 2 }));
    let other = FrameKind { kind: 2, ..PAYLOAD }.seal(&[]);
    assert_eq!(Payload::decode(&other), Err(FrameError::Kind { found: 2, expected: 1 }));
    assert!(matches!(Payload::decode(b"QRY"), Err(FrameError::Length { expected: 16, actual: 3 })));
    assert!(matches!(Payload::decode(&[0; 16]), Err(FrameError::Magic { .. })));
    assert!(matches!(Payload::decode(&PAYLOAD.seal(&[])), Err(FrameError::Archive)));
}

#[test]
fn rows_of_a_frame_are_those_of_the_payload() {
    let row =
        |key: &[u8], value: Option<usize>| Row { key: key.to_vec(), value: value.map(|len| vec![7; len]) };
    let rows = vec![
        row(b"a", Some(SHARED_BYTES_MIN)),
        row(b"", Some(0)),
        row(b"b", None),
        row(b"c", Some(SHARED_BYTES_MIN - 1)),
    ];
    for payload in [Payload::Mutations(rows.clone()), Payload::Backfill(rows), Payload::Noop] {
        let frame = payload.encode().unwrap();
        let decoded = Payload::decode_rows(&frame).unwrap();
        let shared: Vec<bool> = decoded
            .iter()
            .map(|(_, value)| {
                value.as_ref().is_some_and(|value| frame.as_ptr_range().contains(&value.as_ptr()))
            })
            .collect();
        assert_eq!(shared, [true, false, false, false][..payload.rows().len()]);
        let decoded = decoded
            .into_iter()
            .map(|(key, value)| Row { key: key.to_vec(), value: value.map(|value| value.to_vec()) });
        assert_eq!(decoded.collect::<Vec<_>>(), payload.into_rows());
        let mut damaged = frame.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(Payload::decode_rows(&damaged.into()).is_err());
    }
}
