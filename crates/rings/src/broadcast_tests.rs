use super::*;
use chappe_sys::SharedFile;

const WORDS: usize = 256;

fn ring() -> Broadcast {
    let file = SharedFile::create("test", 8192).expect("memory");
    Broadcast::new(file.map(0).expect("cursors"), file.map_array(4096, WORDS).expect("words"))
}

/// What a record of this offset says here.
fn text(offset: u64) -> Vec<u8> {
    let length = usize::try_from(offset * 7 % 190).expect("short");
    offset.to_le_bytes().into_iter().cycle().take(length).collect()
}

fn write(writer: &mut Writer, count: u64) {
    for _ in 0..count {
        let offset = writer.offset() + 1;
        assert_eq!(writer.write(&text(offset)), offset);
    }
}

/// Reads up to the end; how many were read and lost.
fn read(reader: &mut Reader) -> (u64, u64) {
    let (mut record, mut were_read, mut lost) = (Vec::new(), 0, 0);
    loop {
        match reader.next(&mut record).expect("it is sound") {
            Found::Record => {
                assert_eq!(record, text(reader.offset()));
                were_read += 1;
            }
            Found::Lapped(count) => lost += count,
            Found::Nothing => return (were_read, lost),
        }
    }
}

#[test]
fn each_reader_reads_everything_that_comes_after_it() {
    let ring = ring();
    let mut writer = ring.writer().unwrap();
    let mut first = ring.reader().unwrap();
    for _ in 0..100 {
        let mut second = ring.reader().unwrap();
        write(&mut writer, 3);
        assert_eq!((read(&mut first), read(&mut second)), ((3, 0), (3, 0)));
        assert_eq!(first.offset(), writer.offset());
        assert_eq!(first.position(), writer.position());
    }
}

#[test]
fn one_that_is_overtaken_is_told_how_many_it_has_lost() {
    let ring = ring();
    let mut writer = ring.writer().unwrap();
    let mut reader = ring.reader().unwrap();
    write(&mut writer, 1000);
    assert_eq!(read(&mut reader), (0, 1000));
    write(&mut writer, 2);
    assert_eq!(read(&mut reader), (2, 0));
}

#[test]
fn a_record_is_whole_until_the_writer_means_to_write_over_it() {
    let ring = ring();
    let mut writer = ring.writer().unwrap();
    let mut reader = ring.reader().unwrap();
    let words = 4;
    for _ in 0..WORDS / words {
        writer.write(&[1; 8]);
    }
    let mut record = Vec::new();
    assert_eq!(reader.clone().next(&mut record), Ok(Found::Record));
    writer.write(&[2; 8]);
    let lost = (WORDS / words + 1) as u64;
    assert_eq!(reader.next(&mut record), Ok(Found::Lapped(lost)));
}

#[test]
fn an_offset_is_found_while_it_is_there() {
    let ring = ring();
    let mut writer = ring.writer().unwrap();
    assert_eq!(ring.reader_behind(0).unwrap().unwrap().offset(), 0);
    for round in 1..400 {
        write(&mut writer, 1);
        let mut found = 0;
        for offset in 0..=round {
            let Some(mut reader) = ring.reader_behind(offset).unwrap() else { continue };
            assert_eq!(read(&mut reader), (round - offset, 0), "from {offset} of {round}");
            found += 1;
        }
        assert!(found >= 3.min(round), "{found} of {round}");
        assert!(ring.reader_behind(round + 1).unwrap().is_none());
        assert!(ring.reader_behind(u64::MAX).unwrap().is_none());
    }
}

#[test]
fn a_successor_goes_on_and_knows_what_was_last() {
    let ring = ring();
    assert_eq!(ring.writer().unwrap().last(), Ok(None));
    let mut reader = ring.reader().unwrap();
    for round in 1..300 {
        let mut writer = ring.writer().unwrap();
        write(&mut writer, 1);
        drop(writer);
        let successor = ring.writer().unwrap();
        assert_eq!(successor.offset(), round);
        assert_eq!(successor.last().unwrap().unwrap(), text(round));
    }
    _ = read(&mut reader);
    assert_eq!(reader.offset(), 299);
}

#[test]
fn the_longest_record_has_its_part_of_the_ring() {
    let ring = ring();
    assert_eq!(ring.record_bytes_max(), (WORDS / 8 - 3) * 8);
    let mut reader = ring.reader().unwrap();
    let longest = vec![5; ring.record_bytes_max()];
    ring.writer().unwrap().write(&longest);
    let mut record = Vec::new();
    assert_eq!(reader.next(&mut record), Ok(Found::Record));
    assert_eq!(record, longest);
}

#[test]
#[should_panic(expected = "233 bytes do not fit into the ring")]
fn one_byte_more_is_a_fault_of_ours() {
    ring().writer().unwrap().write(&[0; 233]);
}

#[test]
fn what_no_writer_writes_is_reported() {
    let doctored = |nth: usize, value: u64| {
        let ring = ring();
        let mut reader = ring.reader().unwrap();
        ring.writer().unwrap().write(&[7; 20]);
        ring.words[nth].store(value, Ordering::Relaxed);
        reader.next(&mut Vec::new())
    };
    let of_length = Err(Corrupt { what: "the length of a record" });
    assert_eq!((doctored(0, 25), doctored(0, u64::MAX)), (of_length, of_length));
    assert_eq!(doctored(1, 2), Err(Corrupt { what: "the offset of a record" }));
    let ring = ring();
    ring.writer().unwrap().write(&[7; 20]);
    ring.words[5].store(1000, Ordering::Relaxed);
    let error = Corrupt { what: "the length behind the last record" };
    assert_eq!(ring.writer().unwrap_err(), error);
    assert_eq!(ring.reader().unwrap_err(), error);
}
