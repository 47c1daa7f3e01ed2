//! What clients ask of topics, codes 4, 5, 6 and 9, and what a service does with them.

use super::call::Call;
use super::call::Deferral;
use super::outcome::{Deny, Failure, HandlerError, Outcome};
use super::service::Service;
use crate::protocol::{CODE_APPLICATION_MAX, CODE_APPLICATION_MIN, FLAG_WITH_TOPIC};
use crate::topics::{Afterwards, Publish, Topics};
use chappe_engine::{Entry, Refusal};
use chappe_topics::{
    CLIENT_BYTES_MAX, EACH, Filter, InvalidTopic, Message, SERVICE_BYTES_MAX, Topic, Wish,
};
use std::sync::Arc;

fn not_allowed(text: impl Into<String>) -> HandlerError {
    HandlerError(Failure::NotAllowed(text.into()))
}

impl From<InvalidTopic> for Failure {
    fn from(invalid: InvalidTopic) -> Self {
        Self::NotAllowed(invalid.to_string())
    }
}

fn denied(topics: &Topics, deny: Deny) -> HandlerError {
    topics.count_denied();
    not_allowed(deny.text)
}

/// Takes a length and as many bytes off the front.
fn split_topic(body: &[u8]) -> Result<(&[u8], &[u8]), HandlerError> {
    let (length, rest) = body.split_first().ok_or_else(|| not_allowed("a topic is missing"))?;
    rest.split_at_checked(usize::from(*length)).ok_or_else(|| not_allowed("the topic is cut"))
}

/// The flags that a client may set.
const FLAGS: u8 = FLAG_WITH_TOPIC;

const OFF: &str = "topics are off (topics.enabled)";

/// What is behind the topic of a subscribe: flags, and where to resume.
type Options = (Option<u8>, Option<(u64, u64)>);

fn options(rest: &[u8]) -> Result<Options, HandlerError> {
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or(0);
    match rest {
        [] => Ok((None, None)),
        [flags] => Ok((Some(*flags), None)),
        [flags, place @ ..] if place.len() == 16 => {
            Ok((Some(*flags), Some((number(&place[..8]), number(&place[8..])))))
        }
        _ => Err(not_allowed("behind the topic there are flags, epoch and offset, or nothing")),
    }
}

pub(super) fn subscribe<S: Service>(
    service: &S,
    state: &mut S::State,
    call: &mut Call<'_, S>,
) -> Outcome {
    let (topic, rest) = split_topic(call.body())?;
    let filter = Filter::parse(topic).map_err(|it| HandlerError(it.into()))?;
    let (flags, resume) = options(rest)?;
    let topics = rights_of(call, |(subscribes, _)| subscribes)?;
    if filter.is_reserved() {
        return Err(not_allowed("topics that begin with $ are the service's"));
    }
    let text = std::str::from_utf8(topic)?;
    service.may_subscribe(call.client(), state, text).map_err(|it| denied(&topics, it))?;
    let flags = flags.map(|flags| flags & FLAGS);
    let resume = resume.map(|(epoch, offset)| topics.place(epoch, offset));
    call.ask(&topics, Wish::Subscribe { filter, flags, resume })
}

pub(super) fn unsubscribe<S: Service>(_: &S, _: &mut S::State, call: &mut Call<'_, S>) -> Outcome {
    let wish = match call.body() {
        [] => Wish::UnsubscribeAll(None),
        body => {
            let (topic, rest) = split_topic(body)?;
            if !rest.is_empty() {
                return Err(not_allowed("behind the topic there is nothing"));
            }
            Wish::Unsubscribe(Filter::parse(topic).map_err(|it| HandlerError(it.into()))?)
        }
    };
    let topics = rights_of(call, |(subscribes, _)| subscribes)?;
    call.ask(&topics, wish)
}

pub(super) fn publish<S: Service>(
    service: &S,
    state: &mut S::State,
    call: &mut Call<'_, S>,
    is_awaited: bool,
) -> Outcome {
    let (topic, payload) = split_topic(call.body())?;
    let topic = Topic::new(topic).map_err(|it| HandlerError(it.into()))?;
    let topics = rights_of(call, |(_, publishes)| publishes)?;
    if topic.is_reserved() {
        return Err(not_allowed("topics that begin with $ are the service's"));
    }
    if topic.as_str().len() + payload.len() > CLIENT_BYTES_MAX {
        let text = format!("a topic and its message have at most {CLIENT_BYTES_MAX} bytes");
        return Err(not_allowed(text));
    }
    let asked = service.may_publish(call.client(), state, topic.as_str());
    asked.map_err(|it| denied(&topics, it))?;
    call.submit(&topics, topic, payload, is_awaited)
}

fn rights_of<S: Service>(
    call: &Call<'_, S>,
    is_among: impl Fn((bool, bool)) -> bool,
) -> Result<Arc<Topics>, HandlerError> {
    let topics = call.worker().topics().hub();
    match super::topics_by_name::allowed(topics, call.replies.message.mailbox, is_among) {
        Ok(topics) => Ok(Arc::clone(topics)),
        Err(Refusal::NotAllowed(text) | Refusal::Invalid(text)) => Err(not_allowed(text)),
    }
}

impl<S: Service> Call<'_, S> {
    /// Has the send thread carry out a wish of the client's; the message waits.
    fn ask(&mut self, topics: &Arc<Topics>, wish: Wish) -> Outcome {
        let message = self.replies.message;
        self.is_submitted()?;
        topics.ask(message.mailbox, &message.opened, vec![wish]);
        Ok(())
    }

    fn submit(
        &mut self,
        topics: &Arc<Topics>,
        topic: Topic<'_>,
        payload: &[u8],
        is_awaited: bool,
    ) -> Outcome {
        let message = self.replies.message;
        self.is_submitted()?;
        topics.submit(message.mailbox, &message.opened, topic, payload, is_awaited);
        Ok(())
    }

    /// Subscribes the connection to a topic (1 to 255 bytes of UTF-8 without control
    /// characters), or to all topics that begin alike if there is a `*` at the end. They may begin
    /// with `$`, which no client can subscribe to: so a service sends to a user, wherever he is
    /// connected.
    ///
    /// It is done when the handler has returned, and its replies are sent then: what is published
    /// after its peer has read them reaches it. What the handler publishes by [`Call::publish`]
    /// from here on is published then as well, and reaches the connection; what it has published
    /// before does not. Nothing of it is done if the handler fails, or closes the connection. If a
    /// limit of `[topics]` has no room, the peer gets error 9 in place of the replies.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, enter); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn enter(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     let name = std::str::from_utf8(call.body())?;
    ///     call.subscribe("lobby")?;
    ///     call.subscribe(&format!("$user.{name}"))?;
    ///     call.publish("lobby", 18, name.as_bytes())?; // its own too
    ///     call.reply(16, b"welcome")
    /// }
    ///
    /// let answer = testing::call(&App, &mut (), 16, b"ada");
    /// assert_eq!(answer.subscribed, ["lobby", "$user.ada"]);
    /// assert_eq!(answer.published, [("lobby".to_owned(), 18, b"ada".to_vec())]);
    /// ```
    ///
    /// # Errors
    /// Topics are off (`topics.enabled`); the topic is not valid; it comes after [`Call::defer`].
    pub fn subscribe(&mut self, topic: &str) -> Outcome {
        let filter = Filter::parse(topic.as_bytes())?;
        let names_each = self.replies.message.protocol.names_subscription();
        self.wish(Wish::Subscribe { filter, flags: names_each.then_some(EACH), resume: None })
    }

    /// Ends a subscription of the connection, when the handler has returned and before its
    /// replies: of a topic or a pattern, as it was subscribed to. What the handler has published
    /// before still reaches the connection. If there is no such subscription, nothing happens.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(17, leave); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn leave(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     call.unsubscribe("lobby")?;
    ///     call.reply(17, b"see you")
    /// }
    ///
    /// assert_eq!(testing::call(&App, &mut (), 17, b"").unsubscribed, ["lobby"]);
    /// ```
    ///
    /// # Errors
    /// As [`Call::subscribe`].
    pub fn unsubscribe(&mut self, topic: &str) -> Outcome {
        let filter = Filter::parse(topic.as_bytes())?;
        self.wish(Wish::Unsubscribe(filter))
    }

    fn wish(&mut self, wish: Wish) -> Outcome {
        if self.worker().topics().is_off() {
            return Err(OFF.into());
        }
        if self.deferral() != Deferral::None {
            return Err("a subscription after the reply was deferred".into());
        }
        self.asks_mut().wishes.push(wish);
        Ok(())
    }

    /// Publishes a message with an application's code (16 to 65279) to all who subscribe to the
    /// topic, of all workers: at once, or after [`Call::subscribe`] when that is done. The topic
    /// (1 to 255 bytes of UTF-8 without control characters) may begin with `$`, topic and body
    /// have at most 65516 bytes.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(18, say); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn say(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     call.publish("lobby", 18, call.body())
    /// }
    ///
    /// let answer = testing::call(&App, &mut (), 18, b"hello");
    /// assert_eq!(answer.published, [("lobby".to_owned(), 18, b"hello".to_vec())]);
    /// ```
    ///
    /// # Errors
    /// Topics are off; the topic is not valid; topic and body are too long; as much waits to be
    /// published as there is room for ([`HandlerError::is_full`]).
    pub fn publish(&mut self, topic: &str, code: super::Code, body: &[u8]) -> Outcome {
        let message = checked(topic, code, body)?;
        if self.is_kept() {
            let (topic, body) = (message.topic.to_name(), body.into());
            self.asks_mut().publishes.push(Publish { topic, code, body });
            return Ok(());
        }
        self.worker().topics().publish(message)?;
        self.has_published = true;
        Ok(())
    }

    /// Has done what its handler has asked of topics; then its replies are sent. False: it has
    /// asked for nothing, or only to publish, since it ends.
    pub(super) fn asks_topics(&mut self) -> bool {
        let Some(Asks { wishes, publishes }) = self.take_asks() else { return false };
        let Some(topics) = self.worker().topics().hub() else { return false };
        if self.closes() {
            for publish in publishes {
                topics.publish_kept(&publish);
            }
            return false;
        }
        let message = self.replies.message;
        let kept = self.replies.keep();
        let replies = (!kept.0.is_empty()).then(|| Entry::new((kept.0.into(), kept.1)));
        let afterwards = Afterwards { publishes, replies };
        let (mailbox, opened) = (message.mailbox, &message.opened);
        topics.ask_for_service(mailbox, opened, wishes, self.has_published, afterwards);
        true
    }

    /// What it publishes is for later: it has asked for something before, or is a test's.
    fn is_kept(&self) -> bool {
        self.asks().is_some_and(|asks| !asks.wishes.is_empty())
            || matches!(self.worker().topics(), OfWorker::Alone)
    }
}

/// What a handler has asked of topics, for when it has returned.
#[derive(Debug, Default)]
pub(super) struct Asks {
    pub(super) wishes: Vec<Wish>,
    pub(super) publishes: Vec<Publish>,
}

/// The topics of a worker.
#[derive(Clone, Debug)]
pub(crate) enum OfWorker {
    /// `topics.enabled` is false.
    Off,
    Hub(Arc<Topics>),
    /// Of a test without a server: what is published reaches nobody.
    #[cfg_attr(
        not(feature = "testing"),
        expect(dead_code, reason = "only the worker of an application's own test has it")
    )]
    Alone,
}

impl OfWorker {
    pub(crate) fn hub(&self) -> Option<&Arc<Topics>> {
        match self {
            Self::Hub(topics) => Some(topics),
            Self::Off | Self::Alone => None,
        }
    }

    fn is_off(&self) -> bool {
        matches!(self, Self::Off)
    }

    fn publish(&self, message: Message<'_>) -> Outcome {
        match self {
            Self::Hub(topics) => {
                let published = topics.publish(message);
                published.map_err(|full| HandlerError(Failure::Full(full.to_string())))
            }
            Self::Off => Err(OFF.into()),
            Self::Alone => Ok(()),
        }
    }
}

fn checked<'a>(
    topic: &'a str,
    code: super::Code,
    body: &'a [u8],
) -> Result<Message<'a>, HandlerError> {
    let topic = Topic::new(topic.as_bytes())?;
    if !(CODE_APPLICATION_MIN..=CODE_APPLICATION_MAX).contains(&code) {
        return Err(HandlerError::new(format!("code {code} is not an application's")));
    }
    if topic.bytes() + body.len() > SERVICE_BYTES_MAX {
        let text = format!("a topic and its message have at most {SERVICE_BYTES_MAX} bytes");
        return Err(HandlerError::new(text));
    }
    Ok(Message { code, topic, body })
}

impl<S: Service> super::Worker<S> {
    /// As [`Call::publish`], from any thread: publishes a message with an application's code (16
    /// to 65279) to all who subscribe to the topic, of all workers. Never blocks.
    ///
    /// ```
    /// # use chappe::*;
    /// # use std::time::Duration;
    /// /// For `start`: one of the workers tells the time.
    /// fn tick<S: Service>(worker: &Worker<S>) {
    ///     if worker.number() == 0 {
    ///         let minute = Duration::from_secs(60);
    ///         worker.every(minute, |_service, worker| worker.publish("clock", 18, b"tick"));
    ///     }
    /// }
    /// # tick(&testing::worker::<()>(NoConfig {}));
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn publish(&self, topic: &str, code: super::Code, body: &[u8]) -> Outcome {
        self.topics().publish(checked(topic, code, body)?)
    }
}
