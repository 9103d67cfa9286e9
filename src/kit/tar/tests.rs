use proptest::prelude::*;

use super::*;

/// A header block with a right checksum.
struct Block([u8; BLOCK]);

impl Block {
    fn new(name: &str, flag: u8, size: u64) -> Self {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[156] = flag;
        Self(block).with(100, b"0000644\0").with(124, format!("{size:011o}\0").as_bytes()).with(136, b"00000000000\0")
    }

    fn with(mut self, place: usize, bytes: &[u8]) -> Self {
        self.0[place..place + bytes.len()].copy_from_slice(bytes);
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }

    fn data(&self, data: &[u8]) -> Vec<u8> {
        let mut bytes = [&self.0[..], data].concat();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    Block::new(name, b'0', data.len() as u64).data(data)
}

fn extension(flag: u8, content: &[u8]) -> Vec<u8> {
    Block::new("ext", flag, content.len() as u64).data(content)
}

/// A PAX header of one record, `key=value`.
fn pax(record: &str) -> Vec<u8> {
    let len = (record.len() + 3..).find(|len| len.to_string().len() + record.len() + 2 == *len).unwrap();
    extension(b'x', format!("{len} {record}\n").as_bytes())
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// What a reader made of a layer.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    members: Vec<Member>,
    data: Vec<Vec<u8>>,
    ended: usize,
    result: Result<(), TarError>,
}

fn read_in(pieces: &[&[u8]], size: Option<u64>) -> Read {
    let mut reader = TarReader::new(size);
    let mut read = Read { members: Vec::new(), data: Vec::new(), ended: 0, result: Ok(()) };
    for mut piece in pieces.iter().copied() {
        loop {
            match reader.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(Event::Member(member))) => {
                    read.members.push(member);
                    read.data.push(Vec::new());
                }
                Ok(Some(Event::Data(bytes))) => read.data.last_mut().unwrap().extend_from_slice(bytes),
                Ok(Some(Event::End)) => read.ended += 1,
                Err(error) => {
                    read.result = Err(error);
                    return read;
                }
            }
        }
        assert!(piece.is_empty());
    }
    read.result = reader.finish();
    read
}

fn read(tar: &[u8]) -> Read {
    let read = read_in(&[tar], Some(tar.len() as u64));
    let small: Vec<&[u8]> = tar.chunks(7).collect();
    assert_eq!(read_in(&small, Some(tar.len() as u64)), read);
    read
}

/// The members as `path kind size mode`, or the error.
fn check(parts: &[Vec<u8>], expected: &[&str]) {
    let read = read(&parts.concat());
    let lines: Vec<String> = match &read.result {
        Ok(()) => read
            .members
            .iter()
            .map(|member| format!("{} {:?} {} {:o}", member.path, member.kind, member.size, member.mode))
            .collect(),
        Err(error) => vec![error.to_string()],
    };
    assert_eq!(lines, expected);
}

fn refused(parts: &[Vec<u8>], says: &str) {
    let error = read(&parts.concat()).result.unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[test]
fn hands_out_members_and_their_data() {
    let long = vec![7; 1300];
    let tar = [Block::new("d", b'5', 0).data(b""), file("d/a", b"hello"), file("d/b", &long), file("d/c", b""), end()];
    let read = read(&tar.concat());
    assert_eq!(read.result, Ok(()));
    assert_eq!(read.data, [&b""[..], b"hello", &long, b""]);
    assert_eq!(read.ended, 3);
    assert_eq!(read.members.iter().map(|member| member.offset).collect::<Vec<_>>(), [512, 1024, 2048, 4096]);
}

#[test]
fn takes_names_and_sizes_from_where_go_takes_them() {
    let long = format!("d/{}", "n".repeat(200));
    let ok = [
        (vec![pax("path=new"), file("old", b"x")], "new File 1 644"),
        (vec![pax("path="), file("old", b"x")], "old File 1 644"),
        (vec![pax("size="), file("old", b"x")], "old File 1 644"),
        (vec![pax("size=600"), Block::new("a", b'0', 0).data(&[1; 600])], "a File 600 644"),
        (vec![pax("size=600"), Block::new("d", b'5', 0).data(b"")], "d Dir 0 644"),
        (vec![pax("linkpath=../x"), file("a", b"x")], "a File 1 644"),
        (vec![extension(b'L', format!("{long}\0").as_bytes()), file("old", b"x")], &format!("{long} File 1 644")),
        (vec![extension(b'L', b"one\0"), extension(b'L', b"two\0"), file("old", b"x")], "two File 1 644"),
        (vec![extension(b'K', b"target\0"), file("a", b"x")], "a File 1 644"),
        (vec![extension(b'g', b"17 comment=gitid\n"), file("a", b"x")], "a File 1 644"),
        (vec![Block::new("a", b'0', 0).with(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x01").data(b"x")], "a File 1 644"),
        (vec![Block::new("a", b'0', 0).with(124, &[0; 12]).data(b"")], "a File 0 644"),
        (vec![Block::new("a", b'0', 0).with(124, b"         1 \0").data(b"x")], "a File 1 644"),
        (vec![Block::new("a", b'0', 0).with(108, b"\x80\0\0\0\x7f\xff\xff\xff").data(b"")], "a File 0 644"),
        (vec![Block::new("b", b'0', 0).with(345, b"a").data(b"")], "a/b File 0 644"),
        (
            vec![Block::new("b", b'0', 0).with(345, &[b'p'; 155]).data(b"")],
            &format!("{}/b File 0 644", "p".repeat(155)),
        ),
        (vec![Block::new("b", b'0', 0).with(257, b"ustar  \0").data(b"")], "b File 0 644"),
        (vec![Block::new("b", b'0', 0).with(257, b"ustar  \0").with(345, b"dir").data(b"")], "dir/b File 0 644"),
        (vec![Block::new("b", b'0', 0).with(257, &[0; 8]).with(345, b"dir").data(b"")], "b File 0 644"),
        (vec![Block::new(&"n".repeat(100), b'0', 0).data(b"")], &format!("{} File 0 644", "n".repeat(100))),
        (vec![Block::new("old/", 0, 0).data(b"")], "old Dir 0 644"),
        (vec![Block::new("old", 0, 1).data(b"x")], "old File 1 644"),
        (vec![Block::new("a/", b'0', 1).data(b"x")], "a File 1 644"),
        (vec![Block::new("./", b'5', 0).data(b"")], ". Dir 0 644"),
        (vec![Block::new("a", b'0', 0).with(100, b"0007777\0").data(b"")], "a File 0 777"),
        (vec![Block::new("a", b'0', 0).with(100, &[0; 8]).data(b"")], "a File 0 0"),
        (vec![Block::new("line\nbreak", b'0', 0).data(b"")], "line\\nbreak File 0 644"),
    ];
    for (mut parts, expected) in ok {
        check(&parts, &[expected]);
        // The end of an archive may be missing, in full or by half.
        parts.push(vec![0; BLOCK]);
        check(&parts, &[expected]);
        parts.push(vec![0; 10 * BLOCK]);
        check(&parts, &[expected]);
        parts.push(b"and then anything".to_vec());
        check(&parts, &[expected]);
    }
}

#[test]
fn refuses_what_cannot_be_a_part_of_a_kit() {
    for (flag, says) in [
        (b'1', "member evil is a hard link"),
        (b'2', "member evil is a symbolic link"),
        (b'3', "is a character device"),
        (b'4', "is a block device"),
        (b'6', "is a FIFO"),
        (b'7', "is a contiguous file"),
        (b'S', "is a sparse file"),
        (b'M', "is a part of a file from another volume"),
        (0xff, "is of unknown type 0xff"),
        (b'1' - 2, "is of unknown type 0x2f"),
    ] {
        refused(&[Block::new("evil", flag, 0).data(b""), end()], says);
    }
    for name in ["..", "../a", "a/../b", "/etc/passwd", "//etc", "", "d/.."] {
        for flag in [b'0', b'5', b'\0'] {
            refused(&[Block::new(name, flag, 0).data(b""), end()], "is refused");
        }
    }
    for name in [".", "./", "././"] {
        refused(&[Block::new(name, b'0', 0).data(b""), end()], "it is the root");
    }
    refused(&[Block::new("passwd", b'0', 0).with(345, b"../etc").data(b"")], "it leaves its directory");
    refused(&[Block::new("passwd", b'0', 0).with(345, b"/etc").data(b"")], "it is absolute");
    refused(&[extension(b'L', &[b'n'; 1025]), file("a", b"")], "longer than 255 bytes");
    refused(&[extension(b'L', &b"d/".repeat(120_000)), file("a", b"")], "longer than 4095 bytes");
    refused(&[pax("GNU.sparse.major=1"), file("a", b"")], "member a is a sparse file");
}

#[test]
fn refuses_damaged_headers() {
    let block = |place, bytes: &[u8]| Block::new("a", b'0', 0).with(place, bytes).data(b"");
    for (part, says) in [
        (block(124, b"0000000000x\0"), "its size is not a number"),
        (block(124, b"-0000000001\0"), "its size is not a number"),
        (block(124, b"+0000000001\0"), "its size is not a number"),
        (block(124, b"00000008\0\0\0\0"), "its size is not a number"),
        (block(124, &[0xff; 12]), "a claims -1 bytes"),
        (block(124, &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), "its size is not a number"),
        (block(124, &[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), "its size is not a number"),
        (block(124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), "claims 9223372036854775807"),
        (block(124, b"77777777777\0"), "a claims 8589934591 bytes of data where 0 bytes of the layer are left"),
        (block(100, b"rw-r--r-"), "its mode is not a number"),
        (block(108, b"root\0\0\0\0"), "its user is not a number"),
        (block(329, b"x\0\0\0\0\0\0\0"), "its device is not a number"),
        (vec![0x5a; BLOCK], "its checksum is wrong"),
    ] {
        refused(&[part], says);
    }
    let mut wrong = file("a", b"");
    wrong[0] = b'b';
    refused(&[wrong], "no valid tar header at byte 0: its checksum is wrong");
    refused(&[vec![0; BLOCK], file("a", b"")], "byte 512: a single block of zeros precedes it");
}

#[test]
fn refuses_broken_extensions() {
    let a = file("a", b"");
    refused(&[extension(b'x', b"-5 path=x\n"), a.clone()], "byte 0 is refused: a record's length is wrong");
    refused(&[pax("size=18446744073709551616"), a.clone()], "is not a number");
    refused(&[pax("size=1152921504606846976"), a.clone()], "a claims 1152921504606846976 bytes");
    refused(&[pax("size=-1"), a.clone()], "a claims -1 bytes");
    refused(&[pax("path=new")], "truncated");
    refused(&[pax("path=new"), end()], "no member follows it");
    refused(&[extension(b'g', b"12 path=new\n"), a.clone()], "it is global and describes members");
    refused(&[pax("path=new"), extension(b'g', b""), a.clone()], "between a member and its");
    refused(&[extension(b'L', &[b'n'; 1024 * 1024 + 1]), a], "it is larger than 1 MiB");
    refused(&[Block::new("x", b'x', 512 << 20).data(&[])], "an extended header claims 536870912 bytes");
    let bomb = Block::new("x", b'x', 512 << 20).data(&[]);
    let error = read_in(&[&bomb], None).result.unwrap_err().to_string();
    assert!(error.contains("larger than 1 MiB"), "{error}");
}

#[test]
fn tells_a_truncated_layer_from_a_whole_one() {
    let tar = [file("a", b"hello"), file("b", b"hello")].concat();
    for (len, whole) in [(0, true), (1, false), (512, false), (516, false), (517, true), (1024, true), (1025, false)] {
        let unknown = read_in(&[&tar[..len]], None).result;
        assert_eq!(unknown.is_ok(), whole, "{len}: {unknown:?}");
        let known = read_in(&[&tar[..len]], Some(len as u64)).result;
        assert_eq!(known.is_ok(), whole, "{len}: {known:?}");
        assert!(read_in(&[&tar[..len]], Some(tar.len() as u64)).result.is_err(), "{len}");
    }
}

#[test]
fn hops_over_data_without_seeing_it() {
    let tar =
        [file("a", &[1; 5000]), Block::new("d", b'5', 0).data(b""), file("b", &[2; 512]), end(), vec![9; 100]].concat();
    let mut reader = TarReader::new(Some(tar.len() as u64));
    let (mut members, mut seen) = (Vec::new(), 0);
    while reader.position() < tar.len() as u64 {
        let at = reader.position() as usize;
        let mut piece = &tar[at..tar.len().min(at + BLOCK)];
        seen += piece.len();
        while let Some(event) = reader.next(&mut piece).unwrap() {
            if let Event::Member(member) = event {
                members.push(member);
            }
            let ahead = reader.skippable().min(piece.len() as u64);
            piece = &piece[ahead as usize..];
            reader.skip(ahead);
        }
        reader.skip(reader.skippable());
    }
    assert!(reader.is_done());
    assert_eq!(reader.finish(), Ok(()));
    assert_eq!(members, read(&tar).members);
    assert_eq!(seen, 5 * BLOCK);
}

/// Layers that are mostly well formed, so that all states are reached.
fn layers() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        ("[a-c/.]{0,6}", proptest::collection::vec(any::<u8>(), 0..1500)).prop_map(|(name, data)| file(&name, &data)),
        "[a-c/]{1,6}".prop_map(|name| Block::new(&name, b'5', 0).data(b"")),
        ("[xgLK]", "[ -~\n]{0,40}").prop_map(|(flag, text)| extension(flag.as_bytes()[0], text.as_bytes())),
        Just(pax("path=new")),
        Just(pax("size=1000")),
        Just(vec![0; BLOCK]),
        proptest::collection::vec(any::<u8>(), 0..600),
    ];
    (
        proptest::collection::vec(part, 0..6),
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    )
        .prop_map(|(parts, damages)| {
            let mut bytes = parts.concat();
            for (place, byte) in damages {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            bytes
        })
}

proptest! {
    #[test]
    fn every_split_reads_the_same(
        tar in layers(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8), known: bool,
    ) {
        let size = known.then_some(tar.len() as u64);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(tar.len() + 1)).collect();
        cuts.extend([0, tar.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &tar[cut[0]..cut[1]]).collect();
        prop_assert_eq!(read_in(&pieces, size), read_in(&[&tar], size));
    }

    #[test]
    fn no_bytes_make_it_panic(tar in proptest::collection::vec(any::<u8>(), 0..3000), skips in proptest::collection::vec(any::<u64>(), 0..4)) {
        read_in(&[&tar], None);
        let mut reader = TarReader::new(None);
        let mut piece = &tar[..];
        for skip in skips {
            let _ = reader.next(&mut piece);
            reader.skip(skip);
        }
        let _ = reader.finish();
    }
}
