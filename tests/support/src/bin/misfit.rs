//! A program that is wrong before it is a server, as MISFIT in its environment says.

use std::process::ExitCode;

use chappe::Server;

fn main() -> ExitCode {
    // The command line is the server's.
    let wrong = std::env::var("MISFIT").unwrap_or_default();
    let server = Server::new().on(16, |call| call.reply(16, call.body()));
    match wrong.as_str() {
        "twice" => server.blocking(16, |call| call.reply(16, b"")).main(),
        "below" => server.on(15, |call| call.reply(15, b"")).main(),
        "beyond" => server.on(65_280, |call| call.reply(16, b"")).main(),
        "threads" => {
            for _ in 0..2 {
                std::thread::spawn(|| {
                    loop {
                        std::thread::park();
                    }
                });
            }
            server.name("misfit").main()
        }
        _ => server.main(),
    }
}
