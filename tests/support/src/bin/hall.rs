//! A server with a service that subscribes its connections, and decides who may.

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use chappe::{
    Call, Client, Deferred, Deny, NoConfig, Outcome, Routes, Server, Service, StartError, Worker,
};

/// Logs in, subscribes to the hall, tells it, and replies twice.
const ENTER: u16 = 16;
/// Leaves the hall.
const LEAVE: u16 = 17;
/// Is said to the hall.
const SAY: u16 = 18;
/// Subscribes to the topic that the body names, and fails behind it if it is `fail`.
const SUBSCRIBE: u16 = 19;
/// Subscribes when it is resumed.
const LATER: u16 = 20;
/// Defers, and subscribes then.
const TOO_LATE: u16 = 21;
/// Sends to the user in the first word, wherever he is.
const TELL: u16 = 22;
/// Subscribes to the hall, tells it, and ends the connection.
const SHOUT: u16 = 23;
/// Comes from a timer.
const TICK: u16 = 24;
/// Tells the hall, and subscribes to it then.
const KNOCK: u16 = 25;
/// Tells the hall, and leaves it then.
const BYE: u16 = 26;

#[derive(Default)]
struct Hall {
    tickets: Mutex<Vec<Deferred<Hall>>>,
}

impl Service for Hall {
    type Config = NoConfig;
    type State = String;

    fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
        if worker.number() == 0 {
            let period = Duration::from_millis(50);
            worker.every(period, |_hall, worker| worker.publish("$ticks", TICK, b"tick"));
        }
        Ok(Self::default())
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.on(ENTER, enter).on(LEAVE, leave).on(SAY, say).on(SUBSCRIBE, subscribe);
        routes.on(LATER, later).on(TOO_LATE, too_late).on(TELL, tell).on(SHOUT, shout);
        routes.on(KNOCK, knock).on(BYE, bye).counter("told");
    }

    fn connected(&self, _client: &Client) -> Result<String, Deny> {
        Ok(String::new())
    }

    fn may_subscribe(&self, _: &Client, user: &String, topic: &str) -> Result<(), Deny> {
        match topic.strip_prefix("private.") {
            Some(owner) if owner != user => Err(Deny::close(format!("{topic} is not yours"))),
            _ => Ok(()),
        }
    }

    fn may_publish(&self, _: &Client, user: &String, _: &str) -> Result<(), Deny> {
        if user.is_empty() { Err(Deny::close("enter first")) } else { Ok(()) }
    }
}

type HallCall<'a> = Call<'a, Hall>;

fn enter(_: &Hall, user: &mut String, call: &mut HallCall<'_>) -> Outcome {
    std::str::from_utf8(call.body())?.clone_into(user);
    call.publish("door", SAY, format!("{user} knocks").as_bytes())?;
    call.subscribe("hall")?;
    call.subscribe(&format!("$user.{user}"))?;
    call.publish("hall", SAY, format!("{user} is here").as_bytes())?;
    call.reply(ENTER, b"welcome")?;
    call.reply(ENTER, user.as_bytes())
}

fn leave(_: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    call.unsubscribe("hall")?;
    call.reply(LEAVE, b"good bye")
}

fn say(_: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    call.publish("hall", SAY, call.body())
}

fn subscribe(_: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    let topic = std::str::from_utf8(call.body())?;
    call.subscribe(topic)?;
    call.publish("hall", SAY, topic.as_bytes())?;
    call.reply(SUBSCRIBE, topic.as_bytes())?;
    if topic == "fail" { Err("it fails".into()) } else { Ok(()) }
}

fn later(hall: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    hall.tickets.lock().expect("nothing panics").push(call.defer());
    for ticket in hall.tickets.lock().expect("nothing panics").drain(..) {
        ticket.resume(|_hall, _user, call| {
            call.subscribe("later")?;
            call.reply(LATER, b"now")
        });
    }
    Ok(())
}

fn too_late(hall: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    hall.tickets.lock().expect("nothing panics").push(call.defer());
    call.subscribe("later")
}

fn tell(_: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    let text = std::str::from_utf8(call.body())?;
    let (user, text) = text.split_once(' ').ok_or("whom?")?;
    call.publish(&format!("$user.{user}"), TELL, text.as_bytes())?;
    call.reply(TELL, b"sent")
}

fn shout(_: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    call.subscribe("hall")?;
    call.publish("hall", SAY, b"shouted")?;
    call.close("out");
    Ok(())
}

fn knock(_: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    call.publish("hall", SAY, b"knock")?;
    call.worker().counter("told").add(1);
    call.subscribe("hall")?;
    call.reply(KNOCK, b"in")
}

fn bye(_: &Hall, _: &mut String, call: &mut HallCall<'_>) -> Outcome {
    call.publish("hall", SAY, b"bye")?;
    call.worker().counter("told").add(1);
    call.unsubscribe("hall")?;
    call.reply(BYE, b"out")
}

fn main() -> ExitCode {
    Server::of::<Hall>().main()
}
