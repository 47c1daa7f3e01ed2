//! Topics for the commands of a protocol, which name them as its clients do.

use super::application::Application;
use super::client::Client;
use super::outcome::Deny;
use super::service::Service;
use crate::topics::{Tells, Topics};
use chappe_engine::{Mailbox, Opened, Refusal, Session, TopicKind, TopicQuery};
use chappe_topics::{CLIENT_BYTES_MAX, EACH, Filter, InvalidTopic, Kind, Listed, Topic, Wish};
use std::any::Any;
use std::sync::Arc;

/// A connection, and what is kept for it.
type Peer<'a> = (&'a Arc<Mailbox>, Option<&'a Session>);

impl<S: Service> Application<S> {
    pub(super) fn subscribe_by_name(
        &self,
        (mailbox, session): Peer<'_>,
        opened: &Opened<'_>,
        kind: TopicKind,
        names: &[&[u8]],
    ) -> Result<(), Refusal> {
        let topics = self.allowed(mailbox, |(subscribes, _)| subscribes)?;
        let client = Client::new(mailbox, &self.listeners);
        let subscribe = |name: &&[u8]| {
            let filter = filter(kind, name)?;
            check_reserved(filter.is_reserved())?;
            let asked = self.service.may_subscribe(&client, state::<S>(session), &filter.written());
            asked.map_err(|it| denied(topics, it))?;
            Ok(Wish::Subscribe { filter, flags: Some(EACH), resume: None })
        };
        let wishes = names.iter().map(subscribe).collect::<Result<_, Refusal>>()?;
        topics.ask(mailbox, opened, wishes);
        Ok(())
    }

    pub(super) fn unsubscribe_by_name(
        &self,
        mailbox: &Arc<Mailbox>,
        opened: &Opened<'_>,
        kind: Option<TopicKind>,
        names: &[&[u8]],
    ) -> Result<(), Refusal> {
        let topics = self.allowed(mailbox, |_| true)?;
        let unsubscribe =
            |name: &&[u8]| Ok(Wish::Unsubscribe(filter(kind.unwrap_or(TopicKind::Topic), name)?));
        let wishes = match names {
            [] => vec![Wish::UnsubscribeAll(kind.map(kind_of))],
            names => names.iter().map(unsubscribe).collect::<Result<_, Refusal>>()?,
        };
        topics.ask(mailbox, opened, wishes);
        Ok(())
    }

    pub(super) fn publish_by_name(
        &self,
        (mailbox, session): Peer<'_>,
        opened: &Opened<'_>,
        kind: TopicKind,
        (topic, payload): (&[u8], &[u8]),
    ) -> Result<(), Refusal> {
        let topics = self.allowed(mailbox, |(_, publishes)| publishes)?;
        let shard;
        let topic = match kind {
            TopicKind::Shard => {
                shard = Topic::shard(topic).map_err(invalid)?;
                shard.topic()
            }
            TopicKind::Topic | TopicKind::Pattern => Topic::new(topic).map_err(invalid)?,
        };
        check_reserved(topic.is_reserved())?;
        if topic.bytes() + payload.len() > CLIENT_BYTES_MAX {
            let text = format!("a topic and its message have at most {CLIENT_BYTES_MAX} bytes");
            return Err(Refusal::Invalid(text));
        }
        let client = Client::new(mailbox, &self.listeners);
        let asked = self.service.may_publish(&client, state::<S>(session), topic.as_str());
        asked.map_err(|it| denied(topics, it))?;
        topics.submit(mailbox, opened, topic, payload, true);
        Ok(())
    }

    pub(super) fn query(
        &self,
        mailbox: &Arc<Mailbox>,
        opened: &Opened<'_>,
        query: TopicQuery<'_>,
    ) -> Result<(), Refusal> {
        let topics = self.allowed(mailbox, |(subscribes, _)| subscribes)?;
        let (wanted, tells) = match query {
            TopicQuery::Patterns => (Listed::Patterns, Tells::Patterns),
            TopicQuery::Listed { kind, pattern } => {
                let is_shard = kind == TopicKind::Shard;
                (Listed::Like { is_shard, pattern: pattern.map(Into::into) }, Tells::Names)
            }
            TopicQuery::Counts { kind, names } => {
                let name = |name: &&[u8]| match kind {
                    TopicKind::Shard => Topic::shard(name),
                    TopicKind::Topic | TopicKind::Pattern => Topic::new(name).map(Topic::to_name),
                };
                let names = names.iter().map(name).collect::<Result<_, _>>().map_err(invalid)?;
                (Listed::Named(names), Tells::Counts)
            }
        };
        topics.list(mailbox, opened, wanted, tells);
        Ok(())
    }

    fn allowed(
        &self,
        mailbox: &Mailbox,
        is_among: impl Fn((bool, bool)) -> bool,
    ) -> Result<&Arc<Topics>, Refusal> {
        allowed(self.worker.topics().hub(), mailbox, is_among)
    }
}

/// The topics, if the clients of this connection's listener may use them so.
pub(super) fn allowed<'a>(
    topics: Option<&'a Arc<Topics>>,
    mailbox: &Mailbox,
    is_among: impl Fn((bool, bool)) -> bool,
) -> Result<&'a Arc<Topics>, Refusal> {
    let off = || Refusal::NotAllowed("topics are off (topics.enabled)".into());
    let topics = topics.ok_or_else(off)?;
    if !is_among(topics.rights(mailbox.listener())) {
        topics.count_denied();
        let text = "this listener's clients may not (listen.topics)".into();
        return Err(Refusal::NotAllowed(text));
    }
    Ok(topics)
}

/// What the service keeps for the connection; one that has handlers only keeps nothing.
fn state<S: Service>(session: Option<&Session>) -> &S::State {
    let value: &dyn Any = session.map_or(&(), |session| &*session.value);
    value.downcast_ref().expect("the state has the type that the service declares")
}

fn denied(topics: &Topics, deny: Deny) -> Refusal {
    topics.count_denied();
    Refusal::NotAllowed(deny.text)
}

fn check_reserved(is_reserved: bool) -> Result<(), Refusal> {
    let text = || "topics that begin with $ are the service's".into();
    if is_reserved { Err(Refusal::NotAllowed(text())) } else { Ok(()) }
}

fn filter(kind: TopicKind, name: &[u8]) -> Result<Filter, Refusal> {
    match kind {
        TopicKind::Topic => Topic::new(name).map(Filter::from),
        TopicKind::Pattern => Filter::glob(name),
        TopicKind::Shard => Topic::shard(name).map(|name| name.topic().into()),
    }
    .map_err(invalid)
}

fn invalid(invalid: InvalidTopic) -> Refusal {
    Refusal::Invalid(invalid.to_string())
}

fn kind_of(kind: TopicKind) -> Kind {
    match kind {
        TopicKind::Topic => Kind::Topic,
        TopicKind::Pattern => Kind::Pattern,
        TopicKind::Shard => Kind::Shard,
    }
}
