use super::*;
use crate::Row;
use crate::log::tests::{damaged, hex, resealed};

fn samples() -> Vec<Envelope> {
    let payload = Payload::Mutations(vec![Row { key: b"k".to_vec(), value: Some(b"v".to_vec()) }]);
    let entry = |sequence, payload: &Payload| Entry {
        epoch: Epoch(3),
        sequence: Sequence(sequence),
        payload: payload.encode().unwrap(),
    };
    let messages = vec![
        Message::Append {
            epoch: Epoch(5),
            previous: Sequence(8),
            previous_epoch: Epoch(2),
            entries: vec![entry(9, &payload), entry(10, &Payload::Noop)],
            committed: Sequence(7),
            asked_ms: 11,
        },
        Message::Join { epoch: Epoch(5), base: Sequence(6), kept_after: Sequence(4) },
        Message::Commit { epoch: Epoch(5), committed: Sequence(9), asked_ms: 12 },
        Message::Ack {
            epoch: Epoch(5),
            flushed: Sequence(10),
            applied: Sequence(9),
            lease_ms: 13,
            resumed: true,
        },
        Message::Rejected { epoch: Epoch(6) },
        Message::Release { epoch: Epoch(5), asked_ms: 14 },
    ];
    let envelope = |message| Envelope {
        partition: PartitionId(258),
        from: DeviceId(1),
        to: DeviceId(0xdead_beef),
        message,
    };
    messages.into_iter().map(envelope).collect()
}

#[test]
fn round_trip() {
    for envelope in samples() {
        assert_eq!(Envelope::decode(&envelope.encode().unwrap()).unwrap(), envelope);
    }
}

#[test]
fn golden() {
    let expected = [
        "5152595002000100b80000000c27751551525950010001001c000000ea060c586b76feffffff0100000001f6ffffff010000\
         0000eeffffff01000000515259500100010009000000149eabf2020000000000000000030000000000000009000000000000\
         00abffffff2c00000003000000000000000a00000000000000bfffffff1900000002010100000000000000efbeadde000000\
         0000050000000000000008000000000000000200000000000000a5ffffff0200000007000000000000000b00000000000000",
        "5152595002000100430000003e988a3e02010100000000000000efbeadde0000000001050000000000000006000000000000000400000000000000000000000000000000000000000000000000000000000000",
        "5152595002000100430000002dc5c67302010100000000000000efbeadde0000000002050000000000000009000000000000000c00000000000000000000000000000000000000000000000000000000000000",
        "515259500200010043000000ab30567602010100000000000000efbeadde000000000305000000000000000a0000000000000009000000000000000d0000000000000001000000000000000000000000000000",
        "5152595002000100430000001fb29afc02010100000000000000efbeadde0000000004060000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
        "5152595002000100430000007727562a02010100000000000000efbeadde000000000505000000000000000e000000000000000000000000000000000000000000000000000000000000000000000000000000",
    ];
    let actual: Vec<String> = samples().iter().map(|envelope| hex(&envelope.encode().unwrap())).collect();
    assert_eq!(actual, expected);
}

#[test]
fn damage_is_refused() {
    for envelope in samples() {
        let frame = envelope.encode().unwrap();
        for bytes in damaged(&frame, 8_000).filter(|bytes| bytes[..] != frame[..]) {
            let resealed = resealed(&bytes, ENVELOPE);
            assert!(Envelope::decode(&Bytes::from(bytes)).is_err());
            let _ = Envelope::decode(&resealed);
        }
    }
}

#[test]
fn rules_of_appends_are_checked() {
    let append = |entries| Envelope {
        partition: PartitionId(0),
        from: DeviceId(0),
        to: DeviceId(1),
        message: Message::Append {
            epoch: Epoch(1),
            previous: Sequence(0),
            previous_epoch: Epoch(0),
            entries,
            committed: Sequence(0),
            asked_ms: 0,
        },
    };
    let noop = Payload::Noop.encode().unwrap();
    let entry = |sequence, payload: &Bytes| Entry {
        epoch: Epoch(1),
        sequence: Sequence(sequence),
        payload: payload.clone(),
    };
    let decode = |entries| Envelope::decode(&append(entries).encode().unwrap());
    let hole = decode(vec![entry(1, &noop), entry(3, &noop)]);
    assert_eq!(hole, Err(FrameError::Rule { rule: "entries are not dense" }));
    let many = decode((1..=257).map(|sequence| entry(sequence, &noop)).collect());
    assert!(matches!(many, Err(FrameError::Rule { .. })));
    let noise = decode(vec![entry(1, &Bytes::from_static(b"noise"))]);
    assert!(matches!(noise, Err(FrameError::Length { .. })));
    let longest =
        Payload::Mutations(vec![Row { key: vec![1], value: Some(vec![0; PAYLOAD_BYTES_MAX - 100]) }]);
    assert!(decode(vec![entry(1, &longest.encode().unwrap())]).is_ok());
}
