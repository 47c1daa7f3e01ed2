//! One request and its answer, as bytes. Pure: whatever comes, it is judged and
//! answered, and nothing here panics or sleeps.

/// The longest request, from its first line to the empty one.
pub(super) const REQUEST_BYTES_MAX: usize = 8 << 10;

/// The most header fields of a request.
const HEADERS_MAX: usize = 64;

/// What there is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// For people.
    #[cfg(feature = "pages")]
    Page,
    /// For Prometheus.
    Metrics,
    /// For the page: what is now, and the samples from this number on.
    #[cfg(feature = "pages")]
    State(u64),
}

/// Why a request gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is no HTTP/1.
    Bad,
    /// There is nothing by this name.
    NotFound,
    /// Only GET and HEAD are answered.
    Method,
    /// Beyond `REQUEST_BYTES_MAX` or `HEADERS_MAX`.
    TooLarge,
    /// It did not come in time.
    Late,
}

/// What a peer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What of it.
    pub(super) path: Result<Path, Refusal>,
    /// The answer goes without its body.
    pub(super) is_head: bool,
}

impl Request {
    pub(super) const fn refused(refusal: Refusal) -> Self {
        Self { path: Err(refusal), is_head: false }
    }
}

/// The request that `bytes` begin with; `None` while it is not complete.
pub(super) fn judge(bytes: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= REQUEST_BYTES_MAX => {}
        Ok(httparse::Status::Complete(_)) | Err(httparse::Error::TooManyHeaders) => {
            return Some(Request::refused(Refusal::TooLarge));
        }
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => return None,
        Ok(httparse::Status::Partial) => return Some(Request::refused(Refusal::TooLarge)),
        Err(_) => return Some(Request::refused(Refusal::Bad)),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Some(Request::refused(Refusal::Bad));
    };
    let hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    // HTTP/1.1 wants exactly one; 1.0 knows none.
    let hosts = hosts.count();
    if hosts > 1 || (hosts == 0 && version == 1) {
        return Some(Request::refused(Refusal::Bad));
    }
    let is_head = method == "HEAD";
    let path = if is_head || method == "GET" { find(target) } else { Err(Refusal::Method) };
    Some(Request { path, is_head })
}

/// What is at a target: `/metrics?x`, or as proxies write it `http://host/metrics`.
fn find(target: &str) -> Result<Path, Refusal> {
    let target = match target.split_once("://") {
        Some(("http", rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    match target.split(['?', '#']).next() {
        #[cfg(feature = "pages")]
        Some("/") => Ok(Path::Page),
        Some("/metrics") => Ok(Path::Metrics),
        #[cfg(feature = "pages")]
        Some("/state") => Ok(Path::State(after(target))),
        _ => Err(Refusal::NotFound),
    }
}

/// `/state?after=17`; 0 for anything else, which is everything.
#[cfg(feature = "pages")]
fn after(target: &str) -> u64 {
    let (_, query) = target.split_once('?').unwrap_or_default();
    let mut values = query.split('&').filter_map(|pair| pair.strip_prefix("after="));
    values.next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// What there is to get, for somebody who has asked for something else.
const NAMES: &str = if cfg!(feature = "pages") {
    "there are /, /metrics and /state\n"
} else {
    "there is /metrics; this build has no page (feature `pages`)\n"
};

/// An answer before it is bytes.
#[derive(Debug)]
pub(super) struct Answer {
    status: &'static str,
    kind: &'static str,
    more: &'static str,
    body: String,
}

/// Of the page: nothing from elsewhere, and in nobody's frame.
#[cfg(feature = "pages")]
const PAGE_RULES: &str = "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; \
     script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'\r\n";

impl Answer {
    #[cfg(feature = "pages")]
    pub(super) fn page(text: &str) -> Self {
        let kind = "text/html; charset=utf-8";
        Self { status: "200 OK", kind, more: PAGE_RULES, body: text.to_owned() }
    }

    pub(super) fn metrics(text: String) -> Self {
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        Self { status: "200 OK", kind, more: "", body: text }
    }

    #[cfg(feature = "pages")]
    pub(super) fn state(text: String) -> Self {
        let kind = "application/json";
        Self { status: "200 OK", kind, more: "", body: text }
    }

    /// The master is in the middle of a change, or was killed there.
    pub(super) fn unavailable() -> Self {
        Self::plain("503 Service Unavailable", "the counters can't be read just now\n")
    }

    pub(super) fn refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Bad => Self::plain("400 Bad Request", "this is not an HTTP/1 request\n"),
            Refusal::NotFound => Self::plain("404 Not Found", NAMES),
            Refusal::Late => Self::plain("408 Request Timeout", "the request came too slowly\n"),
            Refusal::TooLarge => Self::plain(
                "431 Request Header Fields Too Large",
                "a request has at most 8192 bytes and 64 header fields\n",
            ),
            Refusal::Method => Self {
                more: "Allow: GET, HEAD\r\n",
                ..Self::plain("405 Method Not Allowed", "only GET and HEAD are answered\n")
            },
        }
    }

    fn plain(status: &'static str, body: &str) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", more: "", body: body.to_owned() }
    }

    /// One answer per connection: a client that asks every second can connect every second.
    pub(super) fn into_bytes(self, is_head: bool) -> Vec<u8> {
        let Self { status, kind, more, body } = self;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{more}\
             Connection: close\r\n\r\n",
            body.len()
        );
        if is_head { head.into_bytes() } else { (head + &body).into_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<Result<Path, Refusal>> {
        judge(text.as_bytes()).map(|request| request.path)
    }

    #[test]
    fn requests_find_what_they_name() {
        let rows = [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Ok(Path::Page)),
            ("GET /?a=b HTTP/1.1\r\nhost: x\r\n\r\n", Ok(Path::Page)),
            ("GET /metrics HTTP/1.0\r\n\r\n", Ok(Path::Metrics)),
            ("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Ok(Path::Metrics)),
            ("GET http://x:1/metrics HTTP/1.1\r\nHost: x\r\n\r\n", Ok(Path::Metrics)),
            ("GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", Ok(Path::Page)),
            ("GET /state HTTP/1.1\r\nHost: x\r\n\r\n", Ok(Path::State(0))),
            ("GET /state?a=b&after=17 HTTP/1.1\r\nHost: x\r\n\r\n", Ok(Path::State(17))),
            ("GET /state?after=-1 HTTP/1.1\r\nHost: x\r\n\r\n", Ok(Path::State(0))),
            ("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", Err(Refusal::NotFound)),
            ("GET /../metrics HTTP/1.1\r\nHost: x\r\n\r\n", Err(Refusal::NotFound)),
            ("POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Err(Refusal::Method)),
            ("get / HTTP/1.1\r\nHost: x\r\n\r\n", Err(Refusal::Method)),
            ("GET / HTTP/1.1\r\n\r\n", Err(Refusal::Bad)),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", Err(Refusal::Bad)),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", Err(Refusal::Bad)),
            ("GET / HTTP/1.1\r\nHo st: x\r\n\r\n", Err(Refusal::Bad)),
            ("\0\0\0\0\0\0\0\0", Err(Refusal::Bad)),
        ];
        for (text, expected) in rows {
            assert_eq!(path(text), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn a_request_is_judged_when_it_is_complete_and_not_before() {
        let text = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(path(&text[..end]), None, "{end}");
        }
        assert_eq!(path(text), Some(Ok(Path::Metrics)));
    }

    #[test]
    fn the_longest_request_is_answered_and_one_byte_more_is_not() {
        let of = |bytes: usize| {
            let head = "GET / HTTP/1.1\r\nHost: x\r\nA: ";
            format!("{head}{}\r\n\r\n", "a".repeat(bytes - head.len() - 4))
        };
        assert_eq!(path(&of(REQUEST_BYTES_MAX)), Some(Ok(Path::Page)));
        assert_eq!(path(&of(REQUEST_BYTES_MAX + 1)), Some(Err(Refusal::TooLarge)));
        // Without an end in sight it is not waited for.
        let endless = &of(2 * REQUEST_BYTES_MAX)[..REQUEST_BYTES_MAX];
        assert_eq!(path(endless), Some(Err(Refusal::TooLarge)));
    }

    #[test]
    fn the_most_headers_are_read_and_one_more_is_not() {
        let of = |count: usize| {
            format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count - 1))
        };
        assert_eq!(path(&of(HEADERS_MAX)), Some(Ok(Path::Page)));
        assert_eq!(path(&of(HEADERS_MAX + 1)), Some(Err(Refusal::TooLarge)));
    }

    #[test]
    fn an_answer_to_head_has_the_length_and_not_the_body() {
        let text = |is_head| {
            String::from_utf8(Answer::metrics("abc\n".to_owned()).into_bytes(is_head)).unwrap()
        };
        assert!(text(false).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(text(false).ends_with("\r\n\r\nabc\n"));
        assert!(text(true).contains("\r\nContent-Length: 4\r\n"));
        assert!(text(true).ends_with("\r\n\r\n"));
    }
}
