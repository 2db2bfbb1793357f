//! The messages of authentication, damaged: nobody gets in, and everybody else goes on.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use rustls::{
    pki_types::{CertificateDer, pem::PemObject},
    version::TLS13,
};
use sha2::{Digest, Sha256};
use support::{
    authority::{self, Authority},
    power::{self, Dice},
    server::rows,
    wire::{self, Message},
};

/// A client's message with a few bytes changed, put in or left out, or another length.
fn damaged(dice: &mut Dice, mut message: Vec<u8>) -> Vec<u8> {
    let below = |dice: &mut Dice, limit: usize| usize::try_from(dice.below(limit.max(1) as u64)).expect("it fits");
    let byte = |dice: &mut Dice| u8::try_from(dice.below(256)).expect("it fits");
    for _ in 0..=dice.below(3) {
        let place = below(dice, message.len());
        match dice.below(7) {
            0 => message[place] ^= 1 << dice.below(8),
            1 => message[place] = b",=\0rnpcye"[below(dice, 9)],
            2 => message.insert(place, byte(dice)),
            3 => drop(message.drain(place..(place + below(dice, 9)).min(message.len()))),
            4 => message.splice(place..place, vec![b'a'; below(dice, 3000)]).for_each(drop),
            5 => message.truncate(place.max(5)),
            _ => {
                let length = u32::try_from(dice.below(1 << 18)).expect("it fits").to_be_bytes();
                message.splice(1..5, length).for_each(drop);
            }
        }
        if message.len() < 5 {
            message.resize(5, 0);
        }
    }
    message
}

/// Sends these bytes, no more after them, and reads what the server sends until it hangs up, or until `enough` of it.
fn exchange(stream: &mut (impl Read + Write), bytes: &[u8], received: &mut Vec<u8>, enough: impl Fn(&[u8]) -> bool) {
    // The server may have hung up already.
    let _ = stream.write_all(bytes);
    let mut chunk = [0; 4096];
    while !enough(received) {
        match stream.read(&mut chunk) {
            Ok(read) if read > 0 => received.extend_from_slice(&chunk[..read]),
            _ => break,
        }
    }
}

/// Authenticates with one message damaged; the messages of the answer to it.
fn attempt<S: Read + Write>(
    mut stream: S,
    (mechanism, binding): (&str, ChannelBinding),
    dice: &mut Dice,
    shut_down: impl FnOnce(&mut S),
) -> Vec<Message> {
    let mut received = Vec::new();
    let whole = |bytes: &[u8]| Message::take(&mut bytes.to_vec()).is_some();
    exchange(&mut stream, &wire::startup(&[("user", "postgres")]), &mut received, whole);
    assert_eq!(received[0], b'R', "AuthenticationSASL");
    received.clear();
    let mut scram = ScramSha256::new(b"secret", binding);
    let length = u32::try_from(scram.message().len()).expect("short").to_be_bytes();
    let first = [mechanism.as_bytes(), b"\0", &length, scram.message()].concat();
    let mut message = wire::message(b'p', &first);
    if dice.below(2) == 0 {
        exchange(&mut stream, &message, &mut received, whole);
        let challenge = Message::take(&mut received).expect("AuthenticationSASLContinue");
        scram.update(&challenge.body[4..]).expect("a challenge");
        message = wire::message(b'p', scram.message());
        received.clear();
    }
    let sent = loop {
        let sent = damaged(dice, message.clone());
        if sent != message {
            break sent;
        }
    };
    let _ = stream.write_all(&sent);
    shut_down(&mut stream);
    exchange(&mut stream, &[], &mut received, |_| false);
    Message::all(received)
}

/// `PGLITE_PORT_SEED` repeats the messages, `PGLITE_PORT_SCRAM` makes more of them, as `make fuzz` does.
#[test]
fn a_damaged_message_of_authentication_lets_nobody_in_and_disturbs_no_one() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "secret\n").expect("a disk");
    let mut dice = Dice(power::seed() | 1);
    let authority = Authority::new();
    let certificate = CertificateDer::from_pem_file(authority.path("server.pem")).expect("a certificate");
    for (mode, mechanism) in [
        ("shared", SCRAM_SHA_256),
        ("isolated", SCRAM_SHA_256),
        ("shared", SCRAM_SHA_256_PLUS),
        ("isolated", SCRAM_SHA_256_PLUS),
    ] {
        let password = file.path().to_str().expect("text");
        let server = authority.serve(&["--mode", mode, "--auth", "scram-sha-256", "--password-file", password]);
        let mut other = server.config().password("secret").connect(postgres::NoTls).expect("the password is right");
        let mut codes: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..power::number("PGLITE_PORT_SCRAM", 40) {
            let answer = if mechanism == SCRAM_SHA_256 {
                let shut_down = |stream: &mut TcpStream| stream.shutdown(Shutdown::Write).expect("a socket");
                attempt(server.stream(), (mechanism, ChannelBinding::unsupported()), &mut dice, shut_down)
            } else {
                let stream = authority::session(&server, authority.client(&[&TLS13], &[]), false);
                let digest = Sha256::digest(&certificate).to_vec();
                attempt(stream, (mechanism, ChannelBinding::tls_server_end_point(digest)), &mut dice, |stream| {
                    stream.conn.send_close_notify();
                    // The server may have hung up already.
                    let _ = stream.flush();
                    let _ = stream.sock.shutdown(Shutdown::Write);
                })
            };
            for message in answer {
                let is_ok = message.kind == b'R' && message.body.starts_with(&[0; 4]);
                assert!(!is_ok && message.kind != b'Z', "{mode} {mechanism}: somebody got in");
                if message.kind == b'E' {
                    *codes.entry(message.fields()[&'C'].clone()).or_default() += 1;
                }
            }
        }
        println!("{mode} {mechanism}: {codes:?}");
        // What the client did wrong, and not a fault of the server's. 0A000 is that of an authorization identity.
        assert!(codes.keys().all(|code| ["28", "08", "0A"].contains(&&code[..2])), "{mode} {mechanism}: {codes:?}");
        assert!(codes.contains_key("28P01") && codes.contains_key("08P01"), "{mode} {mechanism}: {codes:?}");
        assert_eq!(rows(&mut other, "select 1"), ["1"]);
        server.config().password("secret").connect(postgres::NoTls).expect("the password is still right");
    }
}
