//! Waiting until a request is decided: by long poll, and as events.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::harness::Site;
use crate::object::Kind;

impl Site {
    async fn decide(&self, grant: &Value, what: &str) {
        let path = format!("/v1/grant-requests/{}/{what}", grant["id"].as_str().unwrap());
        self.call("POST", &path, json!({ "digest": grant["digest"] })).await.expect(200);
    }

    async fn events(&self, path: &str, last: Option<&str>) -> Response<Body> {
        let mut request = self.request(&self.token, "GET", path, None);
        request.headers_mut().insert("accept", HeaderValue::from_static("text/event-stream"));
        if let Some(last) = last {
            request.headers_mut().insert("last-event-id", HeaderValue::from_str(last).unwrap());
        }
        self.router().oneshot(request).await.unwrap()
    }
}

/// The ids and documents of the events, to the end of the stream.
async fn read(response: Response<Body>) -> Vec<(String, Value)> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let field = |event: &str, name: &str| event.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
    let events = text.split("\n\n").filter(|e| e.contains("event: state"));
    events.map(|e| (field(e, "id: ").unwrap(), serde_json::from_str(&field(e, "data: ").unwrap()).unwrap())).collect()
}

#[tokio::test]
async fn a_long_poll_answers_when_the_request_is_decided() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let path = format!("/v1/grant-requests/{}", grant["id"].as_str().unwrap());
    let begun = std::time::Instant::now();
    let (url, other) = (format!("{path}?wait=60s&until=decided"), site.ask(&alice).await);
    let waiting = site.get(&url);
    let deciding = async {
        // What is written of others wakes nobody up for good.
        site.decide(&other, "deny").await;
        site.decide(&grant, "approve").await;
    };
    let (answer, ()) = tokio::join!(waiting, deciding);
    assert_eq!(answer.expect(200).body["state"], "active");
    assert!(begun.elapsed() < Duration::from_secs(30));
    // What has come already is not waited for.
    assert_eq!(site.get(&url).await.expect(200).body["state"], "active");
    // What does not come is answered as it is.
    assert_eq!(site.get(&format!("{path}?wait=1s&until=ended")).await.expect(200).body["state"], "active");
    site.get(&format!("{path}?wait=61s")).await.expect(400).names("wait", "1s");
    site.get(&format!("{path}?until=never")).await.expect(400).names("until", "never");
    site.get("/v1/grant-requests/unknown?wait=60s").await.expect(404);
}

#[tokio::test]
async fn a_stream_tells_every_state_once_and_goes_on_where_it_was_cut_off() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let path = format!("/v1/grants/{}", grant["id"].as_str().unwrap());
    let stream = site.events(&path, None).await;
    site.decide(&grant, "approve").await;
    let decided = read(stream).await;
    let states = |events: &[(String, Value)]| events.iter().map(|(_, g)| g["state"].to_string()).collect::<Vec<_>>();
    assert_eq!(states(&decided), [r#""pending""#, r#""active""#], "it ends when the request is decided");

    site.call("POST", &format!("{path}/revoke"), json!({})).await.expect(200);
    let until = format!("{path}?until=ended");
    let later = read(site.events(&until, Some(&decided[0].0)).await).await;
    assert_eq!(states(&later), [r#""active""#, r#""revoked""#], "what was missed is told");
    assert_eq!(later[0].0, decided[1].0);
    let anew = read(site.events(&until, Some("not an id")).await).await;
    assert_eq!(states(&anew), [r#""revoked""#]);
    let nothing = site.events(&until, Some(&later[1].0)).await;
    assert_eq!(nothing.status(), 204, "a client that comes back by itself is told to stay away");
    assert_eq!(site.events("/v1/grants/unknown", None).await.status(), 404);
}

#[tokio::test]
async fn who_waits_is_bounded_in_number_and_in_time() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let path = format!("/v1/grants/{}", grant["id"].as_str().unwrap());
    // Nothing is written from here on, so nothing real is waited for.
    tokio::time::pause();
    let mut streams = Vec::new();
    loop {
        let response = site.events(&path, None).await;
        if response.status() != 200 {
            assert_eq!(
                (response.status().as_u16(), &response.headers()["retry-after"]),
                (503, &HeaderValue::from_static("1"))
            );
            break;
        }
        streams.push(response);
    }
    assert_eq!(streams.len(), 256);
    site.get(&format!("{path}?wait=5s")).await.expect(503);
    site.get(&path).await.expect(200);

    // Without a decision a stream ends by itself, and says meanwhile that it is there.
    let begun = tokio::time::Instant::now();
    let text = streams.pop().unwrap().into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    assert_eq!(text.matches(": still waiting").count(), 39, "{text}");
    assert_eq!(begun.elapsed().as_secs(), 600);
    drop(streams);
    site.get(&format!("{path}?wait=5s")).await.expect(200);
    assert_eq!(site.core.index().list(Kind::Grant).len(), 1);
}
