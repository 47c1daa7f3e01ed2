//! Messages that no handler has: the commands of a protocol, and unknown codes.

use super::application::{Application, refuse, refuse_unadmitted};
use super::client::Client;
use super::{Code, Service};
use chappe_engine::{
    Batch, CODE_SLOW_COMMAND, Host, Login, Mailbox, Message, Opened, Pace, Problem, Refusal,
    Served, Session, TopicKind, TopicQuery,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Where such a message may be answered. An error is quick.
pub(super) fn pace_of(code: Code) -> Pace {
    if code == CODE_SLOW_COMMAND { Pace::Slow } else { Pace::Quick }
}

impl<S: Service> Application<S> {
    /// Has the protocol answer its command, or refuses the message.
    #[inline(never)]
    pub(super) fn serve_other(
        &self,
        message: &Message<'_>,
        session: &mut Option<Box<Session>>,
        batch: &mut Batch,
    ) -> Served {
        let mut host = Desk { application: self, mailbox: message.mailbox, session };
        if let Some(served) = message.protocol.command(&message.opened, &mut host, batch) {
            return served;
        }
        let code = message.opened.code;
        if self.is_gated(code, None, session.as_deref()) {
            return refuse_unadmitted(message, batch);
        }
        refuse(message, Problem::UnknownCode, format!("no handler for code {code}"), batch);
        Served::UnknownCode
    }

    fn log_in(
        &self,
        mailbox: &Arc<Mailbox>,
        session: &mut Session,
        user: &[u8],
        password: &[u8],
    ) -> Login {
        let client = Client::new(mailbox, &self.listeners);
        let state = session.value.downcast_mut::<S::State>();
        let state = state.expect("the state has the type that the service declares");
        let asked = AssertUnwindSafe(|| self.service.authenticate(&client, state, user, password));
        match catch_unwind(asked) {
            Ok(Ok(())) => {
                session.is_admitted = true;
                Login::Admitted
            }
            Ok(Err(deny)) if deny.is_for_all => Login::Unknown,
            Ok(Err(deny)) => {
                log::debug!(target: "handler.denied", "conn={} login denied: {deny}", mailbox.id());
                Login::Denied(deny.text)
            }
            Err(panic) => {
                self.report_panic("authenticate", mailbox.id(), &*panic);
                Login::Panicked
            }
        }
    }
}

/// What a command gets to see of the application.
struct Desk<'a, S: Service> {
    application: &'a Application<S>,
    mailbox: &'a Arc<Mailbox>,
    session: &'a mut Option<Box<Session>>,
}

impl<S: Service> Desk<'_, S> {
    /// A server that has handlers only makes no sessions: its connections get one when there is
    /// something to note. The state of such a server is nothing.
    fn session(&mut self) -> &mut Session {
        self.session.get_or_insert_with(|| {
            Box::new(Session { value: Box::new(()), is_admitted: true, dialect: 0 })
        })
    }
}

impl<S: Service> Host for Desk<'_, S> {
    fn mailbox(&self) -> &Arc<Mailbox> {
        self.mailbox
    }

    fn is_admitted(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.is_admitted)
    }

    fn shut_gate(&mut self) {
        if self.application.has_gate {
            self.session().is_admitted = false;
        }
    }

    fn dialect(&self) -> u8 {
        self.session.as_ref().map_or(0, |session| session.dialect)
    }

    fn set_dialect(&mut self, dialect: u8) {
        self.session().dialect = dialect;
    }

    fn authenticate(&mut self, user: &[u8], password: &[u8]) -> Login {
        let (application, mailbox) = (self.application, self.mailbox);
        application.log_in(mailbox, self.session(), user, password)
    }

    fn subscribe(
        &mut self,
        opened: &Opened<'_>,
        kind: TopicKind,
        names: &[&[u8]],
    ) -> Result<(), Refusal> {
        let session = self.session.as_deref();
        self.application.subscribe_by_name((self.mailbox, session), opened, kind, names)
    }

    fn unsubscribe(
        &mut self,
        opened: &Opened<'_>,
        kind: Option<TopicKind>,
        names: &[&[u8]],
    ) -> Result<(), Refusal> {
        self.application.unsubscribe_by_name(self.mailbox, opened, kind, names)
    }

    fn query(&mut self, opened: &Opened<'_>, query: TopicQuery<'_>) -> Result<(), Refusal> {
        self.application.query(self.mailbox, opened, query)
    }

    fn publish(
        &mut self,
        opened: &Opened<'_>,
        kind: TopicKind,
        topic: &[u8],
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let session = self.session.as_deref();
        self.application.publish_by_name((self.mailbox, session), opened, kind, (topic, payload))
    }
}
