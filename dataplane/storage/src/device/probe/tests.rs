use super::{Found, PROBE_BYTES, SIGNATURES, identify};

fn blank() -> Vec<u8> {
    vec![0; usize::try_from(PROBE_BYTES).unwrap()]
}

#[test]
fn zeros_are_blank() {
    assert_eq!(identify(&blank(), &blank()), Found::Blank);
    assert_eq!(identify(&[], &[]), Found::Blank);
}

#[test]
fn every_signature_is_recognised() {
    for signature in &SIGNATURES {
        let mut head = blank();
        head[signature.offset..][..signature.bytes.len()].copy_from_slice(signature.bytes);
        assert_eq!(identify(&head, &blank()), signature.found, "{:?}", signature.bytes);
    }
}

#[test]
fn a_protective_mbr_does_not_hide_gpt() {
    let mut head = blank();
    head[510..520].copy_from_slice(b"\x55\xAAEFI PART");
    assert_eq!(identify(&head, &blank()), Found::Gpt);
}

#[test]
fn backup_gpt_and_stray_bytes_are_seen() {
    let mut tail = blank();
    let header = tail.len() - 512;
    tail[header..][..8].copy_from_slice(b"EFI PART");
    assert_eq!(identify(&blank(), &tail), Found::Gpt);
    tail[header] = b'X';
    assert_eq!(identify(&blank(), &tail), Found::Unknown);
    let mut head = blank();
    head[777_777] = 1;
    assert_eq!(identify(&head, &blank()), Found::Unknown);
}
