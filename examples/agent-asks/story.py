#!/usr/bin/env python3
"""An agent is refused, asks by itself, waits, is approved by a person, acts once, and is refused again, on real Envoy.

The agent uses nothing but its own token: for the call, for its request, which is the `grant_request` of the denial as it
stands, and for waiting. A person approves. Each answer is checked twice: what the caller was told, and what the decision
record says.
"""

import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from stack import AGENT, API, Site, bearer, call, check, expect, heading, note, run  # noqa: E402


# What a workload's token must be for to call the control plane.
API_AUDIENCE = "portcullis-api"


class Story(Site):
    """An agent is refused, asks by itself, waits, is approved by a person, acts once, and is refused again."""

    STEPS = ("refused", "asks", "waits_for_a_person", "acts_once", "refused_again")
    SERVICES = ("payments",)
    CONTROL = f"operators: {{ workloads: {{ audience: {API_AUDIENCE}, trust: [demo] }} }}\n"

    def set_up(self):
        super().set_up()
        self.agent = bearer(self.issuer.issue(AGENT))
        # The same workload, to the control plane: a token is for one audience.
        self.agent_to_control = bearer(self.issuer.issue(AGENT, API_AUDIENCE))

    def refund(self):
        return call("POST", "/refunds/1", self.agent, {"amount": 7})

    def refused(self):
        heading("1. The agent calls, and is refused with what it would take")
        self.denial = expect("agent: POST /refunds/1", "403 entitlement.no_grant", self.refund())
        request = self.denial.json()["grant_request"]
        check("the denial offers a grant for", AGENT, request.get("workload"))
        check("of this many uses", 1, request.get("uses"))
        check("to be submitted to", f"http://127.0.0.1:{API}/v1/grant-requests", request.get("submit_to"))

    def asks(self):
        heading("2. It asks, with the denial's request as it stands and its own token")
        key = [("Idempotency-Key", "refund-1")]
        request = self.denial.json()["grant_request"]
        asked = call("POST", "/v1/grant-requests", self.agent_to_control + key, request, port=API)
        check("POST /v1/grant-requests", 201, asked.status, asked.ms)
        self.grant = asked.json()["object"]
        check("it waits for approval", "pending", self.grant["state"])
        check("and was asked for by the agent itself", AGENT, self.grant["requested_by"])
        again = call("POST", "/v1/grant-requests", self.agent_to_control + key, request, port=API)
        check("sent again with its key, it is the same request", self.grant["id"], again.json()["object"]["id"], again.ms)
        vote = call("POST", f"/v1/grant-requests/{self.grant['id']}/approve", self.agent_to_control,
                    {"digest": self.grant["digest"]}, port=API)
        check("the agent cannot approve it", 403, vote.status, vote.ms)

    def waits_for_a_person(self):
        heading("3. It waits until a person has decided")
        path, answers = f"/v1/grant-requests/{self.grant['id']}?wait=30s&until=decided", []
        waiting = threading.Thread(target=lambda: answers.append(call("GET", path, self.agent_to_control, port=API)))
        waiting.start()
        note("bob looks at the request and approves it")
        self.operators["bob"].run("grant", "approve", self.grant["id"])
        waiting.join(20)
        check("the agent is told", "active", answers[0].json()["state"] if answers else "nothing", answers and answers[0].ms)

    def acts_once(self):
        heading("4. It acts, once")
        self.reaches("agent: POST /refunds/1", "200 allow.grant", self.refund)

    def refused_again(self):
        heading("5. The next call is refused: the grant was for one")
        expect("agent: POST /refunds/1", "403 entitlement.grant_exhausted", self.refund())


if __name__ == "__main__":
    sys.exit(run(Story))
