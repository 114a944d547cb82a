//! A bare HTTP/1.1 server on glommio and hyper: what the node's network side costs when nothing is stored.
//!
//! It is set up like the node (one pinned executor per core, one listener each by SO_REUSEPORT, TCP_NODELAY,
//! vectored writes, the same preempt timer) and answers just enough of S3 for `quarry-loadgen --verify
//! none`: `PUT` reads its body and drops it, `GET` sends zeros out of one small, cached buffer: of the length its
//! path names (`/1024`), else of the last PUT, whatever its name was. **Nothing is kept, verified, hashed or
//! authenticated: a lower bound, not a store.**

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Parser;
use glommio::{LocalExecutorBuilder, Placement, net::TcpListener};
use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONTENT_LENGTH, ETAG},
    server::conn::http1,
    service::service_fn,
};
use quarry_bench::stream::FloorStream;

/// As in the node.
const PREEMPT_TIMER: Duration = Duration::from_millis(1);
/// Bytes of one body frame: the node sends blocks of this size.
const FRAME_BYTES: usize = 128 * 1024;
/// Headers of one request, as in the node.
const HEADERS_MAX: usize = 100;
/// Any ETag will do.
const ANY_ETAG: &str = "\"d41d8cd98f00b204e9800998ecf8427e\"";

static ZEROS: [u8; FRAME_BYTES] = [0; FRAME_BYTES];
/// Body length of the last PUT of any connection: the runs that are measured use one size at a time.
static LAST_PUT_BYTES: AtomicU64 = AtomicU64::new(0);

/// A bare HTTP server to compare the node with: PUT is a sink, GET /N sends N bytes.
#[derive(Parser)]
struct Args {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// Executor threads, one pinned to each core. Default: all cores.
    #[arg(long)]
    cores: Option<usize>,
    /// Milliseconds between pulses, which wake an executor that parked with runnable tasks. The node's are 2 while
    /// it is busy and 50 while it is idle; the default leaves their cost out of the floor.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pulse_ms: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = args.cores.unwrap_or(cpus);
    anyhow::ensure!((1..=256).contains(&cores), "--cores is {cores}, it must be between 1 and 256");
    let pulses: Vec<_> = (0..cores).map(|_| Arc::new(OnceLock::new())).collect();
    let (ready, readied) = std::sync::mpsc::channel();
    let mut executors = Vec::new();
    for (index, pulse) in pulses.iter().cloned().enumerate() {
        let (listen, ready) = (args.listen, ready.clone());
        let executor = LocalExecutorBuilder::new(Placement::Fixed(index % cpus))
            .name(&format!("floor-{index}"))
            .preempt_timer(PREEMPT_TIMER)
            .spawn(move || async move {
                glommio::spawn_local(answer_pulse(pulse)).detach();
                let listener = TcpListener::bind(listen)
                    .map_err(|error| anyhow::anyhow!("cannot listen on {listen}: {error}"))?;
                ready.send(()).context("the main thread is gone")?;
                accept(&listener).await
            })
            .map_err(|error| anyhow::anyhow!("cannot start executor {index}: {error}"))?;
        executors.push(executor);
    }
    drop(ready);
    // The channel ends early when an executor could not listen; its error is found by joining it.
    if readied.iter().take(cores).count() == cores {
        println!("the floor listens on http://{} with {cores} executors", args.listen);
        std::thread::Builder::new().name("pulse".into()).spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(args.pulse_ms));
                pulses.iter().filter_map(|pulse| pulse.get()).for_each(Waker::wake_by_ref);
            }
        })?;
    }
    for executor in executors {
        executor.join().map_err(|error| anyhow::anyhow!("an executor died: {error}"))??;
    }
    Ok(())
}

/// The task that the pulse wakes; it has nothing to do. The waker is kept, not taken by a wake: an executor that
/// parked after it was woken, before it ran this task, is only helped by being notified again.
async fn answer_pulse(waker: Arc<OnceLock<Waker>>) -> Infallible {
    std::future::poll_fn(|cx| {
        waker.get_or_init(|| cx.waker().clone());
        Poll::Pending
    })
    .await
}

async fn accept(listener: &TcpListener) -> anyhow::Result<()> {
    loop {
        let accepted = listener.accept().await;
        let stream = accepted.map_err(|error| anyhow::anyhow!("cannot accept: {error}"))?;
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        glommio::spawn_local(async move {
            let mut builder = http1::Builder::new();
            builder.half_close(true).keep_alive(true).max_headers(HEADERS_MAX);
            let served = builder.serve_connection(FloorStream::new(stream), service_fn(answer)).await;
            if let Err(error) = served
                && !error.is_incomplete_message()
            {
                eprintln!("a connection failed: {error}");
            }
        })
        .detach();
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Zeros>, hyper::Error> {
    let method = request.method().clone();
    let query = request.uri().query().unwrap_or("");
    let response = Response::builder().header("x-amz-request-id", "0").header(ETAG, ANY_ETAG);
    // Only names of buckets and subresources get here without a body; a listing or a batch delete has XML.
    if query.contains("list-type=") {
        return Ok(xml("ListBucketResult"));
    }
    let (status, length) = match method {
        Method::PUT => {
            let is_object = request.uri().path().trim_matches('/').contains('/');
            let length = sink(request.into_body()).await?;
            if is_object {
                LAST_PUT_BYTES.store(length, Ordering::Relaxed);
            }
            (StatusCode::OK, 0)
        }
        Method::GET | Method::HEAD => {
            let length = request.uri().path()[1..].parse();
            (StatusCode::OK, length.unwrap_or_else(|_| LAST_PUT_BYTES.load(Ordering::Relaxed)))
        }
        Method::DELETE => (StatusCode::NO_CONTENT, 0),
        Method::POST => {
            sink(request.into_body()).await?;
            return Ok(xml("DeleteResult"));
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, 0),
    };
    let response = response.status(status).header(CONTENT_LENGTH, length);
    // The body's own length must be that of the header, also where HEAD sends none of it.
    let body = Zeros(Bytes::from_static(&ZEROS), length);
    Ok(response.body(body).expect("the headers are constants and numbers"))
}

/// Reads a body and drops it.
async fn sink(mut body: Incoming) -> Result<u64, hyper::Error> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(length)
}

/// An empty document of the S3 namespace.
fn xml(root: &str) -> Response<Zeros> {
    let text = format!(
        "<{root} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>false</IsTruncated></{root}>"
    );
    let length = text.len() as u64;
    Response::new(Zeros(Bytes::from(text), length))
}

/// A body of `.1` bytes, in frames of at most the whole of `.0`.
struct Zeros(Bytes, u64);

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.1 == 0 {
            return Poll::Ready(None);
        }
        let take = usize::try_from(self.1).map_or(self.0.len(), |left| left.min(self.0.len()));
        self.1 -= take as u64;
        Poll::Ready(Some(Ok(Frame::data(self.0.slice(..take)))))
    }

    fn is_end_stream(&self) -> bool {
        self.1 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.1)
    }
}
