//! What is refused, whatever pieces it comes in; and what is followed from one request to the next.

use super::*;

const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

/// Fed in pieces of `size`.
fn follow(text: &[u8], size: usize) -> Result<Follower, Refusal> {
    let mut follower = Follower::new(4096, 32);
    for piece in text.chunks(size) {
        follower.follow(piece)?;
    }
    Ok(follower)
}

#[track_caller]
fn refused(text: &str, why: Refusal) {
    for size in [1, 2, 7, 4096] {
        assert_eq!(follow(text.as_bytes(), size).err(), Some(why), "{text:?} in pieces of {size}");
    }
}

#[track_caller]
fn between(text: &str) {
    for size in [1, 3, 4096] {
        let follower = follow(text.as_bytes(), size).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(follower.is_between(), "{text:?}: {follower:?}");
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let with = |more: &str| format!("{HEAD}{more}\r\n\r\n");
    for (text, why) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(), Refusal::LineEnd),
        (with("A: b\nC: d"), Refusal::LineEnd),
        (with("A: b\rC: d"), Refusal::LineEnd),
        (with("A: b\0"), Refusal::Control),
        (with("A: b\r\n folded"), Refusal::Folded),
        (with("A: b\r\n\tfolded"), Refusal::Folded),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_owned(), Refusal::Folded),
        (with("A : b"), Refusal::FieldName),
        (with(": b"), Refusal::FieldName),
        (with("no colon"), Refusal::FieldName),
        (with("A(b): c"), Refusal::FieldName),
        (with("Content_Length: 3"), Refusal::Alias),
        (with("transfer_encoding: chunked"), Refusal::Alias),
        (with("Content-Length: 3\r\nContent-Length: 4"), Refusal::ContentLength),
        (with("Content-Length: 3\r\ncontent-length: 3"), Refusal::ContentLength),
        (with("Content-Length: 3, 3"), Refusal::ContentLength),
        (with("Content-Length: +3"), Refusal::ContentLength),
        (with("Content-Length: -3"), Refusal::ContentLength),
        (with("Content-Length: 0x3"), Refusal::ContentLength),
        (with("Content-Length:"), Refusal::ContentLength),
        (with("Content-Length: 99999999999999999999"), Refusal::ContentLength),
        (with("Content-Length: 3\r\nTransfer-Encoding: chunked"), Refusal::TwoLengths),
        (with("Transfer-Encoding: chunked\r\nContent-Length: 3"), Refusal::TwoLengths),
        (with("Transfer-Encoding: chunked, identity"), Refusal::TransferEncoding),
        (with("Transfer-Encoding: gzip, chunked"), Refusal::TransferEncoding),
        (with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Refusal::TransferEncoding),
        (with("Transfer-Encoding: xchunked"), Refusal::TransferEncoding),
        (with("Transfer-Encoding: chunked;q=1"), Refusal::TransferEncoding),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), Refusal::TransferEncoding),
        (with("Host: b"), Refusal::Host),
        ("GET / HTTP/1.1\r\nA: b\r\n\r\n".to_owned(), Refusal::Host),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Refusal::RequestLine),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".to_owned(), Refusal::RequestLine),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Refusal::RequestLine),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Refusal::RequestLine),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(), Refusal::RequestLine),
        ("GET /\r\n\r\n".to_owned(), Refusal::RequestLine),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(), Refusal::RequestLine),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Refusal::RequestLine),
    ] {
        refused(&text, why);
    }
}

#[test]
fn chunks_are_held_to_their_form() {
    let with = |body: &str| format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{body}");
    for (body, why) in [
        ("3\nabc\r\n0\r\n\r\n", Refusal::LineEnd),
        ("3\r\nabcd\r\n0\r\n\r\n", Refusal::Chunk),
        ("3 \r\nabc\r\n0\r\n\r\n", Refusal::Chunk),
        ("-1\r\nabc\r\n", Refusal::Chunk),
        ("0x3\r\nabc\r\n", Refusal::Chunk),
        ("\r\nabc\r\n", Refusal::Chunk),
        ("ffffffffffffffff\r\n", Refusal::Chunk),
        ("3\r\nabc\n0\r\n\r\n", Refusal::LineEnd),
        ("0\r\nContent-Length: 4\r\n\r\n", Refusal::Alias),
        ("0\r\nA: b\r\n folded\r\n\r\n", Refusal::Folded),
    ] {
        refused(&with(body), why);
    }
    between(&with("3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nA: b\r\n\r\n"));
}

#[test]
fn requests_are_followed_one_after_another() {
    let chunked = format!("{HEAD}Transfer-Encoding: Chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n");
    let sized = format!("{HEAD}Content-Length: 9\r\n\r\nGET / \n\n\n");
    between(&format!("{chunked}{sized}\r\nGET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n{sized}"));
    assert!(follow(b"GET / HT", 3).unwrap().is_in_head());
}

#[test]
fn what_leaves_http_is_held_where_its_head_ends() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut follower = Follower::new(4096, 32);
    assert_eq!(follower.follow(format!("{head}behind").as_bytes()), Ok(Seen::UpTo(head.len())));
    let mut follower = Follower::new(4096, 32);
    assert_eq!(follower.follow(head.replace("keep-alive, Upgrade", "close").as_bytes()), Ok(Seen::All));
}

#[test]
fn what_does_not_end_is_bounded() {
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(5000));
    refused(&long, Refusal::TooLarge);
    refused(&format!("{HEAD}{}", "A: b\r\n".repeat(40)), Refusal::TooLarge);
    refused(&format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n{}", "A: b\r\n".repeat(40)), Refusal::TooLarge);
}

proptest::proptest! {
    /// The pieces that bytes come in change nothing, and nothing panics.
    #[test]
    fn pieces_do_not_matter(bytes: Vec<u8>, size in 1_usize..9) {
        let mut whole = Follower::new(4096, 32);
        let at_once = whole.follow(&bytes).err();
        proptest::prop_assert_eq!(at_once, follow(&bytes, size).err());
    }
}
