//! The mounted CA that goes, as the store keeps it while another one takes its place.

use std::sync::Arc;

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::{
    CaError,
    authority::Root,
    certificate::spki_hash,
    signer::{Signer, describe},
};
use crate::store::{GoingRow, Role};

/// What the store keeps of the CA in use; `None` of a root that signs nothing.
pub(super) fn keep(root: &Root) -> Option<GoingRow> {
    let issuing = root.issuing.as_ref()?;
    // Without an intermediate the CA that signs may be the root itself.
    let via = root.via.iter().filter(|der| **der != issuing.der && **der != root.der);
    let own = std::iter::once(&issuing.der).filter(|der| **der != root.der);
    let chain = own.chain(via).chain([&root.der]).map(|der| der.to_vec()).collect();
    Some(GoingRow { chain, key: Zeroizing::new(issuing.issuer.key().serialize_der()) })
}

/// The root with the CA that signs below it, as it was kept.
pub(super) fn restore(row: GoingRow) -> Result<Root, CaError> {
    let unusable = |reason: &str| CaError::Stored { role: "mounted", reason: reason.to_owned() };
    let mut chain: Vec<CertificateDer<'static>> = row.chain.into_iter().map(CertificateDer::from).collect();
    let first = chain.first().cloned().ok_or_else(|| unusable("its chain is empty"))?;
    let root = chain.pop().unwrap_or_else(|| first.clone());
    let key = PrivateKeyDer::try_from(row.key.as_slice()).map_err(|_| unusable("its key does not parse"))?;
    let key = KeyPair::try_from(&key).map_err(|_| unusable("its key does not parse"))?;
    let signer = Signer::new(Role::Issuing, key, first)?;
    if spki_hash(signer.issuer.key()) != signer.info.spki {
        return Err(unusable("its certificate is not of its key"));
    }
    let root = Root::of_others(describe(Role::Root, &root)?, root);
    Ok(Root { issuing: Some(Arc::new(signer)), via: chain, ..root })
}
