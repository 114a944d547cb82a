//! An S3 server that keeps everything in memory, to try clients against the gateway alone:
//! `cargo run -p quarry-gateway --example memory -- 127.0.0.1:9000` (keys `quarrytest`, `quarrysecret`).

#[path = "../tests/support/mod.rs"]
mod support;

use std::rc::Rc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::bind(&address).await?;
        println!("listening on {}", listener.local_addr()?);
        let log = Rc::new(support::Log { print: true, ..support::Log::default() });
        let gateway = support::gateway(log);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let gateway = gateway.clone();
            tokio::task::spawn_local(async move {
                let served =
                    gateway.serve_connection(support::TokioStream(stream), std::future::pending()).await;
                if let Err(error) = served
                    && !error.is_client_gone()
                {
                    println!("connection: {error:?}");
                }
            });
        }
    })
}
