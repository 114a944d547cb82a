//! Answers Prometheus on a thread of its own: for programs that have no other listener.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A scraper that says nothing for so long is not waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
const HEAD_BYTES_MAX: u64 = 16 << 10;

/// Answers until it is dropped, one scraper after the other.
#[derive(Debug)]
pub struct PageServer {
    end: Arc<AtomicBool>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl PageServer {
    /// Shows `page` at `http://ADDRESS/metrics` from now on.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start<F>(address: SocketAddr, page: F) -> io::Result<Self>
    where
        F: Fn() -> Result<Vec<u8>, prometheus::Error> + Send + 'static,
    {
        let listener = TcpListener::bind(address)?;
        let (end, address) = (Arc::new(AtomicBool::new(false)), listener.local_addr()?);
        let ended = Arc::clone(&end);
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                // A scraper that has gone comes again.
                let _ = answer(stream, &page);
            }
        })?;
        Ok(Self { end, address, thread: Some(thread) })
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // Wakes it; if that fails it ends with the process.
        if TcpStream::connect_timeout(&self.address, TIMEOUT).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, page: &impl Fn() -> Result<Vec<u8>, prometheus::Error>) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut head = BufReader::new(stream.try_clone()?.take(HEAD_BYTES_MAX)).lines();
    let request = head.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
    for line in head {
        if line?.is_empty() {
            break;
        }
    }
    let (status, body) = match request.split(' ').nth(1) {
        Some("/metrics") => match page() {
            Ok(text) => ("200 OK", text),
            Err(error) => ("500 Internal Server Error", error.to_string().into_bytes()),
        },
        _ => ("404 Not Found", b"not found\n".to_vec()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_is_answered_until_the_end() {
        let server = PageServer::start(([127, 0, 0, 1], 0).into(), || Ok(b"a 1\n".to_vec())).unwrap();
        let address = server.address();
        let ask = |path: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        assert!(ask("/metrics").starts_with("HTTP/1.1 200") && ask("/metrics").ends_with("\r\n\r\na 1\n"));
        assert!(ask("/other").starts_with("HTTP/1.1 404"));
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }
}
