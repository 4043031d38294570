//! A conversation with all that there is, in each interface's form.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

use croft_llm::gemini::Gemini;
use croft_llm::openai::{Chat, Responses};
use croft_llm::refusals::Part;
use croft_llm::{Class, Limits, Provider, Request, Settings, ToolDefinition, anthropic};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::image::Source;
use croft_proto::v1::{ContentBlock, Image, Message, NativeBlock, Role, Text, Thinking, ToolOutput, ToolUse};
use futures::StreamExt as _;
use secrecy::SecretString;
use serde_json::{Value, json};
use wiremock::matchers::{any, body_json, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

type Open = fn(Settings) -> Box<dyn Provider>;

fn block(block: Block) -> ContentBlock {
    ContentBlock { block: Some(block) }
}

fn text(text: &str) -> ContentBlock {
    block(Block::Text(Text { text: text.into() }))
}

fn native(provider: &str, json: &Value) -> ContentBlock {
    block(Block::Native(NativeBlock { provider: provider.into(), json: json.to_string() }))
}

fn call(id: &str, arguments: &str) -> ContentBlock {
    let arguments_json = arguments.into();
    block(Block::ToolUse(ToolUse { tool_call_id: id.into(), name: "clock".into(), arguments_json }))
}

fn picture(source: Source) -> ContentBlock {
    block(Block::Image(Image { media_type: "image/png".into(), source: Some(source) }))
}

/// `extra` are blocks of the model's first answer that its own interface alone understands.
fn request(model: &str, extra: Vec<ContentBlock>) -> Request {
    let message = |role: Role, content| Message { role: role.into(), content, ..Message::default() };
    let output = |id: &str, content, is_error| {
        block(Block::ToolOutput(ToolOutput { tool_call_id: id.into(), content, is_error }))
    };
    let data = || picture(Source::Data(vec![1, 2, 3].into()));
    let summary = Thinking { text: "unsigned".into(), ..Thinking::default() };
    Request {
        model: model.into(),
        system: "Be kind.".into(),
        messages: vec![
            message(Role::User, vec![text("what time?"), text(""), data()]),
            message(
                Role::Assistant,
                [
                    vec![block(Block::Thinking(summary)), native("elsewhere", &json!({"type": "hologram"}))],
                    extra,
                    vec![text("let me look"), call("a", r#"{"x":1}"#), call("b", "{oops")],
                ]
                .concat(),
            ),
            message(
                Role::Tool,
                vec![output("a", vec![text("noon"), data()], false), output("b", vec![text("no")], true)],
            ),
            message(Role::User, vec![text("and?"), picture(Source::Url("https://pictures.test/1.png".into()))]),
            message(Role::Assistant, vec![]),
        ],
        tools: vec![ToolDefinition {
            name: "clock".into(),
            description: "Tells the time.".into(),
            input_schema: json!({"type": "object"}),
        }],
        output_tokens_max: 99,
        temperature: Some(0.5),
        refused: Vec::new(),
    }
}

fn settings(base_url: &str) -> Settings {
    Settings { base_url: base_url.into(), api_key: SecretString::from("k").into(), limits: Limits::default() }
}

/// The body that a call is made with.
async fn sent(open: Open, request: Request) -> Value {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(400)).mount(&server).await;
    let deltas: Vec<_> = open(settings(&server.uri())).stream(request).collect().await;
    assert_eq!(deltas[0].as_ref().unwrap_err().class, Class::Invalid);
    server.received_requests().await.unwrap()[0].body_json().unwrap()
}

#[tokio::test]
async fn chat_completions() {
    let body = sent(|settings| Box::new(Chat::new(settings).unwrap()), request("gpt-x", vec![])).await;
    let data = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AQID"}});
    let called = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "clock", "arguments": arguments}});
    let expected = json!({
        "model": "gpt-x",
        "max_completion_tokens": 99,
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": 0.5,
        "tools": [{"type": "function", "function": {
            "name": "clock", "description": "Tells the time.", "parameters": {"type": "object"},
        }}],
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "what time?"}, data]},
            {"role": "assistant", "content": "let me look", "tool_calls": [
                called("a", r#"{"x":1}"#), called("b", r#"{"unparsed":"{oops"}"#),
            ]},
            {"role": "tool", "tool_call_id": "a", "content": "noon"},
            {"role": "tool", "tool_call_id": "b", "content": "Error: no"},
            {"role": "user", "content": [
                data,
                {"type": "text", "text": "and?"},
                {"type": "image_url", "image_url": {"url": "https://pictures.test/1.png"}},
            ]},
        ],
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn responses() {
    let item = json!({"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA", "summary": []});
    let request = request("gpt-x", vec![native("openai", &item)]);
    let body = sent(|settings| Box::new(Responses::new(settings).unwrap()), request).await;
    let data = json!({"type": "input_image", "image_url": "data:image/png;base64,AQID"});
    let called = |id: &str, arguments: &str| json!({"type": "function_call", "call_id": id, "name": "clock", "arguments": arguments});
    let said = |text: &str| json!({"type": "input_text", "text": text});
    let expected = json!({
        "model": "gpt-x",
        "instructions": "Be kind.",
        "max_output_tokens": 99,
        "stream": true,
        "store": false,
        "include": ["reasoning.encrypted_content"],
        "temperature": 0.5,
        "tools": [{
            "type": "function", "name": "clock", "description": "Tells the time.",
            "parameters": {"type": "object"}, "strict": false,
        }],
        "input": [
            {"type": "message", "role": "user", "content": [said("what time?"), data]},
            item,
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me look"}]},
            called("a", r#"{"x":1}"#),
            called("b", r#"{"unparsed":"{oops"}"#),
            {"type": "function_call_output", "call_id": "a", "output": [said("noon"), data]},
            {"type": "function_call_output", "call_id": "b", "output": [said("Error:"), said("no")]},
            {"type": "message", "role": "user", "content": [
                said("and?"), {"type": "input_image", "image_url": "https://pictures.test/1.png"},
            ]},
        ],
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn gemini() {
    let signed = Thinking { text: "hm".into(), signature: "c2ln".into(), redacted_data: String::new() };
    let code = json!({"executableCode": {"language": "PYTHON", "code": "1"}, "thoughtSignature": "Y29kZQ=="});
    let signature = |of: &str| native("gemini", &json!({ "thoughtSignature": of }));
    let mut request =
        request("gemini-3-x", vec![block(Block::Thinking(signed)), native("gemini", &code), signature("dGV4dA==")]);
    // Before the first call, and one that came with nothing behind it.
    request.messages[1].content.insert(6, signature("Y2FsbA=="));
    request.messages[1].content.push(signature("bGFzdA=="));
    let body = sent(|settings| Box::new(Gemini::new(settings).unwrap()), request).await;
    let data = json!({"inlineData": {"mimeType": "image/png", "data": "AQID"}});
    let expected = json!({
        "systemInstruction": {"parts": [{"text": "Be kind."}]},
        "generationConfig": {"maxOutputTokens": 99, "temperature": 0.5},
        "tools": [{"functionDeclarations": [{
            "name": "clock", "description": "Tells the time.", "parametersJsonSchema": {"type": "object"},
        }]}],
        "contents": [
            {"role": "user", "parts": [{"text": "what time?"}, data]},
            {"role": "model", "parts": [
                {"text": "hm", "thought": true, "thoughtSignature": "c2ln"},
                code,
                {"text": "let me look", "thoughtSignature": "dGV4dA=="},
                {"functionCall": {"id": "a", "name": "clock", "args": {"x": 1}}, "thoughtSignature": "Y2FsbA=="},
                {"functionCall": {"id": "b", "name": "clock", "args": {"unparsed": "{oops"}}},
                {"text": "", "thoughtSignature": "bGFzdA=="},
            ]},
            {"role": "user", "parts": [
                {"functionResponse": {"id": "a", "name": "clock", "response": {"output": "noon"}}},
                data,
                {"functionResponse": {"id": "b", "name": "clock", "response": {"error": "no"}}},
                {"text": "and?"},
                {"fileData": {"mimeType": "image/png", "fileUri": "https://pictures.test/1.png"}},
            ]},
        ],
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_call_of_another_model_has_a_stand_in_for_its_signature_where_one_is_demanded() {
    let stand_in = json!("skip_thought_signature_validator");
    for (model, expected) in [
        ("gemini-3-x", stand_in.clone()),
        ("gemini-3.8-flash", stand_in.clone()),
        ("gemini-4-x", stand_in),
        ("gemini-2.5-pro", Value::Null),
        ("gemini-next", Value::Null),
    ] {
        let body = sent(|settings| Box::new(Gemini::new(settings).unwrap()), request(model, vec![])).await;
        let parts = &body["contents"][1]["parts"];
        assert_eq!(parts[1]["functionCall"]["id"], "a");
        assert_eq!(parts[1]["thoughtSignature"], expected, "{model}");
        assert_eq!(parts[2]["thoughtSignature"], Value::Null, "of parallel calls only the first");
    }
}

/// A conversation of these messages and nothing else.
fn of(messages: Vec<(Role, Vec<ContentBlock>)>) -> Request {
    let message = |(role, content): (Role, _)| Message { role: role.into(), content, ..Message::default() };
    let messages = messages.into_iter().map(message).collect();
    Request { model: "model-x".into(), messages, output_tokens_max: 99, ..Request::default() }
}

fn output(id: &str, content: Vec<ContentBlock>) -> ContentBlock {
    block(Block::ToolOutput(ToolOutput { tool_call_id: id.into(), content, is_error: false }))
}

/// "The final block in an assistant message cannot be `thinking`", and an item of reasoning needs the one that followed it.
#[tokio::test]
async fn an_answer_of_nothing_but_thoughts_goes_back_to_nobody() {
    let thought =
        || block(Block::Thinking(Thinking { text: "hm".into(), signature: "sig".into(), ..Thinking::default() }));
    let redacted = || block(Block::Thinking(Thinking { redacted_data: "ZGF0YQ==".into(), ..Thinking::default() }));
    let reasoning = || native("openai", &json!({"type": "reasoning", "id": "rs_1", "summary": []}));
    let conversation = |answer: Vec<ContentBlock>| {
        of(vec![(Role::User, vec![text("well?")]), (Role::Assistant, answer), (Role::User, vec![text("well?")])])
    };
    let claude: Open = |settings| Box::new(anthropic::Anthropic::new(settings).unwrap());
    let responses: Open = |settings| Box::new(Responses::new(settings).unwrap());
    let asked = |kind: &str| json!({"type": kind, "text": "well?"});
    for answer in [vec![thought()], vec![redacted(), thought()], vec![thought(), text("\n")]] {
        let body = sent(claude, conversation(answer)).await;
        let messages = body["messages"].as_array().unwrap();
        assert_eq!((messages.len(), messages[0]["content"].as_array().unwrap().len()), (1, 2), "{body}");
    }
    let body = sent(claude, conversation(vec![text("noon"), thought()])).await;
    assert_eq!(body["messages"][1]["content"], json!([{"type": "text", "text": "noon"}]));
    let body = sent(claude, conversation(vec![thought(), text("noon")])).await;
    assert_eq!(body["messages"][1]["content"].as_array().unwrap().len(), 2, "{body}");

    let user = json!({"type": "message", "role": "user", "content": [asked("input_text")]});
    for answer in [vec![reasoning()], vec![reasoning(), text("")]] {
        let body = sent(responses, conversation(answer)).await;
        assert_eq!(body["input"], json!([user, user]));
    }
    let body = sent(responses, conversation(vec![reasoning(), text("noon")])).await;
    assert_eq!(body["input"].as_array().unwrap().len(), 4, "{body}");
}

/// `DeepSeek` refuses a conversation without them, and Groq, which tells of thoughts otherwise, one with them.
#[tokio::test]
async fn thoughts_go_back_to_chat_completions_in_the_field_that_they_came_in_and_in_no_other() {
    let thinking = |text: &str, signature: &str| {
        block(Block::Thinking(Thinking { text: text.into(), signature: signature.into(), ..Thinking::default() }))
    };
    let conversation = |thought: Vec<ContentBlock>| {
        of(vec![
            (Role::User, vec![text("what time?")]),
            (Role::Assistant, [thought, vec![call("a", "{}")]].concat()),
            (Role::Tool, vec![output("a", vec![text("noon")])]),
            (Role::Assistant, vec![call("b", "{}")]),
            (Role::Tool, vec![output("b", vec![text("noon")])]),
            (Role::Assistant, vec![text("It is noon.")]),
            (Role::User, vec![text("and now?")]),
        ])
    };
    let chat: Open = |settings| Box::new(Chat::new(settings).unwrap());
    let thoughts = |body: &Value| -> Vec<Value> {
        let messages = body["messages"].as_array().unwrap();
        messages.iter().map(|message| message.get("reasoning_content").cloned().unwrap_or_default()).collect()
    };
    let came = vec![thinking("The user ", "reasoning_content"), thinking("asks.", "reasoning_content")];
    let body = sent(chat, conversation(came)).await;
    let none = || Value::Null;
    let expected = [none(), json!("The user asks."), none(), none(), none(), none(), none()];
    assert_eq!(thoughts(&body), expected, "a router's next server may refuse a field that says nothing");
    let body = sent(chat, conversation(vec![thinking("hm", "")])).await;
    assert!(thoughts(&body).iter().all(Value::is_null), "{body}");
}

#[tokio::test]
async fn the_output_is_bounded_in_the_field_that_most_servers_know() {
    let chat: Open = |settings| Box::new(Chat::new(settings).unwrap());
    let long = "max_completion_tokens";
    for (model, refused, field, other) in [
        ("gpt-6-sol", vec![], long, "max_tokens"),
        ("qwen3:8b", vec![], "max_tokens", long),
        ("prod-chat", vec![Part::MaxTokens], long, "max_tokens"),
        ("gpt-6-sol", vec![Part::MaxCompletionTokens], "max_tokens", long),
    ] {
        let mut request = of(vec![(Role::User, vec![text("hello")])]);
        (request.model, request.refused) = (model.into(), refused);
        let body = sent(chat, request).await;
        assert_eq!((body.get(field), body.get(other)), (Some(&json!(99)), None), "{body}");
    }
}

/// After a turn that was stopped in its calls, and one that failed before its first word. Templates of many models refuse two
/// messages of one role in a row, and Anthropic and Gemini know no role for results.
#[tokio::test]
async fn a_turn_that_came_to_no_answer_leaves_no_two_messages_of_one_role_in_a_row() {
    let stopped = || {
        of(vec![
            (Role::User, vec![text("what time?")]),
            (Role::Assistant, vec![call("a", "{}")]),
            (Role::Tool, vec![output("a", vec![text("noon")])]),
            (Role::User, vec![text("never mind")]),
        ])
    };
    let failed = || of(vec![(Role::User, vec![text("what time?")]), (Role::User, vec![text("well?")])]);
    let silent = || {
        let messages = [text("what time?"), text("well?")].map(|said| (Role::User, vec![said]));
        let [one, next] = messages;
        of(vec![one, (Role::Assistant, vec![text("")]), next])
    };
    let cases: [(Open, &str, &[&str]); 3] = [
        (|settings| Box::new(Chat::new(settings).unwrap()), "messages", &["user", "assistant", "tool", "user"]),
        (|settings| Box::new(anthropic::Anthropic::new(settings).unwrap()), "messages", &["user", "assistant", "user"]),
        (|settings| Box::new(Gemini::new(settings).unwrap()), "contents", &["user", "model", "user"]),
    ];
    for (open, field, expected) in cases {
        let roles = |body: &Value| -> Vec<String> {
            body[field].as_array().unwrap().iter().map(|one| one["role"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(roles(&sent(open, stopped()).await), expected);
        for request in [failed(), silent()] {
            let body = sent(open, request).await;
            assert_eq!(roles(&body), ["user"], "{body}");
            assert!(body.to_string().contains("what time?") && body.to_string().contains("well?"), "{body}");
        }
    }
}

#[tokio::test]
async fn a_server_that_refused_a_word_behind_results_gets_one_of_the_model_between_them() {
    let mut request = of(vec![
        (Role::User, vec![text("what time?")]),
        (Role::Assistant, vec![call("a", "{}")]),
        (Role::Tool, vec![output("a", vec![text("noon")])]),
        (Role::User, vec![text("never mind")]),
    ]);
    request.refused = vec![Part::UserAfterResults];
    let body = sent(|settings| Box::new(Chat::new(settings).unwrap()), request).await;
    let roles: Vec<_> = body["messages"].as_array().unwrap().iter().map(|one| one["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant", "user"]);
    let said = body["messages"][3]["content"].as_str().unwrap();
    assert!(!said.is_empty() && body["messages"][3].get("tool_calls").is_none(), "{body}");
}

/// Chat Completions refuses a user's word between the results of one answer.
#[tokio::test]
async fn pictures_of_results_that_came_in_two_messages_follow_behind_the_last() {
    let data = || picture(Source::Data(vec![1, 2, 3].into()));
    let request = of(vec![
        (Role::User, vec![text("what time?")]),
        (Role::Assistant, vec![call("a", "{}"), call("b", "{}")]),
        (Role::Tool, vec![output("a", vec![text("noon"), data()])]),
        (Role::Tool, vec![output("b", vec![text("late"), data()])]),
    ]);
    let body = sent(|settings| Box::new(Chat::new(settings).unwrap()), request).await;
    let messages = body["messages"].as_array().unwrap();
    let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool", "user"]);
    assert_eq!(messages[4]["content"].as_array().unwrap().len(), 2, "{body}");
}

#[tokio::test]
async fn a_text_of_white_space_alone_is_kept_from_anthropic() {
    let request = of(vec![
        (Role::User, vec![text("what time?")]),
        (Role::Assistant, vec![text("\n\n"), call("a", "{}")]),
        (Role::Tool, vec![output("a", vec![text(" \n")])]),
    ]);
    let body = sent(|settings| Box::new(anthropic::Anthropic::new(settings).unwrap()), request).await;
    let used = json!({"type": "tool_use", "id": "a", "name": "clock", "input": {}});
    assert_eq!(body["messages"][1]["content"], json!([used]));
    assert_eq!(body["messages"][2]["content"][0]["content"], json!([]));
}

#[tokio::test]
async fn a_tool_name_that_a_model_made_up_goes_back_as_one_that_is_not_refused() {
    // And where it stands in what each interface is sent.
    let cases: [(Open, &[&str]); 4] = [
        (
            |settings| Box::new(Chat::new(settings).unwrap()),
            &[
                "/messages/1/tool_calls/0/function/name",
                "/messages/1/tool_calls/1/function/name",
                "/messages/1/tool_calls/2/function/name",
            ],
        ),
        (|settings| Box::new(Responses::new(settings).unwrap()), &["/input/1/name", "/input/2/name", "/input/3/name"]),
        (
            |settings| Box::new(anthropic::Anthropic::new(settings).unwrap()),
            &["/messages/1/content/0/name", "/messages/1/content/1/name", "/messages/1/content/2/name"],
        ),
        (
            |settings| Box::new(Gemini::new(settings).unwrap()),
            &[
                "/contents/1/parts/0/functionCall/name",
                "/contents/1/parts/1/functionCall/name",
                "/contents/1/parts/2/functionCall/name",
                "/contents/2/parts/0/functionResponse/name",
                "/contents/2/parts/1/functionResponse/name",
                "/contents/2/parts/2/functionResponse/name",
            ],
        ),
    ];
    let called = |id: &str, name: &str| {
        let (tool_call_id, name, arguments_json) = (id.into(), name.into(), "{}".into());
        block(Block::ToolUse(ToolUse { tool_call_id, name, arguments_json }))
    };
    let long = "x".repeat(65);
    let expected = ["multi_tool_use_parallel", "unknown", &long[..64]];
    for (open, places) in cases {
        let request = of(vec![
            (Role::User, vec![text("what time?")]),
            (Role::Assistant, vec![called("a", "multi_tool_use.parallel"), called("b", ""), called("c", &long)]),
            (Role::Tool, ["a", "b", "c"].map(|id| output(id, vec![text("no such tool")])).into()),
        ]);
        let body = sent(open, request).await;
        let names: Vec<_> = places.iter().map(|place| body.pointer(place).unwrap()).collect();
        assert!(names.iter().zip(expected.iter().cycle()).all(|(name, expected)| name == expected), "{body}");
    }
}

/// The ids in a body, in its order: of calls, and of results.
fn ids(body: &Value) -> (Vec<String>, Vec<String>) {
    let (mut calls, mut results) = (Vec::new(), Vec::new());
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let id = |value: Option<&Value>| value.map(|id| id.as_str().unwrap().to_owned());
    for message in list(&body["messages"]) {
        calls.extend(list(&message["tool_calls"]).iter().filter_map(|call| id(call.get("id"))));
        results.extend(id(message.get("tool_call_id")));
        for block in list(&message["content"]) {
            calls.extend(id(block.get("id")));
            results.extend(id(block.get("tool_use_id")));
        }
    }
    for item in list(&body["input"]) {
        let of_its_kind = if item["type"] == "function_call" { &mut calls } else { &mut results };
        of_its_kind.extend(id(item.get("call_id")));
    }
    for part in list(&body["contents"]).iter().flat_map(|content| list(&content["parts"])) {
        calls.extend(id(part.pointer("/functionCall/id")));
        results.extend(id(part.pointer("/functionResponse/id")));
    }
    (calls, results)
}

#[tokio::test]
async fn ids_of_calls_that_an_older_release_left_go_back_as_ones_that_are_not_refused() {
    let long = "x".repeat(65);
    let shorter = "y".repeat(41);
    let answers = [vec!["toolu_1", "functions.search:0", ""], vec!["functions.search:0", &long, &shorter]];
    let mut messages = vec![(Role::User, vec![text("what time?")])];
    for ids in &answers {
        messages.push((Role::Assistant, ids.iter().map(|id| call(id, "{}")).collect()));
        messages.push((Role::Tool, ids.iter().map(|id| output(id, vec![text("noon")])).collect()));
    }
    let usual = ["toolu_1", "functions_search_0", "call", "functions_search_0_2", &long[..64], &shorter];
    let narrow = ["toolu_1", "functions_search_0", "call", "functions_search_0_2", &long[..40], &shorter[..40]];
    let cases: [(Open, [&str; 6]); 4] = [
        (|settings| Box::new(Chat::new(settings).unwrap()), narrow),
        (|settings| Box::new(Responses::new(settings).unwrap()), usual),
        (|settings| Box::new(anthropic::Anthropic::new(settings).unwrap()), usual),
        (|settings| Box::new(Gemini::new(settings).unwrap()), usual),
    ];
    for (open, expected) in cases {
        let body = sent(open, of(messages.clone())).await;
        let (calls, results) = ids(&body);
        assert_eq!(calls, expected, "{body}");
        assert_eq!(results, expected, "each result goes with its call: {body}");
    }
}

#[tokio::test]
async fn tokens_are_counted_where_that_is_offered() {
    let cases: [(Open, &str, Value, &str); 3] = [
        (
            |settings| Box::new(anthropic::Anthropic::new(settings).unwrap()),
            "/v1/messages/count_tokens",
            json!({"input_tokens": 42}),
            "messages",
        ),
        (
            |settings| Box::new(Responses::new(settings).unwrap()),
            "/v1/responses/input_tokens",
            json!({"object": "response.input_tokens", "input_tokens": 42}),
            "input",
        ),
        (
            |settings| Box::new(Gemini::new(settings).unwrap()),
            "/v1beta/models/model-x:countTokens",
            json!({"totalTokens": 42}),
            "generateContentRequest",
        ),
    ];
    for (open, to, answer, key) in cases {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .and(path(to))
            .respond_with(ResponseTemplate::new(200).set_body_json(answer))
            .mount(&server)
            .await;
        let provider = open(settings(&server.uri()));
        assert_eq!(provider.count_tokens(request("model-x", vec![])).await.unwrap(), Some(42), "{to}");
        let body: Value = server.received_requests().await.unwrap()[0].body_json().unwrap();
        let counted = body.as_object().unwrap();
        assert!(counted.contains_key(key), "{body}");
        assert!(!counted.contains_key("stream") && !counted.contains_key("max_tokens"), "{body}");
    }
    let chat = Chat::new(settings("http://127.0.0.1:1")).unwrap();
    assert_eq!(chat.count_tokens(request("gpt-x", vec![])).await.unwrap(), None);
}

#[tokio::test]
async fn a_count_that_is_refused_is_an_error_of_its_class() {
    let server = MockServer::start().await;
    let body = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}});
    Mock::given(body_json(json!({"model": "m", "messages": []})))
        .respond_with(ResponseTemplate::new(429).set_body_json(body))
        .mount(&server)
        .await;
    let provider = anthropic::Anthropic::new(settings(&server.uri())).unwrap();
    let request = Request { model: "m".into(), ..Request::default() };
    assert_eq!(provider.count_tokens(request).await.unwrap_err().class, Class::Rate);
}
