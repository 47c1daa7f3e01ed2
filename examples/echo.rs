//! The smallest server: `cargo run -p chappe-examples --bin echo -- --foreground`, and in a
//! second terminal `chappe send --code 16 --body hello`.

use chappe::Server;

fn main() -> std::process::ExitCode {
    Server::new().on(16, |call| call.reply(16, call.body())).main()
}
