//! A connection's topics: subscribing, publishing, messages, and how it goes on after its end.

use std::sync::Arc;

use chappe_wire::{
    CODE_PUBLISH, CODE_PUBLISH_UNANSWERED, CODE_SUBSCRIBE, CODE_UNSUBSCRIBE, Code, ErrorNumber,
};

use super::connection::Connection;
use super::error::ClientError;
use super::received::{Frame, ServerError};
use super::receiver::{Deadline, Receiver};
use super::sender::Sender;
use super::topic_frames::{FLAG_WITH_TOPIC, Incoming, Published, Resumed, Subscribed, left_of};

/// So many subscriptions are asked for before the first answer is read: few enough that they
/// fit into the buffers of a socket.
const RESUMED_AT_ONCE: usize = 64;

/// A topic with its length in front, and what follows.
fn body_of(topic: &str, rest: &[u8]) -> Result<Vec<u8>, ClientError> {
    let length = u8::try_from(topic.len()).map_err(|_| ClientError::TopicTooLong(topic.len()))?;
    Ok([&[length], topic.as_bytes(), rest].concat())
}

fn resume_body(topic: &str, epoch: u64, offset: u64) -> Result<Vec<u8>, ClientError> {
    let (epoch, offset) = (epoch.to_be_bytes(), offset.to_be_bytes());
    body_of(topic, &[&[FLAG_WITH_TOPIC][..], &epoch, &offset].concat())
}

impl Connection {
    /// Subscribes to a topic, or with a `*` at its end to all topics that begin so. What is
    /// published to it afterwards comes by [`next_message`](Self::next_message); messages that
    /// the application publishes come as such, too.
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// let mut connection = Connection::connect("127.0.0.1:7600", Duration::from_secs(5))?;
    /// connection.subscribe("room")?;
    /// let answer = connection.subscribe("news.*")?;
    /// assert_eq!(answer.subscriptions, 2);
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::TopicTooLong`], [`ClientError::Malformed`]; as
    /// [`call`](Self::call).
    pub fn subscribe(&mut self, topic: &str) -> Result<Subscribed, ClientError> {
        self.subscribe_with(topic, &body_of(topic, &[FLAG_WITH_TOPIC])?, None)
    }

    /// Subscribes, and asks for what was published since a message that was received in an
    /// earlier run of the program. The answer says whether it can be had.
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # let (epoch, offset) = (1, 2);
    /// let mut connection = Connection::connect("127.0.0.1:7600", Duration::from_secs(5))?;
    /// // The epoch of an answer, and the offset of that answer or of a message since then.
    /// let answer = connection.subscribe_from("room", epoch, offset)?;
    /// if answer.recovered == Recovered::No {
    ///     println!("messages behind {offset} are lost");
    /// }
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub fn subscribe_from(
        &mut self,
        topic: &str,
        epoch: u64,
        offset: u64,
    ) -> Result<Subscribed, ClientError> {
        self.subscribe_with(topic, &resume_body(topic, epoch, offset)?, Some(offset))
    }

    fn subscribe_with(
        &mut self,
        topic: &str,
        body: &[u8],
        asked: Option<u64>,
    ) -> Result<Subscribed, ClientError> {
        self.send(CODE_SUBSCRIBE, body)?;
        self.confirmed(topic, asked)
    }

    /// Receives the confirmation of a subscription.
    fn confirmed(&mut self, topic: &str, asked: Option<u64>) -> Result<Subscribed, ClientError> {
        let answer = self.answer(CODE_SUBSCRIBE, Subscribed::read)?;
        self.subscriptions.confirm(topic, asked, &answer);
        Ok(answer)
    }

    /// Ends a subscription: of a topic or a pattern, as it was subscribed to. Returns how many
    /// are left. Messages that have come before are still handed out.
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// let mut connection = Connection::connect("127.0.0.1:7600", Duration::from_secs(5))?;
    /// connection.subscribe("news.*")?;
    /// assert_eq!(connection.unsubscribe("news.*")?, 0);
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub fn unsubscribe(&mut self, topic: &str) -> Result<u32, ClientError> {
        self.send(CODE_UNSUBSCRIBE, &body_of(topic, b"")?)?;
        let left = self.answer(CODE_UNSUBSCRIBE, left_of)?;
        self.subscriptions.end(topic);
        Ok(left)
    }

    /// Publishes to all who are subscribed to the topic, of all workers.
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// let mut connection = Connection::connect("127.0.0.1:7600", Duration::from_secs(5))?;
    /// let answer = connection.publish("room", b"hello")?;
    /// println!("{} hear it", answer.subscribers);
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe). After [`ClientError::TimedOut`], and when the
    /// connection has ended before the answer, it may have been published or not.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<Published, ClientError> {
        self.send(CODE_PUBLISH, &body_of(topic, payload)?)?;
        self.answer(CODE_PUBLISH, Published::read)
    }

    /// Publishes without waiting for an answer. An error of the server comes later, as
    /// [`Incoming::Frame`].
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// let mut connection = Connection::connect("127.0.0.1:7600", Duration::from_secs(5))?;
    /// for n in 0..100_u8 {
    ///     connection.publish_unanswered("numbers", &[n])?;
    /// }
    /// connection.call(CODE_PING, b"")?; // all were published
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::TopicTooLong`]; as [`Sender::send`].
    pub fn publish_unanswered(&mut self, topic: &str, payload: &[u8]) -> Result<(), ClientError> {
        self.send(CODE_PUBLISH_UNANSWERED, &body_of(topic, payload)?)
    }

    /// The next message of a topic, or what else the server sends: first what was kept while a
    /// reply was waited for, see [`call`](Self::call). A server closes a connection that sends
    /// nothing for a while (`timeouts.idle`): a ping now and then keeps it.
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// let mut connection = Connection::connect("127.0.0.1:7600", Duration::from_secs(5))?;
    /// connection.subscribe("room")?;
    /// loop {
    ///     match connection.next_message() {
    ///         Ok(Incoming::Message(message)) => println!("{:?}", message.body),
    ///         Ok(Incoming::Gap { lost }) => println!("at most {lost} messages are lost"),
    ///         Ok(Incoming::Frame(frame)) => println!("code {}", frame.code),
    ///         Err(ClientError::TimedOut(_)) => {} // nothing was said
    ///         // The server reloads, for example.
    ///         Err(error) if error.is_disconnect() => drop(connection.reconnect()?),
    ///         Err(error) => return Err(error),
    ///     }
    /// }
    /// # #[allow(unreachable_code)]
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn next_message(&mut self) -> Result<Incoming, ClientError> {
        self.receive().map(Incoming::of)
    }

    /// Connects again to where [`connect`](Self::connect) or
    /// [`connect_unix`](Self::connect_unix) has connected to, and subscribes again to
    /// everything, each behind the last message that has come. Returns the answer for each
    /// topic; one that was refused can be asked for again.
    ///
    /// What it recovers comes by [`next_message`](Self::next_message), behind what was kept
    /// before. No message comes twice. Of one topic all are in order, of several they may not be
    /// until each has recovered. After an error it can be called again, and nothing is lost.
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # let mut connection = Connection::connect("127.0.0.1:7600", Duration::from_secs(5))?;
    /// for Resumed { topic, answer } in connection.reconnect()? {
    ///     match answer {
    ///         Ok(answer) if answer.recovered == Recovered::Yes => {}
    ///         Ok(_) => println!("{topic}: messages may be lost"),
    ///         Err(error) => println!("{topic}: {error}"),
    ///     }
    /// }
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// As [`connect`](Self::connect) and [`subscribe`](Self::subscribe).
    pub fn reconnect(&mut self) -> Result<Vec<Resumed>, ClientError> {
        self.reconnect_with(|_| Ok(()))
    }

    /// As [`reconnect`](Self::reconnect), with something to do between the two parts: a login.
    ///
    /// ```no_run
    /// # use chappe_client::*;
    /// # use std::time::Duration;
    /// # let mut connection = Connection::connect("127.0.0.1:7600", Duration::from_secs(5))?;
    /// connection.reconnect_with(|new| {
    ///     let reply = new.call(16, b"anna secret")?;
    ///     reply.as_error().map_or(Ok(()), |error| Err(ClientError::Refused(error)))
    /// })?;
    /// # Ok::<(), ClientError>(())
    /// ```
    ///
    /// # Errors
    /// As [`reconnect`](Self::reconnect), and what `login` returns.
    pub fn reconnect_with(
        &mut self,
        login: impl FnOnce(&mut Self) -> Result<(), ClientError>,
    ) -> Result<Vec<Resumed>, ClientError> {
        let socket = Arc::new(self.server.connect()?);
        let timeout = self.receiver.timeout();
        let mut receiver = Receiver::over(Arc::clone(&socket));
        receiver.inherit(&mut self.receiver);
        (self.sender, self.receiver) = (Sender::over(socket), receiver);
        self.set_timeout(timeout)?;
        self.subscriptions.suspend();
        login(self)?;
        self.resume()
    }

    fn resume(&mut self) -> Result<Vec<Resumed>, ClientError> {
        let mut answers = Vec::new();
        for places in self.subscriptions.to_resume().chunks(RESUMED_AT_ONCE) {
            for (topic, epoch, offset) in places {
                self.sender.queue(CODE_SUBSCRIBE, &resume_body(topic, *epoch, *offset)?)?;
            }
            self.sender.flush()?;
            for (topic, _, offset) in places {
                let answer = match self.confirmed(topic, Some(*offset)) {
                    Err(ClientError::Refused(error)) if stays_open(&error) => Err(error),
                    answer => Ok(answer?),
                };
                answers.push(Resumed { topic: topic.clone(), answer });
            }
        }
        Ok(answers)
    }

    /// The answer to a request of this code, as a value. Everything else that comes is kept.
    fn answer<T>(
        &mut self,
        code: Code,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut deadline = Deadline::default();
        loop {
            let frame = self.pull(&mut deadline)?;
            if frame.code == code {
                return read(&frame.body).ok_or(ClientError::Malformed(code));
            }
            match answering_error(&frame, code) {
                Some(error) => return Err(ClientError::Refused(error)),
                None => self.receiver.keep(frame),
            }
        }
    }
}

/// An error that stands in the place of the answer, or that no frame has caused: then there will
/// be no answer.
fn answering_error(frame: &Frame, code: Code) -> Option<ServerError> {
    frame.as_error().filter(|error| error.caused_by.is_none_or(|it| it == code))
}

/// Only one subscription was refused.
fn stays_open(error: &ServerError) -> bool {
    error.caused_by.is_some() && !error.is(ErrorNumber::Denied)
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
