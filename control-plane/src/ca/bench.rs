//! How fast the authority signs: for the project's own bench, behind the feature `bench`, in no release.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use outrider_policy::{SpiffeId, TrustDomain};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use zeroize::Zeroizing;

use super::{Authority, Lifetimes, SigningRequest};
use crate::{
    clock,
    config::KeySource,
    store::{Claim, Store},
};

/// Signing requests made beforehand: making keys is the agents' work.
const PREPARED: usize = 64;

/// Leaves signed a second on this thread: the request read and its signature checked, its names compared, the leaf made.
///
/// # Errors
/// When no authority can be set up in `directory`, or one of the steps fails.
pub async fn leaves_per_second(directory: &std::path::Path, time: Duration) -> anyhow::Result<f64> {
    let trust_domain = TrustDomain::new("mesh.internal")?;
    let claim = Claim::new(&directory.join("state"))?;
    let key = KeySource::Given(Zeroizing::new([7; 32]));
    let (store, kek) = Store::open(&claim, &trust_domain, &key).await?;
    let lifetimes =
        Lifetimes::new(Duration::from_secs(3600), Duration::from_secs(7 * 86_400), Duration::from_secs(86_400 * 3650));
    let authority = Authority::open(store, kek, trust_domain, lifetimes, None, clock::now()).await?;
    let identity = SpiffeId::new("spiffe://mesh.internal/ns/shop/sa/web")?;
    let requests = (0..PREPARED).map(|_| request()).collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    let mut signed = 0_u32;
    while begun.elapsed() < time {
        let der = requests.get(signed as usize % PREPARED).context("no request")?;
        let request = SigningRequest::read(der)?;
        request.asks_only_for(&identity)?;
        std::hint::black_box(authority.sign(&request, &identity, clock::now())?);
        signed += 1;
    }
    Ok(f64::from(signed) / begun.elapsed().as_secs_f64())
}

fn request() -> anyhow::Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&KeyPair::generate()?)?.der().to_vec())
}
