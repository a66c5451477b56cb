//! Pages of a search: how many results, and where the next page begins.
//!
//! Pure. A token is the last candidate of its page, tied by a digest to who asks and to what; with another search it is
//! refused. It is no secret and proves nothing: whoever makes one up only begins elsewhere in what it may see anyway.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

/// How many results a page has unless asked for less.
const DEFAULT_LIMIT: usize = 100;
/// And at most.
const MAX_LIMIT: usize = 1000;
/// Bytes of the digest in a token.
const DIGEST: usize = 16;
const MAX_TOKEN: usize = 4096;

/// A page that is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Of the search that it is a page of.
    digest: [u8; DIGEST],
    /// The last candidate of the page before; empty for the first.
    pub(super) after: String,
    pub(super) limit: usize,
}

// === impl Page ===

impl Page {
    /// Takes `page` out of the body of a search by `asker` at `path`.
    pub(super) fn read(body: &mut Map<String, Value>, asker: &str, path: &str) -> Result<Self, String> {
        let page = body.remove("page");
        let mut ctx = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in [asker, path, &Value::Object(body.clone()).to_string()] {
            ctx.update(&(part.len() as u64).to_be_bytes());
            ctx.update(part.as_bytes());
        }
        let whole = ctx.finish();
        let digest = whole.as_ref().first_chunk::<DIGEST>().copied().unwrap_or_default();
        let page = match page {
            None => Map::new(),
            Some(Value::Object(page)) => page,
            Some(_) => return Err("`page` is not an object".to_owned()),
        };
        let limit = match page.get("limit").map(Value::as_u64) {
            None => DEFAULT_LIMIT,
            Some(Some(limit)) => usize::try_from(limit).unwrap_or(MAX_LIMIT).clamp(1, MAX_LIMIT),
            Some(None) => return Err("`page.limit` is not a number of results".to_owned()),
        };
        let after = match page.get("token") {
            None => String::new(),
            Some(Value::String(token)) if token.is_empty() => String::new(),
            Some(Value::String(token)) => {
                after(token, &digest).ok_or("`page.token` is not of this search: begin again without it")?
            }
            Some(_) => return Err("`page.token` is not a string".to_owned()),
        };
        Ok(Self { digest, after, limit })
    }

    /// The token of the page behind this one; empty when there is none.
    pub(super) fn next(&self, last: Option<&str>) -> String {
        last.map_or_else(String::new, |last| URL_SAFE_NO_PAD.encode([self.digest.as_slice(), last.as_bytes()].concat()))
    }
}

fn after(token: &str, digest: &[u8; DIGEST]) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(Some(token).filter(|token| token.len() <= MAX_TOKEN)?).ok()?;
    let (of, last) = bytes.split_first_chunk::<DIGEST>()?;
    (of == digest && !last.is_empty()).then(|| String::from_utf8(last.to_vec()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value, asker: &str) -> Result<Page, String> {
        Page::read(&mut body.as_object().unwrap().clone(), asker, "/access/v1/search/subject")
    }

    #[test]
    fn a_token_goes_on_with_its_own_search_only() {
        let search = json!({"subject": {"type": "user"}, "action": {"name": "read"}});
        let first = read(&search, "a").unwrap();
        assert_eq!((first.after.as_str(), first.limit), ("", DEFAULT_LIMIT));
        assert_eq!(first.next(None), "");
        let token = first.next(Some("spiffe://td/a"));
        let with = |token: &Value, asker: &str, more: &Value| {
            let mut search = search.clone();
            search["page"] = json!({"token": token, "limit": 5});
            search["more"] = more.clone();
            search.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            read(&search, asker)
        };
        let second = with(&json!(token), "a", &Value::Null).unwrap();
        assert_eq!((second.after.as_str(), second.limit), ("spiffe://td/a", 5));
        assert_eq!(with(&json!(""), "a", &Value::Null).unwrap().after, "", "an empty one is the first page's");
        assert!(with(&json!(token), "b", &Value::Null).is_err(), "another application's");
        assert!(with(&json!(token), "a", &json!(1)).is_err(), "another search's");
        for bad in [json!("x"), json!("!"), json!(7), json!("a".repeat(5000)), json!(URL_SAFE_NO_PAD.encode([0; 16]))] {
            assert!(with(&bad, "a", &Value::Null).is_err(), "{bad}");
        }
        for (limit, expected) in
            [(json!(0), Some(1)), (json!(5000), Some(MAX_LIMIT)), (json!(-1), None), (json!("9"), None)]
        {
            let mut search = search.clone();
            search["page"] = json!({"limit": limit});
            assert_eq!(read(&search, "a").ok().map(|page| page.limit), expected, "{limit}");
        }
    }
}
