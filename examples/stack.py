"""What the demo and the stories stand on: processes, requests, the command line, tokens, how a check is printed.

Standard library only, Python 3.9. Every check is of what came back, never of what was sent; the first that fails raises
`Mismatch`. A `Site` is a control plane, a sidecar, an upstream and the real Envoy, on the loopback ports of
`portcullis dev`, with the objects of the folder that the script is in. Logs and state are in `.cache/FOLDER`.
"""

import argparse
import base64
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The folder of the script that was started: its objects, and the name of its working directory.
FOLDER = pathlib.Path(sys.argv[0]).resolve().parent
WORK = ROOT / ".cache" / FOLDER.name

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
      services: {{services}}
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
scope: {{ identity: "{SIDECAR}", services: {{services}} }}
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


def call(method, path, headers=(), body=None, port=ENVOY, form=None):
    """One request, sent as it stands: path and headers are not tidied up on the way. `body` is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    begun = time.perf_counter()
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Type", "application/json")
        data = json.dumps(body).encode() if body is not None else b""
        if form is not None:
            connection.putheader("Content-Type", "application/x-www-form-urlencoded")
            data = urllib.parse.urlencode(form).encode()
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


# === a site ===


class Site:
    """Everything that runs. A story is a site with steps."""

    STEPS = ()
    # Beside the objects of the folder, in the order in which they are applied.
    DOCUMENTS = ("issuer", "workloads", "services", "policies")
    SERVICES = ("catalog", "payments")
    OPERATORS = ("alice", "bob")
    # What is added to the control plane's configuration.
    CONTROL = ""

    def __init__(self, binary, envoy):
        self.binary, self.envoy = binary, envoy

    def play(self):
        self.set_up()
        for step in self.STEPS:
            getattr(self, step)()

    def set_up(self):
        heading("Set-up")
        ports_are_free()
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        services = f"[{', '.join(self.SERVICES)}]"
        (WORK / "control.yaml").write_text(CONTROL_YAML.replace("{services}", services) + self.CONTROL)
        (WORK / "sidecar.yaml").write_text(SIDECAR_YAML.replace("{services}", services))

        note(f"control plane on {API} (REST), {SYNC} (sync)")
        self.start_control()
        self.bootstrap = Operator(self.binary, "bootstrap", WORK / "control" / "bootstrap-token")
        self.operators = {}
        for name in self.OPERATORS:
            token_file = WORK / f"{name}.token"
            self.bootstrap.run("operator", "create", name, "--write-token", token_file)
            self.operators[name] = Operator(self.binary, name, token_file)

        self.issuer = Issuer(self.binary, "demo")
        seed = WORK / "seed"
        seed.mkdir()
        for folder in (ROOT / "examples" / "demo", FOLDER):
            for file in [*folder.glob("*.yaml"), *folder.glob("*.cedar")]:
                shutil.copy(file, seed)
        shutil.copy(self.issuer.jwks, seed / "jwks.json")
        files = [seed / f"{name}.yaml" for name in self.DOCUMENTS]
        for item in self.bootstrap.run("apply", *(arg for file in files for arg in ("-f", file)))["items"]:
            note(f"applied {item['kind']} {item['name']}".rstrip())
        (WORK / "sidecar.jwt").write_text(self.issuer.issue(SIDECAR, SYNC_AUDIENCE, "--ttl", "30m"))

        note(f"upstream on {UPSTREAM}, sidecar on {EXT_AUTHZ} and unix:ext_authz.sock, Envoy on {ENVOY}")
        start("upstream", [self.binary, "dev", "--only", "upstream"])
        self.start_sidecar()
        # The file of envoy/, as it is, but for the socket's folder.
        configuration = (ROOT / "envoy" / "sidecar-grpc-uds.yaml").read_text()
        (WORK / "envoy.yaml").write_text(configuration.replace("/run/portcullis/", f"{WORK}/"))
        start("envoy", [self.envoy, "-c", WORK / "envoy.yaml", "--disable-hot-restart", "--concurrency", "1",
                        "--log-level", "warning"])
        until("Envoy", ready(ENVOY_ADMIN, "/ready"))
        until("the upstream", ready(UPSTREAM, "/"))

    def start_control(self):
        start("control", [self.binary, "control", "--config", WORK / "control.yaml"])
        until("the control plane", ready(CONTROL_ADMIN))

    def start_sidecar(self):
        start("sidecar", [self.binary, "sidecar", "--config", WORK / "sidecar.yaml"])
        begun = time.monotonic()
        until("the sidecar", ready(SIDECAR_ADMIN))
        note(f"sidecar is ready after {(time.monotonic() - begun) * 1000:.0f} ms")

    def reaches(self, what, expected, ask, patience=10.0):
        """Asks until a change has come through to the sidecar, then checks the answer like any other."""
        begun = time.monotonic()
        status, reason = expected.split()

        def probe():
            answer = ask()
            if answer.status == int(status) and (answer.status == 200 or reason in answer.text):
                return answer
            return None
        try:
            answer = until(what, probe, patience)
        except Mismatch:
            if any(p.poll() is not None for p in PROCESSES.values()):
                raise
            answer = ask()
        waited = (time.monotonic() - begun) * 1000
        expect(what, expected, answer)
        return waited

    def submit(self, denial, **changes):
        """Submits the `grant_request` of a denial as alice; returns its id."""
        request = denial.json()["grant_request"]
        submit_to = request["submit_to"]
        if submit_to != f"http://127.0.0.1:{API}/v1/grant-requests":
            raise Mismatch(f"submit_to is {submit_to}")
        answer = self.operators["alice"].post("/v1/grant-requests", {**request, **changes})
        how = f" with {changes}" if changes else " as it stands"
        check(f"alice submits it{how}", True, answer.status in (200, 201), answer.ms)
        grant_id = answer.json().get("object", {}).get("id")
        if not grant_id:
            raise Mismatch(f"no id in {answer.text}")
        return grant_id


def run(story):
    """The `main` of a story: plays it, stops everything it started, also on Ctrl-C, and says how it went."""
    arguments = argparse.ArgumentParser(description=story.__doc__.splitlines()[0])
    arguments.add_argument("--portcullis", required=True, type=pathlib.Path, help="the portcullis binary")
    arguments.add_argument("--envoy", required=True, type=pathlib.Path, help="the Envoy binary")
    options = arguments.parse_args()

    def interrupted(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    try:
        story(options.portcullis.resolve(), options.envoy.resolve()).play()
        heading(paint("32", f"All as expected, in {time.monotonic() - STARTED:.0f} s.") + f" Logs: {WORK}")
        return 0
    except (Mismatch, OSError) as e:
        print(f"\n{paint('31', 'FAILED')}: {e}\nLogs: {WORK}", flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
        return 130
    finally:
        # A second Ctrl-C does not keep the processes alive.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stop_all()
