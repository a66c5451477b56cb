//! Every verb of the command line as the real binary, against a running control plane and sidecar: once as it should be
//! typed, for people and for programs, and once with a slip, which the message names.

use portcullis::credential::TokenSigner;
use serde_json::{Value, json};

use super::running::{DOMAIN, Site, portcullis};

/// What a command answered.
pub(super) struct Answer {
    line: String,
    pub(super) status: i32,
    pub(super) stdout: String,
    stderr: String,
}

/// An operator at a terminal.
pub(super) struct Operator<'a> {
    site: &'a Site,
    token: &'static str,
}

async fn typed(args: Vec<String>) -> Answer {
    let line = args.join(" ");
    let run = move || portcullis(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Answer { line, status: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A command that needs no control plane.
pub(super) async fn local(args: &[&str]) -> Answer {
    typed(args.iter().map(|a| (*a).to_owned()).collect()).await
}

impl<'a> Operator<'a> {
    pub(super) const fn of(site: &'a Site, token: &'static str) -> Self {
        Self { site, token }
    }

    pub(super) async fn types(&self, args: &[&str], more: &[&str]) -> Answer {
        let (server, token) = (format!("http://{}", self.site.api), self.site.path(self.token));
        let reach = ["--server", &server, "--token-file", &token];
        typed([args, &reach, more].concat().iter().map(|a| (*a).to_owned()).collect()).await
    }

    /// A success, for people.
    pub(super) async fn says(&self, args: &[&str], expected: &[&str]) {
        self.types(args, &[]).await.says(expected);
    }

    /// A success, for programs.
    pub(super) async fn json(&self, args: &[&str]) -> Value {
        self.types(args, &["--output", "json"]).await.json(0)
    }

    /// The same command both ways.
    pub(super) async fn both(&self, args: &[&str], expected: &[&str]) -> Value {
        self.says(args, expected).await;
        self.json(args).await
    }

    /// A slip that the control plane refuses: the answer is no, and a problem document for programs.
    pub(super) async fn refused(&self, args: &[&str], named: &[&str]) {
        self.types(args, &[]).await.fails(1, named);
        let problem = self.types(args, &["--output", "json"]).await;
        assert!(problem.json(1)["status"].as_u64().is_some_and(|s| (400..500).contains(&s)), "{}", problem.line);
    }

    /// A slip that goes nowhere.
    pub(super) async fn mistyped(&self, args: &[&str], named: &[&str]) {
        self.types(args, &[]).await.fails(2, named);
    }
}

impl Answer {
    #[track_caller]
    pub(super) fn says(&self, expected: &[&str]) {
        assert_eq!(self.status, 0, "{}: {}", self.line, self.stderr);
        assert!(self.stderr.is_empty(), "{}: {}", self.line, self.stderr);
        for text in expected {
            assert!(self.stdout.contains(text), "{}: no `{text}` in: {}", self.line, self.stdout);
        }
        for line in self.stdout.lines() {
            assert!(line.chars().count() <= 100, "{}: too wide: {line}", self.line);
        }
    }

    #[track_caller]
    pub(super) fn json(&self, status: i32) -> Value {
        assert_eq!(self.status, status, "{}: {}{}", self.line, self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{}: {e}: {}", self.line, self.stdout))
    }

    #[track_caller]
    fn fails(&self, status: i32, named: &[&str]) {
        self.names(status, named);
        assert!(self.stdout.is_empty(), "{}: results of a failure: {}", self.line, self.stdout);
    }

    #[track_caller]
    pub(super) fn names(&self, status: i32, named: &[&str]) {
        assert_eq!(self.status, status, "{}: {}{}", self.line, self.stdout, self.stderr);
        for text in named {
            assert!(self.stderr.contains(text), "{}: no `{text}` in: {}", self.line, self.stderr);
        }
    }
}

pub(super) const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_verb_does_what_it_says_and_names_a_slip() {
    let site = Site::open().await;
    let sidecar = site.sidecar().await;
    let alice = Operator { site: &site, token: "alice" };
    let bob = Operator { site: &site, token: "bob" };
    operators(&alice).await;
    issuers(&alice).await;
    workloads(&alice).await;
    services(&alice).await;
    policies(&alice).await;
    grants(&alice, &bob).await;
    tokens(&site).await;
    revocations(&alice).await;

    let fleet = alice.both(&["fleet"], &["ENFORCEMENT POINT", "yes"]).await;
    assert_eq!(fleet["items"][0]["identity"], format!("{DOMAIN}/sidecar"));
    alice.mistyped(&["fleet", "all"], &["'all'"]).await;

    let (agent, path) = (site.token("agent", "portcullis-demo"), site.path("decisions.jsonl"));
    let denied = sidecar.check("POST", "/refunds/7", &agent).await;
    assert_eq!(denied.status, 401, "it was revoked: {denied:?}");
    let storefront = site.token("storefront", "portcullis-demo");
    assert_eq!(sidecar.check("POST", "/refunds/7", &storefront).await.status, 403);
    // Stopping writes what is still queued.
    sidecar.server.stop().await;
    local(&["decisions", "tail", "--file", &path, "--deny"]).await.says(&[
        "revoked.workload",
        "entitlement.no_grant",
        "write payments/refunds",
        "/storefront",
    ]);
    let record = local(&["decisions", "tail", "--file", &path, "-n", "1", "--output", "json"]).await.json(0);
    assert_eq!(record["reason"], "entitlement.no_grant", "{record}");
    let from = ["check", "--path", "/catalog/1", "--peer-address", "10.0.0"];
    local(&from).await.fails(2, &["'10.0.0'", "--peer-address"]);
    local(&["decisions", "tail", "--file", "/nowhere/x.jsonl"]).await.fails(2, &["`/nowhere/x.jsonl`"]);
    local(&["decisions", "tail", "--file", &path, "-n", "few"]).await.fails(2, &["'few'"]);
    audit(&alice).await;
    let directory = site.path("control");
    site.control.stop().await;
    let checkpoint = local(&["audit", "checkpoint", "--database", &directory]).await;
    let offline = ["audit", "verify", "--database", &directory, "--expect", checkpoint.stdout.trim()];
    local(&offline).await.says(&["records from number 1 on: whole", checkpoint.stdout.trim()]);
}

async fn audit(alice: &Operator<'_>) {
    alice.both(&["audit", "list"], &["SEQ", "AUTHOR", "alice", "revocation.create"]).await;
    let refused = alice.json(&["audit", "list", "--outcome", "refused", "--author", "alice", "-n", "1"]).await;
    assert_eq!(refused["items"].as_array().map(Vec::len), Some(1), "{refused}");
    alice.refused(&["audit", "list", "--outcome", "perhaps"], &["`outcome`", "`perhaps`"]).await;
    alice.mistyped(&["audit", "list", "--since", "soon"], &["'soon'"]).await;
    let checkpoint = alice.types(&["audit", "checkpoint"], &[]).await;
    let (directory, checkpoint) = (alice.site.path("control"), checkpoint.stdout.trim().to_owned());
    for of in [&[][..], &["--database", &directory]] {
        let verdict = alice.types(&[&["audit", "verify", "--expect", &checkpoint], of].concat(), &[]).await;
        verdict.says(&["records from number 1 on: whole", "checkpoint "]);
        let file = alice.site.path("audit.jsonl");
        let export = alice.types(&[&["audit", "export"], of].concat(), &[]).await;
        assert!(export.stdout.lines().count() > 50, "{}", export.stdout);
        std::fs::write(&file, &export.stdout).unwrap();
        local(&["audit", "verify", "--file", &file, "--expect", &checkpoint]).await.says(&["whole"]);
        // Somebody takes a line out.
        let third = export.stdout.lines().nth(2).unwrap();
        std::fs::write(&file, export.stdout.replace(&format!("{third}\n"), "")).unwrap();
        let verdict = local(&["audit", "verify", "--file", &file, "--output", "json"]).await.json(1);
        assert_eq!(verdict["findings"][0]["what"], "missing", "{verdict}");
        assert_eq!(verdict["findings"][0]["seq"], 3, "{verdict}");
    }
    alice.mistyped(&["audit", "verify", "--expect", "abc"], &["'abc'", "HASH:SEQ"]).await;
    alice.mistyped(&["audit", "verify", "--database", "/nowhere"], &["/nowhere/control.db"]).await;
}

async fn operators(alice: &Operator<'_>) {
    let file = alice.site.path("carol");
    alice
        .says(&["operator", "create", "carol", "--write-token", &file], &["created operator carol", "its token"])
        .await;
    let dave = alice.json(&["operator", "create", "dave"]).await;
    assert!(dave["token"].as_str().is_some_and(|t| t.starts_with("ptc_op_")));
    alice.refused(&["operator", "create", "carol"], &["carol"]).await;
    alice.refused(&["operator", "create", "Not A Name"], &["`name`", "1 to 63"]).await;
    alice.both(&["operator", "list"], &["NAME", "alice", "carol"]).await;
    alice.says(&["operator", "delete", "carol"], &["deleted operator carol"]).await;
    alice.json(&["operator", "delete", "dave"]).await;
    alice.refused(&["operator", "delete", "nobody"], &["nobody"]).await;
    let gone = Operator { site: alice.site, token: "carol" };
    gone.mistyped(&["operator", "list"], &["does not accept the operator token"]).await;
}

async fn issuers(alice: &Operator<'_>) {
    let jwks = alice.site.path("second.jwks");
    let key = TokenSigner::generate_es256("one").unwrap().public_jwk();
    std::fs::write(&jwks, json!({ "keys": [key] }).to_string()).unwrap();
    let put = |domain: &'static str, jwks: &str| {
        let args = ["issuer", "put", "second", "--trust-domain", domain, "--audience", "a", "--jwks", jwks];
        args.map(str::to_owned)
    };
    let args = put("second.example", &jwks);
    alice.both(&args.each_ref().map(String::as_str), &["put issuer second"]).await;
    let args = put("Not_A Domain", &jwks);
    alice.refused(&args.each_ref().map(String::as_str), &["trust_domain", "Not_A Domain"]).await;
    let args = put("second.example", "/nowhere/jwks.json");
    alice.mistyped(&args.each_ref().map(String::as_str), &["`/nowhere/jwks.json`"]).await;
    alice.mistyped(&["issuer", "put", "x", "--keys-from", "ldap"], &["'ldap'", "jwks_uri=URL"]).await;
    let listed = alice.both(&["issuer", "list"], &["VOUCHES FOR", "second.example", "operator"]).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 2, "{listed}");
    alice.mistyped(&["issuer", "list", "second"], &["'second'"]).await;
    let shown = alice.both(&["issuer", "show", "second"], &["\"second.example\""]).await;
    assert_eq!(shown["name"], "second");
    alice.refused(&["issuer", "show", "secnod"], &["secnod"]).await;
    let keys = alice.both(&["issuer", "keys", "second"], &["second: 1 keys, from operator"]).await;
    assert_eq!(keys["keys"], 1, "{keys}");
    alice.refused(&["issuer", "keys", "secnod"], &["secnod"]).await;
    alice.says(&["issuer", "delete", "second"], &["deleted issuer second"]).await;
    alice.refused(&["issuer", "delete", "second"], &["second"]).await;
}

async fn workloads(alice: &Operator<'_>) {
    let id = format!("{DOMAIN}/batch");
    let put = ["workload", "put", &id, "--kind", "service", "--owner", "team", "--environment", "test", "--role", "r"];
    let made = alice.both(&put, &["put workload", &id]).await;
    assert_eq!(made["object"]["roles"], json!(["r"]));
    let robot = ["workload", "put", &id, "--kind", "robot", "--owner", "team", "--environment", "test"];
    alice.refused(&robot, &["`kind`", "robot"]).await;
    let http = ["workload", "put", "http://x/y", "--kind", "service", "--owner", "team", "--environment", "test"];
    alice.refused(&http, &["http://x/y"]).await;
    alice.mistyped(&["workload", "put", &id, "--label", "nothing"], &["'nothing'", "NAME=VALUE"]).await;
    alice.both(&["workload", "list"], &["ENVIRONMENT", &id]).await;
    alice.mistyped(&["workload", "list", "--role", "r"], &["'--role'"]).await;
    alice.both(&["workload", "show", &id], &["\"team\""]).await;
    let nobody = format!("{DOMAIN}/nobody");
    alice.refused(&["workload", "show", &nobody], &[&nobody]).await;
    alice.mistyped(&["workload", "put", &id, "--delegator"], &["--delegator", "SPIFFE_ID"]).await;
    let acting = [&put[..], &["--delegator", "spiffe://x/*", "--actor", &nobody]].concat();
    let acting = alice.json(&acting).await;
    assert_eq!(
        (&acting["object"]["delegators"], &acting["object"]["actors"]),
        (&json!(["spiffe://x/*"]), &json!([nobody]))
    );
    lifecycle(alice, &id, &nobody).await;
    alice.refused(&put, &[&id, "retired"]).await;
}

async fn lifecycle(alice: &Operator<'_>, id: &str, nobody: &str) {
    let (complete, why) = ("complete: every enforcement point", ["--reason", "odd traffic", "--wait", "20s"]);
    alice.says(&[&["workload", "suspend", id], &why[..]].concat(), &["suspended", id, complete]).await;
    let suspended = alice.json(&[&["workload", "suspend", id], &why[..]].concat()).await;
    assert_eq!(suspended["object"]["suspended"]["reason"], "odd traffic", "{suspended}");
    alice.refused(&["workload", "suspend", nobody], &[nobody]).await;
    let listed = alice.both(&["workload", "list", "--suspended"], &["SUSPENDED", id]).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
    alice.says(&["workload", "list", "--owner", "nobody"], &["no workloads"]).await;
    alice.refused(&["workload", "list", "--kind", "robot"], &["`kind`", "robot"]).await;
    let by = suspended["object"]["suspended"]["revocation"].as_str().unwrap();
    alice.refused(&["revoke", "lift", by, "--reason", "x"], &["resume the workload"]).await;

    // A revocation of its own is not lifted by resuming.
    let revoked = alice.json(&["revoke", "workload", id]).await;
    let revoked = revoked["object"]["id"].as_str().unwrap();
    alice.mistyped(&["workload", "resume", id], &["--reason"]).await;
    let resumed = alice.types(&["workload", "resume", id, "--reason", "false alarm"], &[]).await;
    assert_eq!(resumed.status, 1, "{}", resumed.stderr);
    assert!(resumed.stdout.contains(&format!("STILL REVOKED by {revoked}")), "{}", resumed.stdout);
    alice.mistyped(&["revoke", "lift", revoked], &["--reason"]).await;
    alice.refused(&["revoke", "lift", revoked, "--reason", " "], &["`reason`", "for a reason"]).await;
    alice.refused(&["revoke", "lift", NOBODY, "--reason", "x"], &[NOBODY]).await;
    let lift = ["revoke", "lift", revoked, "--reason", "no leak", "--wait", "20s"];
    alice.both(&lift, &["lifted", revoked, "workload", id, complete]).await;
    alice.says(&["workload", "resume", id, "--reason", "done", "--wait", "20s"], &["resumed", complete]).await;
    alice.both(&["revoke", "list", "--lifted"], &["LIFTED BY", revoked, by, "no leak"]).await;

    alice.refused(&["workload", "retire", nobody], &[nobody]).await;
    let retire = ["workload", "retire", id, "--reason", "replaced", "--wait", "20s"];
    alice.both(&retire, &["retired", id, "0 grants", complete]).await;
}

async fn services(alice: &Operator<'_>) {
    let (good, bad) = (alice.site.path("ledger.yaml"), alice.site.path("bad.yaml"));
    std::fs::write(&good, "name: ledger\nroutes:\n  - { name: entries, path: '/entries/{*}' }\n").unwrap();
    std::fs::write(&bad, "name: ledger\nroutes:\n  - { name: entries, path: 'entries' }\n").unwrap();
    alice.both(&["service", "put", "-f", &good], &["put service ledger"]).await;
    alice.refused(&["service", "put", "-f", &bad], &["`routes[0].path`", "`entries`"]).await;
    alice.both(&["service", "list"], &["ROUTE", "/entries/{*}"]).await;
    alice.both(&["service", "show", "ledger"], &["\"entries\""]).await;
    alice.refused(&["service", "show", "legder"], &["legder"]).await;
    alice.says(&["service", "delete", "ledger"], &["deleted service ledger"]).await;
    alice.refused(&["service", "delete", "ledger"], &["ledger"]).await;
    std::fs::write(&bad, "service:\n  name: ledger\n  routes: [{ name: e, path: 'entries' }]\n").unwrap();
    alice.refused(&["apply", "-f", &bad], &[&format!("`{bad}`: service `ledger`: "), "`routes[0].path`"]).await;
    alice.both(&["apply", "-f", &alice.site.path("seed/services.yaml")], &["unchanged service catalog"]).await;
}

async fn policies(alice: &Operator<'_>) {
    let (good, bad) = (alice.site.path("seed/policies.cedar"), alice.site.path("bad.cedar"));
    std::fs::write(&bad, "@id(\"a\")\npermit (principal, action, resource)\n  when { context.nope };\n").unwrap();
    local(&["policy", "check", &good]).await.says(&["valid: 3 policies", "refunds-are-jit"]);
    let checked = local(&["policy", "check", &bad]).await;
    assert_eq!(checked.status, 1, "{}", checked.stdout);
    assert!(checked.stdout.contains(&format!("{bad}:3:")) && checked.stdout.contains("nope"), "{}", checked.stdout);
    alice.says(&["policy", "publish", &good, "--dry-run"], &["valid: 3 policies"]).await;
    let published = alice.both(&["policy", "publish", &good], &["valid: 3 policies", "published"]).await;
    assert_eq!(published["report"]["ids"].as_array().unwrap().len(), 3, "{published}");
    alice.refused(&["policy", "publish", &bad], &["line 3", "nope"]).await;
    alice.mistyped(&["policy", "publish", "/nowhere/p.cedar"], &["`/nowhere/p.cedar`"]).await;
    let shown = alice.both(&["policy", "show"], &["@id(\"refunds-are-jit\")"]).await;
    assert_eq!(shown["text"], std::fs::read_to_string(&good).unwrap());
    alice.mistyped(&["policy", "show", "first"], &["'first'"]).await;
}

async fn grants(alice: &Operator<'_>, bob: &Operator<'_>) {
    let agent = format!("{DOMAIN}/agent");
    let ask = |resource, action, duration| {
        let what = ["--resource", resource, "--action", action, "--duration", duration, "--reason", "ticket 7"];
        [&["grant", "request", "--workload", &agent], &what[..]].concat()
    };
    alice.says(&ask("payments/refunds", "write", "5m"), &["requested ", "pending", "next: portcullis grant"]).await;
    alice.refused(&ask("payments/nothing", "write", "5m"), &["`resources[0]`", "payments/nothing"]).await;
    alice.refused(&ask("payments/refunds", "audit", "5m"), &["`actions[0]`", "audit"]).await;
    alice.refused(&ask("payments/refunds", "write", "0s"), &["`duration_seconds`", "between 1 and"]).await;
    alice.mistyped(&ask("payments/refunds", "write", "soon"), &["'soon'"]).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let made = alice.json(&ask("payments/refunds", "write", "5m")).await;
        ids.push(made["object"]["id"].as_str().unwrap().to_owned());
    }
    let [first, second, denied, twice, withdrawn] = ids.each_ref_str();

    // What would have been approved is shown before the vote, so this refusal has results.
    let own = alice.types(&["grant", "approve", first], &[]).await;
    own.names(1, &["`alice` asked for this grant"]);
    assert!(own.stdout.contains("ticket 7") && !own.stdout.contains("approved"), "{}", own.stdout);
    bob.says(&["grant", "approve", first], &["approved", first, "active until"]).await;
    let approved = bob.json(&["grant", "approve", second]).await;
    assert_eq!(approved["object"]["state"], "active", "{approved}");
    bob.refused(&["grant", "approve", NOBODY], &[NOBODY]).await;
    bob.says(&["grant", "deny", denied, "--reason", "no ticket"], &["denied", denied]).await;
    assert_eq!(bob.json(&["grant", "deny", twice]).await["object"]["state"], "denied");
    bob.refused(&["grant", "deny", NOBODY], &[NOBODY]).await;
    bob.refused(&["grant", "withdraw", withdrawn], &["alice"]).await;
    alice.says(&["grant", "withdraw", withdrawn], &["withdrew", withdrawn]).await;

    alice.both(&["grant", "list"], &["RESOURCES", first, "denied", "withdrawn"]).await;
    let active = alice.both(&["grant", "list", "--workload", &agent, "--state", "active"], &[first, second]).await;
    assert_eq!(active["items"].as_array().unwrap().len(), 2, "{active}");
    alice.refused(&["grant", "list", "--state", "acitve"], &["acitve"]).await;
    alice.both(&["grant", "show", first], &["payments/refunds", "approve by bob", "ticket 7"]).await;
    alice.refused(&["grant", "show", NOBODY], &[NOBODY]).await;
    for verb in ["approve", "deny", "withdraw", "show", "drop", "revoke"] {
        alice.mistyped(&["grant", verb, "not-an-id"], &["'not-an-id'", "<ID>", "not a grant id"]).await;
    }
    let nobody = ["--workload", "agent"];
    alice.mistyped(&[&["grant", "list"], &nobody[..]].concat(), &["'agent'", "--workload", "spiffe://"]).await;
    let third = alice.json(&ask("payments/refunds", "write", "5m")).await;
    let third = third["object"]["id"].as_str().unwrap();
    alice.refused(&["grant", "drop", third], &["pending"]).await;
    bob.says(&["grant", "approve", third], &["approved"]).await;
    bob.refused(&["grant", "drop", third], &["`alice`, who asked for it"]).await;
    let dropped = ["grant", "drop", third, "--reason", "not needed", "--wait", "20s"];
    let dropped = alice.both(&dropped, &["dropped", third, "complete: every enforcement point"]).await;
    assert_eq!(dropped["object"]["state"], "ended", "{dropped}");
    let revoke = ["grant", "revoke", first, "--reason", "done", "--wait", "20s"];
    bob.says(&revoke, &["revoked", "complete: every enforcement point"]).await;
    let revoked = bob.json(&["grant", "revoke", second, "--wait", "20s"]).await;
    assert_eq!(revoked["receipt"]["complete"], true, "{revoked}");
    bob.refused(&["grant", "revoke", NOBODY], &[NOBODY]).await;
    bob.refused(&["grant", "revoke", denied], &["denied"]).await;
    bob.mistyped(&["grant", "revoke", first, "--wait", "soon"], &["'soon'"]).await;
}

/// Borrows that many ids.
trait EachStr {
    fn each_ref_str<const N: usize>(&self) -> [&str; N];
}

impl EachStr for Vec<String> {
    fn each_ref_str<const N: usize>(&self) -> [&str; N] {
        self.iter().map(String::as_str).collect::<Vec<_>>().try_into().unwrap()
    }
}

async fn tokens(site: &Site) {
    let (key, jwks) = (site.path("issuer.key"), site.path("issuer.jwks"));
    local(&["token", "keygen", "--key-file", &key, "--jwks-file", &jwks]).await.says(&["private key:", "0600"]);
    let id = format!("{DOMAIN}/agent");
    let issue = ["token", "issue", "--key-file", &key, "--subject", &id, "--audience", "portcullis-demo"];
    let token = local(&issue).await;
    assert_eq!((token.status, token.stdout.trim().split('.').count()), (0, 3), "one line, one token");
    let issued = local(&[&issue[..], &["--output", "json"]].concat()).await.json(0);
    assert_eq!(issued["claims"]["sub"], id);
    let bad = |subject, key: &'static str| {
        let args = ["token", "issue", "--key-file", key, "--subject", subject, "--audience", "a"];
        args.map(str::to_owned).to_vec()
    };
    typed(bad("https://x/y", "/nowhere/k")).await.fails(2, &["https://x/y"]);
    typed(bad("spiffe://x/y", "/nowhere/k")).await.fails(2, &["`/nowhere/k`"]);
}

async fn revocations(alice: &Operator<'_>) {
    let (agent, nobody) = (format!("{DOMAIN}/agent"), format!("{DOMAIN}/nobody"));
    let mut jwk = TokenSigner::generate_es256("k").unwrap().public_jwk();
    jwk["use"] = json!("sig");
    let cluster = json!({
        "name": "cluster", "kind": "kubernetes", "issuer": "https://kubernetes.example", "audiences": ["portcullis-demo"],
        "jwks": { "keys": [jwk] },
    });
    let file = alice.site.path("cluster.json");
    std::fs::write(&file, cluster.to_string()).unwrap();
    alice.says(&["issuer", "put", "-f", &file], &["put issuer cluster"]).await;

    let token = |issuer| ["token", "--issuer", issuer, "--jti", "stolen"];
    let key = |kid| ["key", "--issuer", "cluster", "--kid", kid];
    let bound = |issuer| ["bound-object", "--issuer", issuer, "--uid", "6f1c2a0e-8f3d-4a57-9d55-0c8f6f1f2a11"];
    let before = |id, time| ["tokens-before", "--workload", id, "--before", time];
    let cases: [(&[&str], &[&str], &[&str]); 8] = [
        (&token("demo"), &token("dmeo"), &["`target.issuer`", "`dmeo`"]),
        (&bound("cluster"), &bound("demo"), &["`target.issuer`", "not bound"]),
        (&["certificate", "0a1b2c"], &["certificate", "serial=0a"], &["`target.serial`", "`serial=0a`"]),
        (
            &before(&agent, "2020-01-31T12:00:00Z"),
            &before(&nobody, "2020-01-31T12:00:00Z"),
            &["`target.workload`", &nobody],
        ),
        (&["delegator", &agent], &["delegator", &nobody], &["`target.workload`", &nobody]),
        (&key("k"), &key("q"), &["`target.kid`", "`q`"]),
        (&["workload", &agent], &["workload", &nobody], &["`target.workload`", &nobody]),
        (&["issuer", "cluster"], &["issuer", "clutser"], &["`target.issuer`", "`clutser`"]),
    ];
    for (right, wrong, named) in cases {
        alice.refused(&[&["revoke"], wrong].concat(), named).await;
        let right = [&["revoke"], right, &["--reason", "leaked", "--wait", "20s"]].concat();
        alice.says(&right, &["revoked ", "complete: every enforcement point has applied it"]).await;
        let again = alice.json(&right).await;
        assert_eq!(again["object"]["target"]["kind"], right[1].replace('-', "_"), "{again}");
    }
    alice.mistyped(&[&["revoke"], &before(&agent, "soon")[..]].concat(), &["'soon'", "2026-01-31T12:00:00Z"]).await;
    alice.refused(&["revoke", "grant", NOBODY], &["`target.grant`", NOBODY]).await;
    alice.mistyped(&["revoke", "grant", "not-an-id"], &["'not-an-id'", "<GRANT>", "not a grant id"]).await;
    for verb in ["workload", "delegator"] {
        alice.mistyped(&["revoke", verb, "agent"], &["'agent'", "<SPIFFE_ID>", "spiffe://"]).await;
    }
    let of_agent = [&["revoke"], &before("agent", "2020-01-31T12:00:00Z")[..]].concat();
    alice.mistyped(&of_agent, &["'agent'", "--workload", "spiffe://"]).await;
    let expected = ["TARGET", "token demo stolen", "bound_object cluster 6f1c", "certificate", "leaked"];
    alice.both(&["revoke", "list"], &expected).await;
    alice.mistyped(&["revoke", "list", "tokens"], &["'tokens'"]).await;
}
