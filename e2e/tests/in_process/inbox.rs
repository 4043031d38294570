//! The open questions of a tenant, as a client lists them that shows them to people.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use croft_e2e::client::{Client, message};
use croft_front::core::Options;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    Approval, CreateSessionRequest, InterruptSessionRequest, ListApprovalsRequest, ListApprovalsResponse, Permission,
    SessionState, StopReason, TerminateSessionRequest,
};
use croft_serve::Tasks;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::approvals::{answer, asked, cautious, failures, impatient, say_yes, went_on};
use crate::sub_agents::{ask, children, editor, script};
use crate::world::{Ground, PATIENCE, World, read_all, stop_reason};

const LOOK_AGAIN: Duration = Duration::from_millis(5);
const TRIES_MAX: usize = 5;

async fn page(
    client: &mut Client,
    page_size: i32,
    page_token: &str,
    session_id: &str,
) -> Result<ListApprovalsResponse, Status> {
    let (page_token, session_id) = (page_token.to_owned(), session_id.to_owned());
    let request = ListApprovalsRequest { page_size, page_token, session_id };
    client.lifecycle.list_approvals(request).await.map(tonic::Response::into_inner)
}

/// All, on one page.
async fn inbox(client: &mut Client) -> Vec<Approval> {
    let page = page(client, 0, "", "").await.unwrap();
    assert_eq!(page.next_page_token, "");
    page.approvals
}

/// Of the tenant and of the session alike.
async fn assert_empty(client: &mut Client, session_id: &str, why: &str) {
    assert_eq!(inbox(client).await, [], "{why}");
    let own = page(client, 0, "", session_id).await.unwrap();
    assert_eq!(own, ListApprovalsResponse::default(), "{why}");
}

/// A session that asks so many questions at once, once they are all asked.
async fn asking(world: &World, client: &mut Client, questions: usize) -> String {
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let mut steps = vec![json!({"tool_call": {"name": "clock"}}); questions];
    steps.push(json!({"text": "done"}));
    let said = message(&session_id, &script(&Value::Array(steps)));
    drop(client.lifecycle.send_message(said).await.unwrap());
    let are_asked = async {
        while page(&mut world.client(), 0, "", &session_id).await.unwrap().approvals.len() < questions {
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(PATIENCE, are_asked).await.expect("they are asked, and shown");
    session_id
}

/// A session whose turn has ended with its question open.
async fn left_open(world: &World, client: &mut Client) -> (String, String) {
    for _ in 0..TRIES_MAX {
        let session_id = client.create(impatient()).await.unwrap().session_id;
        let said = message(&session_id, &script(&json!([{"tool_call": {"name": "clock"}}, {"text": "done"}])));
        let turn = read_all(client.lifecycle.send_message(said).await.unwrap().into_inner()).await;
        let question = turn.iter().find_map(|event| match &event.kind {
            Some(Kind::ApprovalRequired(asked)) => Some(asked.approval_id.clone()),
            _ => None,
        });
        // On a machine that stood still its time was up before it came so far.
        if let Some(approval_id) = question {
            assert_eq!(stop_reason(&turn), Some(StopReason::RequiresAction), "{turn:?}");
            world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
            return (session_id, approval_id);
        }
    }
    panic!("no turn came as far as its question");
}

#[tokio::test]
async fn a_question_is_listed_at_any_front_with_all_that_an_answer_takes() {
    let world = World::start().await;
    let (mut client, mut elsewhere) = (world.client(), world.client_of_another_front().await);
    let labels: HashMap<_, _> = [("ticket".to_owned(), "4711".to_owned())].into();
    let create = CreateSessionRequest { agent: Some(cautious()), labels: labels.clone(), ..Default::default() };
    let session = client.lifecycle.create_session(create).await.unwrap().into_inner().session.unwrap();
    assert_empty(&mut client, &session.session_id, "nothing has been said").await;
    let (approval_id, events) = asked(&mut client, &session.session_id).await;
    let log = world.log(&session.session_id, 0).await;
    let told = |wanted: fn(&Kind) -> bool| log.iter().find(|event| event.kind.as_ref().is_some_and(wanted)).unwrap();
    let event = told(|kind| matches!(kind, Kind::ApprovalRequired(_)));
    let Some(Kind::ApprovalRequired(question)) = event.kind.clone() else { panic!("{event:?}") };
    let said = told(|kind| matches!(kind, Kind::UserMessage(_)));
    let Some(Kind::UserMessage(said)) = said.kind.clone() else { panic!("{said:?}") };
    let expected = Approval {
        session_id: session.session_id.clone(),
        approval_id: approval_id.clone(),
        tool_call_id: question.tool_call_id,
        tool_name: "clock".into(),
        arguments_json: question.arguments_json,
        reason: question.reason,
        repeat: false,
        create_time: event.create_time,
        agent: "cautious".into(),
        sender: said.sender,
        labels,
        turn_waits: true,
    };
    assert!(!expected.tool_call_id.is_empty() && !expected.arguments_json.is_empty() && !expected.reason.is_empty());
    assert!(!expected.sender.is_empty() && expected.create_time.is_some());
    for client in [&mut client, &mut elsewhere] {
        assert_eq!(inbox(client).await, std::slice::from_ref(&expected));
        assert_eq!(page(client, 1, "", &session.session_id).await.unwrap().approvals, std::slice::from_ref(&expected));
    }
    say_yes(&mut elsewhere, &expected.session_id, &expected.approval_id).await;
    assert_empty(&mut client, &session.session_id, "it is decided").await;
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::EndTurn));
    assert_empty(&mut elsewhere, &session.session_id, "its call is over").await;
}

#[tokio::test]
async fn a_question_goes_with_a_no_an_interrupt_and_the_end_of_its_session() {
    let world = World::start().await;
    let mut client = world.client();
    for way in ["no", "interrupt", "end"] {
        let session_id = client.create(cautious()).await.unwrap().session_id;
        let (approval_id, events) = asked(&mut client, &session_id).await;
        assert_eq!(inbox(&mut client).await.len(), 1);
        match way {
            "no" => answer(&mut client, &session_id, &approval_id, false).await.unwrap(),
            "interrupt" => {
                let interrupt = InterruptSessionRequest { session_id: session_id.clone() };
                assert!(client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
                assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::Interrupted));
            }
            _ => {
                let end = TerminateSessionRequest { session_id: session_id.clone(), ..Default::default() };
                client.lifecycle.terminate_session(end).await.unwrap();
            }
        }
        assert_empty(&mut client, &session_id, way).await;
    }
}

#[tokio::test]
async fn a_question_that_its_turn_left_open_is_listed_until_it_is_answered_or_passed_over() {
    let world = World::start().await;
    let mut client = world.client();
    for is_answered in [true, false] {
        let (session_id, approval_id) = left_open(&world, &mut client).await;
        let [question] = &inbox(&mut client).await[..] else { panic!("there is one") };
        assert_eq!((&question.session_id, &question.approval_id), (&session_id, &approval_id));
        assert!(!question.turn_waits);
        assert_eq!(page(&mut client, 0, "", &session_id).await.unwrap().approvals, std::slice::from_ref(question));
        if is_answered {
            say_yes(&mut client, &session_id, &approval_id).await;
            assert_empty(&mut client, &session_id, "it is decided").await;
            assert_eq!(failures(&went_on(&world, &session_id).await), [false], "the call was made");
        } else {
            let said = message(&session_id, &script(&json!([{"text": "never mind"}])));
            let turn = client.lifecycle.send_message(said).await.unwrap().into_inner();
            assert_empty(&mut client, &session_id, "another message has come").await;
            assert_eq!(stop_reason(&read_all(turn).await), Some(StopReason::EndTurn));
        }
        assert_empty(&mut client, &session_id, "the next turn is over").await;
    }
}

#[tokio::test]
async fn a_question_stays_listed_while_its_turn_changes_hands() {
    let options = Options { lease_ttl: Duration::from_mins(10), ..Options::default() };
    let (world, theirs) = (World::on(Ground { options, ..Ground::default() }).await, Tasks::new());
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, _events) = asked(&mut world.client_of_a_front_with(&theirs).await, &session_id).await;
    let before = inbox(&mut client).await;
    assert_eq!((before.len(), &before[0].approval_id), (1, &approval_id));
    assert!(theirs.shutdown(Duration::from_millis(50)).await > 0, "the turn is not over");
    let taken_over = async {
        while world.core.metrics.takeovers.get() == 0 {
            assert_eq!(inbox(&mut client).await, before);
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(PATIENCE, taken_over).await.expect("another front goes on with it");
    assert_eq!(inbox(&mut client).await, before);
    say_yes(&mut client, &session_id, &approval_id).await;
    assert_empty(&mut client, &session_id, "it is decided").await;
    assert_eq!(failures(&went_on(&world, &session_id).await), [false]);
}

#[tokio::test]
async fn questions_of_one_session_may_be_on_several_pages_and_are_on_one_each() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = asking(&world, &mut client, 3).await;
    let all = page(&mut client, 3, "", &session_id).await.unwrap();
    assert_eq!(all.next_page_token, "", "a page that is full is the last where nothing is behind it");
    let ids: BTreeSet<_> = all.approvals.iter().map(|question| &question.approval_id).collect();
    assert_eq!(ids.len(), 3);
    for of in ["", &session_id] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        for place in 0..3 {
            let next = page(&mut client, 1, &token, of).await.unwrap();
            seen.extend(next.approvals);
            token = next.next_page_token;
            assert_eq!(token.is_empty(), place == 2, "{token}");
        }
        assert_eq!(seen, all.approvals);
    }
    // What was told before is answered, and what is behind it stays where it was.
    let first = page(&mut client, 1, "", "").await.unwrap();
    say_yes(&mut client, &session_id, &first.approvals[0].approval_id).await;
    let rest = page(&mut client, 2, &first.next_page_token, "").await.unwrap();
    assert_eq!((&rest.approvals[..], rest.next_page_token.as_str()), (&all.approvals[1..], ""));
    assert_eq!(inbox(&mut client).await, &all.approvals[1..]);
}

#[tokio::test]
async fn pages_over_many_sessions_lose_and_double_nothing_while_people_answer() {
    let world = World::start().await;
    let mut client = world.client();
    let mut sessions = Vec::new();
    for _ in 0..7 {
        sessions.push(asking(&world, &mut client, 2).await);
        // And one that asks nobody.
        client.create(cautious()).await.unwrap();
    }
    let all = page(&mut client, 1_000, "", "").await.unwrap().approvals;
    let asked_in: Vec<_> = all.iter().map(|question| question.session_id.clone()).collect();
    let expected: Vec<_> = sessions.iter().rev().flat_map(|session| [session.clone(), session.clone()]).collect();
    assert_eq!(asked_in, expected, "the newest session first");
    let (mut seen, mut token, mut answered) = (Vec::new(), String::new(), BTreeSet::new());
    loop {
        let next = page(&mut client, 3, &token, "").await.unwrap();
        seen.extend(next.approvals);
        token = next.next_page_token;
        if token.is_empty() {
            break;
        }
        // The newest of those that are told, and the oldest of those that are not.
        let behind = all.iter().rfind(|question| !seen.contains(question) && !answered.contains(&question.approval_id));
        let before = seen.iter().rfind(|question| !answered.contains(&question.approval_id));
        for question in before.into_iter().chain(behind) {
            answer(&mut client, &question.session_id, &question.approval_id, false).await.unwrap();
            answered.insert(question.approval_id.clone());
        }
    }
    let ids: BTreeSet<_> = seen.iter().map(|question| question.approval_id.clone()).collect();
    assert_eq!(ids.len(), seen.len(), "{seen:?}");
    for question in &all {
        let is_lost = !ids.contains(&question.approval_id) && !answered.contains(&question.approval_id);
        assert!(!is_lost, "{question:?}");
    }
    assert!(answered.len() > 2 && answered.iter().any(|id| !ids.contains(id)), "{answered:?}");
    let left: Vec<_> = all.into_iter().filter(|question| !answered.contains(&question.approval_id)).collect();
    assert_eq!(inbox(&mut client).await, left);
}

#[tokio::test]
async fn questions_are_their_tenants_alone() {
    let world = World::start().await;
    let (mut client, mut stranger) = (world.client(), world.stranger());
    let session_id = asking(&world, &mut client, 2).await;
    assert_eq!(inbox(&mut stranger).await, []);
    let token = page(&mut client, 1, "", "").await.unwrap().next_page_token;
    let behind = page(&mut stranger, 1, &token, "").await.unwrap();
    assert_eq!(behind, ListApprovalsResponse::default(), "another's token opens nothing");
    let unknown = uuid::Uuid::now_v7().to_string();
    for (client, session_id) in
        [(&mut stranger, session_id.as_str()), (&mut client, &unknown), (&mut world.client(), "nonsense")]
    {
        let refused = page(client, 0, "", session_id).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    }
}

#[tokio::test]
async fn nonsense_for_a_page_is_refused_by_its_field() {
    let world = World::start().await;
    let mut client = world.client();
    let (first, second) = (asking(&world, &mut client, 2).await, asking(&world, &mut client, 2).await);
    let of_first = page(&mut client, 1, "", &first).await.unwrap().next_page_token;
    let session = uuid::Uuid::now_v7();
    let tokens = ["nonsense", "/", "7/7", &format!("{session}/"), &format!("{session}/-1"), &format!("{session}/1/1")];
    let sizes = [(-1, ""), (1_001, "")].map(|(size, token)| (size, token, "", "page_size"));
    let tokens = tokens.map(|token| (0, token, "", "page_token"));
    let foreign = [(0, of_first.as_str(), second.as_str(), "page_token"), (0, &first, &first, "page_token")];
    for (size, token, session_id, field) in sizes.into_iter().chain(tokens).chain(foreign) {
        let refused = page(&mut client, size, token, session_id).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{size} {token:?} {refused:?}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    }
    assert_eq!(page(&mut client, 1_000, "", "").await.unwrap().approvals.len(), 4);
}

#[tokio::test]
async fn a_sub_agents_question_is_listed_under_its_own_session() {
    let world = World::start().await;
    let mut client = world.client();
    let mut agent = editor();
    agent.sub_agents[0].tools.iter_mut().for_each(|tool| tool.set_permission(Permission::Ask));
    let session_id = client.create(agent).await.unwrap().session_id;
    let look = json!({"tool_call": {"name": "clock", "arguments": {}}});
    let steps = json!([ask("reader", &json!([look, {"text": "refreshed"}])), {"text": "good"}]);
    let turn = client.lifecycle.send_message(message(&session_id, &script(&steps))).await.unwrap().into_inner();
    let listed = async {
        loop {
            if let Some(question) = inbox(&mut client).await.pop() {
                return question;
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    let question = timeout(PATIENCE, listed).await.expect("it is asked, and shown");
    let [child] = &children(&mut client, &session_id).await[..] else { panic!("one call, one session") };
    assert_eq!((&question.session_id, question.agent.as_str()), (&child.session_id, "reader"));
    assert_eq!(page(&mut client, 0, "", &session_id).await.unwrap(), ListApprovalsResponse::default());
    say_yes(&mut client, &question.session_id, &question.approval_id).await;
    assert_eq!(stop_reason(&read_all(turn).await), Some(StopReason::EndTurn));
    assert_empty(&mut client, &child.session_id, "it is decided").await;
}
