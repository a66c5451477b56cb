//! The syntax of URI templates: text to segments, by Envoy's rules.
//!
//! Pure. Refuses what Envoy refuses, and every literal that is not written as it occurs in a canonical path: the error
//! says how to write it. Never guesses: a template that is not understood is an error of the object it stands in.

use super::{MAX_SEGMENTS, MAX_TEMPLATE, Rest, Segment, Template, TemplateError};
use crate::authz::path::CanonicalPath;

/// Envoy's limits.
const MAX_VARIABLES: usize = 5;
const MAX_VARIABLE_NAME: usize = 16;

#[derive(Debug, PartialEq)]
enum Element<'a> {
    Literal(&'a str),
    One,
    Rest,
}

#[derive(Default)]
struct Parser<'a> {
    elements: Vec<Element<'a>>,
    names: Vec<&'a str>,
    suffix: &'a str,
}

pub(super) fn parse(text: &str) -> Result<Template, TemplateError> {
    let Some(segments) = text.strip_prefix('/') else {
        return Err(TemplateError::NotAbsolute);
    };
    if text.len() > MAX_TEMPLATE {
        return Err(TemplateError::TooLong);
    }
    let mut parser = Parser::default();
    parser.segments(segments)?;
    if parser.elements.len() > MAX_SEGMENTS {
        return Err(TemplateError::TooLong);
    }
    build(text, &parser)
}

// === impl Parser ===

impl<'a> Parser<'a> {
    fn segments(&mut self, mut left: &'a str) -> Result<(), TemplateError> {
        loop {
            let after = if let Some(open) = left.strip_prefix('{') {
                let (inner, after) = open.split_once('}').ok_or_else(|| TemplateError::Unclosed(left.to_owned()))?;
                self.variable(inner)?;
                after
            } else if let Some(after) = left.strip_prefix("**") {
                self.push(Element::Rest)?;
                after
            } else if let Some(after) = left.strip_prefix('*') {
                self.push(Element::One)?;
                after
            } else {
                let (literal, after) = left.split_at(left.find('/').unwrap_or(left.len()));
                if literal.is_empty() && !after.is_empty() {
                    return Err(TemplateError::EmptySegment);
                }
                self.push(Element::Literal(no_operator(literal)?))?;
                after
            };
            match after.strip_prefix('/') {
                Some(next) => left = next,
                None if after.contains('/') => return Err(TemplateError::PartialSegment(left.to_owned())),
                None => {
                    self.suffix = no_operator(after)?;
                    return Ok(());
                }
            }
        }
    }

    /// What is between braces: `*`, `**`, `name` or `name=pattern`.
    fn variable(&mut self, inner: &'a str) -> Result<(), TemplateError> {
        match inner {
            "*" => return self.push(Element::One),
            "**" => return self.push(Element::Rest),
            _ => {}
        }
        let (name, pattern) = inner.split_once('=').unwrap_or((inner, "*"));
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if !name.starts_with(|c: char| c.is_ascii_alphabetic())
            || name.len() > MAX_VARIABLE_NAME
            || !name.bytes().all(word)
        {
            return Err(TemplateError::VariableName(name.to_owned()));
        }
        if self.names.contains(&name) {
            return Err(TemplateError::RepeatedVariable(name.to_owned()));
        }
        self.names.push(name);
        if self.names.len() > MAX_VARIABLES {
            return Err(TemplateError::TooManyVariables);
        }
        pattern.split('/').try_for_each(|part| match part {
            "*" => self.push(Element::One),
            "**" => self.push(Element::Rest),
            "" => Err(TemplateError::EmptySegment),
            literal => self.push(Element::Literal(no_operator(literal)?)),
        })
    }

    fn push(&mut self, element: Element<'a>) -> Result<(), TemplateError> {
        if !matches!(element, Element::Literal(_)) && self.elements.contains(&Element::Rest) {
            return Err(TemplateError::OperatorAfterRest);
        }
        self.elements.push(element);
        Ok(())
    }
}

fn no_operator(literal: &str) -> Result<&str, TemplateError> {
    if literal.contains(['*', '{', '}']) {
        return Err(TemplateError::PartialSegment(literal.to_owned()));
    }
    Ok(literal)
}

fn build(text: &str, parser: &Parser<'_>) -> Result<Template, TemplateError> {
    let mut head = Vec::new();
    let mut tail: Option<Vec<Segment>> = None;
    let mut suffix = String::new();
    let mut pattern = String::with_capacity(text.len());
    let last = parser.elements.len().saturating_sub(1);
    for (i, element) in parser.elements.iter().enumerate() {
        let stuck = if i == last { parser.suffix } else { "" };
        let operator = match element {
            Element::Literal(literal) => literal,
            Element::One => "*",
            Element::Rest => "**",
        };
        pattern.extend(["/", operator, stuck]);
        match (element, &mut tail) {
            (Element::Rest, _) => {
                canonical(stuck, "/x")?;
                suffix.push_str(stuck);
                // Whether anything follows decides if the segment that `**` ends in may be empty.
                tail = Some(vec![if i == last { Segment::Ends(stuck.into()) } else { Segment::Before("".into()) }]);
            }
            (Element::One, _) => {
                canonical(stuck, "/x")?;
                head.push(Segment::Before(stuck.into()));
            }
            (Element::Literal(literal), tail) => {
                let literal = format!("{literal}{stuck}");
                canonical(&literal, "/")?;
                if let Some(tail) = tail {
                    suffix.push('/');
                    suffix.push_str(&literal);
                    tail.push(Segment::Literal(literal.into()));
                } else {
                    head.push(Segment::Literal(literal.into()));
                }
            }
        }
    }
    let rest = tail.map(|tail| Rest { tail: tail.into(), suffix: suffix.into() });
    let is_literal = rest.is_none() && head.iter().all(|segment| matches!(segment, Segment::Literal(_)));
    Ok(Template { text: text.into(), pattern: pattern.into(), head: head.into(), rest, is_literal })
}

/// Refuses a literal that no canonical path has after `before`.
fn canonical(literal: &str, before: &str) -> Result<(), TemplateError> {
    let text = format!("{before}{literal}");
    match CanonicalPath::parse(&text) {
        Ok(path) if path.as_str() == text => Ok(()),
        Ok(path) => Err(TemplateError::NotCanonical {
            literal: literal.to_owned(),
            canonical: path.as_str().strip_prefix(before).unwrap_or_default().to_owned(),
        }),
        Err(why) => Err(TemplateError::Refused { literal: literal.to_owned(), why }),
    }
}
