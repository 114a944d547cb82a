//! TLS of the S3 listener: rustls over glommio's sockets, with a certificate that is replaced while the node runs.
//!
//! ```text
//! files --load--> CertifiedKey --(every handshake takes the newest)--> connection
//!   ^-- looked at every few seconds; a pair that cannot be used is reported, and the old one stays
//! ```
//!
//! Only HTTP/1.1 is offered. Handshakes are bounded in time; a client that speaks no TLS is closed.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures::FutureExt;
use futures_lite::{AsyncRead, AsyncWrite};
use futures_rustls::{TlsAcceptor, server::TlsStream};
use glommio::net::TcpStream;
use hyper::rt::ReadBufCursor;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::certificate;
use crate::metrics::Metrics;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// From the accepted connection to the end of its handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Plain text that one read of a connection takes at most: one TLS record.
const READ_BYTES: usize = 16 << 10;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} holds no usable PEM: {source}", path.display())]
    Malformed { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{} holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} may be read by everybody (mode {mode:o}); run: chmod o-rwx {}", path.display(), path.display())]
    KeyTooOpen { path: PathBuf, mode: u32 },
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Where the PEM files are: the chain, its own certificate first, and the private key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl TlsFiles {
    fn load(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
        };
        let malformed = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Malformed { path, source }
        };
        let unreadable = |source| TlsError::Unreadable { path: self.key.clone(), source };
        let mode = fs::metadata(&self.key).map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(TlsError::KeyTooOpen { path: self.key.clone(), mode });
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(&self.certificate)?)
            .collect::<Result<_, _>>()
            .map_err(malformed(&self.certificate))?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate { path: self.certificate.clone() });
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(malformed(&self.key))?;
        Ok(CertifiedKey::from_der(chain, key, provider)?)
    }

    /// When each was written; `None` while one of them is away.
    fn written(&self) -> Option<[SystemTime; 2]> {
        let of = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        Some([of(&self.certificate)?, of(&self.key)?])
    }
}

/// The newest usable certificate.
#[derive(Debug)]
struct Newest(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().expect("nothing panics under this lock")))
    }
}

/// TLS as every core uses it; clones share the certificate.
#[derive(Clone)]
pub(crate) struct Tls {
    files: TlsFiles,
    newest: Arc<Newest>,
    config: Arc<ServerConfig>,
    provider: Arc<CryptoProvider>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used; see [`TlsError`].
    pub(crate) fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let newest = Arc::new(Newest(RwLock::new(Arc::new(files.load(&provider)?))));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&newest) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { files, newest, config: Arc::new(config), provider })
    }

    /// Takes a certificate that has replaced the one in use.
    ///
    /// # Errors
    /// The new one cannot be used; the old one stays.
    fn reload(&self) -> Result<(), TlsError> {
        let loaded = Arc::new(self.files.load(&self.provider)?);
        *self.newest.0.write().expect("nothing panics under this lock") = loaded;
        Ok(())
    }

    fn show_expiry(&self, metrics: &Metrics) {
        let newest = Arc::clone(&self.newest.0.read().expect("nothing panics under this lock"));
        match newest.cert.first().and_then(|own| certificate::expiry_s(own)) {
            Some(until_s) => metrics.set_certificate(until_s),
            None => tracing::warn!(event = "tls_certificate_expiry_unknown"),
        }
    }

    /// Looks at the files until `stop` is set; unpark the thread then.
    pub(crate) fn watch(
        &self,
        stop: Arc<AtomicBool>,
        metrics: Arc<Metrics>,
    ) -> io::Result<std::thread::JoinHandle<()>> {
        let tls = self.clone();
        tls.show_expiry(&metrics);
        // Read before the thread starts, or a change in between would be taken for the beginning.
        let mut seen = tls.files.written();
        std::thread::Builder::new().name("tls".into()).spawn(move || {
            while !stop.load(Ordering::Acquire) {
                std::thread::park_timeout(LOOK_EVERY);
                let written = tls.files.written();
                if written.is_none() || written == seen {
                    continue;
                }
                match tls.reload() {
                    Ok(()) => {
                        seen = written;
                        tls.show_expiry(&metrics);
                        tracing::info!(event = "tls_certificate_replaced");
                    }
                    // Certificate and key are two files: the other one may come in a moment.
                    Err(error) => tracing::warn!(event = "tls_certificate_refused", %error),
                }
            }
        })
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// The client speaks no TLS that is offered, left, or took too long.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsConnection> {
        let mut handshake = TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).fuse();
        let mut late = std::pin::pin!(glommio::timer::sleep(HANDSHAKE_MAX).fuse());
        let stream = futures::select_biased! {
            stream = handshake => stream?,
            () = late => return Err(io::ErrorKind::TimedOut.into()),
        };
        Ok(TlsConnection { stream, plain: vec![0; READ_BYTES].into() })
    }
}

/// An encrypted connection as hyper wants it.
pub(crate) struct TlsConnection {
    stream: TlsStream<TcpStream>,
    /// Between rustls, which wants initialised memory, and hyper, which hands out what is not.
    plain: Box<[u8]>,
}

impl hyper::rt::Read for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, plain } = &mut *self;
        let most = cursor.remaining().min(plain.len());
        match Pin::new(stream).poll_read(cx, &mut plain[..most]) {
            Poll::Ready(Ok(read)) => {
                cursor.put_slice(&plain[..read]);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl hyper::rt::Write for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(directory: &Path, name: &str) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let files = TlsFiles { certificate: directory.join("chain.pem"), key: directory.join("key.pem") };
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        files
    }

    fn certificate(tls: &Tls) -> Vec<u8> {
        tls.newest.0.read().unwrap().cert[0].to_vec()
    }

    #[test]
    fn a_renewed_certificate_is_taken_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let files = write_pair(directory.path(), "one.example");
        let tls = Tls::load(files.clone()).unwrap();
        let first = certificate(&tls);
        write_pair(directory.path(), "two.example");
        tls.reload().unwrap();
        let second = certificate(&tls);
        assert_ne!(first, second);
        // The key of another certificate.
        let other = rcgen::generate_simple_self_signed(vec!["three.example".to_owned()]).unwrap();
        fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        assert!(matches!(tls.reload(), Err(TlsError::Unusable(_))));
        fs::write(&files.certificate, "nothing").unwrap();
        assert!(matches!(tls.reload(), Err(TlsError::NoCertificate { .. })));
        assert_eq!(certificate(&tls), second);
    }

    #[test]
    fn a_key_that_everybody_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let files = write_pair(directory.path(), "one.example");
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Tls::load(files.clone()), Err(TlsError::KeyTooOpen { mode: 0o644, .. })));
        fs::remove_file(&files.key).unwrap();
        assert!(matches!(Tls::load(files), Err(TlsError::Unreadable { .. })));
    }
}
