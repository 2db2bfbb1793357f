//! Passwords that are bound to the server's certificate (SCRAM-SHA-256-PLUS).

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Instant,
};

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustix::process::Signal;
use rustls::{
    ClientConfig, ClientConnection, StreamOwned,
    pki_types::{CertificateDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use sha2::{Digest, Sha256};
use support::{
    PATIENCE,
    authority::{Authority, psql, session},
    server::{Server, text},
    wire::{self, Message},
};

#[test]
fn psql_binds_its_password_to_the_certificate() {
    let authority = Authority::new();
    fs::write(authority.path("password"), "secret\n").expect("a disk");
    let password = authority.path("password");
    for mode in ["shared", "isolated"] {
        let server = authority.serve(&["--mode", mode, "--auth", "scram-sha-256", "--password-file", &password]);
        let bound = |password: &str| {
            psql(&server, &format!("sslmode=require channel_binding=require password={password}"), "select 1")
        };
        assert_eq!(text(&bound("secret")), "1", "{mode}");
        let wrong = bound("wrong");
        assert!(String::from_utf8_lossy(&wrong.stderr).contains("password authentication failed"), "{wrong:?}");
        for other in ["sslmode=require channel_binding=disable", "sslmode=disable channel_binding=prefer"] {
            assert_eq!(text(&psql(&server, &format!("{other} password=secret"), "select 1")), "1", "{mode} {other}");
        }
        let plain = psql(&server, "sslmode=disable channel_binding=require password=secret", "select 1");
        assert!(!plain.status.success(), "{mode}: {plain:?}");
    }
}

/// Authenticates with a mechanism of SCRAM; what PostgreSQL says in the end.
fn authenticate(server: &Server, config: Arc<ClientConfig>, mechanism: &str, binding: ChannelBinding) -> Vec<String> {
    let mut stream = session(server, config, false);
    let mut received = Vec::new();
    let mut next = move |stream: &mut StreamOwned<ClientConnection, TcpStream>| loop {
        if let Some(message) = Message::take(&mut received) {
            return message;
        }
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).expect("an answer");
        assert_ne!(read, 0, "the connection has ended");
        received.extend_from_slice(&chunk[..read]);
    };
    stream.write_all(&wire::startup(&[("user", "postgres")])).expect("connected");
    let offer = next(&mut stream);
    assert_eq!(offer.body, b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let mut scram = ScramSha256::new(b"secret", binding);
    let length = u32::try_from(scram.message().len()).expect("a short message").to_be_bytes();
    let first = [mechanism.as_bytes(), b"\0", &length, scram.message()].concat();
    stream.write_all(&wire::message(b'p', &first)).expect("connected");
    let answer = next(&mut stream);
    if answer.kind == b'R' {
        scram.update(&answer.body[4..]).expect("a salt");
        stream.write_all(&wire::message(b'p', scram.message())).expect("connected");
        let answer = next(&mut stream);
        if answer.kind == b'R' {
            scram.finish(&answer.body[4..]).expect("PostgreSQL has the verifier");
            return vec!["in".to_owned()];
        }
        return error(&answer);
    }
    error(&answer)
}

fn error(message: &Message) -> Vec<String> {
    let mut fields = message.fields();
    ['S', 'C', 'M'].map(|field| fields.remove(&field).expect("the field is always there")).to_vec()
}

#[test]
fn a_proof_is_bound_to_the_certificate_and_nobody_can_hide_that_it_could_be() {
    let authority = Authority::new();
    fs::write(authority.path("password"), "secret\n").expect("a disk");
    let password = authority.path("password");
    let digest = || {
        let certificate = CertificateDer::from_pem_file(authority.path("server.pem")).expect("a certificate");
        Sha256::digest(certificate).to_vec()
    };
    let own = || ChannelBinding::tls_server_end_point(digest());
    let anothers = || ChannelBinding::tls_server_end_point(vec![7; 32]);
    for mode in ["shared", "isolated"] {
        let server = authority.serve(&["--mode", mode, "--auth", "scram-sha-256", "--password-file", &password]);
        for (mechanism, binding, told) in [
            ("SCRAM-SHA-256-PLUS", own(), &["in"][..]),
            ("SCRAM-SHA-256", ChannelBinding::unsupported(), &["in"]),
            ("SCRAM-SHA-256-PLUS", anothers(), &["FATAL", "28000", "SCRAM channel binding check failed"]),
            (
                "SCRAM-SHA-256",
                ChannelBinding::unrequested(),
                &["FATAL", "28000", "SCRAM channel binding negotiation error"],
            ),
            ("SCRAM-SHA-256-PLUS", ChannelBinding::unsupported(), &["FATAL", "08P01", "malformed SCRAM message"]),
            ("SCRAM-SHA-256", own(), &["FATAL", "08P01", "malformed SCRAM message"]),
        ] {
            let context = format!("{mode} {mechanism} {told:?}");
            let answer = authenticate(&server, authority.client(&[&TLS13], &[]), mechanism, binding);
            assert_eq!(answer[..told.len()], *told, "{context}");
        }
        // The digest is that of the certificate that the client has seen.
        let held = authority.client(&[&TLS12], &[]);
        assert_eq!(authenticate(&server, held.clone(), "SCRAM-SHA-256-PLUS", own()), ["in"], "{mode}");
        authority.issue("server", &["localhost"]);
        server.program.signal(Signal::HUP);
        let started = Instant::now();
        while authenticate(&server, held.clone(), "SCRAM-SHA-256-PLUS", own()) != ["in"] {
            assert!(started.elapsed() < PATIENCE, "{mode}: the files were not read");
        }
    }
}
