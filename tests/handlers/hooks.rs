//! Where hooks run: as handlers they begin on the handler threads, and move to the event loop.

use chappe_client::Connection;
use chappe_testkit::site::{Site, configuration};
use chappe_testkit::{TestServer, wait_until};

const TAKE_LONG: u16 = 16;
const COUNT: u16 = 17;

fn has(server: &TestServer, event: &str, hook: &str) -> bool {
    server.events("worker-0", event).iter().any(|line| line.contains(hook))
}

/// As the service has counted them: who came, who went.
fn counted(client: &mut Connection) -> String {
    let reply = client.call(COUNT, b"").expect("a reply");
    String::from_utf8(reply.body.to_vec()).expect("two numbers")
}

#[test]
fn short_hooks_move_to_the_event_loop_and_a_long_one_moves_back() {
    let toml = "worker_processes = 1\n[log]\nlevel = \"debug\"\n";
    let site = Site::new("doorman", "hooks_pace", &configuration(toml));
    let server = TestServer::start_in(&site, toml);
    let mut counter = server.connect();
    let mut came = 1;
    let visit = |came: &mut u32| {
        let mut guest = server.connect();
        assert_eq!(guest.call(0, b"").expect("let in").code, 0);
        *came += 1;
    };
    wait_until("both hooks are quick", || {
        (0..100).for_each(|_| visit(&mut came));
        ["hook=connected", "hook=closed"].iter().all(|hook| has(&server, "handler.promoted", hook))
    });
    // On the loop they are called once each, as before.
    (0..50).for_each(|_| visit(&mut came));
    wait_until("all guests have left", || counted(&mut counter) == format!("{came} {}", came - 1));
    // One could be the machine's doing.
    for _ in 0..2 {
        counter.call(TAKE_LONG, b"").expect("a reply");
        visit(&mut came);
    }
    wait_until("it was noticed", || has(&server, "handler.demoted", "hook=connected"));
    assert!(!has(&server, "handler.demoted", "hook=closed"));
    (0..10).for_each(|_| visit(&mut came));
    wait_until("all guests have left", || counted(&mut counter) == format!("{came} {}", came - 1));
}
