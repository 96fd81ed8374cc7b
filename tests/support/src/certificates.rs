//! Certificates for tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::process::Workplace;

/// A certificate authority. Its files are removed when it is dropped.
pub struct Authority {
    workplace: Workplace,
    issuer: Issuer<'static, KeyPair>,
}

/// Paths of a certificate and its key, in PEM form.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    pub fn new() -> Self {
        let workplace = Workplace::new("ca");
        // A server under another user reads them, too.
        fs::set_permissions(workplace.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let mut params = params("test authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(workplace.path().join("ca.pem"), certificate.pem()).expect("ca.pem");
        Self {
            workplace,
            issuer: Issuer::new(params, key),
        }
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.workplace.path().join("ca.pem")
    }

    /// A certificate that is its own authority.
    pub fn self_signed(&self, common_name: &str, hosts: &[&str]) -> Certificate {
        let paths = self.paths(common_name);
        let mut params = params(common_name, hosts);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        write(
            &paths.certificate,
            &params.self_signed(&key).expect("a certificate").pem(),
        );
        write(&paths.key, &key.serialize_pem());
        paths
    }

    fn paths(&self, common_name: &str) -> Certificate {
        let directory = self.workplace.path();
        Certificate {
            certificate: directory.join(format!("{common_name}.pem")),
            key: directory.join(format!("{common_name}.key")),
        }
    }

    /// A certificate for a common name and for hosts (names or addresses).
    pub fn issue(&self, common_name: &str, hosts: &[&str]) -> Certificate {
        let paths = self.paths(common_name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params(common_name, hosts)
            .signed_by(&key, &self.issuer)
            .expect("a certificate");
        write(&paths.certificate, &certificate.pem());
        write(&paths.key, &key.serialize_pem());
        paths
    }
}

/// libpq and PostgreSQL insist on keys that nobody else can read.
fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
}

fn params(common_name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}
