//! TLS 1.3 with certificates on both sides, as rustls does it by itself.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// The name that clients ask for.
pub(crate) const NAME: &str = "server.mesh.local";

type Files = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, Arc<RootCertStore>);

fn files(directory: &Path, name: &str) -> anyhow::Result<Files> {
    let chain = CertificateDer::pem_file_iter(directory.join(format!("{name}.pem")))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{name}.key")))?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem"))?)?;
    Ok((chain, key, Arc::new(roots)))
}

/// Connects as `client`, without resumption: the mesh has none.
pub(crate) fn client(directory: &Path, alpn: &[&str]) -> anyhow::Result<tokio_rustls::TlsConnector> {
    let (chain, key, roots) = files(directory, "client").context("certificates")?;
    let mut config = ClientConfig::builder_with_provider(outrider_agent::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config).into())
}

/// Accepts as `server`, and wants a certificate.
pub(crate) fn server(directory: &Path, alpn: &[&str]) -> anyhow::Result<tokio_rustls::TlsAcceptor> {
    let (chain, key, roots) = files(directory, "server").context("certificates")?;
    let provider = outrider_agent::tls::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config).into())
}

/// The first SPIFFE ID in a certificate: enough for a reference, not for production.
pub(crate) fn spiffe_id(der: &[u8]) -> Option<String> {
    let at = der.windows(9).position(|window| window == b"spiffe://")?;
    let length = usize::from(*der.get(at.checked_sub(1)?)?);
    Some(String::from_utf8_lossy(der.get(at..at + length)?).into_owned())
}
