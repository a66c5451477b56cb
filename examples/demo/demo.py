#!/usr/bin/env python3
"""The demo: one just-in-time grant, enforced end to end on real Envoy.

Starts a control plane, a sidecar, an upstream and Envoy on the loopback ports of `portcullis dev`, plays seven steps
and prints for each call what was expected and what came back. Ends with status 1 at the first mismatch. Everything it
started is stopped at the end, also on Ctrl-C. Needs Python 3.9 and nothing else; logs and state stay in .cache/demo.

Each answer is checked twice: what the caller was told, and what the decision record says. A caller that Portcullis
could not authenticate is told only the family of the reason (`credential`, `input`); the record has all of it.
"""

import hashlib
import hmac
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from stack import (  # noqa: E402
    AGENT, AUDIENCE, MAX_STALENESS, Issuer, Mismatch, PROCESSES, SIDECAR, STOREFRONT, Site, bearer, call, check,
    expect, forged, heading, note, run, stop, until, upstream_saw,
)


class Demo(Site):
    """The demo: one just-in-time grant, enforced end to end on real Envoy."""

    STEPS = tuple(f"step_{n}" for n in range(1, 8))

    def set_up(self):
        super().set_up()
        self.storefront = bearer(self.issuer.issue(STOREFRONT, AUDIENCE, "--ttl", "30m"))
        self.agent = bearer(self.issuer.issue(AGENT, AUDIENCE, "--ttl", "30m"))

    # --- what the steps do again and again

    def get(self, path, headers=None):
        return call("GET", path, self.storefront if headers is None else headers)

    def post(self, path, headers=None):
        return call("POST", path, self.storefront if headers is None else headers, {"amount": 12})

    # --- the steps

    def step_1(self):
        heading("1. Standing policy: the storefront reads the catalog")
        forged_headers = [("X-Portcullis-Workload", "forged"), ("x_portcullis_workload", "forged"),
                          ("X-Portcullis-Grant", "forged"), ("x-portcullis_subject", "forged")]
        answer = expect("GET /catalog/1 with a JWT-SVID and forged identity headers", "200 allow.policy",
                        self.get("/catalog/1", self.storefront + forged_headers))
        seen = upstream_saw(answer)
        check("the upstream saw x-portcullis-workload", [STOREFRONT], seen.get("x-portcullis-workload"))
        check("the upstream saw x-portcullis-subject", [STOREFRONT], seen.get("x-portcullis-subject"))
        left = [n for n, v in seen.items() if "forged" in str(v) or n.startswith("x_")]
        check("of the client's own identity headers it saw", [], left)
        again = expect("the same call again", "200 allow.policy", self.get("/catalog/1"))
        check("answered from the cache", True, again.record.get("cached"))

    def step_2(self):
        heading("2. A denial is a grant request")
        denial = expect("POST /refunds/7", "403 entitlement.no_grant", self.post("/refunds/7"))
        request = denial.json().get("grant_request", {})
        check("it carries a grant_request for", [STOREFRONT, ["payments/refunds"], ["write"]],
              [request.get("workload"), request.get("resources"), request.get("actions")])
        self.grant = self.submit(denial)
        self.reaches("POST /refunds/7, waiting for approval", "403 entitlement.grant_pending",
                     lambda: self.post("/refunds/7"))
        shown = self.operators["alice"].run("grant", "show", self.grant)
        digest = (shown.get("grant") or shown)["digest"]
        own = self.operators["alice"].post(f"/v1/grant-requests/{self.grant}/approve", {"digest": digest})
        check("alice may not approve her own request", True, 400 <= own.status < 500, own.ms)
        self.operators["bob"].run("grant", "approve", self.grant)
        note("approved by bob")
        waited = self.reaches("POST /refunds/7, the same call", "200 allow.grant", lambda: self.post("/refunds/7"))
        note(f"in force at the sidecar {waited:.0f} ms after the approval was answered")
        check("the upstream saw x-portcullis-grant", [self.grant],
              upstream_saw(self.post("/refunds/7")).get("x-portcullis-grant"))

    def step_3(self):
        heading("3. The grant is for nothing else")
        expect("another method: GET /refunds/7", "403 entitlement.scope", self.get("/refunds/7"))
        expect("another path: POST /payouts/7", "403 entitlement.no_grant", self.post("/payouts/7"))
        expect("a path of no route: POST /refunds/7/cancel", "403 policy.no_match", self.post("/refunds/7/cancel"))
        expect("another workload: POST /refunds/7 by the agent", "403 entitlement.no_grant",
               self.post("/refunds/7", self.agent))

    def step_4(self):
        heading("4. Revoke, and know that it is in force")
        expect("POST /refunds/7, before", "200 allow.grant", self.post("/refunds/7"))
        begun = time.monotonic()
        answer = self.operators["bob"].run("grant", "revoke", self.grant, "--reason", "demo", "--wait", "5s")
        after = self.post("/refunds/7")
        total = (time.monotonic() - begun) * 1000
        receipt = answer.get("receipt", {})
        check("the receipt is complete", True, receipt.get("complete"))
        applied = receipt.get("applied", [])
        check("it names the enforcement point", [SIDECAR], [a.get("enforcement_point") for a in applied])
        elapsed = applied[0].get("elapsed_ms", 0)
        expect("POST /refunds/7, the next call", "403 revoked.grant", after)
        note(f"applied at the sidecar {elapsed:.1f} ms after commit; command, receipt and next call: {total:.0f} ms")
        expect("GET /catalog/1, standing policy is untouched", "200 allow.policy", self.get("/catalog/1"))

    def step_5(self):
        heading("5. A 3-second grant ends by itself, with the control plane stopped")
        denial = expect("POST /refunds/8 by the agent", "403 entitlement.no_grant", self.post("/refunds/8", self.agent))
        grant = self.submit(denial, duration_seconds=3)
        self.operators["bob"].run("grant", "approve", grant)
        approved = time.monotonic()
        self.reaches("POST /refunds/8 by the agent", "200 allow.grant", lambda: self.post("/refunds/8", self.agent))
        check("the control plane stops, with status", 0, stop("control"))
        self.control_stopped = time.monotonic()
        lasted = []

        def over():
            answer = self.post("/refunds/8", self.agent)
            if answer.status == 200:
                lasted.append(time.monotonic() - approved)
            return answer if answer.status != 200 else None
        expect("POST /refunds/8 by the agent, later", "403 entitlement.grant_expired",
               until("the end of the grant", over, 8.0))
        # The grant began at the approval's commit, a moment before `approved`: nothing may be allowed 3 s after that.
        check("it was never allowed more than 3 s after the approval", True, not lasted or max(lasted) <= 3.0)
        if lasted:
            note(f"last allowed {max(lasted):.2f} s after the approval was answered")

    def step_6(self):
        heading(f"6. Without the control plane it answers, from disk too, for {MAX_STALENESS} s in this demo")
        expect("GET /catalog/1, control plane stopped", "200 allow.policy", self.get("/catalog/1"))
        check("the sidecar stops, with status", 0, stop("sidecar"))
        down = self.get("/catalog/1")
        check("GET /catalog/1 without a sidecar: refused by Envoy itself", 503, down.status, down.ms)
        self.start_sidecar()
        expect("GET /catalog/1, sidecar restarted: from disk", "200 allow.policy", self.get("/catalog/1"))
        expect("POST /refunds/7, revoked before: from disk too", "403 revoked.grant", self.post("/refunds/7"))

        def stale():
            time.sleep(0.1)
            answer = self.get("/catalog/1")
            return answer if answer.status != 200 else None
        answer = until("the staleness bound", stale, MAX_STALENESS + 10.0)
        waited = time.monotonic() - self.control_stopped
        expect("GET /catalog/1, beyond the staleness bound", "503 system.stale", answer)
        check("with Retry-After", True, answer.headers.get("retry-after", "").isdigit())
        check(f"no later than {MAX_STALENESS} s after the control plane stopped", True, waited <= MAX_STALENESS + 1.0)
        note(f"it was after {waited:.1f} s")

        pid = PROCESSES["sidecar"].pid
        self.start_control()
        waited = self.reaches("GET /catalog/1, control plane back", "200 allow.policy",
                              lambda: self.get("/catalog/1"), 30.0)
        note(f"recovered {waited:.0f} ms after the control plane was ready")
        check("by the same sidecar process", pid, PROCESSES["sidecar"].pid)
        expect("POST /refunds/7, still revoked", "403 revoked.grant", self.post("/refunds/7"))

    def step_7(self):
        heading("7. What must not pass")
        good = self.storefront[0][1].split()[1]
        stranger = Issuer(self.binary, "stranger")
        public_key = self.issuer.public_key_pem()
        hs256 = {"alg": "HS256", "typ": "JWT", "kid": "demo"}
        for what, reason, token in (
            ("an expired token", "expired",
             self.issuer.issue(STOREFRONT, AUDIENCE, "--iat-offset=-10m", "--exp-offset=-10m")),
            ("a token for another audience", "audience", self.issuer.issue(STOREFRONT, "somebody-else")),
            ("a token signed with another key", "signature", stranger.issue(STOREFRONT)),
            ("an unsigned token, alg none", "alg",
             forged(good, {"alg": "none", "typ": "JWT", "kid": "demo"}, lambda _: b"")),
            ("HS256 with the public key as the secret", "alg",
             forged(good, hs256, lambda data: hmac.new(public_key, data, hashlib.sha256).digest())),
            ("a token of an unknown issuer", "issuer_untrusted",
             stranger.issue("spiffe://elsewhere.example/storefront")),
        ):
            answer = expect(what, f"401 credential.{reason}", self.get("/catalog/1", bearer(token)))
            check("  WWW-Authenticate names an invalid token", True,
                  'error="invalid_token"' in answer.headers.get("www-authenticate", ""))
        answer = expect("no token", "401 credential.missing", self.get("/catalog/1", []))
        check("  WWW-Authenticate names no error", 'Bearer realm="portcullis"', answer.headers.get("www-authenticate"))
        expect("two Authorization headers", "400 input.duplicate_header",
               self.get("/catalog/1", self.storefront + self.agent))
        for path in ("/catalog/..%2frefunds/7", "//refunds/7", "/refunds;x/7", "/catalog/../refunds/7"):
            expect(f"POST {path}", "400 input.ambiguous_path", self.post(path))


if __name__ == "__main__":
    sys.exit(run(Demo))
