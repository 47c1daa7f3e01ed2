//! The table of `chappe topics`, from the lines that the hub writes.

use std::fmt::Write;

use clap::Args;

use super::output::harmless_line;
use super::status::row_widths;
use crate::control::{TopicLine, TopicRow, TopicWorker};

/// Show the topics that somebody subscribes to, with how many subscribers on which workers
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct TopicsArgs {
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Topics, and what is to be said of the rest.
#[derive(Debug)]
pub(crate) struct Topics {
    pub(crate) rows: Vec<TopicRow>,
    /// How many had no room in the list.
    pub(crate) left_out: u64,
    /// What is to be said of lines that can't be read.
    pub(crate) unread: Option<String>,
}

/// The lines, by name.
pub(crate) fn topic_rows(lines: &str) -> Topics {
    let (mut topics, mut unread) = (Topics { rows: Vec::new(), left_out: 0, unread: None }, 0);
    for line in lines.lines() {
        match serde_json::from_str(line) {
            Ok(TopicLine::Topic(row)) => topics.rows.push(row),
            Ok(TopicLine::LeftOut { left_out }) => topics.left_out += left_out,
            Err(_) => unread += 1,
        }
    }
    topics.unread = (unread > 0).then(|| {
        let lines = if unread == 1 { "line" } else { "lines" };
        format!("{unread} {lines} of the list can't be read, the server may be of another version")
    });
    topics.rows.sort_by(|a, b| (&a.topic, &a.kind).cmp(&(&b.topic, &b.kind)));
    topics
}

/// A row for each.
pub(crate) fn topics_table(rows: &[TopicRow]) -> String {
    let mut cells = vec![["subscribers", "workers", "kind", "topic"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        let each = |it: &TopicWorker| format!("{}:{}", it.worker, it.subscribers);
        let workers: Vec<_> = row.workers.iter().map(each).collect();
        let topic = harmless_line(row.topic.as_bytes());
        let topic = String::from_utf8_lossy(&topic).into_owned();
        [row.subscribers.to_string(), workers.join(" "), row.kind.clone(), topic]
    }));
    let [subscribers, workers, kind, _] = row_widths(&cells);
    let mut text = String::new();
    for [count, by_worker, of_kind, topic] in &cells {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{count:>subscribers$}  {by_worker:<workers$}  {of_kind:<kind$}  {topic}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_shown_by_name_with_their_workers() {
        let lines = "{\"topic\":\"room\",\"kind\":\"topic\",\"subscribers\":3,\"workers\":[\
             {\"worker\":0,\"pid\":7,\"subscribers\":2},{\"worker\":1,\"pid\":8,\"subscribers\":1}]}\n\
             {\"topic\":\"a*\",\"kind\":\"pattern\",\"subscribers\":10,\"workers\":[]}\n\
             {\"left_out\":5}\n{\"new\":1}\n";
        let Topics { rows, left_out, unread } = topic_rows(lines);
        assert_eq!((left_out, unread.is_some_and(|it| it.starts_with("1 line of"))), (5, true));
        let expected = "subscribers  workers  kind     topic\n\
            \x20        10           pattern  a*\n\
            \x20         3  0:2 1:1  topic    room\n";
        assert_eq!(topics_table(&rows), expected);
    }
}
