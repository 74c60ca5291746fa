//! Rows with signatures and keys that are too weak, made by a program that makes them: OpenSSL.

use std::{path::Path, process::Command};

use outrider_tests::Identity;

use super::makers::*;

/// What a CA below the root says.
const CA: &str =
    "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n";
/// What a good leaf says.
const LEAF: &str = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                    extendedKeyUsage=clientAuth,serverAuth\nsubjectAltName=URI:spiffe://mesh.internal/ns/shop/sa/web\n";

/// Signs a request as it is told to.
struct OpenSsl<'a> {
    dir: &'a Path,
}

impl OpenSsl<'_> {
    fn run(&self, arguments: &str) {
        let mut openssl = Command::new("openssl");
        let output = openssl.args(arguments.split(' ')).current_dir(self.dir).output();
        let output = output.expect("openssl: `cargo xtask test` installs it");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.join(name)).expect("openssl wrote it")
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.dir.join(name), content).expect("a file");
    }

    /// A certificate for a new key, in `NAME.der`, `NAME.pem` and `NAME.key`.
    fn certificate(&self, name: &str, key: &str, by: &str, digest: &str) {
        let key = match key.strip_prefix("rsa:") {
            Some(bits) => format!("-algorithm RSA -pkeyopt rsa_keygen_bits:{bits}"),
            None => "-algorithm EC -pkeyopt ec_paramgen_curve:P-256".to_owned(),
        };
        self.run(&format!("genpkey {key} -out {name}.key"));
        self.run(&format!("req -new -key {name}.key -subj /O={name} -out {name}.csr"));
        let extensions = if name == "leaf" { "leaf.ext" } else { "ca.ext" };
        self.run(&format!(
            "x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial -days 2 -{digest} -extfile {extensions} -out {name}.pem"
        ));
        self.run(&format!("x509 -in {name}.pem -outform DER -out {name}.der"));
        self.run(&format!("pkcs8 -topk8 -nocrypt -in {name}.key -outform DER -out {name}.p8"));
    }
}

/// A leaf below a CA below the root: the CA's key, the digest that the root signs it with, and the one that it signs the leaf with.
fn below(makers: &Makers, key: &str, ca_digest: &str, leaf_digest: &str) -> Identity {
    let dir = tempfile::tempdir().expect("a directory");
    let openssl = OpenSsl { dir: dir.path() };
    let root = makers.root.itself();
    openssl.write("root.der", root.chain.first().expect("the root"));
    openssl.write("root.p8", &root.key);
    openssl.run("x509 -inform DER -in root.der -out root.pem");
    openssl.run("pkey -inform DER -in root.p8 -out root.key");
    openssl.write("ca.ext", CA);
    openssl.write("leaf.ext", LEAF);
    openssl.certificate("ca", key, "root", ca_digest);
    openssl.certificate("leaf", "ec", "ca", leaf_digest);
    Identity { chain: vec![openssl.read("leaf.der"), openssl.read("ca.der")], key: openssl.read("leaf.p8") }
}

/// Digests and keys.
pub(super) fn weak(makers: &Makers) -> Vec<Row> {
    let row = |what: &str, (key, ca, leaf), verdict| row(what, below(makers, key, ca, leaf), verdict);
    vec![
        row("of OpenSSL: ECDSA with SHA-256", ("ec", "sha256", "sha256"), Good),
        row("of OpenSSL: below a CA with an RSA key of 2048 bits", ("rsa:2048", "sha256", "sha256"), Good),
        row("a leaf that is signed with ECDSA and SHA-1", ("ec", "sha256", "sha1"), BAD),
        row("a CA that is signed with ECDSA and SHA-1", ("ec", "sha1", "sha256"), BAD),
        row("a leaf that is signed with RSA and SHA-1", ("rsa:2048", "sha256", "sha1"), BAD),
        row("below a CA with an RSA key of 1024 bits", ("rsa:1024", "sha256", "sha256"), BAD),
        row("below a CA with an RSA key of 2040 bits", ("rsa:2040", "sha256", "sha256"), BAD),
        row("below a CA with an RSA key of 1024 bits that signs with SHA-1", ("rsa:1024", "sha256", "sha1"), BAD),
    ]
}
