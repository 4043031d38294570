//! Other models take over from one that can't answer, in their order.

use croft_llm::{Class, Delta, Request, Stop};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::image::Source;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ContentBlock, Grant, Image, NativeBlock, StopReason, TokenUsage};

use crate::canned::{Answer, Canned, agent, attempts, course, fails, opened, said, says, stops, told, turn, worker};
use crate::support::{Front, init, session, start, text, texts};

#[tokio::test(start_paused = true)]
async fn a_model_that_can_not_answer_gives_way_to_the_next_which_the_attempt_tells() {
    let (a, b) = (Canned::new("a", [fails(Class::Auth)]), Canned::new("b", [says("noon")]));
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(course(&heard), [("a", "auth", ""), ("b", "", "error")]);
    assert_eq!(said(&heard), [("noon".to_owned(), "b".to_owned())]);
    assert!(told(&heard).is_empty(), "nobody need know");
    assert_eq!(heard.grants[0].takeover, None);
    let takeover = heard.grants[1].takeover.clone().unwrap();
    assert_eq!((takeover.from_model.as_str(), takeover.reason.as_str()), ("a", "error"));
    assert!(takeover.tools && !takeover.images);
}

#[tokio::test(start_paused = true)]
async fn each_model_is_tried_again_before_it_gives_way() {
    let models = ["a", "b", "c"].map(|name| Canned::new(name, [fails(Class::Overload)]));
    let heard = turn(&worker(&models.each_ref()).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::Error);
    assert_eq!(models.map(|model| model.calls()), [3, 3, 3]);
    assert_eq!(told(&heard), ["MODEL_OVERLOADED"], "one error is told, at the end");
}

/// What models were sent of the image of a conversation, each told of by its grant, or by none, as from an older front.
#[tokio::test(start_paused = true)]
async fn a_model_that_does_not_see_is_told_of_images_in_words() {
    let image = |data: &'static [u8]| {
        let (media_type, source) = ("image/png".into(), Some(Source::Data(data.into())));
        ContentBlock { block: Some(Block::Image(Image { media_type, source })) }
    };
    let (good, bad) = (image(b"\x89PNG\r\n\x1a\n\0"), image(b"from an older release"));
    for (images, expected) in [(None, 1), (Some(true), 1), (Some(false), 0)] {
        let a = Canned::new("a", [says("noon")]);
        let worker = worker(&[&a]).await;
        let session_id = session();
        init(&worker.client, &session_id, &agent()).await.unwrap();
        let input = [text("what is this?"), vec![good.clone(), bad.clone()]].concat();
        let mut front = Front::open(&worker.client, start(&session_id, input.clone())).await;
        front.grants = false;
        while let Some(message) = front.next().await.unwrap() {
            let FromWorker::GrantRequest(request) = message else { continue };
            let provider = request.model.clone();
            front
                .send(ToWorker::Grant(Grant { model: provider.clone(), provider, images, ..front.grant(&request) }))
                .await;
        }
        let sent = &a.requests.lock().unwrap()[0].messages[0].content;
        let seen = sent.iter().filter(|block| matches!(block.block, Some(Block::Image(_)))).count();
        assert_eq!((sent.len(), seen), (3, expected), "{images:?}: {sent:?}");
        assert!(texts(sent).contains("[an image that can't be shown") || images == Some(false), "{sent:?}");
        assert_eq!(front.heard.checkpoint().messages[0].content, input, "what is stored stays");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_only_if_no_model_answers() {
    let refusal = || stops("I can't help with that.", Stop::Refusal);
    let (a, b) = (Canned::new("a", [refusal()]), Canned::new("b", [says("gladly")]));
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!(course(&heard), [("a", "", ""), ("b", "", "content")]);
    assert_eq!(said(&heard), [("gladly".to_owned(), "b".to_owned())]);

    let models = ["a", "b", "c"].map(|name| Canned::new(name, [refusal()]));
    let heard = turn(&worker(&models.each_ref()).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::Refusal);
    assert_eq!(said(&heard), [("I can't help with that.".to_owned(), "c".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn why_a_model_refused_is_told_where_its_provider_says_so_and_no_other_answers() {
    let refusal = || {
        let mut answer = stops("I can't help with that.", Stop::Refusal);
        answer.insert(2, Ok(Delta::Refused("It is about poison. (bio)".into())));
        answer
    };
    let (a, b) = (Canned::new("a", [refusal()]), Canned::new("b", [says("gladly")]));
    assert!(told(&turn(&worker(&[&a, &b]).await, &agent(), &[]).await).is_empty(), "nobody need know");

    let models = ["a", "b", "c"].map(|name| Canned::new(name, [refusal()]));
    let heard = turn(&worker(&models.each_ref()).await, &agent(), &[]).await;
    assert_eq!(heard.story()[4..], ["message", "error", "completed"]);
    let Kind::Error(error) = &heard.durables[5] else { panic!() };
    assert_eq!((error.reason.as_str(), error.retryable), ("MODEL_CONTENT_REFUSED", false));
    assert_eq!(error.message, "c would not go on: It is about poison. (bio)");
}

#[tokio::test(start_paused = true)]
async fn what_a_provider_counted_of_an_answer_that_it_broke_off_is_told() {
    let counted = TokenUsage { input_uncached_tokens: 1_240, output_tokens: 170, ..TokenUsage::default() };
    for begins in [vec![Ok(opened())], Vec::new()] {
        let answer = begins.into_iter().chain([Ok(Delta::Usage(counted))]).chain(fails(Class::Auth));
        let (a, b) = (Canned::new("a", [answer.collect::<Answer>()]), Canned::new("b", [says("noon")]));
        let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
        assert_eq!(attempts(&heard)[0].usage, Some(counted));
    }
}

#[tokio::test(start_paused = true)]
async fn what_failed_first_is_told_when_none_is_fit_to_take_over() {
    let a = Canned::new("a", [fails(Class::Quota)]);
    let heard = turn(&worker(&[&a]).await, &agent(), &["b", "c"]).await;
    assert_eq!(heard.stop_reason(), StopReason::Error);
    assert_eq!(told(&heard), ["MODEL_QUOTA_SPENT"]);
    assert_eq!(course(&heard), [("a", "quota", "")]);
}

#[tokio::test(start_paused = true)]
async fn a_model_whose_provider_is_not_there_gives_way_too() {
    let c = Canned::new("c", [says("noon")]);
    let heard = turn(&worker(&[&c]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    // The front must hear of each grant, also where no call is made.
    assert_eq!(course(&heard), [("a", "auth", ""), ("b", "auth", "error"), ("c", "", "error")]);
    assert!(attempts(&heard)[..2].iter().all(|attempt| attempt.usage == Some(TokenUsage::default())));

    let heard = turn(&worker(&[]).await, &agent(), &[]).await;
    assert_eq!((heard.stop_reason(), told(&heard)), (StopReason::Error, vec!["PROVIDER_MISSING".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn what_only_one_model_understands_does_not_reach_the_next_and_the_turn_stays_with_it() {
    let native = NativeBlock { provider: "a".into(), json: "{}".into() };
    let calls = |id: &str| {
        vec![
            Ok(opened()),
            Ok(Delta::Thinking { block: 0, text: "hm".into() }),
            Ok(Delta::Signature { block: 0, signature: "of-this-model".into() }),
            Ok(Delta::Native { block: 1, native: native.clone() }),
            Ok(Delta::Text { block: 2, text: "let me look".into() }),
            Ok(Delta::ToolCallStarted { block: 3, tool_call_id: id.into(), name: "clock".into() }),
            Ok(Delta::ToolCallStopped { block: 3, arguments_json: "{}".into() }),
            Ok(Delta::Stop(Stop::ToolUse)),
        ]
    };
    let a = Canned::new("a", [calls("one"), fails(Class::Invalid)]);
    let b = Canned::new("b", [calls("two"), says("noon")]);
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let went = course(&heard);
    assert_eq!(went, [("a", "", ""), ("a", "invalid", ""), ("b", "", "error"), ("b", "", "error")]);

    let kept = |request: &Request| {
        let blocks = request.messages.iter().flat_map(|message| &message.content);
        blocks.filter(|block| matches!(block.block, Some(Block::Thinking(_) | Block::Native(_)))).count()
    };
    assert_eq!(a.requests.lock().unwrap().iter().map(kept).collect::<Vec<_>>(), [0, 2], "its own comes back to it");
    let of_b = b.requests.lock().unwrap();
    assert_eq!(of_b.iter().map(kept).collect::<Vec<_>>(), [0, 2], "the other's does not, and its own does");
    let called = of_b[0].messages.iter().flat_map(|message| &message.content);
    assert_eq!(called.filter(|block| matches!(block.block, Some(Block::ToolUse(_) | Block::ToolOutput(_)))).count(), 2);
}
