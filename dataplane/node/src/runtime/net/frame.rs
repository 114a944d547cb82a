//! One frame between two nodes: a fixed header, a message, and bulk bytes beside it. No I/O here.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `QRPF` |
//! | 4 | 1 | kind: 1 request, 2 response, 3 one-way, 4 refusal, 5 ping, 6 pong |
//! | 5 | 1 | class of the connection: 0 urgent, 1 ordinary, 2 bulk |
//! | 6 | 1 | address: 0 none, 1 device, 2 node; of a refusal: why |
//! | 7 | 1 | zero |
//! | 8 | 8 | request id, chosen by the asker; of a ping, what the pong repeats |
//! | 16 | 8 | address: device or node id |
//! | 24 | 4 | bytes of the message |
//! | 28 | 4 | bytes of the bulk |
//! | 32 | 4 | crc32c of the message |
//! | 36 | 4 | crc32c of the bulk |
//! | 40 | 4 | crc32c of bytes 0..40 |
//! | 44 | 4 | zero |
//! | 48 | 16 | HMAC-SHA256 under the session key of the direction, cut to 16 bytes, over the frame's number in its direction (8 bytes, from 0), bytes 0..48, and the message |
//!
//! Integers are little-endian. Message and bulk follow the header. The MAC covers header and message, and so the
//! checksum of the bulk, but not the bulk itself: an attacker on the wire who keeps the crc32c can alter shard bytes,
//! which readers verify against another crc32c. It cannot invent, repeat, drop or reorder frames within a connection.
//! Nothing is encrypted.

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use quarry_clustermap::{DeviceId, NodeId};
use quarry_object::{
    peer::FRAME_BYTES_MAX,
    transport::{Address, BULK_BYTES_MAX, Class, Parcel, TransportError},
};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 4] = b"QRPF";
/// What the MAC covers of the header.
const MACED_BYTES: usize = 48;
const MAC_BYTES: usize = 16;

/// What a frame is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Request { id: u64, to: Address },
    Response { id: u64 },
    OneWay { to: Address },
    Refusal { id: u64, why: TransportError },
    Ping { echo: u64 },
    Pong { echo: u64 },
}

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) parcel: Parcel,
}

impl Frame {
    /// One without message.
    pub(crate) fn bare(kind: Kind) -> Self {
        Self { kind, parcel: Parcel::default() }
    }

    /// Bytes on the wire.
    pub(crate) fn len_bytes(&self) -> usize {
        HEADER_BYTES + self.parcel.len_bytes()
    }
}

/// Why a connection is given up: its other end, or somebody between, does not speak this protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("not a frame")]
    Magic,
    #[error("a {what} with a wrong checksum")]
    Checksum { what: &'static str },
    #[error("a frame of class {found} on a connection of another")]
    Class { found: u8 },
    #[error("a frame of unknown kind {found} or address {address}")]
    Kind { found: u8, address: u8 },
    #[error("a {what} of {given} bytes, at most {most} are allowed")]
    TooLong { what: &'static str, given: usize, most: usize },
    #[error("a frame whose authentication code is wrong")]
    Mac,
}

/// The longest message of a class.
pub(crate) fn message_bytes_max(class: Class) -> usize {
    match class {
        Class::Urgent => 1 << 20,
        Class::Ordinary => FRAME_BYTES_MAX,
        Class::Bulk => 64 << 10,
    }
}

pub(super) fn class_byte(class: Class) -> u8 {
    match class {
        Class::Urgent => 0,
        Class::Ordinary => 1,
        Class::Bulk => 2,
    }
}

/// The class of a byte of the wire.
pub(crate) fn class_of(byte: u8) -> Option<Class> {
    Class::ALL.into_iter().find(|class| class_byte(*class) == byte)
}

impl From<&Kind> for (u8, u8, u64, u64) {
    /// Kind, address kind or reason, id, address.
    fn from(kind: &Kind) -> Self {
        let address = |to: &Address| match to {
            Address::Device(device) => (1, device.0),
            Address::Node(node) => (2, u64::from(node.0)),
            Address::Core(_) => unreachable!("routed within the node"),
        };
        match kind {
            Kind::Request { id, to } => (1, address(to).0, *id, address(to).1),
            Kind::Response { id } => (2, 0, *id, 0),
            Kind::OneWay { to } => (3, address(to).0, 0, address(to).1),
            Kind::Refusal { id, why } => {
                let why = match why {
                    TransportError::Overloaded => 1,
                    TransportError::Unreachable => 2,
                    TransportError::Lost => 3,
                };
                (4, why, *id, 0)
            }
            Kind::Ping { echo } => (5, 0, *echo, 0),
            Kind::Pong { echo } => (6, 0, *echo, 0),
        }
    }
}

fn parse_kind(kind: u8, detail: u8, id: u64, address: u64) -> Option<Kind> {
    let to = || match detail {
        1 => Some(Address::Device(DeviceId(address))),
        2 => Some(Address::Node(NodeId(u32::try_from(address).ok()?))),
        _ => None,
    };
    let why = || match detail {
        1 => Some(TransportError::Overloaded),
        2 => Some(TransportError::Unreachable),
        3 => Some(TransportError::Lost),
        _ => None,
    };
    Some(match kind {
        1 => Kind::Request { id, to: to()? },
        2 => Kind::Response { id },
        3 => Kind::OneWay { to: to()? },
        4 => Kind::Refusal { id, why: why()? },
        5 => Kind::Ping { echo: id },
        6 => Kind::Pong { echo: id },
        _ => return None,
    })
}

/// One direction of a connection: the key and the number of the next frame.
pub(crate) struct Seal {
    class: Class,
    key: Hmac<Sha256>,
    next: u64,
}

/// A header that was checked; the bytes that follow are not yet.
#[derive(Debug)]
pub(crate) struct Header {
    bytes: [u8; HEADER_BYTES],
    kind: Kind,
    message_len: usize,
    bulk_len: usize,
}

impl Header {
    /// Bytes that follow the header.
    pub(crate) fn body_len(&self) -> usize {
        self.message_len + self.bulk_len
    }
}

impl Seal {
    /// The first frame of a direction follows the handshake.
    pub(crate) fn new(class: Class, key: &[u8; 32]) -> Self {
        Self { class, key: Hmac::new_from_slice(key).expect("any length is a key"), next: 0 }
    }

    fn mac(&mut self, header: &[u8], message: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = self.key.clone();
        mac.update(&self.next.to_le_bytes());
        mac.update(header);
        mac.update(message);
        self.next += 1;
        let mut cut = [0; MAC_BYTES];
        cut.copy_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
        cut
    }

    /// The header of the next frame that is sent.
    ///
    /// # Panics
    /// If message or bulk are over the limits: what is sent is bounded by [`Seal::admits`].
    pub(crate) fn header(&mut self, frame: &Frame) -> [u8; HEADER_BYTES] {
        let Frame { kind, parcel } = frame;
        assert!(self.admits(parcel), "a frame of {} bytes is over the limit", parcel.len_bytes());
        let (kind, detail, id, address) = kind.into();
        let len = |bytes: &Bytes| u32::try_from(bytes.len()).expect("bounded above").to_le_bytes();
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(MAGIC);
        header[4..7].copy_from_slice(&[kind, class_byte(self.class), detail]);
        header[8..16].copy_from_slice(&id.to_le_bytes());
        header[16..24].copy_from_slice(&address.to_le_bytes());
        header[24..28].copy_from_slice(&len(&parcel.message));
        header[28..32].copy_from_slice(&len(&parcel.bulk));
        header[32..36].copy_from_slice(&crc32c::crc32c(&parcel.message).to_le_bytes());
        header[36..40].copy_from_slice(&crc32c::crc32c(&parcel.bulk).to_le_bytes());
        let crc = crc32c::crc32c(&header[..40]);
        header[40..44].copy_from_slice(&crc.to_le_bytes());
        let mac = self.mac(&header[..MACED_BYTES], &parcel.message);
        header[MACED_BYTES..].copy_from_slice(&mac);
        header
    }

    /// Whether a parcel may travel in this class.
    pub(crate) fn admits(&self, parcel: &Parcel) -> bool {
        admits(self.class, parcel)
    }

    /// Checks what can be checked before memory is taken for the rest.
    pub(crate) fn check_header(&self, bytes: [u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if bytes[..4] != *MAGIC {
            return Err(FrameError::Magic);
        }
        if crc32c::crc32c(&bytes[..40]) != u32_at(40) {
            return Err(FrameError::Checksum { what: "header" });
        }
        if class_of(bytes[5]) != Some(self.class) {
            return Err(FrameError::Class { found: bytes[5] });
        }
        let kind = parse_kind(bytes[4], bytes[6], u64_at(8), u64_at(16))
            .ok_or(FrameError::Kind { found: bytes[4], address: bytes[6] })?;
        let bounded = |what, at, most| {
            let given = usize::try_from(u32_at(at)).unwrap_or(usize::MAX);
            if given > most { Err(FrameError::TooLong { what, given, most }) } else { Ok(given) }
        };
        let message_len = bounded("message", 24, message_bytes_max(self.class))?;
        let bulk_len = bounded("bulk", 28, bulk_bytes_max(self.class))?;
        Ok(Header { bytes, kind, message_len, bulk_len })
    }

    /// The frame of a checked header and the bytes that followed it.
    pub(crate) fn open(&mut self, header: Header, body: Bytes) -> Result<Frame, FrameError> {
        let Header { bytes, kind, message_len, bulk_len } = header;
        assert_eq!(body.len(), message_len + bulk_len, "the caller reads what the header says");
        let (message, bulk) = (body.slice(..message_len), body.slice(message_len..));
        let mac = self.mac(&bytes[..MACED_BYTES], &message);
        if !bool::from(mac.ct_eq(&bytes[MACED_BYTES..])) {
            return Err(FrameError::Mac);
        }
        let check = |what, part: &Bytes, at: usize| {
            let expected = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
            if crc32c::crc32c(part) == expected { Ok(()) } else { Err(FrameError::Checksum { what }) }
        };
        check("message", &message, 32)?;
        check("bulk", &bulk, 36)?;
        Ok(Frame { kind, parcel: Parcel { message, bulk } })
    }
}

fn bulk_bytes_max(class: Class) -> usize {
    if class == Class::Bulk { BULK_BYTES_MAX } else { 0 }
}

/// Whether a parcel may travel in a class.
pub(crate) fn admits(class: Class, parcel: &Parcel) -> bool {
    parcel.message.len() <= message_bytes_max(class) && parcel.bulk.len() <= bulk_bytes_max(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(class: Class) -> (Seal, Seal) {
        (Seal::new(class, &[7; 32]), Seal::new(class, &[7; 32]))
    }

    fn sample() -> Frame {
        let parcel =
            Parcel { message: Bytes::from_static(b"hello"), bulk: Bytes::from_static(b"some bytes") };
        Frame { kind: Kind::Request { id: 5, to: Address::Device(DeviceId(9)) }, parcel }
    }

    fn receive(seal: &mut Seal, bytes: &[u8]) -> Result<Frame, FrameError> {
        let (header, body) = bytes.split_at(HEADER_BYTES);
        let header = seal.check_header(header.try_into().unwrap())?;
        if header.body_len() != body.len() {
            return Err(FrameError::Magic);
        }
        seal.open(header, Bytes::copy_from_slice(body))
    }

    fn send(seal: &mut Seal, frame: &Frame) -> Vec<u8> {
        let header = seal.header(frame);
        [&header[..], &frame.parcel.message, &frame.parcel.bulk].concat()
    }

    #[test]
    fn every_kind_round_trips() {
        let (mut sender, mut receiver) = pair(Class::Bulk);
        let kinds = [
            Kind::Request { id: 1, to: Address::Node(NodeId(3)) },
            Kind::Response { id: u64::MAX },
            Kind::OneWay { to: Address::Device(DeviceId(u64::MAX)) },
            Kind::Refusal { id: 2, why: TransportError::Overloaded },
            Kind::Refusal { id: 2, why: TransportError::Unreachable },
            Kind::Refusal { id: 2, why: TransportError::Lost },
            Kind::Ping { echo: 4 },
            Kind::Pong { echo: 4 },
        ];
        for kind in kinds {
            let frame = Frame { kind, ..sample() };
            assert_eq!(receive(&mut receiver, &send(&mut sender, &frame)), Ok(frame));
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let frame = send(&mut pair(Class::Bulk).0, &sample());
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(receive(&mut pair(Class::Bulk).1, &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_that_is_repeated_or_out_of_order_or_of_another_key_is_refused() {
        let (mut sender, mut receiver) = pair(Class::Bulk);
        let (first, second) = (send(&mut sender, &sample()), send(&mut sender, &sample()));
        assert!(receive(&mut receiver, &first).is_ok());
        assert_eq!(receive(&mut receiver, &first), Err(FrameError::Mac));
        let mut receiver = pair(Class::Bulk).1;
        assert_eq!(receive(&mut receiver, &second), Err(FrameError::Mac));
        let mut other = Seal::new(Class::Bulk, &[8; 32]);
        assert_eq!(receive(&mut other, &first), Err(FrameError::Mac));
    }

    #[test]
    fn lengths_over_the_limit_are_refused_before_memory_is_taken() {
        let mut header = pair(Class::Bulk).0.header(&sample());
        let mut claim = |at: usize, len: u32| {
            header[at..at + 4].copy_from_slice(&len.to_le_bytes());
            let crc = crc32c::crc32c(&header[..40]);
            header[40..44].copy_from_slice(&crc.to_le_bytes());
            pair(Class::Bulk).1.check_header(header).map(|header| header.body_len())
        };
        assert!(matches!(claim(28, u32::MAX), Err(FrameError::TooLong { what: "bulk", .. })));
        assert!(matches!(claim(28, (1 << 20) + 1), Err(FrameError::TooLong { .. })));
        assert!(matches!(claim(28, 0), Ok(5)));
        assert!(matches!(claim(24, 65_537), Err(FrameError::TooLong { what: "message", .. })));
    }

    /// The bytes of version 1 for ever.
    #[test]
    fn the_golden_frame() {
        let frame = send(&mut pair(Class::Bulk).0, &sample());
        assert_eq!(hex::encode(frame), GOLDEN);
    }

    const GOLDEN: &str = "515250460102010005000000000000000900000000000000050000000a0000004cbb719a4355cdf6\
        c064a134000000008669a6b5594964d3f9d6a861af61819568656c6c6f736f6d65206279746573";
}
