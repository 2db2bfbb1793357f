//! What a client is bound to that says that it is bound to the end of its connection (`tls-server-end-point`): a digest of
//! the server's certificate. Does no I/O.

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::{
    error::X509Error,
    nom::Err as Parsing,
    prelude::{FromDer, X509Certificate},
    signature_algorithm::SignatureAlgorithm,
};

/// The digest of a certificate, in base64. Its algorithm is that of the certificate's signature, with SHA-256 in place of
/// MD5 and SHA-1 (RFC 5929, section 4.1; `be_tls_get_certificate_hash` in `src/backend/libpq/be-secure-openssl.c`).
/// `None` for a signature with another one, or without, such as Ed25519.
///
/// # Errors
/// When this is no certificate (DER).
pub(crate) fn digest(certificate: &[u8]) -> Result<Option<String>, X509Error> {
    let parsed = match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => parsed,
        Err(Parsing::Error(error) | Parsing::Failure(error)) => return Err(error),
        // Something is missing or follows it.
        Ok(_) | Err(Parsing::Incomplete(_)) => return Err(X509Error::InvalidCertificate),
    };
    let of_signature = parsed.signature_algorithm.algorithm.to_id_string();
    let algorithm = match SignatureAlgorithm::try_from(&parsed.signature_algorithm) {
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => parameters.hash_algorithm_oid().to_id_string(),
        _ => of_signature,
    };
    // The names are in RFC 8017, appendix C, RFC 5758, and RFC 4055.
    let digest = match &algorithm[..] {
        // MD5 and SHA-1, with RSA, with ECDSA, and SHA-1 by itself.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.3.14.3.2.26"
        // SHA-256
        | "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" | "2.16.840.1.101.3.4.2.1" => {
            Sha256::digest(certificate).to_vec()
        }
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => {
            Sha224::digest(certificate).to_vec()
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            Sha384::digest(certificate).to_vec()
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            Sha512::digest(certificate).to_vec()
        }
        _ => return Ok(None),
    };
    Ok(Some(BASE64_STANDARD.encode(digest)))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    #[test]
    fn a_digest_is_made_as_the_signature_was() {
        let certificate = |algorithm| {
            let key = KeyPair::generate_for(algorithm).expect("a key");
            CertificateParams::default().self_signed(&key).expect("a certificate").der().to_vec()
        };
        let (short, long) = (certificate(&PKCS_ECDSA_P256_SHA256), certificate(&PKCS_ECDSA_P384_SHA384));
        assert_eq!(digest(&short), Ok(Some(BASE64_STANDARD.encode(Sha256::digest(&short)))));
        assert_eq!(digest(&long), Ok(Some(BASE64_STANDARD.encode(Sha384::digest(&long)))));
        assert_eq!(digest(&certificate(&PKCS_ED25519)), Ok(None), "it is signed without a digest of its own");
        assert!(digest(b"nonsense").is_err());
        assert!(digest(&short[..20]).is_err());
        assert!(digest(&[&short[..], b"more"].concat()).is_err());
    }
}
