//! The Workload API's client and the server that tests it are generated from one file of ours, so that they would also
//! agree on a mistake: what that file says is held against the facts of the standard.
//!
//! The facts were written down by hand from `standards/workloadapi.proto` of github.com/spiffe/spiffe at
//! bb5b19d30bfa6ce232072337eb6ee7406a8494e2 (SPIFFE Workload API, sections 5 and 6), all of it, so that what we come to use
//! is covered too.

use std::sync::{Arc, Mutex};

use portcullis::wire::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use portcullis::wire::workload_api::{JwtBundlesRequest, X509BundlesRequest, X509svidRequest};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Method, what it takes, what it answers.
const METHODS: [(&str, &str, &str); 5] = [
    ("FetchX509SVID", "X509SVIDRequest", "stream X509SVIDResponse"),
    ("FetchX509Bundles", "X509BundlesRequest", "stream X509BundlesResponse"),
    ("FetchJWTSVID", "JWTSVIDRequest", "JWTSVIDResponse"),
    ("FetchJWTBundles", "JWTBundlesRequest", "stream JWTBundlesResponse"),
    ("ValidateJWTSVID", "ValidateJWTSVIDRequest", "ValidateJWTSVIDResponse"),
];

/// Number, name, type.
type Field = (i32, &'static str, &'static str);

/// Message, and its fields by number.
const MESSAGES: [(&str, &[Field]); 12] = [
    ("X509SVIDRequest", &[]),
    (
        "X509SVIDResponse",
        &[(1, "svids", "repeated X509SVID"), (2, "crl", "repeated bytes"), (3, "federated_bundles", "string to bytes")],
    ),
    (
        "X509SVID",
        &[
            (1, "spiffe_id", "string"),
            (2, "x509_svid", "bytes"),
            (3, "x509_svid_key", "bytes"),
            (4, "bundle", "bytes"),
            (5, "hint", "string"),
        ],
    ),
    ("X509BundlesRequest", &[]),
    ("X509BundlesResponse", &[(1, "crl", "repeated bytes"), (2, "bundles", "string to bytes")]),
    ("JWTSVIDRequest", &[(1, "audience", "repeated string"), (2, "spiffe_id", "string")]),
    ("JWTSVIDResponse", &[(1, "svids", "repeated JWTSVID")]),
    ("JWTSVID", &[(1, "spiffe_id", "string"), (2, "svid", "string"), (3, "hint", "string")]),
    ("JWTBundlesRequest", &[]),
    ("JWTBundlesResponse", &[(1, "bundles", "string to bytes")]),
    ("ValidateJWTSVIDRequest", &[(1, "audience", "string"), (2, "svid", "string")]),
    ("ValidateJWTSVIDResponse", &[(1, "spiffe_id", "string"), (2, "claims", "google.protobuf.Struct")]),
];

/// What the code was generated from.
fn ours() -> FileDescriptorProto {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/wire.binpb"));
    let set: FileDescriptorSet = prost::Message::decode(&bytes[..]).unwrap();
    set.file.into_iter().find(|file| file.name() == "workload_api.proto").unwrap()
}

/// In what our file, which may leave methods and messages out, differs from the standard.
fn differences(file: &FileDescriptorProto) -> Vec<String> {
    let mut found = Vec::new();
    if (file.package(), file.syntax()) != ("", "proto3") {
        found.push(format!("package `{}`, syntax `{}`", file.package(), file.syntax()));
    }
    if file.service.iter().map(|s| s.name()).ne(["SpiffeWorkloadAPI"]) {
        found.push("not the one service".to_owned());
    }
    for method in file.service.iter().flat_map(|service| &service.method) {
        let stream = |yes: bool| if yes { "stream " } else { "" };
        let takes = format!("{}{}", stream(method.client_streaming()), local(method.input_type()));
        let answers = format!("{}{}", stream(method.server_streaming()), local(method.output_type()));
        if !METHODS.contains(&(method.name(), &takes, &answers)) {
            found.push(format!("{}: {takes} -> {answers}", method.name()));
        }
    }
    for message in &file.message_type {
        let mut fields: Vec<_> = message.field.iter().map(|f| (f.number(), f.name(), kind(message, f))).collect();
        fields.sort_unstable();
        let known = MESSAGES.iter().find(|(name, _)| *name == message.name());
        let same = known.is_some_and(|(_, known)| {
            known.iter().copied().eq(fields.iter().map(|(number, name, kind)| (*number, *name, kind.as_str())))
        });
        if !same {
            found.push(format!("{}: {fields:?}", message.name()));
        }
    }
    found
}

/// A type's name without the dot that says that it is complete.
fn local(name: &str) -> &str {
    name.strip_prefix('.').unwrap_or(name)
}

fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let of = |field: &FieldDescriptorProto| match field.r#type() {
        Type::String => "string".to_owned(),
        Type::Bytes => "bytes".to_owned(),
        Type::Message => local(field.type_name()).to_owned(),
        other => format!("{other:?}"),
    };
    let entry = |entry: &&DescriptorProto| {
        let is_entry = entry.options.as_ref().is_some_and(|options| options.map_entry());
        is_entry && local(field.type_name()) == format!("{}.{}", message.name(), entry.name())
    };
    if let Some(entry) = message.nested_type.iter().find(entry) {
        return entry.field.iter().map(of).collect::<Vec<_>>().join(" to ");
    }
    match field.label() {
        Label::Repeated => format!("repeated {}", of(field)),
        Label::Optional if field.proto3_optional() => format!("optional {}", of(field)),
        Label::Optional | Label::Required => of(field),
    }
}

#[test]
fn our_part_of_the_workload_api_is_the_standards() {
    let file = ours();
    assert_eq!(differences(&file), [""; 0]);
    // ... and each kind of mistake would be seen.
    let broken = |change: fn(&mut FileDescriptorProto)| {
        let mut file = file.clone();
        change(&mut file);
        differences(&file).len()
    };
    let mistakes: [fn(&mut FileDescriptorProto); 9] = [
        |f| f.package = Some("spiffe".to_owned()),
        |f| f.service[0].name = Some("WorkloadAPI".to_owned()),
        |f| f.service[0].method[0].name = Some("FetchBundles".to_owned()),
        |f| f.service[0].method[0].server_streaming = Some(false),
        |f| f.service[0].method[0].input_type = Some(".JWTBundlesRequest".to_owned()),
        |f| response(f).field[1].number = Some(3),
        |f| response(f).field[1].name = Some("bundle".to_owned()),
        |f| response(f).field[0].r#type = Some(Type::String.into()),
        |f| response(f).field[0].label = Some(Label::Optional.into()),
    ];
    assert_eq!(mistakes.map(broken), [1; 9]);
}

fn response(file: &mut FileDescriptorProto) -> &mut DescriptorProto {
    file.message_type.iter_mut().find(|message| message.name() == "X509BundlesResponse").unwrap()
}

#[tokio::test]
async fn the_client_calls_the_standards_methods_by_their_names() {
    let called = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&called);
    let nobody = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        seen.lock().unwrap().push(request.uri().path().to_owned());
        async { Err::<http::Response<tonic::body::Body>, _>(std::io::Error::other("nobody is there")) }
    });
    let mut client = SpiffeWorkloadApiClient::new(nobody);
    assert!(client.fetch_x509_bundles(X509BundlesRequest {}).await.is_err());
    assert!(client.fetch_jwt_bundles(JwtBundlesRequest {}).await.is_err());
    assert!(client.fetch_x509svid(X509svidRequest {}).await.is_err());
    let expected = ["FetchX509Bundles", "FetchJWTBundles", "FetchX509SVID"].map(|m| format!("/SpiffeWorkloadAPI/{m}"));
    assert_eq!(*called.lock().unwrap(), expected);
}
