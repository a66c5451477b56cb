#!/usr/bin/env python3
"""A standing role, just-in-time access and zero standing privilege on one service, on real Envoy.

`reports` has a role that reads. `batch` has a role that may do everything, except payouts, which nobody may do without a
grant. Each answer is checked twice: what the caller was told, and what the decision record says.
"""

import pathlib
import sys
from urllib.parse import quote

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from stack import API, DOMAIN, SIDECAR, Site, bearer, call, check, expect, heading, note, run, until  # noqa: E402

REPORTS, BATCH = f"spiffe://{DOMAIN}/reports", f"spiffe://{DOMAIN}/batch"


class Story(Site):
    """A standing role, just-in-time access and zero standing privilege on one service, on real Envoy."""

    STEPS = ("standing_role", "just_in_time", "zero_standing_privilege", "the_role_is_taken_away")
    SERVICES = ("billing",)

    def set_up(self):
        super().set_up()
        self.reports = bearer(self.issuer.issue(REPORTS))
        self.batch = bearer(self.issuer.issue(BATCH))

    def standing_role(self):
        heading("1. A standing role: `billing-reader` reads, and does nothing else")
        answer = expect("reports: GET /invoices/1", "200 allow.policy", call("GET", "/invoices/1", self.reports))
        check("by the policy", ["readers"], answer.record.get("policies"))
        expect("reports: POST /invoices/1", "403 entitlement.no_grant", call("POST", "/invoices/1", self.reports, {}))
        expect("batch, with another role: POST /invoices/1", "200 allow.policy",
               call("POST", "/invoices/1", self.batch, {}))

    def just_in_time(self):
        heading("2. Just in time: a reader writes, for as long as a grant lasts")
        denial = call("POST", "/invoices/1", self.reports, {})
        grant = self.submit(denial, duration_seconds=60)
        self.operators["bob"].run("grant", "approve", grant)
        self.reaches("reports: POST /invoices/1, approved by bob", "200 allow.grant",
                     lambda: call("POST", "/invoices/1", self.reports, {}))
        expect("reports: GET /invoices/1 is by the role, as before", "200 allow.policy",
               call("GET", "/invoices/1", self.reports))
        expect("reports: POST /payouts/1 is not part of it", "403 entitlement.no_grant",
               call("POST", "/payouts/1", self.reports, {}))
        receipt = self.operators["alice"].run("grant", "revoke", grant, "--wait", "5s")["receipt"]
        check("revoked, with a complete receipt of", [SIDECAR], [a["enforcement_point"] for a in receipt["applied"]])
        expect("reports: POST /invoices/1, the next call", "403 revoked.grant",
               call("POST", "/invoices/1", self.reports, {}))

    def zero_standing_privilege(self):
        heading("3. Zero standing privilege: the role `billing-admin` may do everything, but no payout without a grant")
        denial = expect("batch: POST /payouts/1", "403 entitlement.no_grant",
                        call("POST", "/payouts/1", self.batch, {}))
        request = denial.json()["grant_request"]
        check("the denial offers a grant of at most", 300, request.get("duration_seconds"))
        long = self.operators["alice"].post("/v1/grant-requests", {**request, "duration_seconds": 3600})
        check("an hour is refused", 422, long.status, long.ms)
        grant = self.submit(denial, duration_seconds=3)
        self.operators["bob"].run("grant", "approve", grant)
        self.reaches("batch: POST /payouts/1, with a grant of 3 s", "200 allow.grant",
                     lambda: call("POST", "/payouts/1", self.batch, {}))

        def over():
            answer = call("POST", "/payouts/1", self.batch, {})
            return answer if answer.status != 200 else None
        expect("batch: POST /payouts/1, when it is over", "403 entitlement.grant_expired",
               until("the end of the grant", over, 8.0))
        expect("batch: POST /invoices/2 is by the role, as before", "200 allow.policy",
               call("POST", "/invoices/2", self.batch, {}))

    def the_role_is_taken_away(self):
        heading("4. The role is taken away: what stood is gone")
        leaver = self.bootstrap.run("workload", "show", BATCH)
        leaver = {k: v for k, v in leaver.get("object", leaver).items() if k != "roles"}
        answer = call("PUT", f"/v1/workloads/{quote(BATCH, safe='')}",
                      bearer(self.bootstrap.token_file.read_text().strip()), leaver, port=API)
        check("batch is put without its role", 200, answer.status, answer.ms)
        waited = self.reaches("batch: POST /invoices/2", "403 entitlement.no_grant",
                              lambda: call("POST", "/invoices/2", self.batch, {}))
        note(f"in force {waited:.0f} ms after it was answered")


if __name__ == "__main__":
    sys.exit(run(Story))
