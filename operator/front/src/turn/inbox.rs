//! The questions that wait for a person, of a tenant or of one session, in pages.

use std::fmt;
use std::str::FromStr;

use croft_proto::id::SessionId;
use croft_proto::v1::{Approval, ListApprovalsRequest, ListApprovalsResponse};
use prost::Message as _;

use super::Turns;
use super::questions::{Question, Questions};
use crate::error::Error;
use crate::identity::Identity;
use crate::session::Session;
use crate::session::store::PAGE_BYTES;
use crate::session::validate;

/// Events that are looked at for a page. At the bound it ends, behind the session at hand, with what it has.
const LOOKED_AT_MAX: usize = 50_000;
/// As so many events counts each session, which is at least one look of its own: of 500 sessions at most a page is made.
const SESSION_COUNTS: usize = LOOKED_AT_MAX / 500;
/// Sessions that are looked for at a time, at the least: some of those that run have had their answers.
const SESSIONS_MIN: u32 = 50;

/// How far the questions have been told: all of newer sessions, and of this one those up to a number. It is what a page's token says; numbers of
/// events stay, whatever is asked and answered between two pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    session: SessionId,
    /// The number of the event that asked what was told last; `None` where the session has no more.
    seq: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            Some(seq) => write!(formatter, "{}/{seq}", self.session),
            None => write!(formatter, "{}", self.session),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(token: &str) -> Result<Self, Error> {
        let unknown = || Error::invalid("page_token", "is not one of ours");
        let (session, seq) = match token.split_once('/') {
            Some((session, seq)) => (session, Some(seq.parse().map_err(|_| unknown())?)),
            None => (token, None),
        };
        Ok(Self { session: session.parse().map_err(|_| unknown())?, seq })
    }
}

/// A page that is being filled.
struct Page {
    approvals: Vec<Approval>,
    size: usize,
    bytes: usize,
    looked_at: usize,
    /// Up to where it tells all there is.
    told: Option<Place>,
}

impl Page {
    fn is_full(&self) -> bool {
        self.approvals.len() >= self.size || self.bytes >= PAGE_BYTES as usize
    }

    fn is_looked_at_enough(&self) -> bool {
        self.looked_at >= LOOKED_AT_MAX
    }

    /// Takes what the session has behind what was told. False where there is no room for all of it.
    fn take(&mut self, session: &Session, questions: Questions) -> bool {
        // Also a session without a question takes its time.
        self.looked_at += questions.looked_at.max(SESSION_COUNTS);
        let behind = self.told.filter(|told| told.session == session.id).and_then(|told| told.seq).unwrap_or(0);
        for question in questions.undecided().filter(|question| question.seq > behind) {
            if self.is_full() {
                return false;
            }
            self.told = Some(Place { session: session.id, seq: Some(question.seq) });
            let approval = approval(session, question);
            self.bytes += approval.encoded_len();
            self.approvals.push(approval);
        }
        self.told = Some(Place { session: session.id, seq: None });
        true
    }

    /// With more behind it, which may be found to be none.
    fn goes_on(self) -> ListApprovalsResponse {
        let next_page_token = self.told.map(|told| told.to_string()).unwrap_or_default();
        ListApprovalsResponse { approvals: self.approvals, next_page_token }
    }

    fn last(self) -> ListApprovalsResponse {
        ListApprovalsResponse { approvals: self.approvals, next_page_token: String::new() }
    }
}

impl Turns {
    /// A page of the open questions that nobody has decided, of the caller's tenant or of one session: of the newest session first, and of each in the
    /// order in which they were asked. Fails with [`Error::SessionNotFound`] where there is no such session.
    pub async fn inbox(
        &self,
        identity: &Identity,
        request: ListApprovalsRequest,
    ) -> Result<ListApprovalsResponse, Error> {
        let size = validate::page_size(request.page_size, validate::PAGE_SIZE)?;
        let told = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<Place>()?),
        };
        let page = Page { approvals: Vec::new(), size: size as usize, bytes: 0, looked_at: 0, told };
        if request.session_id.is_empty() {
            return self.core.reads.one(identity.tenant, self.of_all(identity, page)).await;
        }
        let session = self.manager.get(identity, &request.session_id).await?;
        if told.is_some_and(|told| told.session != session.id || told.seq.is_none()) {
            return Err(Error::invalid("page_token", "is not one of this session's"));
        }
        self.core.reads.one(identity.tenant, self.of_one(&session, page)).await
    }

    async fn of_one(&self, session: &Session, mut page: Page) -> Result<ListApprovalsResponse, Error> {
        let is_all = page.take(session, self.questions(session).await?);
        Ok(if is_all { page.last() } else { page.goes_on() })
    }

    async fn of_all(&self, identity: &Identity, mut page: Page) -> Result<ListApprovalsResponse, Error> {
        // The session in whose midst the page before ended; it may be gone.
        if let Some(Place { session, seq: Some(_) }) = page.told
            && let Some(session) = self.core.stores.sessions.get(identity.tenant, session).await?
            && !page.take(&session, self.questions(&session).await?)
        {
            return Ok(page.goes_on());
        }
        let mut after = page.told.map(|told| told.session);
        loop {
            // One more than there is room for shows whether that is all.
            let room = u32::try_from(page.size - page.approvals.len() + 1).unwrap_or(u32::MAX);
            let limit = room.max(SESSIONS_MIN);
            let found = self.core.stores.sessions.asking(identity.tenant, after, limit).await?;
            for session in &found.sessions {
                if page.is_looked_at_enough() || !page.take(session, self.questions(session).await?) {
                    return Ok(page.goes_on());
                }
            }
            after = found.next();
            if after.is_none() {
                return Ok(page.last());
            }
        }
    }

    async fn questions(&self, session: &Session) -> Result<Questions, Error> {
        Questions::of(&*self.core.stores.events, session).await
    }
}

fn approval(session: &Session, question: Question) -> Approval {
    let asked = question.asked;
    Approval {
        session_id: session.id.to_string(),
        approval_id: asked.approval_id,
        tool_call_id: asked.tool_call_id,
        tool_name: asked.tool_name,
        arguments_json: asked.arguments_json,
        reason: asked.reason,
        repeat: asked.repeat,
        create_time: question.create_time,
        agent: session.agent.name.clone(),
        sender: question.sender,
        labels: session.labels.clone().into_iter().collect(),
        turn_waits: question.is_waited_for,
    }
}
