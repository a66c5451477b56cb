//! What is taken out of a request, and what is refused.

use http::Request;

use super::*;

fn parts(uri: &str, version: Version, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(uri).version(version);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn http1(headers: &[(&str, &str)]) -> (Result<Target, Refusal>, Vec<(String, String)>) {
    let mut parts = parts("/a?b", Version::HTTP_11, headers);
    let target = take_in(&mut parts);
    let mut left: Vec<_> = parts.headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
    left.sort();
    (target, left)
}

#[test]
fn what_speaks_of_the_connection_is_taken_out() {
    let (target, left) = http1(&[
        ("host", "a"),
        ("connection", "keep-alive, X-Hop"),
        ("connection", "x-other"),
        ("keep-alive", "timeout=5"),
        ("proxy-authorization", "Basic x"),
        ("x-hop", "1"),
        ("x-other", "1"),
        ("te", "gzip, trailers"),
        ("upgrade", "h2c"),
        ("http2-settings", "x"),
        ("expect", "100-Continue"),
        ("x-kept", "1"),
    ]);
    let target = target.unwrap();
    assert_eq!((target.path.as_str(), target.host.as_str(), target.upgrade), ("/a?b", "a", None));
    let kept = [("host", "a"), ("te", "trailers"), ("x-kept", "1")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(left, kept);
}

#[test]
fn what_is_meant_for_everybody_cannot_be_named_away() {
    for name in ["Authorization", "host", "content-length", "X-Forwarded-For", "x-portcullis-workload", "cookie", "a b"]
    {
        assert_eq!(
            http1(&[("host", "a"), ("connection", &format!("close, {name}"))]).0,
            Err(Refusal::Connection),
            "{name}"
        );
    }
}

#[test]
fn there_is_one_host() {
    for (uri, version, headers, expected) in [
        ("http://A/x", Version::HTTP_11, &[("host", "a")][..], Ok("A")),
        ("http://a/x", Version::HTTP_11, &[("host", "b")], Err(Refusal::TwoHosts)),
        ("http://a:80/x", Version::HTTP_11, &[("host", "a")], Err(Refusal::TwoHosts)),
        ("http://u@a/x", Version::HTTP_11, &[], Err(Refusal::Host)),
        ("/x", Version::HTTP_11, &[("host", "a"), ("host", "a")], Err(Refusal::Host)),
        ("/x", Version::HTTP_11, &[], Err(Refusal::Host)),
        ("/x", Version::HTTP_10, &[], Ok("")),
        ("http://a/x", Version::HTTP_2, &[("host", "b")], Err(Refusal::TwoHosts)),
        ("http://a/x", Version::HTTP_2, &[], Ok("a")),
    ] {
        let target = take_in(&mut parts(uri, version, headers));
        assert_eq!(target.as_ref().map(|t| t.host.as_str()).map_err(|e| *e), expected, "{uri} {headers:?}");
    }
}

#[test]
fn what_only_this_proxy_could_answer_is_refused() {
    let mut connect = parts("/x", Version::HTTP_11, &[("host", "a")]);
    connect.method = Method::TRACE;
    assert_eq!(take_in(&mut connect), Err(Refusal::Method));
    assert_eq!(http1(&[("host", "a"), ("expect", "200-ok")]).0, Err(Refusal::Expect));
    assert_eq!(http1(&[("host", "a"), ("content_length", "3")]).0, Err(Refusal::Alias));
    let mut two = parts("http://a/x", Version::HTTP_2, &[("content-length", "1"), ("content-length", "2")]);
    assert_eq!(take_in(&mut two), Err(Refusal::Length));
}

#[test]
fn an_upgrade_is_wanted_by_both_headers_and_without_a_body() {
    let ws = |more: &[(&'static str, &'static str)]| {
        let mut headers = vec![("host", "a"), ("upgrade", "websocket")];
        headers.extend_from_slice(more);
        http1(&headers).0.map(|target| target.upgrade.is_some())
    };
    assert_eq!(ws(&[("connection", "keep-alive, Upgrade")]), Ok(true));
    assert_eq!(ws(&[("connection", "Upgrade"), ("content-length", "0")]), Ok(true));
    assert_eq!(ws(&[("connection", "Upgrade"), ("content-length", "10")]), Ok(false));
    assert_eq!(ws(&[("connection", "close")]), Ok(false));
    assert_eq!(ws(&[("connection", "Upgrade"), ("upgrade", "h2c")]), Err(Refusal::Upgrade));
}
