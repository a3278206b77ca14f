//! Listening, TLS, connections, and the orderly end.
//!
//! Guarantees: `bind` has read everything and listens; `run` serves until `shutdown` completes, then
//! ends watches and streams, lets requests finish for a while, and returns.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use store::Store;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    app::App,
    authn, bootstrap,
    cache::Cache,
    config::{Config, StartError},
    dispatch,
    documents::Documents,
    feed,
    kubelet::KubeletClient,
    metrics::Metrics,
    sweep, tls,
    token::Tokens,
};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many requests are worked on at once: as upstream's two limits together.
const AT_ONCE: usize = 600;
const DRAIN: Duration = Duration::from_secs(5);

/// An API server that listens, but does not answer yet.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    _stop: DropGuard,
}

impl Server {
    /// Reads the store, makes what every cluster has, and listens. Nothing is answered before [`Server::run`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(config: Config, store: Arc<dyn Store>) -> Result<Server, StartError> {
        let acceptor = TlsAcceptor::from(Arc::new(tls::server(&config)?));
        let tokens =
            Tokens::new(&config.issuer, &config.service_account_key_pem, &config.service_account_public_pem)?;
        let kubelets = KubeletClient::new(tls::kubelet_client(&config)?);
        let listen = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        bootstrap::run(&config, &*store).await.map_err(|source| StartError::Bootstrap { source })?;
        let cache = Cache::new();
        feed::load(&cache, &*store).await.map_err(|source| StartError::Load { source })?;
        let stop = CancellationToken::new();
        let app = Arc::new(App {
            config,
            store,
            cache,
            tokens,
            kubelets,
            documents: Documents::default(),
            metrics: Metrics::default(),
            slots: Semaphore::new(AT_ONCE),
            stop: stop.clone(),
        });
        let follower = app.clone();
        tokio::spawn(async move { feed::follow(&follower.cache, &*follower.store, &follower.stop).await });
        tokio::spawn(sweep::run(app.clone()));
        Ok(Server { app, listener, address, acceptor, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` completes.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let graceful = GracefulShutdown::new();
        let mut shutdown = std::pin::pin!(shutdown.fuse());
        tracing::info!(address = %self.address, "the API is served");
        loop {
            // Cancel-safe: accept takes a connection or nothing.
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut shutdown => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (app, acceptor) = (self.app.clone(), self.acceptor.clone());
                    let watcher = graceful.watcher();
                    tokio::spawn(async move {
                        if let Err(err) = connection(app, acceptor, stream, watcher).await {
                            tracing::debug!(%peer, error = %err, "a connection ended with an error");
                        }
                    });
                }
                Err(err) => {
                    // Usually: no descriptors left. Waiting lets some be closed.
                    tracing::warn!(error = %err, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.listener);
        self.app.stop.cancel();
        if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
            tracing::warn!("some requests did not end in time; their connections are closed");
        }
    }
}

async fn connection(
    app: Arc<App>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let _ = stream.set_nodelay(true);
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| authn::certificate_user(chain.first()?))
        .map(Arc::new);
    let service = service_fn(move |request: Request<Incoming>| {
        dispatch::serve(app.clone(), certificate.clone(), request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60)).half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    watcher.watch(connection).await
}
