//! `GET /metrics`, `GET /health`, and the plugins' pages.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::admin::state::State;
use crate::net::threads::Pooler;

/// Requests are read within this time, or not at all.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at a time; more wait. A handful of scrapers is usual.
const CONNECTIONS: usize = 64;

/// Serves until it is dropped; answers that have begun are finished.
pub async fn serve(listener: Arc<TcpListener>, pooler: Arc<Pooler>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("could not accept a connection for metrics: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let pooler = pooler.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(pooler.clone(), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(READ_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                log::debug!("metrics: {error}");
            }
            drop(permit);
        });
    }
}

async fn answer(
    pooler: Arc<Pooler>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return Ok(response);
    }
    let (kind, text) = match request.uri().path() {
        "/metrics" => {
            let state = State::of(&pooler).await;
            let mut text = super::render(&state);
            for plugin in &pooler.plugins {
                text += &super::render_plugin(&plugin.metrics());
            }
            ("text/plain; version=0.0.4", text)
        }
        // The threads answer: it is alive.
        "/health" => {
            pooler.ask(|_| ()).await;
            ("text/plain", "ok\n".to_owned())
        }
        path => match pooler.plugins.iter().find_map(|plugin| plugin.page(path)) {
            Some(page) => (page.content_type, page.body),
            None => {
                *response.status_mut() = StatusCode::NOT_FOUND;
                return Ok(response);
            }
        },
    };
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    *response.body_mut() = Full::new(text.into());
    Ok(response)
}
