//! Two servers of this protocol on tokio: what a user might write instead of taking
//! Chappe. They do the work of the limit server for each message: check the CRC, copy the
//! body, compute the CRC again, send; and like it they have no limits and no time-outs.
//!
//! `peers loop|codec THREADS [ADDRESS]`, 127.0.0.1:0 without; prints `ready ADDRESS`, runs
//! until killed. `loop` is written by hand: one read, all whole frames of it answered with
//! one write. `codec` is what the documentation of tokio-util teaches: a `Decoder` and an
//! `Encoder`, one `send` a frame. One thread is the current-thread runtime.

use std::io;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::bytes::{Buf, BufMut, BytesMut};
use tokio_util::codec::{Decoder, Encoder, Framed};

const HEADER_BYTES: usize = 8;
const READ_BYTES: usize = 64 * 1024;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = || io::Error::other("usage: peers loop|codec THREADS [ADDRESS]");
    let [way, threads, rest @ ..] = &arguments[..] else { return Err(usage()) };
    let threads: usize = threads.parse().map_err(|_| usage())?;
    let address = rest.first().map_or("127.0.0.1:0", String::as_str);
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_io().build()?,
        _ => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_io()
            .build()?,
    };
    match way.as_str() {
        "loop" => runtime.block_on(accept(address, run_loop)),
        "codec" => runtime.block_on(accept(address, run_codec)),
        _ => Err(usage()),
    }
}

/// A task for each connection; its error is its end.
async fn accept<F>(address: &str, serve: impl Fn(TcpStream) -> F) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(address).await?;
    println!("ready {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream));
    }
}

/// The code and the body of the first frame, and its length; `None`: it is not whole yet.
fn first_frame(input: &[u8]) -> io::Result<Option<(u16, &[u8], usize)>> {
    let Some(&[l0, l1, c0, c1, s0, s1, s2, s3]) = input.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    if length < HEADER_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(body) = input.get(HEADER_BYTES..length) else { return Ok(None) };
    if crc32fast::hash(body) != u32::from_be_bytes([s0, s1, s2, s3]) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((u16::from_be_bytes([c0, c1]), body, length)))
}

fn append_frame(out: &mut BytesMut, code: u16, body: &[u8]) {
    let length = u16::try_from(HEADER_BYTES + body.len()).expect("it came in a frame");
    out.reserve(usize::from(length));
    out.put_u16(length);
    out.put_u16(code);
    out.put_u32(crc32fast::hash(body));
    out.put_slice(body);
}

async fn run_loop(mut stream: TcpStream) -> io::Result<()> {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let mut out = BytesMut::new();
    while stream.read_buf(&mut input).await? > 0 {
        while let Some((code, body, length)) = first_frame(&input)? {
            append_frame(&mut out, code, body);
            input.advance(length);
        }
        stream.write_all(&out).await?;
        out.clear();
        input.reserve(READ_BYTES);
    }
    Ok(())
}

struct Frames;

impl Decoder for Frames {
    type Item = (u16, Vec<u8>);
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        let Some((code, body, length)) = first_frame(input)? else { return Ok(None) };
        let body = body.to_vec();
        input.advance(length);
        Ok(Some((code, body)))
    }
}

impl Encoder<(u16, Vec<u8>)> for Frames {
    type Error = io::Error;

    fn encode(&mut self, (code, body): (u16, Vec<u8>), out: &mut BytesMut) -> io::Result<()> {
        append_frame(out, code, &body);
        Ok(())
    }
}

async fn run_codec(stream: TcpStream) -> io::Result<()> {
    let mut frames = Framed::new(stream, Frames);
    while let Some(frame) = frames.next().await {
        frames.send(frame?).await?;
    }
    Ok(())
}
