//! The two functions of ISA-L that coding needs, behind a safe face. `isal-sys` builds and links the library
//! but declares only its compression half, so the declarations (from `erasure_code.h`) stand here.
//!
//! Both functions choose an implementation for this CPU on their first call (threads that race store the same
//! pointer). The layout of the tables follows that choice, which is why tables never leave the process.
#![allow(
    unsafe_code,
    reason = "the only foreign functions of the data plane's coding; each call is justified"
)]

use std::ffi::{c_int, c_uchar};

// Links the static library.
use isal_sys as _;

unsafe extern "C" {
    fn ec_init_tables(k: c_int, rows: c_int, matrix: *const c_uchar, tables: *mut c_uchar);
    fn ec_encode_data(
        len: c_int,
        k: c_int,
        rows: c_int,
        tables: *const c_uchar,
        data: *const *const c_uchar,
        coding: *const *mut c_uchar,
    );
}

/// Bytes that ISA-L expands one coefficient to.
const TABLE_BYTES_PER_COEFFICIENT: usize = 32;

/// A matrix expanded for this CPU.
#[derive(Debug)]
pub(crate) struct Tables {
    bytes: Vec<u8>,
    columns: usize,
    rows: usize,
}

impl Tables {
    /// Expands rows of `columns` coefficients.
    pub(crate) fn new(matrix: &[u8], columns: usize) -> Self {
        assert!(columns > 0 && matrix.len().is_multiple_of(columns), "the matrix has whole rows");
        let rows = matrix.len() / columns;
        let mut bytes = vec![0; matrix.len() * TABLE_BYTES_PER_COEFFICIENT];
        if rows > 0 {
            // SAFETY: needed because ISA-L is C. It reads columns*rows bytes of `matrix`, which has exactly
            // that many (rows is the quotient), and writes 32 bytes per coefficient, which `bytes` was sized
            // for. It keeps no pointer.
            unsafe {
                ec_init_tables(to_c_int(columns), to_c_int(rows), matrix.as_ptr(), bytes.as_mut_ptr());
            }
        }
        Self { bytes, columns, rows }
    }

    /// Multiplies: `targets[i] = sum of row[i][j] * sources[j]`.
    ///
    /// # Panics
    /// If counts do not match the matrix or lengths differ: the safety of the call rests on both.
    pub(crate) fn multiply(&self, sources: &[&[u8]], targets: &mut [&mut [u8]]) {
        assert_eq!((sources.len(), targets.len()), (self.columns, self.rows), "counts match the matrix");
        let len = sources[0].len();
        assert!(
            sources.iter().all(|block| block.len() == len) && targets.iter().all(|block| block.len() == len),
            "blocks of one call have one length"
        );
        if len == 0 || self.rows == 0 {
            return;
        }
        let data: Vec<*const u8> = sources.iter().map(|block| block.as_ptr()).collect();
        let coding: Vec<*mut u8> = targets.iter_mut().map(|block| block.as_mut_ptr()).collect();
        // SAFETY: needed because ISA-L is C. `data` holds `columns` and `coding` holds `rows` pointers
        // (asserted), each to `len` bytes (asserted) that are borrowed for this call, the written ones
        // exclusively, so none overlap. `bytes` was filled by `ec_init_tables` for the same columns and rows
        // on this CPU. No alignment is asked for, any length is allowed, and no pointer is kept.
        unsafe {
            ec_encode_data(
                to_c_int(len),
                to_c_int(self.columns),
                to_c_int(self.rows),
                self.bytes.as_ptr(),
                data.as_ptr(),
                coding.as_ptr(),
            );
        }
    }
}

fn to_c_int(value: usize) -> c_int {
    c_int::try_from(value).expect("block lengths are checked against BLOCK_BYTES_MAX, counts are at most 32")
}
