//! The demo: applies a tenant and a session, opens another session by gRPC, and prints what streams back.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ListUsageEventsRequest, StopReason, TerminateSessionRequest};
use tokio::time::Instant;

const SESSION: &str = include_str!("../../manifests/demo-session.yaml");

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let system = System::from_env_file()?;
    let mut out = std::io::stdout();

    writeln!(out, "\n$ kubectl get agenttenants\n{}", system.kubectl(&["get", "agenttenants"]).await?)?;
    writeln!(out, "\n$ kubectl apply -f e2e/manifests/demo-session.yaml\n{}", system.apply(SESSION).await?)?;
    let wait = ["wait", "agentsession/hello", "-n", "tenant-demo", "--for=condition=Ready", "--timeout=60s"];
    writeln!(out, "{}", system.kubectl(&wait).await?)?;
    let sessions = system.kubectl(&["get", "agentsessions", "-n", "tenant-demo"]).await?;
    writeln!(out, "\n$ kubectl get agentsessions -n tenant-demo\n{sessions}")?;

    let mut client = Client::new(&system.grpc, &system.api_key)?;
    let began = Instant::now();
    let session = client.create(scripted_agent("guide")).await.context("CreateSession")?;
    writeln!(out, "\nCreateSession at {}: {} in {:.1} ms", system.grpc, session.session_id, milliseconds(began))?;
    for text in ["Hello, who answers here?", "And where do you run?"] {
        writeln!(out, "\n> {text}")?;
        turn(&mut client, &session.session_id, text, &mut out).await?;
    }
    print_usage(&mut client, &session.session_id, &mut out).await?;
    let terminate = TerminateSessionRequest { session_id: session.session_id, reason: "the demo is over".into() };
    client.lifecycle.terminate_session(terminate).await.context("TerminateSession")?;
    Ok(())
}

/// Sends a message and prints its tokens as they come, and who spoke them.
async fn turn(client: &mut Client, session_id: &str, text: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut first_token = None;
    let (mut worker, mut namespace) = (String::new(), String::new());
    let mut events =
        client.lifecycle.send_message(message(session_id, text)).await.context("SendMessage")?.into_inner();
    let patience = Duration::from_mins(1);
    while let Some(event) =
        tokio::time::timeout(patience, events.message()).await.context("no event for a minute")??
    {
        match event.event.and_then(|event| event.kind) {
            Some(Kind::StepStarted(step)) => (worker, namespace) = (step.worker, step.namespace),
            Some(Kind::TextDelta(delta)) => {
                first_token.get_or_insert_with(|| milliseconds(began));
                write!(out, "{}", delta.text)?;
                out.flush()?;
            }
            Some(Kind::Error(error)) => bail!("{}: {}", error.reason, error.message),
            Some(Kind::SessionIdle(idle)) if idle.stop_reason() == StopReason::EndTurn => {
                let first = first_token.context("the turn streamed no token")?;
                let took = milliseconds(began);
                writeln!(out, "\n  [pod {worker} in {namespace}; first token after {first:.1} ms, turn {took:.0} ms]")?;
                return Ok(());
            }
            Some(Kind::SessionIdle(idle)) => bail!("the turn ended with {}", idle.stop_reason().as_str_name()),
            _ => {}
        }
    }
    bail!("the stream ended before the turn did")
}

async fn print_usage(client: &mut Client, session_id: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let request = ListUsageEventsRequest { session_id: session_id.to_owned(), ..ListUsageEventsRequest::default() };
    let usage = client.usage.list_usage_events(request).await.context("ListUsageEvents")?.into_inner();
    anyhow::ensure!(usage.usage_events.len() == 2, "two turns have {} usage rows", usage.usage_events.len());
    writeln!(out, "\nUsage, newest first:")?;
    for row in usage.usage_events {
        let tokens = row.tokens.unwrap_or_default();
        let cost = row.cost_nano_usd.map_or_else(
            || "unknown".to_owned(),
            |nano| format!("${}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000),
        );
        writeln!(
            out,
            "  {} {}/{}: {} tokens in, {} out, {cost}, {} ms",
            row.attempt_id, row.provider, row.model, tokens.input_uncached_tokens, tokens.output_tokens, row.latency_ms,
        )?;
    }
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
