//! Asking for a grant from the command line: as a denial says, field by field, as a renewal, or in an emergency.
//!
//! Plane: composition, a client of the control plane's API. The words of the command line become the request's document
//! and are checked by the control plane; only what has a form of its own (headers, times of the week) is read here.
//! Long because each word of the command line is explained beside its field.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::text;
use crate::cli::api::{ApiArgs, cell, object};
use crate::cli::failure::{Answer, Failure, Outcome};
use crate::cli::output::Out;
use crate::cli::{args, block_on, files, watch};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::object::GrantId;

/// What a grant is asked for.
#[derive(Debug, Args)]
pub(in crate::cli) struct RequestArgs {
    /// File with a denial, or with the `grant_request` of one: submitted as it stands. `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "resource", "action", "path"])]
    from_denial: Option<PathBuf>,
    /// For whom.
    #[arg(long, value_name = "SPIFFE_ID", required_unless_present = "from_denial")]
    workload: Option<SpiffeId>,
    /// A service or a route, as in `payments` or `payments/refunds`; may be repeated.
    #[arg(long, required_unless_present = "from_denial")]
    resource: Vec<String>,
    /// An action, as in `read` or `write`; may be repeated.
    #[arg(long, required_unless_present = "from_denial")]
    action: Vec<String>,
    /// Only paths that match this URI template, as in `/refunds/{*}`.
    #[arg(long, value_name = "TEMPLATE")]
    path: Option<String>,
    /// For how long once approved, as in `30m`. With --from-denial: instead of what the denial says.
    #[arg(long, value_parser = args::duration, required_unless_present = "from_denial")]
    duration: Option<Duration>,
    /// Why. With --from-denial: instead of what the denial says.
    #[arg(long)]
    reason: Option<String>,
    /// Wait so long until it is decided; exit 1 unless it is approved.
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    #[arg(num_args = 0..=1, default_missing_value = "10m")]
    wait: Option<Duration>,
    #[command(flatten)]
    more: MoreArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// What a renewal may change.
#[derive(Debug, Args)]
pub(in crate::cli) struct RenewArgs {
    /// Id of the grant that it is to follow.
    id: GrantId,
    /// For how long once approved. Default: as long as the grant.
    #[arg(long, value_parser = args::duration)]
    duration: Option<Duration>,
    /// Why. Default: as the grant.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    more: MoreArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// What is asked for in an emergency.
#[derive(Debug, Args)]
pub(in crate::cli) struct BreakGlassArgs {
    /// For whom.
    #[arg(long, value_name = "SPIFFE_ID")]
    workload: SpiffeId,
    /// A service or a route, as in `payments` or `payments/refunds`; may be repeated.
    #[arg(long, required = true)]
    resource: Vec<String>,
    /// An action, as in `read` or `write`; may be repeated.
    #[arg(long, required = true)]
    action: Vec<String>,
    /// Only paths that match this URI template, as in `/refunds/{*}`.
    #[arg(long, value_name = "TEMPLATE")]
    path: Option<String>,
    /// For how long, at most an hour.
    #[arg(long, value_parser = args::duration)]
    duration: Duration,
    /// Why: what is the emergency?
    #[arg(long)]
    reason: String,
    /// The ticket that it belongs to.
    #[arg(long)]
    ticket: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// When it is to start, and what it belongs to.
#[derive(Debug, Args)]
struct MoreArgs {
    /// The ticket that it belongs to.
    #[arg(long)]
    ticket: Option<String>,
    /// When it is to start, as in `2027-01-31T12:00:00Z`. Default: on approval.
    #[arg(long, value_name = "TIME", value_parser = args::timestamp)]
    starts_at: Option<Timestamp>,
    /// Ask anew even if a grant that is in force gives all of this.
    #[arg(long)]
    no_reuse: bool,
}

/// What narrows it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// How many requests it is to allow.
    #[arg(long, value_name = "N")]
    uses: Option<u32>,
    /// Only from clients in this network, as in `10.0.0.0/8`; may be repeated.
    #[arg(long, value_name = "CIDR")]
    source_network: Vec<String>,
    /// Only while the workload is of this environment; may be repeated.
    #[arg(long, value_name = "NAME")]
    environment: Vec<String>,
    /// Only with this request header, as in 'x-run: 42'; may be repeated, the values of one name are alternatives.
    #[arg(long, value_name = "NAME: VALUE", value_parser = args::header)]
    header: Vec<(String, String)>,
    /// Only for calls of this MCP tool; may be repeated.
    #[arg(long, value_name = "NAME")]
    tool: Vec<String>,
    /// Only at this time of the week in UTC, as in `08:00-18:00` or `mon-fri,08:00-18:00`; may be repeated.
    #[arg(long, value_name = "[DAYS,]FROM-TO", value_parser = window)]
    window: Vec<Value>,
    /// Only this one call, as in `POST /refunds/7`.
    #[arg(long, value_name = "METHOD PATH", value_parser = call)]
    call: Option<(String, String)>,
    /// Only with a body of this SHA-256, in lower-case hex.
    #[arg(long, value_name = "HEX", requires = "call")]
    body_sha256: Option<String>,
}

// === impl RequestArgs ===

impl RequestArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let body = self.body()?;
        match self.wait {
            Some(wait) => block_on(submit_and_wait(out, &self.api, &body, wait)),
            None => submit(out, &self.api, &body),
        }
    }

    fn body(&self) -> Result<Value, Failure> {
        let mut body = match &self.from_denial {
            Some(path) => from_denial(&path.display().to_string(), &files::read_text(path)?)?,
            None => asked(self.workload.as_ref(), &self.resource, &self.action, self.path.as_deref()),
        };
        if let Some(duration) = self.duration {
            body.insert("duration_seconds".to_owned(), json!(duration.as_secs()));
        }
        if let Some(reason) = &self.reason {
            body.insert("reason".to_owned(), json!(reason));
        }
        self.more.add_to(&mut body);
        self.limits.add_to(&mut body);
        Ok(Value::Object(body))
    }
}

// === impl RenewArgs ===

impl RenewArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let old = block_on(async { self.api.connect()?.get(&["grants", &self.id.to_string()], &[]).await })?;
        submit(out, &self.api, &self.body(&old))
    }

    /// The same again.
    fn body(&self, old: &Value) -> Value {
        let mut body = Map::new();
        for name in [
            "workload",
            "resources",
            "actions",
            "path",
            "conditions",
            "call",
            "uses",
            "duration_seconds",
            "reason",
            "ticket",
        ] {
            if let Some(value) = old.get(name) {
                body.insert(name.to_owned(), value.clone());
            }
        }
        body.insert("renews".to_owned(), json!(self.id));
        if let Some(duration) = self.duration {
            body.insert("duration_seconds".to_owned(), json!(duration.as_secs()));
        }
        if let Some(reason) = &self.reason {
            body.insert("reason".to_owned(), json!(reason));
        }
        self.more.add_to(&mut body);
        Value::Object(body)
    }
}

// === impl BreakGlassArgs ===

impl BreakGlassArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let mut body = asked(Some(&self.workload), &self.resource, &self.action, self.path.as_deref());
        body.insert("duration_seconds".to_owned(), json!(self.duration.as_secs()));
        body.insert("reason".to_owned(), json!(self.reason));
        body.insert("break_glass".to_owned(), json!(true));
        if let Some(ticket) = &self.ticket {
            body.insert("ticket".to_owned(), json!(ticket));
        }
        self.limits.add_to(&mut body);
        submit(out, &self.api, &Value::Object(body))
    }
}

// === impl MoreArgs ===

impl MoreArgs {
    fn add_to(&self, body: &mut Map<String, Value>) {
        if let Some(ticket) = &self.ticket {
            body.insert("ticket".to_owned(), json!(ticket));
        }
        if let Some(start) = &self.starts_at {
            body.insert("starts_at".to_owned(), json!(start));
        }
        if self.no_reuse {
            body.insert("reuse".to_owned(), json!(false));
        }
    }
}

// === impl LimitArgs ===

impl LimitArgs {
    fn add_to(&self, body: &mut Map<String, Value>) {
        if let Some(uses) = self.uses {
            body.insert("uses".to_owned(), json!(uses));
        }
        let mut conditions = Map::new();
        let mut lists =
            vec![("source_networks", json!(self.source_network)), ("environments", json!(self.environment))];
        lists.extend([("windows", json!(self.window)), ("tools", json!(self.tool))]);
        for (name, list) in lists {
            if list.as_array().is_some_and(|list| !list.is_empty()) {
                conditions.insert(name.to_owned(), list);
            }
        }
        let mut headers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (name, value) in &self.header {
            headers.entry(name.to_ascii_lowercase()).or_default().push(value);
        }
        if !headers.is_empty() {
            conditions.insert("headers".to_owned(), json!(headers));
        }
        if !conditions.is_empty() {
            body.insert("conditions".to_owned(), Value::Object(conditions));
        }
        if let Some((method, path)) = &self.call {
            let mut call = json!({ "method": method, "path": path });
            if let (Some(digest), Some(call)) = (&self.body_sha256, call.as_object_mut()) {
                call.insert("body_sha256".to_owned(), json!(digest));
            }
            body.insert("call".to_owned(), call);
        }
    }
}

fn asked(
    workload: Option<&SpiffeId>,
    resources: &[String],
    actions: &[String],
    path: Option<&str>,
) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("workload".to_owned(), json!(workload));
    body.insert("resources".to_owned(), json!(resources));
    body.insert("actions".to_owned(), json!(actions));
    if let Some(path) = path {
        body.insert("path".to_owned(), json!(path));
    }
    body
}

/// Submits a request and says what became of it.
fn submit(out: &mut Out<'_>, api: &ApiArgs, body: &Value) -> Outcome {
    let answer = block_on(async { api.connect()?.post(&["grant-requests"], body).await })?;
    if out.is_json() {
        out.json(&answer)?;
        return Ok(Answer::Yes);
    }
    let grant = object(&answer);
    let (id, state) = (cell(grant, "id"), cell(grant, "state"));
    let reused = answer.get("reused") == Some(&Value::Bool(true));
    out.line(format!("{} {id}", if reused { "in force already:" } else { "requested" }))?;
    text::details(out, grant)?;
    if state == "pending" {
        out.line(format!("next: portcullis grant approve {id}  (as another operator)"))?;
    } else if grant.get("break_glass") == Some(&Value::Bool(true)) {
        out.line(format!("next: portcullis review close {id} --note …\n  (as somebody else, once it is over)"))?;
    }
    Ok(Answer::Yes)
}

/// Submits a request and waits until it is decided.
async fn submit_and_wait(out: &mut Out<'_>, api: &ApiArgs, body: &Value, wait: Duration) -> Outcome {
    let api = api.connect()?;
    let answer = api.post(&["grant-requests"], body).await?;
    let id = cell(object(&answer), "id");
    if !out.is_json() {
        out.line(format!("requested {id}; waiting for its approval"))?;
        out.flush()?;
    }
    let decided = watch::until_decided(&api, &id, wait).await?;
    text::show(out, &decided)?;
    let approved = matches!(cell(&decided, "state").as_str(), "active" | "scheduled");
    Ok(if approved { Answer::Yes } else { Answer::No })
}

/// The grant request in a denial: the whole problem document, or just the object.
fn from_denial(name: &str, text: &str) -> Result<Map<String, Value>, Failure> {
    let value: Value =
        serde_json::from_str(text).map_err(|e| Failure::error(format!("`{name}` is not a JSON document: {e}")))?;
    match value {
        // What `check --output json` prints holds the denial's body.
        Value::Object(mut problem) => match problem
            .remove("grant_request")
            .or_else(|| problem.get_mut("problem")?.as_object_mut()?.remove("grant_request"))
        {
            Some(Value::Object(request)) => Ok(request),
            None if problem.contains_key("workload") && problem.contains_key("resources") => Ok(problem),
            _ => {
                let reason = problem.get("reason").and_then(Value::as_str).unwrap_or("unknown");
                Err(Failure::error(format!(
                    "`{name}` holds no `grant_request` (its reason is `{reason}`): only a denial `entitlement.*` to an \
                     authenticated workload carries one"
                )))
            }
        },
        _ => Err(Failure::error(format!("`{name}` is not a denial"))),
    }
}

fn call(text: &str) -> Result<(String, String), String> {
    let (method, path) = text.split_once(' ').ok_or("a call is written 'METHOD PATH', as in 'POST /refunds/7'")?;
    Ok((method.to_owned(), path.trim().to_owned()))
}

/// `08:00-18:00`, with days before it: `mon-fri,08:00-18:00`, `sat,sun,00:00-24:00`.
fn window(text: &str) -> Result<Value, String> {
    const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let place =
        |day: &str| DAYS.iter().position(|d| *d == day).ok_or_else(|| format!("`{day}` is not a day: mon to sun"));
    let (days, times) = text.rsplit_once(',').map_or((None, text), |(days, times)| (Some(days), times));
    let (from, to) = times.split_once('-').ok_or("times are written FROM-TO, as in 08:00-18:00")?;
    let mut all: Vec<&str> = Vec::new();
    for part in days.into_iter().flat_map(|days| days.split(',')) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (place(first)?, place(last)?);
        if first > last {
            return Err(format!("`{part}` runs backwards; write it as two"));
        }
        all.extend(DAYS.iter().skip(first).take(last - first + 1));
    }
    let mut window = json!({ "from": from, "to": to });
    if let (false, Some(window)) = (all.is_empty(), window.as_object_mut()) {
        window.insert("days".to_owned(), json!(all));
    }
    Ok(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_or_its_grant_request_is_taken_as_it_stands() {
        let request = json!({ "workload": "spiffe://a/b", "resources": ["x"], "extra": 1 });
        let denial = json!({ "reason": "entitlement.no_grant", "grant_request": request });
        let check = json!({ "allowed": false, "problem": denial });
        for text in [denial.to_string(), request.to_string(), check.to_string()] {
            assert_eq!(Value::Object(from_denial("f", &text).unwrap()), request);
        }
        let unauthenticated = json!({ "reason": "credential" }).to_string();
        let Err(Failure::Error(message)) = from_denial("f", &unauthenticated) else { panic!("accepted") };
        assert!(message.contains("its reason is `credential`"), "{message}");
        assert!(from_denial("f", "[]").is_err());
        assert!(from_denial("f", "<html>").is_err());
    }

    #[test]
    fn times_of_the_week_are_read() {
        let days = json!(["mon", "tue", "sun"]);
        assert_eq!(window("mon-tue,sun,08:00-18:00"), Ok(json!({ "from": "08:00", "to": "18:00", "days": days })));
        assert_eq!(window("08:00-24:00"), Ok(json!({ "from": "08:00", "to": "24:00" })));
        for bad in ["fri-mon,08:00-18:00", "day,08:00-18:00", "mon", ""] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_limit_has_its_place_in_the_request() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            limits: LimitArgs,
        }
        let line =
            ["x", "--uses", "3", "--source-network", "10.0.0.0/8", "--environment", "test", "--header", "X-Run: 1"];
        let more = [
            "--header",
            "x-run: 2",
            "--window",
            "mon,08:00-09:00",
            "--call",
            "POST /refunds/7?a=b",
            "--tool",
            "refund",
        ];
        let line = <Line as clap::Parser>::try_parse_from(line.into_iter().chain(more)).unwrap();
        let mut body = asked(None, &["payments".to_owned()], &["write".to_owned()], None);
        body.insert("workload".to_owned(), json!("spiffe://a/b"));
        body.insert("duration_seconds".to_owned(), json!(60));
        line.limits.add_to(&mut body);
        let asked: crate::grant::NewGrantRequest = serde_json::from_value(Value::Object(body)).unwrap();
        let conditions = serde_json::to_value(&asked.conditions).unwrap();
        let window = json!({ "from": "08:00", "to": "09:00", "days": ["mon"] });
        let expected = json!({
            "source_networks": ["10.0.0.0/8"], "environments": ["test"], "headers": { "x-run": ["1", "2"] },
            "windows": [window], "tools": ["refund"],
        });
        assert_eq!((conditions, asked.uses), (expected, Some(3)));
        assert_eq!(asked.call.unwrap().path, "/refunds/7?a=b");
    }
}
