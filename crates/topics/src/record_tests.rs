use super::*;
use proptest::prelude::*;

fn topic(text: &str) -> Topic<'_> {
    Topic::new(text.as_bytes()).unwrap()
}

fn request<'a>(name: &'a str, body: &'a [u8]) -> Request<'a> {
    let message = Message { code: 300, topic: topic(name), body };
    Request { number: 7, is_awaited: true, message }
}

#[test]
fn a_request_and_a_record_are_read_as_they_were_written() {
    let long = "t".repeat(255);
    for (name, body) in [("t", &b""[..]), (&long, &[1; 1000])] {
        let request = request(name, body);
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        assert_eq!(bytes.len(), REQUEST_BYTES + name.len() + body.len());
        assert_eq!(Request::read(&bytes), Ok(request));
        let record = Record { life: 3, concerned: 1 << 63, subscribers: 9, request };
        let mut bytes = Vec::new();
        record.write(&mut bytes);
        assert_eq!(bytes.len(), RECORD_BYTES + REQUEST_BYTES + name.len() + body.len());
        assert_eq!(Record::read(&bytes), Ok(record));
    }
}

fn interests() -> Vec<Interest> {
    let add = |filter| Interest::Add { cell: 258, turn: 3, filter };
    let list = |wanted| Interest::List { number: 4, wanted };
    vec![
        add(Filter::Exact("a.b".into())),
        add(Filter::Prefix("a.".into())),
        add(Filter::Prefix("".into())),
        Interest::Remove { cell: u32::MAX, turn: 1 },
        Interest::AllNamed { hub: 9 },
        add(Filter::Glob("a?".into())),
        list(Listed::Like { is_shard: false, pattern: None }),
        list(Listed::Like { is_shard: true, pattern: Some(b"a*"[..].into()) }),
        list(Listed::Named(vec![topic("a").to_name(), Topic::shard(b"a").unwrap()])),
        list(Listed::Named(vec![])),
        list(Listed::Patterns),
    ]
}

fn answers() -> Vec<Answer<'static>> {
    vec![
        Answer::Published { number: 1, offset: u64::MAX, subscribers: 3 },
        Answer::Skipped { number: 2 },
        Answer::Added { cell: 4, turn: 2, offset: 5 },
        Answer::Refused { cell: 6, turn: 2 },
        Answer::Removed { cell: 7, turn: 2 },
        Answer::NameAll { hub: 9 },
    ]
}

#[test]
fn interest_and_answers_are_read_as_they_were_written() {
    for interest in interests() {
        let mut bytes = Vec::new();
        interest.write(&mut bytes);
        assert_eq!(Interest::read(&bytes), Ok(interest));
    }
    for answer in answers() {
        let mut bytes = Vec::new();
        answer.write(&mut bytes);
        assert!(bytes.len() <= ANSWER_BYTES_MAX);
        assert_eq!(Answer::read(&bytes), Ok(answer));
    }
}

#[test]
fn what_no_client_could_be_sent_is_no_request() {
    let read = |code: u16, body: usize| {
        let body = vec![0; body];
        let message = Message { code, topic: topic("tt"), body: &body };
        let mut bytes = Vec::new();
        Request { number: 1, is_awaited: false, message }.write(&mut bytes);
        Request::read(&bytes).is_ok()
    };
    assert!(read(0, CLIENT_BYTES_MAX - 2) && !read(0, CLIENT_BYTES_MAX - 1));
    assert!(read(16, SERVICE_BYTES_MAX - 2) && !read(16, SERVICE_BYTES_MAX - 1));
    for code in [1, 4, 15, 65_280, u16::MAX] {
        assert!(!read(code, 0), "code {code}");
    }
    assert!(read(65_279, 0));
}

#[test]
fn what_was_cut_or_is_too_long_says_nothing() {
    for answer in answers() {
        let mut bytes = Vec::new();
        answer.write(&mut bytes);
        assert_eq!(Answer::read(&bytes[..bytes.len() - 1]), Err(NONSENSE), "{answer:?}");
        bytes.push(0);
        assert_eq!(Answer::read(&bytes), Err(NONSENSE), "{answer:?}");
    }
    let mut bytes = Vec::new();
    request("topic", b"").write(&mut bytes);
    assert_eq!(Request::read(&bytes[..bytes.len() - 1]), Err(NONSENSE), "within the topic");
    assert_eq!(
        Interest::read(&[&[1, 0, 0, 0, 0, 0, 0, 0, 0][..], &[b'x'; 256]].concat()),
        Err(NONSENSE)
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(request) = Request::read(&bytes) {
            let mut again = Vec::new();
            request.write(&mut again);
            // Any other byte than 0 means yes.
            prop_assert_eq!(again.len(), bytes.len());
        }
        _ = Record::read(&bytes);
        if let Ok(answer) = Answer::read(&bytes) {
            let mut again = Vec::new();
            answer.write(&mut again);
            prop_assert_eq!(again.len(), bytes.len());
            prop_assert_eq!(Answer::read(&again), Ok(answer));
        }
        if let Ok(interest) = Interest::read(&bytes) {
            let mut again = Vec::new();
            interest.write(&mut again);
            prop_assert_eq!(again.len(), bytes.len());
            prop_assert_eq!(Interest::read(&again), Ok(interest));
        }
    }
}
