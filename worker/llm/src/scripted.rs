//! A provider that plays a script instead of calling a model: for the demo, for users' own tests, and for ours.
//!
//! When a text of the last user message is a JSON object with a key `script`, its steps are played: `docs/providers.md` has them. After
//! tool results the script goes on behind the tool calls. Anything else is answered by a short text that repeats what was heard. Usage
//! is reckoned, not counted.

mod script;

use std::time::Duration;

use croft_proto::estimate::{tokens, weight};
use croft_proto::v1::TokenUsage;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;

use crate::delta::{Delta, Stop};
use crate::error::{Class, Error};
use crate::estimate;
use crate::provider::{DeltaStream, Provider};
use crate::request::Request;
use script::{Arguments, Failure, Part, Step, StopWord};

/// The name by which it is configured and granted.
pub const NAME: &str = "scripted";

/// How long an echoed word takes.
const ECHO_WORD_DELAY: Duration = Duration::from_millis(10);
/// Of what was heard, this many characters are repeated.
const ECHO_CHARACTERS_MAX: usize = 400;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Scripted;

impl Scripted {
    pub fn new() -> Self {
        Self
    }
}

impl Provider for Scripted {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Each script has failures of its own.
    fn fails_together(&self) -> bool {
        false
    }

    fn stream(&self, request: Request) -> DeltaStream {
        // The player writes into a channel of one place and runs within the stream's own polls: no task to look after,
        // and dropping the stream stops it.
        let (deltas, received) = mpsc::channel(1);
        let play = play(request, deltas).into_stream().filter_map(|()| std::future::ready(None));
        let received = futures::stream::unfold(received, |mut received| async move {
            received.recv().await.map(|delta| (delta, received))
        });
        futures::stream::select(received, play).boxed()
    }
}

/// The listener went away.
struct Gone;

async fn play(request: Request, deltas: mpsc::Sender<Result<Delta, Error>>) {
    let mut player = Player { input_tokens: estimate::input_tokens(&request), output_weight: 0, block: 0, deltas };
    let outcome = match script::part(&request.messages) {
        Err(error) => player.fail(Error::new(NAME, Class::Invalid, format!("the script has a mistake: {error}"))).await,
        Ok(Part::Echo(heard)) => player.echo(&heard, &request.model).await,
        Ok(Part::Steps(steps)) => player.steps(steps, &request).await,
    };
    if let Err(Gone) = outcome {
        tracing::debug!("the answer was dropped before its end");
    }
}

struct Player {
    input_tokens: u32,
    output_weight: usize,
    /// The number of the next block.
    block: u32,
    deltas: mpsc::Sender<Result<Delta, Error>>,
}

impl Player {
    async fn send(&self, delta: Delta) -> Result<(), Gone> {
        self.deltas.send(Ok(delta)).await.map_err(|_| Gone)
    }

    async fn fail(&self, error: Error) -> Result<(), Gone> {
        self.deltas.send(Err(error)).await.map_err(|_| Gone)
    }

    async fn open(&self, model: &str) -> Result<(), Gone> {
        let opened = Delta::Opened { response_id: "scripted".into(), model: model.into() };
        self.send(opened).await?;
        self.send(Delta::Usage(self.usage())).await
    }

    async fn close(&self, stop: Stop) -> Result<(), Gone> {
        self.send(Delta::Usage(self.usage())).await?;
        self.send(Delta::Stop(stop)).await
    }

    fn usage(&self) -> TokenUsage {
        TokenUsage {
            input_uncached_tokens: i64::from(self.input_tokens),
            output_tokens: i64::from(tokens(self.output_weight)),
            ..TokenUsage::default()
        }
    }

    async fn echo(&mut self, heard: &str, model: &str) -> Result<(), Gone> {
        self.open(model).await?;
        let short: String = heard.chars().take(ECHO_CHARACTERS_MAX).collect();
        let answer = format!("You said: {short}");
        self.words(&answer, ECHO_WORD_DELAY).await?;
        self.close(Stop::EndTurn).await
    }

    /// Text, a word with its blank at a time.
    async fn words(&mut self, text: &str, delay: Duration) -> Result<(), Gone> {
        for word in text.split_inclusive(char::is_whitespace) {
            pause(delay).await;
            self.output_weight += weight(word);
            self.send(Delta::Text { block: self.block, text: word.into() }).await?;
        }
        self.block += 1;
        Ok(())
    }

    async fn steps(&mut self, steps: Vec<Step>, request: &Request) -> Result<(), Gone> {
        let mut opened = false;
        let mut stop = Stop::EndTurn;
        for (index, step) in steps.into_iter().enumerate() {
            pause(Duration::from_millis(step.delay_ms.unwrap_or_default())).await;
            if let Some(failure) = step.error {
                return self.fail(failed(failure)).await;
            }
            // Opened late, so that an error as the first step is a call that was refused.
            let says = step.text.is_some() || step.thinking.is_some() || step.tool_call.is_some();
            if !opened && (says || step.service_tier.is_some()) {
                self.open(&request.model).await?;
                opened = true;
            }
            if let Some(tier) = step.service_tier {
                self.send(Delta::ServiceTier(tier)).await?;
            }
            if let Some(text) = step.thinking {
                self.output_weight += weight(&text);
                self.send(Delta::Thinking { block: self.block, text }).await?;
                self.send(Delta::Signature { block: self.block, signature: "scripted".into() }).await?;
                self.block += 1;
            }
            if let Some(text) = step.text {
                self.words(&text, Duration::from_millis(step.token_delay_ms.unwrap_or_default())).await?;
            }
            if let Some(call) = step.tool_call {
                // No two calls of a conversation that is sent whole have as many messages before them and the same place.
                let tool_call_id = format!("call_{}_{index}", request.messages.len());
                self.tool_call(tool_call_id, call).await?;
                stop = Stop::ToolUse;
            }
            if let Some(word) = step.stop {
                stop = match word {
                    StopWord::MaxTokens => Stop::MaxTokens,
                    StopWord::ContextFull => Stop::ContextFull,
                    StopWord::Refusal => Stop::Refusal,
                    StopWord::Pause => Stop::Pause,
                };
            }
        }
        if !opened {
            self.open(&request.model).await?;
        }
        self.close(stop).await
    }

    async fn tool_call(&mut self, tool_call_id: String, call: script::ToolCall) -> Result<(), Gone> {
        let block = self.block;
        let arguments_json = match call.arguments {
            Arguments::Object(object) => serde_json::Value::Object(object).to_string(),
            Arguments::Raw(text) => text,
        };
        self.output_weight += weight(&arguments_json);
        self.send(Delta::ToolCallStarted { block, tool_call_id, name: call.name }).await?;
        self.send(Delta::ToolArguments { block, partial_json: arguments_json.clone() }).await?;
        self.send(Delta::ToolCallStopped { block, arguments_json }).await?;
        self.block += 1;
        Ok(())
    }
}

fn failed(failure: Failure) -> Error {
    let Some(class) = Class::parse(&failure.class) else {
        let message = format!("the script has a mistake: there is no error class {:?}", failure.class);
        return Error::new(NAME, Class::Invalid, message);
    };
    let mut error = Error::new(NAME, class, failure.message);
    error.retry_after = failure.retry_after_ms.map(Duration::from_millis);
    error
}

/// A pause of zero must not cost a tick of the timer.
async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
