//! Client of the control plane's REST API.
//!
//! The operator's token is read from a file and only sent over TLS or to this machine. Problem documents become
//! refusals that name the field; what keeps the control plane from answering becomes an error that names the address.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Url};
use serde_json::Value;
use zeroize::Zeroizing;

use super::failure::Failure;
use super::files;

/// How the control plane is reached.
#[derive(Debug, clap::Args)]
pub(super) struct ApiArgs {
    /// The control plane's API.
    #[arg(long, env = "PORTCULLIS_SERVER", value_name = "URL", default_value = "http://127.0.0.1:9180")]
    #[arg(help_heading = "Control plane")]
    server: String,
    /// File with the operator's token.
    #[arg(long, env = "PORTCULLIS_TOKEN_FILE", value_name = "FILE", help_heading = "Control plane")]
    token_file: Option<PathBuf>,
    /// PEM file with the certificates that may vouch for the control plane. Default: the system's.
    #[arg(long, env = "PORTCULLIS_CA_FILE", value_name = "FILE", help_heading = "Control plane")]
    ca_file: Option<PathBuf>,
}

/// What to try when nobody answers.
const HINT: &str = "is the control plane running? (--server URL, PORTCULLIS_SERVER)";

/// A client with an operator's token.
pub(super) struct Api {
    http: reqwest::Client,
    base: Url,
    token: Zeroizing<String>,
}

// === impl ApiArgs ===

impl ApiArgs {
    /// Makes a client.
    pub(super) fn connect(&self) -> Result<Api, Failure> {
        let base = parse_url(&self.server)?;
        let Some(path) = &self.token_file else {
            return Err(Failure::error(
                "no operator token: give --token-file FILE or set PORTCULLIS_TOKEN_FILE\n  \
                 (the first start of a control plane writes `bootstrap-token` into its data directory)",
            ));
        };
        let token = files::read_secret(path)?;
        Ok(Api { http: http_client(&base, self.ca_file.as_deref())?, base, token })
    }
}

/// Parses the address of a server; refuses plain text to another machine.
pub(super) fn parse_url(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text).map_err(|e| Failure::error(format!("`{text}` is not a URL: {e}")))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_this_machine(&url) => Ok(url),
        "http" => Err(Failure::error(format!("`{text}` would send a token in plain text; use https://"))),
        _ => Err(Failure::error(format!("`{text}` is not an http:// or https:// URL"))),
    }
}

fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An HTTP client that follows no redirect and sends nothing for this machine through a proxy.
pub(super) fn http_client(base: &Url, ca_file: Option<&std::path::Path>) -> Result<reqwest::Client, Failure> {
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5))
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")));
    if is_this_machine(base) {
        builder = builder.no_proxy();
    }
    if base.scheme() == "http" {
        // The system's certificates are not looked for where none are needed.
        builder = builder.tls_certs_only([]);
    }
    if let Some(path) = ca_file {
        let pem = files::read_text(path)?;
        let certs = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|e| Failure::error(format!("`{}` holds no PEM certificates: {}", path.display(), causes(&e))))?;
        builder = builder.tls_certs_only(certs);
    }
    builder.build().map_err(|e| Failure::error(format!("no HTTP client: {}", causes(&e))))
}

// === impl Api ===

impl Api {
    /// A client of the control plane at `server`.
    pub(super) fn new(server: &str, token: Zeroizing<String>) -> Result<Self, Failure> {
        let base = parse_url(server)?;
        Ok(Self { http: http_client(&base, None)?, base, token })
    }

    /// Reads.
    pub(super) async fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value, Failure> {
        self.send(Method::GET, path, query, None, Duration::ZERO).await
    }

    /// Reads, and lets the control plane take its time with the answer.
    pub(super) async fn get_wait(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        wait: Duration,
    ) -> Result<Value, Failure> {
        self.send(Method::GET, path, query, None, wait).await
    }

    /// Opens a stream of events that goes on after `last`; none when there is nothing more to come.
    pub(super) async fn events(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        last: Option<&str>,
    ) -> Result<Option<reqwest::Response>, Failure> {
        let mut request = self.request(Method::GET, path)?.query(query).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.map_err(|e| unreachable_server(&self.base, HINT, &e))?;
        match response.status() {
            reqwest::StatusCode::OK => Ok(Some(response)),
            reqwest::StatusCode::NO_CONTENT => Ok(None),
            status => {
                let bytes = response.bytes().await.map_err(|e| unreachable_server(&self.base, HINT, &e))?;
                answer(&self.base, status, &bytes).map(|_unexpected| None)
            }
        }
    }

    /// Reads a whole list, page by page.
    pub(super) async fn list(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value, Failure> {
        let mut query = [query, &[("limit", "1000".to_owned())]].concat();
        let mut all = Vec::new();
        loop {
            let mut page = self.get(path, &query).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                all.extend(items);
            }
            let Some(next) = page.get("next").and_then(Value::as_str).map(str::to_owned) else {
                return Ok(serde_json::json!({ "items": all, "position": page.get("position") }));
            };
            query.retain(|(name, _)| *name != "after");
            query.push(("after", next));
        }
    }

    /// Writes one object.
    pub(super) async fn put(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.send(Method::PUT, path, &[], Some(body), Duration::ZERO).await
    }

    /// Deletes one object.
    pub(super) async fn delete(&self, path: &[&str]) -> Result<Value, Failure> {
        self.send(Method::DELETE, path, &[], None, Duration::ZERO).await
    }

    /// Deletes one object, and is told where that has been applied within `wait`.
    pub(super) async fn delete_wait(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        wait: Option<Duration>,
    ) -> Result<Value, Failure> {
        let query = [query, &waiting(wait)].concat();
        self.send(Method::DELETE, path, &query, None, wait.unwrap_or_default()).await
    }

    /// Asks for something to be done.
    pub(super) async fn post(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.send(Method::POST, path, &[], Some(body), Duration::ZERO).await
    }

    /// Asks for something to be done, and to be told where it has been applied within `wait`.
    pub(super) async fn post_wait(
        &self,
        path: &[&str],
        body: &Value,
        wait: Option<Duration>,
    ) -> Result<Value, Failure> {
        self.send(Method::POST, path, &waiting(wait), Some(body), wait.unwrap_or_default()).await
    }

    /// Reads, and hands the answer on byte for byte.
    pub(super) async fn get_bytes(&self, path: &[&str], query: &[(&str, String)]) -> Result<Bytes, Failure> {
        let (status, bytes) = self.exchange(Method::GET, path, query, None, Duration::ZERO).await?;
        if status.is_success() { Ok(bytes) } else { answer(&self.base, status, &bytes).map(|_never| bytes) }
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
        wait: Duration,
    ) -> Result<Value, Failure> {
        let (status, bytes) = self.exchange(method, path, query, body, wait).await?;
        answer(&self.base, status, &bytes)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
        wait: Duration,
    ) -> Result<(reqwest::StatusCode, Bytes), Failure> {
        let mut request = self.request(method, path)?.timeout(Duration::from_secs(30).saturating_add(wait));
        if !query.is_empty() {
            request = request.query(query);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|e| unreachable_server(&self.base, HINT, &e))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| unreachable_server(&self.base, HINT, &e))?;
        Ok((status, bytes))
    }

    /// A request with the token, without a time limit.
    fn request(&self, method: Method, path: &[&str]) -> Result<reqwest::RequestBuilder, Failure> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| Failure::error(format!("`{}` cannot have a path", self.base)))?
            .pop_if_empty()
            .extend(std::iter::once(&"v1").chain(path));
        // Not in `Debug` output of the request: reqwest marks it sensitive.
        Ok(self.http.request(method, url).bearer_auth(self.token.as_str()))
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

/// The query that asks for a receipt.
fn waiting(wait: Option<Duration>) -> Vec<(&'static str, String)> {
    wait.iter().map(|w| ("wait", humantime::format_duration(*w).to_string().replace(' ', ""))).collect()
}

fn answer(base: &Url, status: reqwest::StatusCode, bytes: &[u8]) -> Result<Value, Failure> {
    let body: Option<Value> = if bytes.is_empty() { Some(Value::Null) } else { serde_json::from_slice(bytes).ok() };
    if status.is_success() {
        return body
            .ok_or_else(|| Failure::error(format!("`{base}` did not answer with JSON; is it a control plane?")));
    }
    let problem = body.filter(Value::is_object).unwrap_or_else(|| serde_json::json!({ "status": status.as_u16() }));
    let message = problem_text(status, &problem);
    Err(match status.as_u16() {
        401 => Failure::Error(format!("`{base}` does not accept the operator token: {message}")),
        400..=499 => Failure::Refused { message, problem },
        _ => Failure::Error(format!("`{base}`: {message}")),
    })
}

/// A problem document in one text: its detail, then each field on a line of its own.
fn problem_text(status: reqwest::StatusCode, problem: &Value) -> String {
    let text = |name: &str| problem.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    let mut message = match (text("title"), text("detail")) {
        (Some(title), Some(detail)) if title != detail => format!("{title}: {detail}"),
        (Some(one), _) | (None, Some(one)) => one.to_owned(),
        (None, None) => status.to_string(),
    };
    for error in problem.get("errors").and_then(Value::as_array).into_iter().flatten() {
        let part = |name: &str| cell(error, name);
        let mut line = match part("field") {
            field if field.is_empty() => format!("\n  {}", part("message")),
            field => format!("\n  `{field}`: {}", part("message")),
        };
        if error.get("line").is_some_and(Value::is_number) {
            line = format!("\n  line {}, column {}:{}", part("line"), part("column"), line.trim_start_matches('\n'));
        }
        message.push_str(&line);
    }
    message.lines().map(super::output::printable).collect::<Vec<_>>().join("\n")
}

/// An error that names the address and what to try.
pub(super) fn unreachable_server(base: &Url, hint: &str, e: &reqwest::Error) -> Failure {
    Failure::Error(format!("cannot reach `{base}`: {}\n  {hint}", causes(e)))
}

/// The innermost causes, which is where the operating system says what happened.
fn causes(e: &(dyn std::error::Error + 'static)) -> String {
    let mut all = Vec::new();
    let mut next = Some(e);
    while let Some(cause) = next {
        all.push(cause.to_string());
        next = cause.source();
    }
    all.dedup();
    let skip = usize::from(all.len() > 1);
    all.into_iter().skip(skip).collect::<Vec<_>>().join(": ")
}

/// The entries of a list.
pub(super) fn items(value: &Value) -> &[Value] {
    value.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What a write wrote.
pub(super) fn object(answer: &Value) -> &Value {
    answer.get("object").unwrap_or(&Value::Null)
}

/// A member as text: strings without quotes, lists with commas, nothing for what is not there.
pub(super) fn cell(value: &Value, name: &str) -> String {
    fn text(value: &Value) -> String {
        match value {
            Value::Null => String::new(),
            Value::String(s) => s.clone(),
            Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        }
    }
    value.get(name).map_or_else(String::new, text)
}
