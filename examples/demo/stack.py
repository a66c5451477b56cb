"""What the demo stands on: processes, requests, the command line, tokens, and how a check is printed.

Standard library only. Every check is of what came back, never of what was sent; the first that fails raises `Mismatch`.
"""

import base64
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "demo"

DOMAIN = "demo.portcullis.local"
STOREFRONT = f"spiffe://{DOMAIN}/storefront"
AGENT = f"spiffe://{DOMAIN}/agent"
SIDECAR = f"spiffe://{DOMAIN}/sidecar"
AUDIENCE = "portcullis-demo"
SYNC_AUDIENCE = "portcullis-control"

ENVOY, ENVOY_ADMIN, UPSTREAM = 10000, 9901, 9190
EXT_AUTHZ, SIDECAR_ADMIN = 9191, 9193
API, SYNC, CONTROL_ADMIN = 9180, 9181, 9182

# Shortened for the demo: the defaults are 10 s, 2 s and 5 min.
LEASE, BOOKMARK, MAX_STALENESS = "2s", "500ms", 20

CONTROL_YAML = f"""
listeners: {{ api: "127.0.0.1:{API}", sync: "127.0.0.1:{SYNC}", admin: "127.0.0.1:{CONTROL_ADMIN}" }}
data_directory: {WORK}/control
insecure_loopback: true
sync:
  audience: {SYNC_AUDIENCE}
  trust: [demo]
  lease: {LEASE}
  bookmark_interval: {BOOKMARK}
  max_staleness: {MAX_STALENESS}s
  enforcement_points:
    - identity: {SIDECAR}
      services: [catalog, payments]
"""

SIDECAR_YAML = f"""
listeners:
  ext_authz: {{ tcp: "127.0.0.1:{EXT_AUTHZ}", unix: {WORK}/ext_authz.sock }}
  admin: "127.0.0.1:{SIDECAR_ADMIN}"
control_plane:
  url: http://127.0.0.1:{SYNC}
  insecure_loopback: true
  token_file: {WORK}/sidecar.jwt
  verify_key_file: {WORK}/control/verify-key
  grant_request_url: http://127.0.0.1:{API}/v1/grant-requests
scope: {{ identity: "{SIDECAR}", services: [catalog, payments] }}
state: {{ directory: {WORK}/sidecar, max_staleness: {MAX_STALENESS}s }}
records: {{ output: file, file: {WORK}/decisions.jsonl }}
drain: {{ deadline: 2s }}
"""


class Mismatch(Exception):
    """Something was not as it must be."""


# === what is printed ===

STARTED = time.monotonic()
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(code, text):
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def heading(text):
    print(f"\n{paint('1', text)}", flush=True)


def note(text):
    print(f"  {paint('2', text)}", flush=True)


def check(what, expected, got, ms=None):
    """Prints one expectation beside what happened; a difference ends the demo."""
    same = expected == got
    mark = paint("32", "ok      ") if same else paint("31", "MISMATCH")
    took = f"{ms:8.1f} ms" if ms is not None else " " * 11
    print(f"  {mark} {what:<58} {took}  {got}", flush=True)
    if not same:
        print(f"           expected: {expected}\n           got:      {got}", flush=True)
        raise Mismatch(what)


# === processes ===

PROCESSES = {}


def start(name, argv, **env):
    log = open(WORK / f"{name}.log", "ab")
    # A process group of its own: Ctrl-C reaches this script alone, and the script stops the others in order.
    PROCESSES[name] = subprocess.Popen(
        [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        env={**os.environ, **env})
    log.close()


def stop(name, patience=10.0):
    """Stops a process as an orchestrator would: SIGTERM, patience, SIGKILL. Returns its exit status."""
    process = PROCESSES.pop(name, None)
    if process is None:
        return None
    for how, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            pass
        try:
            return process.wait(wait)
        except subprocess.TimeoutExpired:
            note(f"{name} did not end within {wait:.0f} s of {how.name}")
    return None


def stop_all():
    for name in ("envoy", "sidecar", "upstream", "control"):
        stop(name, patience=5.0)


def until(what, probe, patience=30.0):
    """Asks again and again until `probe` answers with something true."""
    deadline = time.monotonic() + patience
    while True:
        for name, process in PROCESSES.items():
            if process.poll() is not None:
                raise Mismatch(f"{name} ended by itself with status {process.returncode}: see {WORK}/{name}.log")
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Mismatch(f"{what}: not within {patience:.0f} s")
        time.sleep(0.02)


def ready(port, path="/readyz"):
    def probe():
        try:
            return call("GET", path, port=port).status == 200
        except OSError:
            return False
    return probe


def ports_are_free():
    taken = []
    for port in (ENVOY, ENVOY_ADMIN, UPSTREAM, EXT_AUTHZ, SIDECAR_ADMIN, API, SYNC, CONTROL_ADMIN):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                taken.append(str(port))
    if taken:
        raise Mismatch(f"in use already: port {', '.join(taken)} on 127.0.0.1 (is `portcullis dev` running?)")


# === requests ===


class Answer:
    """An HTTP answer, and how long it took."""

    def __init__(self, response, body, ms):
        self.status, self.headers, self.ms = response.status, response.headers, ms
        self.record = None
        self.text = body.decode("utf-8", "replace")

    def json(self):
        try:
            return json.loads(self.text)
        except ValueError:
            return {}


def call(method, path, headers=(), body=None, port=ENVOY):
    """One request, sent as it stands: path and headers are not tidied up on the way."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    begun = time.perf_counter()
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Type", "application/json")
        data = json.dumps(body).encode() if body is not None else b""
        if data or method != "GET":
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        response = connection.getresponse()
        text = response.read()
        return Answer(response, text, (time.perf_counter() - begun) * 1000)
    finally:
        connection.close()


def bearer(token):
    return [("Authorization", f"Bearer {token}")]


def record_of(decision_id):
    """The decision record, which the sidecar writes behind the request."""
    def probe():
        for path in sorted(WORK.glob("decisions.jsonl*"), reverse=True):
            for line in path.read_text().splitlines():
                if decision_id in line:
                    return json.loads(line)
        return None
    return until(f"a decision record of {decision_id}", probe, patience=5.0)


def outcome(answer):
    """Status and full reason of an answer, from its decision record; what the caller was told is checked against it."""
    if answer.status == 200:
        told, decision_id = "", upstream_saw(answer).get("x-portcullis-decision-id", [""])[0]
    else:
        problem = answer.json()
        told, decision_id = problem.get("reason", ""), problem.get("decision_id", "")
        headers = answer.headers
        for name, expected in (("x-portcullis-reason", told), ("x-portcullis-decision-id", decision_id),
                               ("content-type", "application/problem+json")):
            if headers.get(name) != expected:
                raise Mismatch(f"header {name} is {headers.get(name)!r}, expected {expected!r}; body: {answer.text}")
        if problem.get("status") != answer.status or not str(problem.get("type", "")).endswith(f"/{told}"):
            raise Mismatch(f"the problem document does not agree with the answer: {answer.text}")
    if not decision_id:
        raise Mismatch(f"no decision id in the answer {answer.status}: {answer.text[:500]}")
    record = record_of(decision_id)
    reason = record.get("reason", "")
    authenticated = bool(record.get("workload"))
    if answer.status != 200 and told != (reason if authenticated else reason.split(".")[0]):
        raise Mismatch(f"the caller was told `{told}`, the record says `{reason}`")
    if "eyJ" in json.dumps(record):
        raise Mismatch(f"the decision record holds a token: {record}")
    answer.record = record
    return f"{answer.status} {reason}"


def expect(what, expected, answer):
    check(what, expected, outcome(answer), answer.ms)
    return answer


def upstream_saw(answer):
    """The request headers that reached the upstream: name in lower case to all values."""
    seen = {}
    headers = answer.json().get("headers", {})
    pairs = headers.items() if isinstance(headers, dict) else headers
    for name, value in pairs:
        seen.setdefault(name.lower(), []).extend(value if isinstance(value, list) else [value])
    return seen


# === the command line ===


class Operator:
    """Somebody who uses the command line with a token of their own."""

    def __init__(self, binary, name, token_file):
        self.binary, self.name, self.token_file = binary, name, token_file

    def run(self, *argv):
        status, text = portcullis(self.binary, *argv, "--token-file", self.token_file,
                                  "--server", f"http://127.0.0.1:{API}", "--output", "json", any_status=True)
        if status != 0:
            raise Mismatch(f"portcullis {' '.join(map(str, argv))} as {self.name}: status {status}: {text}")
        return json.loads(text)

    def post(self, path, body):
        return call("POST", path, bearer(self.token_file.read_text().strip()), body, port=API)


def portcullis(binary, *argv, any_status=False):
    process = subprocess.run([str(a) for a in (binary, *argv)], stdin=subprocess.DEVNULL, capture_output=True,
                             text=True, timeout=60)
    text = process.stdout.strip() if process.returncode == 0 else (process.stderr or process.stdout).strip()
    if any_status:
        return process.returncode, text
    if process.returncode != 0:
        raise Mismatch(f"portcullis {' '.join(map(str, argv))}: status {process.returncode}: {text}")
    return text


# === tokens ===


class Issuer:
    """A demo issuer: a key, and the JWT-SVIDs that it signs."""

    def __init__(self, binary, name):
        self.binary, self.key, self.jwks = binary, WORK / f"{name}.key", WORK / f"{name}.jwks.json"
        portcullis(binary, "token", "keygen", "--key-file", self.key, "--jwks-file", self.jwks, "--kid", "demo")

    def issue(self, subject, audience=AUDIENCE, *more):
        return portcullis(self.binary, "token", "issue", "--key-file", self.key, "--kid", "demo", "--subject", subject,
                          "--audience", audience, *more)

    def public_key_pem(self):
        """What an attacker can know of the key, in the form that careless verifiers take for a shared secret."""
        jwk = json.loads(self.jwks.read_text())["keys"][0]
        point = b"\x04" + unb64(jwk["x"]) + unb64(jwk["y"])
        der = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200") + point
        text = base64.encodebytes(der).decode().replace("\n", "")
        lines = [text[i:i + 64] for i in range(0, len(text), 64)]
        return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""]).encode()


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def forged(token, header, sign):
    """The same claims under another header, signed by `sign`."""
    signing_input = f"{b64(json.dumps(header).encode())}.{token.split('.')[1]}"
    return f"{signing_input}.{b64(sign(signing_input.encode()))}"
