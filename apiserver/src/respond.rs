//! Answers.
//!
//! Guarantees: large answers are compressed for those who take it, and made piece by piece, so that
//! a list never exists twice in memory.

use std::io::Write;

use api::status::Failure;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::stream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use serde_json::Value;

use crate::negotiate::Format;

/// Any body that we answer with.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// Any answer.
pub(crate) type Answer = Response<Body>;

/// From which size on an answer is compressed: what upstream does.
const COMPRESS_FROM: usize = 128 << 10;
/// How large the pieces of a streamed answer are, about.
const PIECE: usize = 64 << 10;

/// A body that is there already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Whether a client takes gzip.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|e| e.split(';').next().unwrap_or("").trim() == "gzip" && !e.contains("q=0"))
}

fn answer(code: u16, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

/// Bytes of some type.
pub(crate) fn bytes(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    answer(code, content_type, full(body))
}

/// Bytes that come as they are made.
pub(crate) fn streamed(code: u16, content_type: &'static str, body: Body) -> Answer {
    answer(code, content_type, body)
}

/// Plain text.
pub(crate) fn text(code: u16, body: impl Into<String>) -> Answer {
    bytes(code, "text/plain; charset=utf-8", body.into())
}

/// A JSON tree.
pub(crate) fn json(code: u16, value: &Value) -> Answer {
    bytes(code, "application/json", serde_json::to_vec(value).expect("a JSON tree can be written"))
}

/// A refusal.
pub(crate) fn failure(failure: &Failure) -> Answer {
    let mut answer = json(failure.code, &failure.to_value());
    let retry = failure.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry));
    }
    answer
}

/// One encoded object, in the wanted format, compressed if that pays.
pub(crate) fn object(code: u16, json: Bytes, format: Format, gzip: bool) -> Answer {
    match format {
        Format::Yaml => {
            let value: Value = serde_json::from_slice(&json).expect("we wrote it");
            let text = serde_yaml_ng::to_string(&value).expect("a JSON tree can be written as YAML");
            bytes(code, "application/yaml", text)
        }
        Format::Json if gzip && json.len() >= COMPRESS_FROM => {
            pieces("application/json", json.len(), gzip, std::iter::once(json))
        }
        Format::Json => bytes(code, "application/json", json),
    }
}

/// Many pieces as one body of status 200, compressed if their `total` length pays.
pub(crate) fn pieces(
    content_type: &'static str,
    total: usize,
    gzip: bool,
    parts: impl Iterator<Item = Bytes> + Send + 'static,
) -> Answer {
    let gzip = gzip && total >= COMPRESS_FROM;
    if !gzip && total < COMPRESS_FROM {
        let mut all = Vec::with_capacity(total + 16);
        parts.for_each(|p| all.extend_from_slice(&p));
        return bytes(200, content_type, all);
    }
    let encoder = gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    let frames = Pieces { parts: Some(parts), encoder, ready: Vec::new() }.map(|p| Ok(Frame::data(p)));
    let mut answer = answer(200, content_type, StreamBody::new(stream::iter(frames)).boxed_unsync());
    if gzip {
        answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        answer.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    answer
}

/// Gathers small parts into pieces worth sending.
struct Pieces<I> {
    parts: Option<I>,
    encoder: Option<GzEncoder<Vec<u8>>>,
    ready: Vec<u8>,
}

impl<I: Iterator<Item = Bytes>> Iterator for Pieces<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while let Some(parts) = &mut self.parts {
            let part = parts.next();
            match (&mut self.encoder, part) {
                (Some(gz), Some(part)) => {
                    gz.write_all(&part).expect("memory takes all");
                    self.ready.append(gz.get_mut());
                }
                (None, Some(part)) => self.ready.extend_from_slice(&part),
                (_, None) => {
                    if let Some(gz) = self.encoder.take() {
                        self.ready.extend(gz.finish().expect("memory takes all"));
                    }
                    self.parts = None;
                }
            }
            if self.ready.len() >= PIECE {
                break;
            }
        }
        (!self.ready.is_empty()).then(|| Bytes::from(std::mem::take(&mut self.ready)))
    }
}

/// Adds `Warning` headers, each once, as long as they stay within what clients read.
pub(crate) fn warn(answer: &mut Answer, warnings: &[String]) {
    let mut seen = std::collections::HashSet::new();
    let mut budget = 4096usize;
    for text in warnings.iter().filter(|w| seen.insert(w.as_str())) {
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        let value = format!("299 - \"{}\"", clean.replace('\\', "\\\\").replace('"', "\\\""));
        if let Ok(value) = HeaderValue::from_str(&value)
            && let Some(left) = budget.checked_sub(value.len())
        {
            budget = left;
            answer.headers_mut().append(header::WARNING, value);
        }
    }
}

/// A list's JSON around its items' bytes.
pub(crate) fn list_parts(
    head: Value,
    items: Vec<Bytes>,
) -> (usize, impl Iterator<Item = Bytes> + Send + 'static) {
    let mut open = serde_json::to_vec(&head).expect("a JSON tree can be written");
    open.pop();
    open.extend_from_slice(b",\"items\":[");
    let total = open.len() + items.iter().map(|i| i.len() + 1).sum::<usize>() + 2;
    let comma = Bytes::from_static(b",");
    let body = items.into_iter().enumerate().flat_map(move |(n, item)| {
        let separator = if n == 0 { Bytes::new() } else { comma.clone() };
        [separator, item]
    });
    (total, std::iter::once(Bytes::from(open)).chain(body).chain(std::iter::once(Bytes::from_static(b"]}"))))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn lists_are_whole_however_they_are_sent() {
        let items: Vec<Bytes> =
            (0..5000).map(|n| Bytes::from(format!("{{\"n\":{n},\"pad\":\"{:060}\"}}", n))).collect();
        for gzip in [false, true] {
            let (total, parts) = list_parts(serde_json::json!({"kind": "List"}), items.clone());
            let answer = pieces("application/json", total, gzip, parts);
            assert_eq!(answer.headers().contains_key(header::CONTENT_ENCODING), gzip);
            let mut raw = answer.into_body().collect().await.unwrap().to_bytes().to_vec();
            if gzip {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(&raw[..]).read_to_end(&mut plain).unwrap();
                raw = plain;
            }
            let value: Value = serde_json::from_slice(&raw).unwrap();
            assert_eq!(value["items"].as_array().unwrap().len(), 5000);
            assert_eq!(raw.len() + 1, total);
        }
    }

    #[test]
    fn warnings_cannot_break_the_header() {
        let mut answer = text(200, "");
        warn(&mut answer, &["a \"b\"\r\nSet-Cookie: x".into(), "twice".into(), "twice".into()]);
        let all: Vec<_> = answer.headers().get_all(header::WARNING).iter().collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0], "299 - \"a \\\"b\\\"Set-Cookie: x\"");
    }
}
