//! x
use crate::config::ApiConfig; use crate::fleet::Fleet; use crate::shared::Shared; use std::sync::Arc;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct TlsError;
pub struct Tls;
impl Tls { pub fn new(_: &ApiConfig) -> Result<Tls, TlsError> { Ok(Tls) } }
pub async fn serve(_: Arc<Shared>, _: Arc<Fleet>, _: tokio::net::TcpListener, _: Tls) { std::future::pending::<()>().await }
