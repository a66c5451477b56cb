//! Tests of the command tree: every command explains itself, and every example in a help text parses.

use super::*;

fn walk(command: &clap::Command, path: &str, seen: &mut Vec<String>) {
    let path = format!("{path} {}", command.get_name()).trim().to_owned();
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    assert!(
        help.contains("Example:\n  portcullis")
            || help.contains("Examples:\n  portcullis")
            || help.contains("| portcullis"),
        "`{path}` has no example: {help}"
    );
    assert!(command.get_about().is_some(), "`{path}` does not say what it does");
    for argument in command.get_arguments().filter(|a| !["help", "version"].contains(&a.get_id().as_str())) {
        assert!(argument.get_help().is_some(), "`{path}`: `{}` is not explained", argument.get_id());
    }
    seen.push(path.clone());
    for inner in command.get_subcommands().filter(|c| c.get_name() != "help") {
        walk(inner, &path, seen);
    }
}

#[test]
fn every_command_explains_itself_and_has_an_example() {
    let mut root = definition();
    root.build();
    let mut seen = Vec::new();
    walk(&root, "", &mut seen);
    for expected in
        ["grant approve", "revoke tokens-before", "policy check", "decisions tail", "config schema", "check"]
    {
        assert!(seen.contains(&format!("portcullis {expected}")), "{expected}: {seen:?}");
    }
}

#[test]
fn examples_that_are_one_line_parse() {
    let mut root = definition();
    root.build();
    fn examples(command: &clap::Command, into: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        into.extend(
            help.replace("\\\n", " ")
                .lines()
                .map(str::trim)
                .filter(|l| l.starts_with("portcullis "))
                .map(str::to_owned),
        );
        command.get_subcommands().for_each(|c| examples(c, into));
    }
    let mut all = Vec::new();
    examples(&root, &mut all);
    assert!(all.len() > 25, "{all:?}");
    for line in all {
        for part in line.split("&&").map(|p| p.split(" > ").next().unwrap().split("  #").next().unwrap()) {
            let words = shell_words(part);
            let result = definition().try_get_matches_from(&words);
            assert!(result.is_ok(), "{part}\n{}", result.unwrap_err());
        }
    }
}

/// Splits at spaces, keeps what is in single quotes together, drops a remark in parentheses.
fn shell_words(line: &str) -> Vec<String> {
    let line = line.split("  (").next().unwrap();
    let mut words = Vec::new();
    for (i, part) in line.split('\'').enumerate() {
        if i % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}
