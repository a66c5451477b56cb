//! The demo upstream: says what reached it.
//!
//! For `portcullis dev`, demos and tests. Answers every request with its method, path and headers as JSON, so that a
//! person sees what the gate added and removed.

use axum::extract::Request;
use axum::{Json, Router};
use serde_json::{Map, Value, json};

/// Answers everything.
pub fn router() -> Router {
    Router::new().fallback(|request: Request| async move { Json(echo(&request)) })
}

/// A header that came once is text, one that came several times is a list.
fn echo<B>(request: &http::Request<B>) -> Value {
    let mut headers = Map::new();
    for name in request.headers().keys() {
        let mut values: Vec<Value> =
            request.headers().get_all(name).iter().map(|v| json!(String::from_utf8_lossy(v.as_bytes()))).collect();
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        headers.insert(name.to_string(), value);
    }
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    json!({ "method": request.method().as_str(), "path": path, "headers": headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_that_arrived_is_shown() {
        let request = http::Request::builder()
            .method("POST")
            .uri("/a?b=c")
            .header("x-one", "1")
            .header("x-two", "1")
            .header("x-two", "2")
            .body(())
            .unwrap();
        let expected = json!({ "method": "POST", "path": "/a?b=c", "headers": { "x-one": "1", "x-two": ["1", "2"] } });
        assert_eq!(echo(&request), expected);
    }
}
