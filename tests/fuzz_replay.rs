//! Replays the fuzz corpora on stable, and every truncation and many byte flips of each seed, through the functions
//! that the fuzz targets call (`tests/fuzz/shim.rs`). A seed under `tests/fuzz/corpus/` is a regression test by being there.

#[cfg(test)]
#[path = "fuzz/shim.rs"]
mod shim;

#[cfg(test)]
mod replay {
    use std::fs;
    use std::path::Path;

    use super::shim;

    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let mut seeds: Vec<_> = fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|entry| {
                let path = entry.unwrap().path();
                (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
            })
            .collect();
        seeds.sort();
        assert!(seeds.len() > 10, "{} holds {} seeds", dir.display(), seeds.len());
        seeds
    }

    fn seed(target: &str, name: &str) -> Vec<u8> {
        corpus(target).into_iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no seed `{name}`")).1
    }

    /// Calls `f` with every seed, with each of its prefixes, and with single bytes replaced.
    fn replay(target: &str, f: impl Fn(&[u8])) {
        for (_, seed) in corpus(target) {
            f(&seed);
            for end in 0..seed.len() {
                f(&seed[..end]);
            }
            for at in 0..seed.len() {
                for byte in [0, b' ', b'"', b'%', b'*', b'.', b'/', b'1', b'A', b'{', b'}', 0x7f, 0xff] {
                    let mut changed = seed.clone();
                    changed[at] = byte;
                    f(&changed);
                }
            }
        }
    }

    #[test]
    fn path() {
        replay("path", shim::path);
    }

    #[test]
    fn template() {
        replay("template", shim::template);
    }

    #[test]
    fn object() {
        replay("object", shim::object);
    }

    #[test]
    fn forward_auth() {
        replay("forward_auth", |data| {
            shim::forward_auth(data);
        });
        for (name, question) in corpus("forward_auth") {
            assert_eq!(shim::forward_auth(&question), name.starts_with("reads-"), "{name}");
        }
    }

    #[test]
    fn xfcc() {
        replay("xfcc", |data| {
            shim::xfcc(data);
        });
        for (name, value) in corpus("xfcc") {
            let reads = [
                "blanks",
                "case-of-keys",
                "envoy",
                "equals-in-a-value",
                "escaped-backslash",
                "escaped-quote",
                "not-ascii",
                "quoted-comma",
                "quoted-element",
                "quoted-semicolon",
                "two-elements",
            ];
            assert_eq!(shim::xfcc(&value), reads.contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn certificate() {
        replay("certificate", |data| {
            shim::certificate(data);
        });
        for (name, der) in corpus("certificate") {
            assert_eq!(shim::certificate(&der), name.starts_with("valid"), "{name}");
        }
    }

    #[test]
    fn check() {
        replay("check", |data| {
            shim::check(data);
        });
        for (name, message) in corpus("check") {
            assert_eq!(shim::check(&message), name.starts_with("valid"), "{name}");
        }
    }

    #[test]
    fn authzen() {
        replay("authzen", |data| {
            shim::authzen(data);
        });
        // The search starts on both sides of the gate.
        for (name, body) in corpus("authzen") {
            let expected = match name.split('-').next().unwrap() {
                "allowed" => Some(1),
                "twice" => Some(2),
                "denied" => Some(0),
                _ => None,
            };
            assert_eq!(shim::authzen(&body), expected, "{name}");
        }
    }

    #[test]
    fn mcp() {
        replay("mcp", |data| {
            shim::mcp(data);
        });
        for (name, message) in corpus("mcp") {
            assert_eq!(shim::mcp(&message), name.starts_with("valid"), "{name}");
        }
    }

    #[test]
    fn mcp_answer() {
        replay("mcp_answer", |data| {
            shim::mcp_answer(data);
        });
        for (name, answer) in corpus("mcp_answer") {
            assert_eq!(shim::mcp_answer(&answer), name.starts_with("valid"), "{name}");
        }
    }

    #[test]
    fn jwks() {
        replay("jwks", |data| {
            shim::jwks(data);
        });
        for (name, keys) in corpus("jwks") {
            assert_eq!(shim::jwks(&keys), name.starts_with("valid"), "{name}");
        }
    }

    #[test]
    fn sync_frame() {
        replay("sync_frame", |data| {
            shim::sync_frame(data);
        });
        for (name, frame) in corpus("sync_frame") {
            assert_eq!(shim::sync_frame(&frame), name.starts_with("valid"), "{name}");
        }
    }

    #[test]
    fn sync_payloads() {
        replay("sync_payloads", |data| {
            shim::sync_payloads(data);
        });
        for (name, payloads) in corpus("sync_payloads") {
            let fitting = name.rsplit('-').next().unwrap().parse::<usize>().unwrap();
            assert_eq!(shim::sync_payloads(&payloads), fitting, "{name}");
        }
    }

    #[test]
    fn state() {
        let valid = shim::state(&seed("state", "valid")).unwrap();
        replay("state", |data| {
            // Whatever was changed in it, a file is read as it was signed or not at all.
            assert!(shim::state(data).is_none_or(|position| position == valid));
        });
        for (name, file) in corpus("state") {
            assert_eq!(shim::state(&file).is_some(), name.starts_with("valid"), "{name}");
        }
    }

    #[test]
    fn jwt() {
        replay("jwt", |data| {
            shim::jwt(data);
        });
        // The search starts on both sides of the gate.
        for (name, token) in corpus("jwt") {
            assert_eq!(shim::jwt(&token), name == "valid", "{name}");
        }
        assert!(seed("jwt", "valid").starts_with(shim::SIGNED.trim_end().as_bytes()));
    }

    #[test]
    fn proof() {
        replay("proof", |data| {
            shim::proof(data);
        });
        // The search starts on both sides of the gate.
        for (name, proof) in corpus("proof") {
            assert_eq!(shim::proof(&proof), name == "valid", "{name}");
        }
        assert!(seed("proof", "valid").starts_with(shim::SIGNED_PROOF.trim_end().as_bytes()));
    }
}
