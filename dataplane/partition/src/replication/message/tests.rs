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
        Message::Join { epoch: Epoch(5), base: Sequence(6) },
        Message::Commit { epoch: Epoch(5), committed: Sequence(9), asked_ms: 12 },
        Message::Ack { epoch: Epoch(5), flushed: Sequence(10), applied: Sequence(9), lease_ms: 13 },
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
        "5152595002000100b000000064fd21e151525950010001001c000000ea060c586b76feffffff0100000001f6ffffff0100000000\
         eeffffff01000000515259500100010009000000149eabf202000000000000000003000000000000000900000000000000abffff\
         ff2c00000003000000000000000a00000000000000bfffffff1900000002010100000000000000efbeadde000000000005000000\
         0000000008000000000000000200000000000000a5ffffff020000000700000000000000",
        "51525950020001003b00000070289f7b02010100000000000000efbeadde000000000105000000000000000600000000000000000000000000000000000000000000000000000000000000",
        "51525950020001003b00000049b2e3ec02010100000000000000efbeadde000000000205000000000000000900000000000000000000000000000000000000000000000000000000000000",
        "51525950020001003b0000002f5d8d6902010100000000000000efbeadde000000000305000000000000000a00000000000000090000000000000000000000000000000000000000000000",
        "51525950020001003b000000941c73c002010100000000000000efbeadde000000000406000000000000000000000000000000000000000000000000000000000000000000000000000000",
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
