#!/usr/bin/env python3
"""A short-lived API credential, only after identity, environment and approval, on real Envoy.

A pipeline exchanges its own token for one that is good for one service, one action and five minutes at most (RFC 8693,
`docs/tokens.md`). Who it is is checked, where it runs, and that a person has approved. The token dies with its grant.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from stack import (  # noqa: E402
    API, AUDIENCE, DOMAIN, SIDECAR, Issuer, Site, bearer, call, check, expect, heading, run, upstream_saw,
)

PIPELINE, STAGING = f"spiffe://{DOMAIN}/pipeline", f"spiffe://{DOMAIN}/pipeline-staging"
CONTROL_PLANE = f"http://127.0.0.1:{API}"
JWT = "urn:ietf:params:oauth:token-type:jwt"


class Story(Site):
    """A short-lived API credential, only after identity, environment and approval, on real Envoy."""

    STEPS = ("identity", "approval", "environment", "what_it_is_good_for", "it_dies_with_its_grant")
    SERVICES = ("deployments", "catalog")
    CONTROL = f"tokens: {{ issuer: {CONTROL_PLANE} }}"

    def set_up(self):
        super().set_up()
        self.own = self.issuer.issue(PIPELINE, CONTROL_PLANE)

    def exchange(self, what, expected, token, scope="write"):
        """Asks for a token; checks the status and the error, and the reason if there is one."""
        answer = call("POST", "/v1/token", port=API, form={
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": token,
            "subject_token_type": JWT, "audience": "deployments", "scope": scope})
        told = answer.json()
        got = " ".join(str(part) for part in (answer.status, told.get("error"), told.get("reason")) if part)
        check(what, expected, got, answer.ms)
        return told

    def post(self, token):
        return call("POST", "/releases/7", bearer(token), {"version": 7})

    def identity(self):
        heading("1. Identity: whoever cannot say who they are gets nothing")
        stranger = Issuer(self.binary, "stranger")
        self.exchange("a token that somebody else signed", "400 invalid_request credential",
                      stranger.issue(PIPELINE, CONTROL_PLANE))
        self.exchange("a workload that is not registered", "400 invalid_request credential",
                      self.issuer.issue(f"spiffe://{DOMAIN}/unknown", CONTROL_PLANE))
        self.exchange("its token for services, which any of them could send", "400 invalid_request credential",
                      self.issuer.issue(PIPELINE, AUDIENCE))

    def approval(self):
        heading("2. Approval: nothing without a grant, and no grant without a person")
        denied = self.exchange("the pipeline, without a grant", "400 access_denied entitlement.no_grant", self.own)
        self.grant = self.ask(denied["grant_request"])
        self.exchange("asked for, and not approved", "400 authorization_pending entitlement.grant_pending", self.own)
        self.operators["bob"].run("grant", "approve", self.grant)
        told = self.exchange("approved by bob", "200", self.own)
        check("the token is tied to the grant", self.grant, told["grant_id"])
        check("it is for five minutes at most", True, 0 < told["expires_in"] <= 300)
        self.token = told["access_token"]

    def environment(self):
        heading("3. Environment: an approval for production is none for staging")
        token = self.issuer.issue(STAGING, CONTROL_PLANE)
        denied = self.exchange("the staging pipeline, without a grant", "400 access_denied entitlement.no_grant", token)
        self.operators["bob"].run("grant", "approve", self.ask(denied["grant_request"]))
        self.exchange("with one that holds in production", "400 access_denied entitlement.environment", token)

    def what_it_is_good_for(self):
        heading("4. The token is good for that service and action, and for nothing else")
        self.reaches("POST /releases/7 through Envoy", "200 allow.grant", lambda: self.post(self.token))
        answer = self.post(self.token)
        check("the upstream saw x-portcullis-workload", [PIPELINE], upstream_saw(answer).get("x-portcullis-workload"))
        check("the upstream saw x-portcullis-grant", [self.grant], upstream_saw(answer).get("x-portcullis-grant"))
        expect("another action: GET /releases/7", "403 entitlement.scope",
               call("GET", "/releases/7", bearer(self.token)))
        expect("another service: GET /catalog/1", "401 credential.audience",
               call("GET", "/catalog/1", bearer(self.token)))
        self.exchange("it is not exchanged again", "400 invalid_request credential", self.token)

    def it_dies_with_its_grant(self):
        heading("5. It dies with its grant")
        receipt = self.operators["alice"].run("grant", "revoke", self.grant, "--wait", "5s")["receipt"]
        check("revoked, with a complete receipt of", [SIDECAR], [a["enforcement_point"] for a in receipt["applied"]])
        expect("POST /releases/7, the next call", "403 revoked.grant", self.post(self.token))
        self.exchange("and there is no new one", "400 access_denied revoked.grant", self.own)

    def ask(self, request):
        """Alice asks for what a denial offers, for production only."""
        request = {**request, "conditions": {"environments": ["production"]}}
        answer = self.operators["alice"].post("/v1/grant-requests", request)
        check("alice asks for it, for production only", 201, answer.status, answer.ms)
        return answer.json()["object"]["id"]


if __name__ == "__main__":
    sys.exit(run(Story))
