//! A copy of something small that belongs to the whole cluster: its tables, so that a lost metastore can be made anew from
//! devices alone. What it says is no business of the store.
//!
//! Device-local rows (table 20), two slots of chunks in turn:
//!
//! | row | value |
//! |---|---|
//! | `quarry.copy` | [`HEAD_BYTES`] bytes, below: which slot counts |
//! | `quarry.copy.S.NNNN` | chunk NNNN (decimal) of slot S (0 or 1): [`CHUNK_BYTES`], or what the journal takes; the last one shorter |
//!
//! | offset | bytes | of the head, little-endian |
//! |---|---|---|
//! | 0 | 4 | magic `QCPY` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | slot |
//! | 6 | 2 | 0 |
//! | 8 | 8 | length of the content |
//! | 16 | 4 | crc32c of the content |
//! | 20 | 4 | crc32c of bytes 0 to 19 |
//!
//! The head is written after the chunks, so a crash leaves the old copy or the new one. Chunks of a slot that a shorter
//! content does not need stay: the device never holds more than twice [`COPY_BYTES_MAX`].

use bytes::Bytes;

use super::{Store, StoreError};
use crate::device::Device;

/// Longest content, in bytes: the tables of about 65,536 partitions.
pub const COPY_BYTES_MAX: usize = 16 << 20;
/// Most bytes of a chunk.
const CHUNK_BYTES: usize = 64 << 10;
const HEAD_BYTES: usize = 24;
const HEAD_NAME: &str = "quarry.copy";
const MAGIC: [u8; 4] = *b"QCPY";
const VERSION: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    slot: u8,
    len_bytes: u64,
    crc: u32,
}

impl Head {
    fn encode(self) -> Bytes {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, self.slot, 0, 0]);
        bytes.extend_from_slice(&self.len_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.into()
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = |reason: &str| StoreError::Index { reason: format!("{HEAD_NAME}: {reason}") };
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes.len() < 5 || bytes[..4] != MAGIC {
            return Err(damaged("not the head of a copy"));
        }
        if bytes[4] != VERSION {
            return Err(damaged(&format!("version {} is unknown", bytes[4])));
        }
        if bytes.len() != HEAD_BYTES || number(20) != crc32c::crc32c(&bytes[..20]) || bytes[5] > 1 {
            return Err(damaged("damaged"));
        }
        let len_bytes = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        Ok(Self { slot: bytes[5], len_bytes, crc: number(16) })
    }
}

fn chunk_name(slot: u8, number: usize) -> String {
    format!("{HEAD_NAME}.{slot}.{number:04}")
}

impl<D: Device + 'static> Store<D> {
    /// Keeps a copy of `content`, in place of the one before; nothing is written if that is the same. Calls must not
    /// overlap.
    ///
    /// # Errors
    /// [`StoreError::RecordTooLarge`] above [`COPY_BYTES_MAX`]; as [`Store::put_local`]: the copy before stays.
    pub async fn keep_copy(&self, content: &[u8]) -> Result<(), StoreError> {
        if content.len() > COPY_BYTES_MAX {
            let (record_bytes, limit_bytes) = (content.len() as u64, COPY_BYTES_MAX as u64);
            return Err(StoreError::RecordTooLarge { record_bytes, limit_bytes });
        }
        let (len_bytes, crc) = (content.len() as u64, crc32c::crc32c(content));
        // One that cannot be read is replaced.
        let before = self.copy_head().await.unwrap_or_default();
        if before.is_some_and(|head| (head.len_bytes, head.crc) == (len_bytes, crc)) {
            return Ok(());
        }
        let slot = before.map_or(0, |head| 1 - head.slot);
        let chunk_bytes = CHUNK_BYTES.min(self.payload_bytes_max());
        for (number, chunk) in content.chunks(chunk_bytes).enumerate() {
            self.put_local(&chunk_name(slot, number), Bytes::copy_from_slice(chunk)).await?;
        }
        self.put_local(HEAD_NAME, Head { slot, len_bytes, crc }.encode()).await
    }

    /// The copy that is kept, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Index`]: it is damaged; as [`Store::get_local`].
    pub async fn kept_copy(&self) -> Result<Option<Bytes>, StoreError> {
        let Some(head) = self.copy_head().await? else { return Ok(None) };
        let mut content = Vec::new();
        let mut number = 0;
        while (content.len() as u64) < head.len_bytes && content.len() <= COPY_BYTES_MAX {
            let Some(chunk) = self.get_local(&chunk_name(head.slot, number)).await? else { break };
            let left = head.len_bytes - content.len() as u64;
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            content.extend_from_slice(&chunk[..len]);
            number += 1;
        }
        if content.len() as u64 != head.len_bytes || crc32c::crc32c(&content) != head.crc {
            return Err(StoreError::Index { reason: format!("{HEAD_NAME}: its content is damaged") });
        }
        Ok(Some(content.into()))
    }

    async fn copy_head(&self) -> Result<Option<Head>, StoreError> {
        self.get_local(HEAD_NAME).await?.map(|bytes| Head::decode(&bytes)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_head() {
        let head = Head { slot: 1, len_bytes: 0x0102_0304, crc: 0xdead_beef };
        let golden = "51435059010100000403020100000000efbeadde";
        let bytes = head.encode();
        let hex: String = bytes[..20].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
        assert_eq!(Head::decode(&bytes), Ok(head));
        for at in 0..HEAD_BYTES {
            let mut other = bytes.to_vec();
            other[at] ^= 1;
            assert!(Head::decode(&other).is_err(), "byte {at}");
        }
        assert!(Head::decode(&bytes[..10]).is_err());
    }
}
