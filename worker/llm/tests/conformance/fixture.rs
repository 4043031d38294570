//! A fixture a provider: how it is reached, and how it plays a scene.

mod anthropic;
mod chat;
mod gemini;
mod responses;
mod scripted;

use std::time::Duration;

use croft_llm::{Limits, Provider, Request, Settings};
use secrecy::SecretString;
use serde_json::Value;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::hello;
use crate::scene::{Refusal, Scene};

pub const KEY: &str = "sk-very-secret";

/// One provider under test.
pub trait Fixture: Sync {
    fn name(&self) -> &'static str;
    fn open(&self, settings: Settings) -> Box<dyn Provider>;
    /// Where calls go, and in which header the key does.
    fn door(&self) -> (&'static str, &'static str, String);
    /// The body of a streamed answer.
    fn play(&self, scene: &Scene) -> String;
    /// The status and body of a refusal.
    fn refuse(&self, refusal: Refusal) -> (u16, Value);
    /// What it counts apart: cached input and reasoning.
    fn counts(&self) -> bool {
        true
    }
    /// The call goes over HTTP.
    fn is_remote(&self) -> bool {
        true
    }
    /// The request by which it plays a scene, where that is not the server's to decide.
    fn request(&self, _: &Scene) -> Request {
        hello()
    }
    fn refused_request(&self, _: Refusal) -> Request {
        hello()
    }
}

pub const FIXTURES: [&dyn Fixture; 5] =
    [&anthropic::Fixture, &chat::Fixture, &responses::Fixture, &gemini::Fixture, &scripted::Fixture];

pub fn settings(base_url: &str) -> Settings {
    let limits = Limits { idle: Duration::from_mins(1), ..Limits::default() };
    Settings { base_url: base_url.into(), api_key: SecretString::from(KEY).into(), limits }
}

/// A server that answers a well-formed call so.
pub async fn server(fixture: &dyn Fixture, answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    let (to, name, value) = fixture.door();
    Mock::given(method("POST"))
        .and(path(to))
        .and(header(name, value.as_str()))
        .and(header("content-type", "application/json"))
        .respond_with(answer)
        .mount(&server)
        .await;
    server
}

pub fn stream(body: String) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw(body, "text/event-stream; charset=utf-8")
}

/// Events without a name.
fn data(events: &[Value]) -> String {
    let lines: Vec<_> = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    lines.concat()
}

/// Events that are named by their type.
fn named(events: &[Value]) -> String {
    let name = |event: &Value| event["type"].as_str().unwrap_or_default().to_owned();
    let lines: Vec<_> = events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", name(event))).collect();
    lines.concat()
}
