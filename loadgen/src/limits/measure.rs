//! The measurements behind `limits`, each some seconds long, one after the other.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Bounds;
use crate::args::run::LimitsArgs;
use crate::content::Stream;
use crate::workload::dice::Dice;

const BLOCK: usize = 4 << 10;
/// Size of sequential requests.
const LARGE: usize = 1 << 20;
/// Alignment that O_DIRECT asks for on any common device.
const ALIGNMENT: usize = 4096;
const MEMORY_BYTES: usize = 128 << 20;
const FILE_NAME: &str = "quarry-loadgen-limits.tmp";
const SIZE_MIN: u64 = 16 << 20;
const MIB: f64 = 1_048_576.0;

/// Measures everything.
pub(crate) fn measure(args: &LimitsArgs) -> Result<Bounds> {
    if args.size < SIZE_MIN {
        bail!("--size must be at least 16MiB");
    }
    let path = args.dir.join(FILE_NAME);
    let result = device(&path, args.size, args.duration);
    // The file is ours, whatever came of it.
    let _ = std::fs::remove_file(&path);
    let device = result.with_context(|| format!("cannot measure {}", path.display()))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (loopback, round_trip) = loopback(args.duration).context("cannot measure loopback")?;
    Ok(Bounds {
        tool: "quarry-loadgen".to_owned(),
        mode: "limits".to_owned(),
        cores: cores as u64,
        directory: args.dir.display().to_string(),
        direct: device.direct,
        write_mib_per_second: device.write,
        read_mib_per_second: device.read,
        flushed_writes_per_second: device.flushed.rate,
        flushed_write_p50_ms: device.flushed.p50_ms,
        flushed_write_p99_ms: device.flushed.p99_ms,
        random_reads_4k_per_second: device.random_reads,
        memory_copy_mib_per_second: memory_copy(cores, args.duration),
        loopback_mib_per_second: loopback,
        loopback_round_trip_us: round_trip,
        content_mib_per_second: content(args.duration),
    })
}

struct Device {
    direct: bool,
    write: f64,
    read: f64,
    flushed: Flushed,
    random_reads: f64,
}

struct Flushed {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Bytes at an aligned address.
struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Aligned {
    /// Filled with content that cannot be compressed.
    fn new(len: usize) -> Self {
        let mut bytes = vec![0; len + ALIGNMENT];
        Stream::new(1, "limits", 1).fill(0, &mut bytes);
        let begin = bytes.as_ptr().align_offset(ALIGNMENT);
        assert!(begin < ALIGNMENT, "bytes can be aligned to anything");
        Self { bytes, begin, len }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[self.begin..self.begin + self.len]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + self.len]
    }
}

fn device(path: &Path, size: u64, duration: Duration) -> Result<Device> {
    let (file, direct) = open(path)?;
    let mut large = Aligned::new(LARGE);
    let size = size - size % LARGE as u64;
    // Written once before the clock, so that no measurement is one of allocating space.
    let _ = sequential(size, Duration::MAX, |at| write_all(&file, large.get(), at))?;
    rustix::fs::fdatasync(&file)?;
    let begin = Instant::now();
    let (written, _) = sequential(size, duration, |at| write_all(&file, large.get(), at))?;
    rustix::fs::fdatasync(&file)?;
    let write = written / MIB / begin.elapsed().as_secs_f64();
    let (read_bytes, seconds) = sequential(size, duration, |at| read_all(&file, large.get_mut(), at))?;
    let flushed = flushed_writes(&file, size, duration)?;
    let mut block = Aligned::new(BLOCK);
    let mut dice = Dice::new(1, 2, 3);
    let begin = Instant::now();
    let mut reads = 0u32;
    while begin.elapsed() < duration {
        read_all(&file, block.get_mut(), dice.below(size / BLOCK as u64) * BLOCK as u64)?;
        reads += 1;
    }
    let random_reads = f64::from(reads) / begin.elapsed().as_secs_f64();
    Ok(Device { direct, write, read: read_bytes / MIB / seconds, flushed, random_reads })
}

/// Opens for O_DIRECT, or without where the file system does not have it.
fn open(path: &Path) -> Result<(OwnedFd, bool)> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::TRUNC | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(path, flags | OFlags::DIRECT, mode) {
        Ok(file) => Ok((file, true)),
        Err(Errno::INVAL) => Ok((rustix::fs::open(path, flags, mode)?, false)),
        Err(error) => Err(error.into()),
    }
}

fn write_all(file: &OwnedFd, bytes: &[u8], at: u64) -> Result<()> {
    let written = rustix::io::pwrite(file, bytes, at)?;
    if written == bytes.len() { Ok(()) } else { bail!("{written} of {} bytes were written", bytes.len()) }
}

fn read_all(file: &OwnedFd, bytes: &mut [u8], at: u64) -> Result<()> {
    let wanted = bytes.len();
    let read = rustix::io::pread(file, &mut *bytes, at)?;
    if read == wanted { Ok(()) } else { bail!("{read} of {wanted} bytes were read") }
}

/// Goes through the file in large steps, for at most `duration`: bytes and seconds.
#[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn sequential(size: u64, duration: Duration, mut step: impl FnMut(u64) -> Result<()>) -> Result<(f64, f64)> {
    let begin = Instant::now();
    let mut at = 0;
    while at < size && begin.elapsed() < duration {
        step(at)?;
        at += LARGE as u64;
    }
    Ok((at as f64, begin.elapsed().as_secs_f64()))
}

#[allow(clippy::cast_precision_loss, reason = "latencies are far below 2^53")]
fn flushed_writes(file: &OwnedFd, size: u64, duration: Duration) -> Result<Flushed> {
    let block = Aligned::new(BLOCK);
    let mut dice = Dice::new(1, 1, 1);
    let mut timed = crate::stats::Timed::new();
    let begin = Instant::now();
    while begin.elapsed() < duration {
        let started = Instant::now();
        write_all(file, block.get(), dice.below(size / BLOCK as u64) * BLOCK as u64)?;
        rustix::fs::fdatasync(file)?;
        timed.record(BLOCK as u64, started.elapsed());
    }
    let quantile = |q| timed.latency_us.value_at_quantile(q) as f64 / 1e3;
    Ok(Flushed {
        rate: timed.latency_us.len() as f64 / begin.elapsed().as_secs_f64(),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
    })
}

/// MiB/s copied by all cores together, in memory far larger than their caches.
#[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn memory_copy(cores: usize, duration: Duration) -> f64 {
    let copy = || {
        let source = vec![7u8; MEMORY_BYTES];
        let mut target = vec![0u8; MEMORY_BYTES];
        let begin = Instant::now();
        let mut copied = 0;
        while begin.elapsed() < duration {
            std::hint::black_box(&mut target).copy_from_slice(std::hint::black_box(&source));
            copied += MEMORY_BYTES;
        }
        copied as f64 / MIB / begin.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(copy)).collect();
        threads.into_iter().map(|thread| thread.join().expect("copying does not fail")).sum()
    })
}

/// MiB/s of one stream and microseconds of a round trip of one byte.
#[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn loopback(duration: Duration) -> Result<(f64, f64)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let peer = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut echo, _) = listener.accept()?;
        echo.set_nodelay(true)?;
        let mut byte = [0];
        while echo.read(&mut byte)? > 0 {
            echo.write_all(&byte)?;
        }
        let (mut sink, _) = listener.accept()?;
        let mut buffer = vec![0; LARGE];
        while sink.read(&mut buffer)? > 0 {}
        sink.write_all(b"!")
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let begin = Instant::now();
    let mut trips = 0u32;
    let mut byte = [1];
    while begin.elapsed() < duration / 2 {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        trips += 1;
    }
    let round_trip = begin.elapsed().as_secs_f64() * 1e6 / f64::from(trips);
    drop(stream);
    let mut stream = TcpStream::connect(address)?;
    let buffer = vec![7; LARGE];
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < duration {
        stream.write_all(&buffer)?;
        sent += buffer.len();
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    match stream.read_exact(&mut byte) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error.into()),
        _ => {}
    }
    let rate = sent as f64 / MIB / begin.elapsed().as_secs_f64();
    peer.join().map_err(|_| anyhow::anyhow!("the peer failed"))??;
    Ok((rate, round_trip))
}

#[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn content(duration: Duration) -> f64 {
    let stream = Stream::new(1, "limits", 1);
    let mut buffer = vec![0; 128 << 10];
    let begin = Instant::now();
    let mut made = 0;
    while begin.elapsed() < duration / 2 {
        stream.fill(made, std::hint::black_box(&mut buffer));
        made += buffer.len() as u64;
    }
    made as f64 / MIB / begin.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{FILE_NAME, measure};
    use crate::args::run::LimitsArgs;

    #[test]
    fn every_bound_is_measured_and_the_file_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let args = LimitsArgs {
            dir: directory.path().to_owned(),
            size: 16 << 20,
            duration: Duration::from_millis(60),
            out: None,
            json: true,
        };
        let bounds = measure(&args).unwrap();
        let numbers = serde_json::to_value(&bounds).unwrap();
        for (name, value) in numbers.as_object().unwrap() {
            assert!(value.as_f64().is_none_or(|value| value > 0.0), "{name}: {value}");
        }
        assert!(bounds.table().contains("fdatasync"));
        assert!(!directory.path().join(FILE_NAME).exists());
        assert!(measure(&LimitsArgs { dir: "/nonexistent".into(), ..args }).is_err());
    }
}
