//! The request of a token exchange: a form (RFC 8693, section 2.1) becomes what is asked for, or a refusal.
//!
//! Plane: control; pure. What is not known is ignored and what is empty is absent, as RFC 6749, section 3.2, has it; what is
//! known and there twice, or not understood, is refused. INVARIANT: no refusal repeats a token.

use std::fmt;

use zeroize::Zeroizing;

use super::refusal::Refused;
use crate::object::GrantId;

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// The kinds of token, by the ends of their URIs.
const TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:";
/// What is read.
const KNOWN: [&str; 10] = [
    "grant_type",
    "subject_token",
    "subject_token_type",
    "actor_token",
    "actor_token_type",
    "requested_token_type",
    "audience",
    "resource",
    "scope",
    "grant_id",
];
/// The largest number of actions in a scope.
const MAX_ACTIONS: usize = 64;

/// A token, which prints as `***`.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

/// Where the token is to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A service, by name: `audience`.
    Service(String),
    /// Something of a service, by its URI: `resource`.
    Uri(String),
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Whose token the new one is to stand for.
    pub subject_token: Secret,
    /// Who is to act for it.
    pub actor_token: Option<Secret>,
    /// Where it is to be used.
    pub destination: Destination,
    /// For which actions; empty: for all that the grant gives.
    pub scope: Vec<String>,
    /// On which grant; without it, on any that covers this.
    pub grant: Option<GrantId>,
    /// The type that the client wants to call it by.
    pub issued_token_type: &'static str,
}

// === impl Secret ===

impl Secret {
    /// Keeps a token.
    pub(super) fn new(token: String) -> Self {
        Self(Zeroizing::new(token))
    }

    /// The token itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

// === impl Asked ===

impl Asked {
    /// Reads a form.
    pub fn parse(body: &[u8]) -> Result<Self, Refused> {
        let mut members = Members::default();
        for (name, value) in form_urlencoded::parse(body) {
            let Some(place) = KNOWN.iter().position(|known| *known == name) else { continue };
            let value = Zeroizing::new(value.into_owned());
            if !value.is_empty() && members.0.get_mut(place).is_some_and(|slot| slot.replace(value).is_some()) {
                return Err(match &*name {
                    "audience" | "resource" => Refused::target("a token is for one service"),
                    _ => Refused::request(format!("`{name}` is there twice")),
                });
            }
        }
        match members.text("grant_type") {
            Some(GRANT_TYPE) => {}
            None => return Err(Refused::request("`grant_type` is missing")),
            Some(_) => return Err(Refused::grant_type()),
        }
        let subject_token =
            members.token("subject_token")?.ok_or_else(|| Refused::request("`subject_token` is missing"))?;
        let actor_token = members.token("actor_token")?;
        let issued_token_type = match members.text("requested_token_type").map(|uri| uri.strip_prefix(TOKEN_TYPE)) {
            None | Some(Some("access_token")) => "urn:ietf:params:oauth:token-type:access_token",
            Some(Some("jwt")) => "urn:ietf:params:oauth:token-type:jwt",
            Some(_) => {
                return Err(Refused::request(format!(
                    "`requested_token_type` is neither `{TOKEN_TYPE}access_token` nor `{TOKEN_TYPE}jwt`"
                )));
            }
        };
        let destination = match (members.text("audience"), members.text("resource")) {
            (Some(name), None) => Destination::Service(name.to_owned()),
            (None, Some(uri)) => Destination::Uri(uri.to_owned()),
            (None, None) => return Err(Refused::request("`audience` or `resource` is missing")),
            (Some(_), Some(_)) => return Err(Refused::target("`audience` and `resource` are both there")),
        };
        let scope: Vec<String> = members
            .text("scope")
            .unwrap_or_default()
            .split(' ')
            .filter(|action| !action.is_empty())
            .map(str::to_owned)
            .collect();
        if scope.len() > MAX_ACTIONS || scope.iter().any(|action| crate::object::check_name("scope", action).is_err()) {
            return Err(Refused::scope("`scope` is not at most 64 names of actions with spaces between them"));
        }
        let grant = members.text("grant_id").map(str::parse).transpose();
        let grant = grant.map_err(|_not_an_id| Refused::request("`grant_id` is not the id of a grant"))?;
        Ok(Self { subject_token, actor_token, destination, scope, grant, issued_token_type })
    }
}

/// What was given of what is known, in the order of [`KNOWN`].
#[derive(Default)]
struct Members([Option<Zeroizing<String>>; KNOWN.len()]);

impl Members {
    fn text(&self, name: &str) -> Option<&str> {
        let place = KNOWN.iter().position(|known| *known == name)?;
        self.0.get(place)?.as_ref().map(|value| value.as_str())
    }

    /// A token with its type, which has to be that of a JWT.
    fn token(&self, name: &str) -> Result<Option<Secret>, Refused> {
        let kind = format!("{name}_type");
        match (self.text(name), self.text(&kind).map(|uri| uri.strip_prefix(TOKEN_TYPE))) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Refused::request(format!("`{kind}` is there without `{name}`"))),
            (Some(_), None) => Err(Refused::request(format!("`{kind}` is missing"))),
            (Some(token), Some(Some("jwt"))) => Ok(Some(Secret(Zeroizing::new(token.to_owned())))),
            (Some(_), Some(_)) => Err(Refused::request(format!("`{kind}` is not `{TOKEN_TYPE}jwt`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=a.b.c\
        &subject_token_type=urn:ietf:params:oauth:token-type:jwt";

    #[test]
    fn a_form_says_what_is_asked_for() {
        let asked = Asked::parse(
            format!("{SUBJECT}&audience=payments&scope=read+write&unknown=1&unknown=2&actor_token=").as_bytes(),
        );
        let asked = asked.unwrap();
        assert_eq!(asked.subject_token.reveal(), "a.b.c");
        assert!(asked.actor_token.is_none() && asked.grant.is_none(), "what is empty is absent");
        assert_eq!((asked.destination.clone(), asked.scope.len()), (Destination::Service("payments".to_owned()), 2));
        assert!(!format!("{asked:?}").contains("a.b.c"));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_code_of_the_standard() {
        for (rest, error, part) in [
            ("", "invalid_request", "audience"),
            ("&audience=a&audience=b", "invalid_target", "one service"),
            ("&audience=a&resource=https://b", "invalid_target", "both"),
            ("&audience=a&subject_token=d.e.f", "invalid_request", "twice"),
            ("&audience=a&scope=read+WRITE", "invalid_scope", "actions"),
            ("&audience=a&grant_id=all", "invalid_request", "grant_id"),
            ("&audience=a&actor_token=d.e.f", "invalid_request", "actor_token_type"),
            ("&audience=a&actor_token_type=x", "invalid_request", "without"),
            ("&audience=a&requested_token_type=urn:ietf:params:oauth:token-type:saml2", "invalid_request", "requested"),
        ] {
            let refused = Asked::parse(format!("{SUBJECT}{rest}").as_bytes()).unwrap_err();
            assert_eq!((refused.status, refused.error), (400, error), "{rest}");
            assert!(refused.description.contains(part), "{rest}: {}", refused.description);
            assert!(!refused.description.contains("d.e.f"), "{rest}");
        }
        for (form, error) in [
            ("", "invalid_request"),
            ("grant_type=client_credentials", "unsupported_grant_type"),
            ("grant_type=urn:ietf:params:oauth:grant-type:token-exchange&audience=a", "invalid_request"),
        ] {
            assert_eq!(Asked::parse(form.as_bytes()).unwrap_err().error, error, "{form}");
        }
        let saml = SUBJECT.replace("token-type:jwt", "token-type:saml2");
        assert!(Asked::parse(saml.as_bytes()).unwrap_err().description.contains("subject_token_type"));
    }
}
