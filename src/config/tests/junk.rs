//! Whatever is written: an answer, never a panic, and each message on a line of its own.

use proptest::prelude::*;

use super::{Files, load_text};
use crate::config::settings::APPLICATION_DEPTH_MAX;

/// Texts that are nearly right, made of the words that the reader knows.
fn nearly_right() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        " = ",
        ".",
        ",",
        "\n",
        "\n",
        "\"",
        "'",
        "#",
        "listen",
        "worker",
        "handler_threads",
        "include",
        "application",
        "log",
        "level",
        "limits",
        "messages_burst",
        "timeouts",
        "idle",
        "address",
        "daemon",
        "user",
        "\"64KiB\"",
        "\"5m\"",
        "\"auto\"",
        "\"127.0.0.1:1\"",
        "\"unix:x\"",
        "true",
        "0",
        "-1",
        "99999999999999999999",
        "1e999",
        "nan",
        "1979-05-27T07:32:00Z",
        "[]",
        "{}",
        "é",
        "\0",
        "\t",
        "x",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn junk_files_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let files = Files::new(&[]);
        files.write("chappe.toml", &bytes);
        let _ = files.load(&[]);
    }

    #[test]
    fn nearly_right_files_never_panic(text in nearly_right(), key in "[a-z.=0-9]{0,12}") {
        match load_text(&text, &[&key]) {
            Ok(loaded) => {
                let again = load_text(&loaded.config.to_toml(), &[]).expect("its own text");
                // Compared as text, since a NaN is not equal to itself.
                prop_assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config));
            }
            Err(errors) => prop_assert!(!errors.to_string().is_empty()),
        }
    }

    #[test]
    fn junk_values_never_panic(
        key in prop::sample::select(vec![
            "worker_processes", "user", "pid_file", "log.rotate_size", "timeouts.idle",
            "listen.address", "listen.0", "listen", "application.a", "worker", "frame.max_bytes",
        ]),
        value in "\\PC{0,20}|[0-9]{1,25}[a-zA-Zµ. ]{0,6}|[\\[\\]0-9a-f:.%]{0,24}",
    ) {
        let _ = load_text("", &[&format!("{key}={value}")]);
    }
}

#[test]
fn an_application_table_of_any_accepted_depth_reads_back() {
    let mut accepted = Vec::new();
    for depth in 1..100 {
        for (open, close, levels) in [("{a=", "}", 1), ("[", "]", 1), ("[{a=", "}]", 2)] {
            let text = format!("application.x = {}1{}", open.repeat(depth), close.repeat(depth));
            let Ok(loaded) = load_text(&text, &[]) else { continue };
            let again = load_text(&loaded.config.to_toml(), &[]);
            assert_eq!(again.map(|again| again.config), Ok(loaded.config), "{open} {depth}");
            accepted.push(depth * levels + 1);
        }
    }
    // The table itself is a level, and `x` is a name in it.
    assert_eq!(accepted.iter().max(), Some(&APPLICATION_DEPTH_MAX));
}

#[test]
fn deep_and_wide_texts_are_answered() {
    let deep = |open: &str, close: &str| {
        format!("[application]\nx = {}{}", open.repeat(100_000), close.repeat(100_000))
    };
    let dotted = format!("application{} = 1", ".a".repeat(100_000));
    let wide = format!("x = {{{}}}", "a=1,".repeat(100_000));
    let unknown: String = (0..50_000).map(|n| format!("k{n} = 1\n")).collect();
    for text in [deep("[", "]"), deep("{a=", "}"), dotted, wide, unknown] {
        let errors = load_text(&text, &[]).expect_err("refused").to_string();
        assert!(errors.lines().count() <= 101);
    }
    let key = format!("application{}=1", ".a".repeat(100_000));
    assert!(load_text("", &[&key]).is_err());
}
