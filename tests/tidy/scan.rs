//! Just enough of Rust's syntax for `tidy`: tokens without comments and literals, and the paths that they spell.
//!
//! A path is reported in full for every leaf of a `use` tree, and for every path in code with two segments or more.

/// A token that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    Word(String),
    /// `::`
    Separator,
    Mark(char),
}

use Token::{Mark, Separator, Word};

/// Splits source text into tokens; drops white space, comments, strings, characters and lifetimes.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            '"' => i = after_string(&chars, i),
            '\'' => i = after_quote(&chars, i),
            c if word(c) => {
                let start = i;
                while word(at(i)) {
                    i += 1;
                }
                let text: String = chars[start..i].iter().collect();
                let raw = matches!(text.as_str(), "r" | "br" | "cr");
                match at(i) {
                    '"' | '#' if raw && after_raw_string(&chars, i).is_some() => {
                        i = after_raw_string(&chars, i).unwrap_or(i);
                    }
                    '"' if matches!(text.as_str(), "b" | "c") => i = after_string(&chars, i),
                    '\'' if text == "b" => i = after_quote(&chars, i),
                    _ => out.push(Word(text)),
                }
            }
            ':' if at(i + 1) == ':' => {
                out.push(Separator);
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    out.push(Mark(c));
                }
                i += 1;
            }
        }
    }
    out
}

fn after_string(chars: &[char], open: usize) -> usize {
    let mut i = open + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// After `#…"…"#…`, when that is what starts at `i`.
fn after_raw_string(chars: &[char], i: usize) -> Option<usize> {
    let hashes = chars[i..].iter().take_while(|&&c| c == '#').count();
    if chars.get(i + hashes) != Some(&'"') {
        return None;
    }
    let mut i = i + hashes + 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes {
            return Some(i + 1 + hashes);
        }
        i += 1;
    }
    Some(i)
}

/// After a character literal, or after the quote of a lifetime.
fn after_quote(chars: &[char], quote: usize) -> usize {
    if chars.get(quote + 1) == Some(&'\\') {
        let mut i = quote + 3;
        while i < chars.len() && chars[i] != '\'' {
            i += 1;
        }
        return i + 1;
    }
    if chars.get(quote + 2) == Some(&'\'') { quote + 3 } else { quote + 1 }
}

/// Leaves out every item under `#[cfg(test)]`.
pub(crate) fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let attribute: Vec<Token> = self::tokens("#[cfg(test)]");
    let mut out = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if !tokens[i..].starts_with(&attribute) {
            out.push(tokens[i].clone());
            i += 1;
            continue;
        }
        i += attribute.len();
        while tokens[i..].starts_with(&[Mark('#'), Mark('[')]) {
            i = after_block(tokens, i + 1, '[', ']');
        }
        let is_use = tokens[i..].iter().find(|t| **t != Word("pub".to_owned())) == Some(&Word("use".to_owned()));
        let end = |t: &Token| *t == Mark(';') || (*t == Mark('{') && !is_use);
        i += tokens[i..].iter().take_while(|t| !end(t)).count();
        i = if tokens.get(i) == Some(&Mark('{')) { after_block(tokens, i, '{', '}') } else { i + 1 };
    }
    out
}

fn after_block(tokens: &[Token], open: usize, opening: char, closing: char) -> usize {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        if *token == Mark(opening) {
            depth += 1;
        } else if *token == Mark(closing) {
            depth -= 1;
            if depth == 0 {
                return i + 1;
            }
        }
    }
    tokens.len()
}

/// Every path in the code, one for each leaf of a tree.
pub(crate) fn paths(tokens: &[Token]) -> Vec<Vec<String>> {
    let mut out = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let before = i.checked_sub(1).and_then(|b| tokens.get(b));
        let continues = before == Some(&Mark('.'))
            || (before == Some(&Separator) && i > 1 && matches!(tokens[i - 2], Word(_) | Mark('>') | Mark('$')));
        if !matches!(tokens[i], Word(_)) || continues {
            i += 1;
            continue;
        }
        let in_use = before == Some(&Word("use".to_owned()));
        let mut found = Vec::new();
        i = tree(tokens, i, &[], &mut found);
        out.extend(found.into_iter().filter(|path| in_use || path.len() > 1));
    }
    out
}

/// Reads the path tree that starts at `i`; returns where it ends.
fn tree(tokens: &[Token], mut i: usize, prefix: &[String], out: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(i) {
            Some(Word(word)) => path.push(word.clone()),
            Some(Mark('*')) => path.push("*".to_owned()),
            Some(Mark('{')) => {
                i += 1;
                while i < tokens.len() && tokens[i] != Mark('}') {
                    i = tree(tokens, i, &path, out);
                    while i < tokens.len() && !matches!(tokens[i], Mark(',') | Mark('}')) {
                        i += 1;
                    }
                    if tokens.get(i) == Some(&Mark(',')) {
                        i += 1;
                    }
                }
                return i + 1;
            }
            _ => break,
        }
        i += 1;
        let goes_on =
            tokens.get(i) == Some(&Separator) && matches!(tokens.get(i + 1), Some(Word(_) | Mark('{') | Mark('*')));
        if !goes_on {
            break;
        }
        i += 1;
    }
    out.push(path);
    i.max(1)
}

/// The top-level module of this crate that `path` leads to from `file`; `None` for another crate or the same module.
pub(crate) fn module_of<'p>(file: &str, path: &'p [String]) -> Option<&'p str> {
    let (first, after) = path.split_first()?;
    match first.as_str() {
        "crate" => after.first().map(String::as_str),
        "super" => {
            let stem = file.strip_suffix("/mod.rs").or_else(|| file.strip_suffix(".rs")).unwrap_or(file);
            let depth = stem.split('/').count();
            let ups = path.iter().take_while(|segment| *segment == "super").count();
            if ups < depth { None } else { path.get(ups).map(String::as_str) }
        }
        _ => None,
    }
}

/// The methods of `state::State` that write.
pub(crate) struct State;

impl State {
    pub(crate) const WRITES: [&'static str; 3] = ["publish", "restore", "renew"];
}

/// Calls of `methods`, as `receiver.method(` where the receiver is not plain `self`, or as `State::method`.
pub(crate) fn calls_on_others(tokens: &[Token], methods: &[&str]) -> Vec<String> {
    let mut out = Vec::new();
    for (i, token) in tokens.iter().enumerate().skip(2) {
        let Word(name) = token else { continue };
        if !methods.contains(&name.as_str()) {
            continue;
        }
        let called = tokens.get(i + 1) == Some(&Mark('('));
        let on_self =
            tokens[i - 2] == Word("self".to_owned()) && i.checked_sub(3).is_none_or(|b| tokens[b] != Mark('.'));
        let method = called && tokens[i - 1] == Mark('.') && !on_self;
        let function = tokens[i - 1] == Separator && tokens[i - 2] == Word("State".to_owned());
        if method || function {
            out.push(name.clone());
        }
    }
    out
}
