//! The files under `deploy/`, as far as a machine without a cluster allows: kubectl builds the overlays, the Kubernetes
//! API's own schemas accept them, our configuration loader reads what they mount, hadolint and systemd-analyze read the rest.
//!
//! What only a cluster could show is not shown: that images are pulled, that a volume is given, that Istio injects.
//! Without its tools the test fails, with the installer's words.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use portcullis::config::{Environment, RawControl, RawSidecar};
use serde::Deserialize as _;
use serde_yaml_ng::Value;

use super::envoy::root;

/// Where the tools are: `PORTCULLIS_DEPLOY_TOOLS`, or where the installer puts them.
fn tools() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        // Empty: the installer has failed already. It is run again, so that the test can say why.
        if let Some(path) = std::env::var_os("PORTCULLIS_DEPLOY_TOOLS").filter(|path| !path.is_empty()) {
            return path.into();
        }
        let output = run(Command::new("bash").arg(root().join("tests/it/deploy/install.sh")));
        String::from_utf8(output.stdout).expect("a UTF-8 path").trim().into()
    })
}

/// Runs a command that must succeed.
fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{command:?}\n{}\n{}", said[0], said[1]);
    output
}

/// What `kubectl apply -k` would send.
fn built(folder: &str) -> (String, Vec<Value>) {
    let mut kubectl = Command::new(tools().join("bin/kubectl"));
    let output = run(kubectl.arg("kustomize").arg(root().join("deploy/kubernetes").join(folder)));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap()).collect();
    (text, documents)
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|d| d["kind"].as_str() == Some(kind)).unwrap_or_else(|| panic!("no {kind}"))
}

/// A file of the ConfigMap whose name begins with `name`.
fn mounted(documents: &[Value], name: &str, file: &str) -> String {
    let is_it = |d: &&Value| d["kind"] == "ConfigMap" && d["metadata"]["name"].as_str().unwrap().starts_with(name);
    let map = documents.iter().find(is_it).unwrap_or_else(|| panic!("no ConfigMap `{name}`"));
    map["data"][file].as_str().unwrap_or_else(|| panic!("no `{file}` in `{name}`")).to_owned()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_sequence().map_or(&[], Vec::as_slice)
}

/// Every container of a pod, in the order in which they start.
fn containers(pod: &Value) -> Vec<&Value> {
    list(pod, "initContainers").iter().chain(list(pod, "containers")).collect()
}

const OVERLAYS: [&str; 4] = ["control", "overlays/payments", "overlays/istio", "overlays/inline"];

#[test]
fn kubernetes_accepts_every_overlay_by_its_own_schemas() {
    let dir = tempfile::tempdir().unwrap();
    for folder in OVERLAYS {
        let (text, documents) = built(folder);
        assert!(documents.len() >= 5, "{folder}");
        let file = dir.path().join("built.yaml");
        std::fs::write(&file, &text).unwrap();
        let mut validate = Command::new("python3");
        validate.env("PYTHONPATH", tools()).args(["-m", "kubernetes_validate", "--strict"]).arg(&file);
        let output = run(&mut validate);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.matches(" passed for resource ").count(), documents.len(), "{folder}: {said}");
        // The tool does say no.
        std::fs::write(&file, text.replace("spec:", "spcec:")).unwrap();
        assert!(!validate.output().unwrap().status.success(), "{folder}");
    }
}

#[test]
fn every_container_is_unprivileged_and_bounded() {
    for folder in OVERLAYS {
        let (_, documents) = built(folder);
        let mut seen = 0;
        for document in &documents {
            let pod = &document["spec"]["template"]["spec"];
            for container in containers(pod) {
                seen += 1;
                let at = format!("{folder}: {}", container["name"].as_str().unwrap());
                let own = &container["securityContext"];
                let of_pod = &pod["securityContext"];
                let either = |key: &str| if own[key].is_null() { &of_pod[key] } else { &own[key] };
                assert_eq!(either("runAsNonRoot").as_bool(), Some(true), "{at}");
                assert!(either("runAsUser").as_u64().unwrap() > 0, "{at}");
                assert_eq!(either("seccompProfile")["type"], "RuntimeDefault", "{at}");
                assert_eq!(own["allowPrivilegeEscalation"], false, "{at}");
                assert_eq!(own["readOnlyRootFilesystem"], true, "{at}");
                assert_eq!(own["capabilities"]["drop"][0], "ALL", "{at}");
                assert!(!container["resources"]["requests"]["cpu"].is_null(), "{at}");
                assert!(!container["resources"]["limits"]["memory"].is_null(), "{at}");
                assert!(container["image"].as_str().unwrap().contains("/"), "{at}: an image of nowhere");
            }
            if !pod.is_null() {
                assert_eq!(pod["automountServiceAccountToken"], false, "{folder}");
            }
        }
        assert!(seen > 0, "{folder}");
    }
}

#[test]
fn the_sidecar_is_native_and_first_and_what_follows_waits_for_it() {
    for (folder, order) in [
        ("overlays/payments", &["portcullis", "envoy", "app"][..]),
        ("overlays/istio", &["portcullis", "app"]),
        ("overlays/inline", &["portcullis", "app"]),
    ] {
        let (_, documents) = built(folder);
        let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
        let containers = containers(pod);
        let names: Vec<_> = containers.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, order, "{folder}");
        for sidecar in list(pod, "initContainers") {
            assert_eq!(sidecar["restartPolicy"], "Always", "{folder}");
            assert!(!sidecar["startupProbe"].is_null(), "{folder}: what comes after would not wait");
        }
        assert_eq!(containers[0]["startupProbe"]["httpGet"]["path"], "/readyz", "{folder}");
    }
}

#[test]
fn the_configurations_load_and_agree_with_what_is_mounted_and_probed() {
    let (environment, dir) = (Environment::default(), tempfile::tempdir().unwrap());
    for folder in ["overlays/payments", "overlays/istio", "overlays/inline"] {
        let (_, documents) = built(folder);
        let text = mounted(&documents, "portcullis-sidecar", "sidecar.config.yaml");
        let raw = RawSidecar::parse(Path::new("sidecar.config.yaml"), &text, &environment).unwrap();
        // All of it can be used, once the files are there that are the cluster's.
        let here = RawSidecar::parse(Path::new("sidecar.config.yaml"), &text, &of_the_cluster(dir.path())).unwrap();
        here.validate().unwrap_or_else(|e| panic!("{folder}: {e}"));
        let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
        let sidecar = containers(pod)[0];
        assert_eq!(sidecar["args"][2], "/etc/portcullis/sidecar.config.yaml");
        let probes = raw.listeners.probes.unwrap().0;
        assert!(probes.ip().is_unspecified() && raw.listeners.admin.is_loopback(), "{folder}");
        let named = |name: &str| list(sidecar, "ports").iter().find(|port| port["name"] == name);
        assert_eq!(named("pc-probes").unwrap()["containerPort"], probes.port(), "{folder}");
        let drain = raw.drain.deadline.0;
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > drain.as_secs(), "{folder}");
        // Every path that it names is on a volume.
        let volumes: Vec<_> = list(sidecar, "volumeMounts").iter().map(|m| m["mountPath"].as_str().unwrap()).collect();
        let paths: Vec<_> = text.split_whitespace().filter(|word| word.starts_with('/')).collect();
        assert!(paths.len() >= 4, "{paths:?}");
        for path in paths {
            assert!(volumes.iter().any(|volume| path.starts_with(&format!("{volume}/"))), "{folder}: {path}");
        }
        // The control plane lets it in.
        let (_, control) = built("control");
        let control_text = mounted(&control, "portcullis-control", "control.config.yaml");
        let of_control = RawControl::parse(Path::new("control.config.yaml"), &control_text, &environment).unwrap();
        let scope = raw.scope.clone();
        let point = &of_control.sync.enforcement_points[0];
        assert_eq!(Some(point.identity.to_string()), scope.identity.map(|i| i.to_string()));
        assert_eq!(point.services, scope.services);
        let token = list(&list(pod, "volumes")[2]["projected"], "sources")[0]["serviceAccountToken"].clone();
        assert_eq!(token["audience"].as_str(), Some(&*of_control.sync.audience));
        let stateful = &of_kind(&control, "StatefulSet")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(stateful["ports"][2]["containerPort"], of_control.listeners.probes.unwrap().0.port());
        assert!(of_control.listeners.admin.is_loopback());
    }
}

/// Where the files are, here, that a cluster mounts.
fn of_the_cluster(dir: &Path) -> Environment {
    let (key, _) = portcullis::wire::SigningKey::generate().unwrap();
    let files = [
        ("CA_FILE", "a".to_owned()),
        ("TOKEN_FILE", "a.b.c".to_owned()),
        ("VERIFY_KEY_FILE", key.verify_key().to_string()),
    ];
    Environment::new(files.map(|(name, text)| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        (format!("PORTCULLIS__CONTROL_PLANE__{name}"), path.display().to_string())
    }))
}

#[test]
fn in_line_the_only_way_to_the_application_is_through_the_proxy() {
    let (_, documents) = built("overlays/inline");
    let text = mounted(&documents, "portcullis-sidecar", "sidecar.config.yaml");
    let raw = RawSidecar::parse(Path::new("sidecar.config.yaml"), &text, &Environment::default()).unwrap();
    let proxy = raw.listeners.proxy.unwrap().0;
    assert!(proxy.ip().is_unspecified(), "the pod's address");
    assert!(raw.listeners.ext_authz.tcp.is_none() && raw.listeners.ext_authz.unix.is_none(), "nobody asks");
    assert!(raw.listeners.forward_auth.is_none());
    // To every service of its scope, which are all on loopback.
    let services: Vec<String> = raw.proxy.upstreams.iter().filter_map(|upstream| upstream.service.clone()).collect();
    assert_eq!(services, raw.scope.services);
    for address in raw.proxy.upstreams.iter().flat_map(|upstream| &upstream.addresses) {
        assert!(address.parse::<std::net::SocketAddr>().unwrap().ip().is_loopback(), "{address}");
    }
    // The Service leads to the proxy, and the application has no port that anything could lead to.
    let ports = list(&of_kind(&documents, "Service")["spec"], "ports");
    assert_eq!((ports.len(), ports[0]["targetPort"].as_u64()), (1, Some(proxy.port().into())));
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let containers = containers(pod);
    let open: Vec<_> = containers.iter().flat_map(|c| list(c, "ports")).map(|p| p["containerPort"].as_u64()).collect();
    let probes = raw.listeners.probes.unwrap().0.port();
    assert_eq!(open, [Some(proxy.port().into()), Some(probes.into())]);
    let rules = list(&of_kind(&documents, "NetworkPolicy")["spec"], "ingress");
    let allowed: Vec<_> = rules.iter().flat_map(|rule| list(rule, "ports")).map(|p| p["port"].as_u64()).collect();
    assert_eq!(allowed, open);
    // The pod outlives what it waits for at its end: the application first, then what is open.
    let waits = containers[1]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > waits + raw.drain.deadline.0.as_secs(), "{grace} s");
}

#[test]
fn the_overlay_has_envoys_own_file_but_for_where_it_listens() {
    let (_, documents) = built("overlays/payments");
    let parse = |text: &str| serde_yaml_ng::from_str::<Value>(text).unwrap();
    let ours = parse(&mounted(&documents, "envoy", "envoy.yaml"));
    let mut theirs = parse(&std::fs::read_to_string(root().join("envoy/sidecar-grpc-uds.yaml")).unwrap());
    let address = &mut theirs["static_resources"]["listeners"][0]["address"]["socket_address"]["address"];
    assert_eq!(std::mem::replace(address, "0.0.0.0".into()), "127.0.0.1");
    assert_eq!(ours, theirs);
}

#[test]
fn hadolint_has_nothing_to_say_of_the_image_and_it_copies_only_what_the_build_reads() {
    let dockerfile = root().join("deploy/Dockerfile");
    run(Command::new(tools().join("bin/hadolint")).arg(&dockerfile));
    let text = std::fs::read_to_string(dockerfile).unwrap();
    let ignored = std::fs::read_to_string(root().join("deploy/Dockerfile.dockerignore")).unwrap();
    assert!(text.contains("\nUSER 65532:65532\n"));
    let copied = text.lines().filter_map(|l| l.strip_prefix("COPY ")).filter(|l| !l.starts_with("--from"));
    for source in copied.flat_map(|l| l.split(' ').filter(|w| !w.starts_with("./") && *w != ".")) {
        assert!(root().join(source).exists(), "`{source}`");
        assert!(ignored.lines().any(|l| l == format!("!{source}")), "`{source}` is left out by .dockerignore");
    }
}

#[test]
fn systemd_accepts_the_units_and_finds_little_exposed() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("usr/local/bin");
    std::fs::create_dir_all(&fake).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_portcullis"), fake.join("portcullis")).unwrap();
    for unit in ["portcullis-control.service", "portcullis-sidecar.service"] {
        let source = root().join("deploy/systemd").join(unit);
        let text = std::fs::read_to_string(&source).unwrap();
        // Units name absolute paths, and systemd-analyze wants the program to be there.
        let here = dir.path().join(unit);
        std::fs::write(&here, text.replace("/usr/local/bin/", &format!("{}/", fake.display()))).unwrap();
        let output = run(Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&here));
        let said = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<_> = said.lines().filter(|line| line.contains(unit)).collect();
        assert!(ours.is_empty(), "{ours:?}");
        // 0 is nothing exposed, 10 everything: systemd's own services have about 2 when they are done well.
        run(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=20"]).arg(&here));
    }
}
